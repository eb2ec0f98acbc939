"""The SQLite file: its tables, how it is opened, what its errors mean.

When a commit returns, it is flushed to disk (WAL, synchronous FULL). A file of another
program, schema or channel is refused and left as it was.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from chaindock.durable import sync_folder, write_file
from chaindock.errors import LedgerCorrupt, LedgerError, os_errors_as
from chaindock.ids import ChannelId
from chaindock.ledger.mango import documents
from chaindock.telemetry import get_logger

_log = get_logger("ledger")
SCHEMA_VERSION = 6
APPLICATION_ID = 0x43444C31
"""Marks the file as ours in its header ("CDL1")."""

T = TypeVar("T")
MOST_ROWS = 16
"""Rows of one statement: few, so that SQLite parses few statements."""
WRITER_TIMEOUT_S = 5.0
"""How long the writer waits for a lock that another program holds."""

# Keys are UTF-8 bytes, compared bytewise as LevelDB does; a private key is kept as its
# SHA-256, and if the node has the private data, as itself in `name`. `namespaces` has
# one row for the public state of a namespace (collection "") and one for each collection.
# Rows of `versions` are in the order of their blocks, and only the last ones go.
# In `private` its number is below 0 in what a transaction that is not valid wrote.
# `superseded` is the block in which another row took the place, or, of private data, it
# expired; `labelled` is 1 if only metadata changed, a serialised KVMetadataWrite without
# its key, 2 if the private data of the row was purged, and 3 if it has expired. A value of
# NULL is a delete, an integer a row of `contents` (contents.py). A transaction id is kept as
# `packed_id` returns it; in `transient` it is text, with "/" and the SHA-256 of `sets` behind it.
# Tables of values are ordinary ones: in a WITHOUT ROWID table a row above 1 kB takes
# whole pages of its own.
_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE blocks (number INTEGER PRIMARY KEY, hash BLOB NOT NULL,
  block BLOB NOT NULL);
CREATE INDEX blocks_hash ON blocks (substr(hash, 1, 8));
CREATE TABLE contents (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE transactions (block INTEGER NOT NULL, position INTEGER NOT NULL,
  tx_id NOT NULL, code INTEGER NOT NULL, timestamp BLOB NOT NULL,
  PRIMARY KEY (block, position)) WITHOUT ROWID;
CREATE INDEX transactions_id ON transactions (tx_id);
CREATE TABLE namespaces (id INTEGER PRIMARY KEY, ns TEXT NOT NULL,
  collection TEXT NOT NULL, UNIQUE (ns, collection));
CREATE TABLE versions (id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, key BLOB NOT NULL,
  block INTEGER NOT NULL, tx INTEGER NOT NULL, superseded INTEGER,
  labelled INTEGER NOT NULL, metadata BLOB, value BLOB);
CREATE UNIQUE INDEX versions_key ON versions (ns, key, block, tx);
CREATE INDEX versions_current ON versions (ns, key)
  WHERE superseded IS NULL AND value IS NOT NULL;
CREATE INDEX versions_labelled ON versions (ns) WHERE metadata IS NOT NULL;
CREATE INDEX versions_superseded ON versions (superseded)
  WHERE superseded IS NOT NULL;
CREATE TABLE private (id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, key BLOB NOT NULL,
  block INTEGER NOT NULL, tx INTEGER NOT NULL, superseded INTEGER,
  labelled INTEGER NOT NULL, expires INTEGER, metadata BLOB, value BLOB, name BLOB,
  plain BLOB);
CREATE UNIQUE INDEX private_key ON private (ns, key, block, tx);
CREATE INDEX private_names ON private (ns, name)
  WHERE superseded IS NULL AND plain IS NOT NULL;
CREATE INDEX private_held ON private (ns, name) WHERE plain IS NOT NULL;
CREATE INDEX private_labelled ON private (ns) WHERE metadata IS NOT NULL;
CREATE INDEX private_block ON private (block);
CREATE INDEX private_superseded ON private (superseded) WHERE superseded IS NOT NULL;
CREATE INDEX private_expires ON private (expires) WHERE expires IS NOT NULL;
CREATE TABLE transient (tx_id TEXT PRIMARY KEY, height INTEGER NOT NULL,
  sets BLOB NOT NULL);
CREATE INDEX transient_height ON transient (height);
"""
_ENDINGS = ("", "-wal", "-shm")
REBUILT = ".rebuilt"
"""Of the files of a database."""
PRIVATE_SINCE = 3
"""Earlier schemas have no private data, snapshots or indexes."""
_EARLIER_SCHEMAS = range(1, SCHEMA_VERSION)
"""Files of these are made anew from their blocks when they are opened.

Version 5 removed hashes that had expired, version 4 kept hashes and ids more often, version
3 each value twice, version 2 state and history apart, version 1 those in WITHOUT ROWID tables.
"""

_HINTS = {
    sqlite3.SQLITE_FULL: "free some space on the disk, then submit again; "
    "nothing was written",
    sqlite3.SQLITE_BUSY: "stop the other program that uses this ledger",
    sqlite3.SQLITE_LOCKED: "stop the other program that uses this ledger",
    sqlite3.SQLITE_CANTOPEN: "check that the directory exists and may be written",
    sqlite3.SQLITE_READONLY: "check the permissions of the file and its directory",
    sqlite3.SQLITE_PERM: "check the permissions of the file and its directory",
    sqlite3.SQLITE_IOERR: "check the disk; the system's log says more",
}
_NO_FILES = (
    "too many files are open: raise the node's limit (ulimit -n), or lower "
    "peer.limits.concurrency.endorserService"
)
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_RESTORE = (
    "make the state anew from the blocks: chaindock ledger rebuild; if a block is "
    "damaged, load a copy: chaindock load FILE, or begin again: chaindock reset"
)


def connect_writer(
    path: Path, channel: ChannelId, marker: Path | None
) -> tuple[sqlite3.Connection, bool]:
    """Open the one connection that writes; return it, and whether it needs `create`.

    A missing file is made, unless `marker` exists.

    Raises:
        LedgerError: the file is missing, cannot be opened, has another schema version or channel,
        or is not a ledger. LedgerCorrupt: it is no database, or lacks what every ledger
        has. A file that is refused is left as it was.
    """
    _require_file(path, marker)
    facts = {"hint": "check the permissions", "path": path}
    what = f"the directory of ledger {str(path)!r}"
    with os_errors_as(LedgerError, what, "created", **facts):
        path.parent.mkdir(parents=True, exist_ok=True)
    with translated(path):
        db = sqlite3.connect(
            path, WRITER_TIMEOUT_S, isolation_level=None, cached_statements=256
        )
    with closed_on_error(db), translated(path):
        documents.prepare(db)
        empty = _is_empty(db, path, channel)
        # Of smaller pages a third stays empty if values have 1 kB.
        db.execute("PRAGMA page_size=8192")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        # On macOS a plain fsync leaves data in the drive's cache.
        db.execute("PRAGMA fullfsync=ON")
        db.execute("PRAGMA checkpoint_fullfsync=ON")
        db.execute("PRAGMA cache_size=-16000")
        # Of private data that is purged or expired nothing stays in the file.
        db.execute("PRAGMA secure_delete=ON")
        sync_folder(path.parent)
    return db, empty


def _require_file(path: Path, marker: Path | None) -> None:
    if marker is None or not marker.exists():
        return
    if not path.exists() or not path.stat().st_size:
        raise LedgerError(
            f"ledger {str(path)!r} is missing or empty, and this home had one",
            hint="restore the file from a copy, or use another home; to begin an "
            f"empty chain, remove {str(marker)!r}",
            path=path,
        )


def mark(path: Path, marker: Path | None) -> None:
    """Write the marker, if there is none. Raises: LedgerError."""
    if marker is None or marker.exists():
        return
    facts = {"hint": "check free space and permissions", "path": marker}
    with os_errors_as(LedgerError, repr(str(marker)), "written", **facts):
        write_file(marker, f"{path} was made\n".encode())


def connect_reader(path: Path, channel: ChannelId | None = None) -> sqlite3.Connection:
    """Open a connection that cannot write.

    With `channel`, an empty file is refused, and all that `connect_writer` refuses.
    """
    with translated(path):
        db = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        with closed_on_error(db):
            db.execute("PRAGMA query_only=ON")
            documents.prepare(db)
            if channel and _is_empty(db, path, channel):
                raise corrupt(path, "it is empty")
    return db


def _is_empty(db: sqlite3.Connection, path: Path, channel: ChannelId) -> bool:
    """Return False for a ledger of this schema and channel; refuse anything else."""
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = schema_of(db)
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (application, version, tables) == (0, 0, 0):
        return True
    if application != APPLICATION_ID:
        raise LedgerError(
            f"{str(path)!r} is not a ledger but another SQLite database "
            f"(application id {application:#x}, expected {APPLICATION_ID:#x})",
            hint="name another path",
            path=path,
        )
    if version not in {SCHEMA_VERSION, *_EARLIER_SCHEMAS}:
        raise LedgerError(
            f"ledger {str(path)!r} has schema version {version}; "
            f"this program reads version {SCHEMA_VERSION}",
            hint="use the release of chaindock that wrote it, or another home",
            path=path,
            found=version,
            expected=SCHEMA_VERSION,
        )
    found = read_meta(db, path, "channel")
    if found != channel:
        raise LedgerError(
            f"ledger {str(path)!r} belongs to channel {found!r}, not to {channel!r}",
            hint=f"open it with channel {found}, or use another home",
            path=path,
            found=found,
            expected=channel,
        )
    return False


def create(db: sqlite3.Connection, channel: ChannelId) -> None:
    """Make the tables, inside the caller's transaction: half a ledger cannot stay."""
    # executescript() would commit the caller's transaction.
    for statement in filter(str.strip, (_TABLES + documents.SCHEMA).split(";")):
        db.execute(statement)
    db.execute(f"PRAGMA application_id={APPLICATION_ID}")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.execute("INSERT INTO meta VALUES ('channel', ?)", (channel,))


def in_slices(rows: Collection[T]) -> Iterator[tuple[T, ...]]:
    """Yield some rows at a time, as many as one statement is to handle.

    Each step of a statement lets another thread of Python run, and to have its turn again
    takes longer than most steps.
    """
    left = iter(rows)
    while some := tuple(islice(left, MOST_ROWS)):
        yield some


def insert(db: sqlite3.Connection, table: str, rows: Collection[Sequence[Any]]) -> None:
    """Insert rows into `table`, which may name its columns."""
    for some in in_slices(rows):
        row = f"({','.join('?' * len(some[0]))})"
        sql = f"INSERT INTO {table} VALUES {','.join([row] * len(some))}"  # noqa: S608
        db.execute(sql, tuple(chain.from_iterable(some)))


def schema_of(db: sqlite3.Connection) -> int:
    """Return the version of a ledger's tables."""
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def read_meta(db: sqlite3.Connection, path: Path, name: str) -> str | int:
    """Return a value that every ledger has. Raises: LedgerCorrupt."""
    row = db.execute("SELECT value FROM meta WHERE name=?", (name,)).fetchone()
    if row is None:
        raise corrupt(path, f"the entry {name!r} is missing")
    value: str | int = row[0]
    return value


def corrupt(path: Path, found: str) -> LedgerCorrupt:
    """Return the error for a ledger that contradicts itself."""
    return LedgerCorrupt(
        f"ledger {str(path)!r} is damaged: {found}",
        hint=_RESTORE,
        path=path,
        found=found,
    )


def remove_database(path: Path) -> None:
    """Remove a database and its log. Idempotent. Raises: OSError."""
    for ending in _ENDINGS:
        path.with_name(path.name + ending).unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_database(new: Path, path: Path) -> None:
    """Put `new`, which has no log, into the place of a database. Raises: OSError."""
    # A log that is left of the former database would be played into the new one.
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for ending in _ENDINGS[1:]:
        path.with_name(path.name + ending).unlink(missing_ok=True)
    new.replace(path)
    sync_folder(path.parent)


@contextmanager
def immediate(db: sqlite3.Connection) -> Iterator[None]:
    """Run the body in one write transaction: all of it is kept, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        # A full disk makes SQLite roll back by itself.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def closed_on_error(db: sqlite3.Connection) -> Iterator[None]:
    """Close `db` when the body raises."""
    try:
        yield
    except BaseException:
        db.close()
        raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise translate(error, path) from error


def translate(error: sqlite3.Error, path: Path) -> LedgerError:
    """Return the LedgerError (or LedgerCorrupt) that `error` stands for."""
    # The low byte is the primary code; errors of the Python module have none.
    number = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if number in _CORRUPT or "decode to UTF-8" in str(error):  # bytes became text
        return corrupt(path, str(error))
    if number == sqlite3.SQLITE_TOOBIG:
        return corrupt(path, "a long value of the state is missing (table contents)")
    hint = _HINTS.get(number)
    if number == sqlite3.SQLITE_CANTOPEN and _out_of_files():
        hint = _NO_FILES
    return LedgerError(
        f"ledger {str(path)!r}: {error}",
        hint=hint,
        path=path,
        sqlite=getattr(error, "sqlite_errorname", None),
    )


def _out_of_files() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno in {errno.EMFILE, errno.ENFILE}
    return False
