"""Check the stored blocks; make state, history and indexes of a ledger anew from them.

A new file is made beside the old one and takes its place at the end, so that a crash
leaves either. No node may have the ledger open meanwhile, but it may while blocks are
checked: slice by slice, on the writer thread.
Source: docs/tasks/ledger.md
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from chaindock.errors import ChaindockError, LedgerError, os_errors_as
from chaindock.ids import ChannelId
from chaindock.ledger.blocks import check_block
from chaindock.ledger.database import (
    PRIVATE_SINCE,
    REBUILT,
    connect_reader,
    connect_writer,
    corrupt,
    create,
    immediate,
    read_meta,
    remove_database,
    replace_database,
    schema_of,
    translated,
)
from chaindock.ledger.effects import rebuild
from chaindock.ledger.mango.upkeep import take_over
from chaindock.ledger.packing import read_block
from chaindock.telemetry import get_logger

SLICE_BYTES: Final = 512 * 1024
"""Blocks that are checked at once: 2 ms, in which no block is committed."""
_BLOCKS: Final = (
    "SELECT number, hash, block FROM blocks WHERE number>=? ORDER BY number"
)
_HASH: Final = "SELECT hash FROM blocks WHERE number=?"
_READ: Final = "SELECT value FROM meta WHERE name='verified'"
_SAVE: Final = "REPLACE INTO meta VALUES ('verified', ?)"
_log = get_logger("ledger")
_HEIGHT: Final = "REPLACE INTO meta SELECT 'height', count(*) FROM blocks"
# Snapshots; the height is counted, and what was verified is verified again.
_META: Final = (
    "INSERT INTO meta SELECT * FROM former.meta WHERE name LIKE 'snapshot:%' "
    "AND value IN (SELECT (number+1) || ':' || lower(hex(hash)) FROM main.blocks)"
)
_OLD_HEIGHT: Final = "SELECT value FROM former.meta WHERE name='height'"
_TRANSIENT: Final = "INSERT INTO transient SELECT * FROM former.transient"
# Key and value count only if they belong to the hashes that stand in the block.
_HASHED: Final = """
  JOIN main.namespaces now ON now.ns=was.ns AND now.collection=was.collection
  WHERE (old.name IS NULL OR sha256(CAST(old.name AS BLOB)) IS old.key)
  AND (old.plain IS NULL OR sha256(CAST(old.plain AS BLOB)) IS old.value)
"""
_PRIVATE: Final = """
UPDATE private SET name=CAST(old.name AS BLOB), plain=CAST(old.plain AS BLOB),
  labelled=max(private.labelled, old.labelled) FROM former.private old
  JOIN former.namespaces was ON was.id=old.ns {}
  AND private.ns=now.id AND private.key=old.key AND private.block=old.block
  AND private.tx=old.tx AND private.value IS old.value AND (old.name IS NOT NULL OR old.labelled>1)
"""
_LOST: Final = """
SELECT (SELECT count(*) FROM former.private WHERE ns>0 AND plain IS NOT NULL)
  - (SELECT count(*) FROM main.private WHERE plain IS NOT NULL)
"""
_NAMES: Final = (
    "INSERT OR IGNORE INTO namespaces (ns, collection) "
    "SELECT ns, collection FROM former.namespaces"
)
# Of transactions that are not valid, rebuilding makes no rows.
_REFUSED: Final = """
INSERT INTO private SELECT NULL, -now.id, key, old.block, tx, superseded, labelled, expires,
  metadata, value, CAST(name AS BLOB), CAST(plain AS BLOB) FROM former.private old
  JOIN main.transactions t ON t.block=old.block AND t.position=tx
  JOIN former.namespaces was ON was.id=-old.ns {}
"""


@dataclass(frozen=True)
class Watermark:
    """Blocks below `number` are whole; `previous` is the hash of the last one, or b""."""

    number: int = 0
    previous: bytes = b""


def read_watermark(db: sqlite3.Connection) -> Watermark:
    """Return the saved watermark; the beginning if there is none that fits."""
    row = db.execute(_READ).fetchone()
    if row is None:
        return Watermark()
    number, _, previous = str(row[0]).partition(":")
    found = db.execute(_HASH, (int(number) - 1,)).fetchone()
    # A ledger that was reverted has other blocks, or fewer.
    if found is None or found[0].hex() != previous:
        return Watermark()
    return Watermark(int(number), found[0])


def save_watermark(db: sqlite3.Connection, mark: Watermark) -> None:
    """Save a watermark above the beginning."""
    if mark.number:
        db.execute(_SAVE, (f"{mark.number}:{mark.previous.hex()}",))


def verify(
    db: sqlite3.Connection, path: Path, mark: Watermark, most_bytes: int = SLICE_BYTES
) -> tuple[Watermark, bool]:
    """Check some blocks from the watermark on.

    Returns: the new watermark, and whether there are more blocks. Raises: LedgerCorrupt.
    """
    size = 0
    for number, block_hash, data in db.execute(_BLOCKS, (mark.number,)):
        if size > most_bytes:
            return mark, True
        if number != mark.number:
            raise corrupt(path, f"block {mark.number} is missing")
        block = read_block(db.execute, path, number, data)
        check_block(block, number, block_hash, mark.previous, path)
        mark = Watermark(number + 1, block_hash)
        size += len(block)
    return mark, False


def verify_all(db: sqlite3.Connection, path: Path) -> int:
    """Check all blocks, and the height of the state; return it. Raises: LedgerCorrupt."""
    mark, more = Watermark(), True
    while more:
        mark, more = verify(db, path, mark)
    height = int(read_meta(db, path, "height"))
    if height != mark.number:
        raise corrupt(
            path, f"the state is at height {height}, there are {mark.number} blocks"
        )
    return height


def rebuild_file(
    path: Path,
    channel: ChannelId,
    warn: Callable[[str], None] | None = None,
    *,
    whole: bool = False,
) -> int:
    """Make a ledger anew; return how many blocks it has.

    Blocks are checked and taken over, and so are private data, snapshots and indexes as far
    as they can be read and fit the blocks. With `whole` it is an error if they cannot be
    read, unless the schema had none yet, or if a private value fits no hash in a block.
    `warn` is called with a text if the blocks give another height than the file recorded.

    Raises: LedgerCorrupt: a block is damaged. LedgerError: the file is no ledger of the
    channel, or cannot be read or written. Nothing has changed then.
    """
    if not path.exists():
        raise LedgerError(f"there is no ledger {str(path)!r}", path=path)
    with closing(connect_reader(path, channel)) as db:  # refuses what is no such ledger
        whole = whole and schema_of(db) >= PRIVATE_SINCE
    new = path.with_name(path.name + REBUILT)
    remove_database(new)
    facts = {"hint": "check free space and permissions", "path": path}
    try:
        with os_errors_as(LedgerError, f"ledger {str(path)!r}", "replaced", **facts):
            with translated(path), closing(connect_writer(new, channel, None)[0]) as db:
                height, recorded = _fill(db, path, channel, whole=whole)
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            replace_database(new, path)
    finally:
        remove_database(new)
    if warn is not None and recorded not in {None, height}:
        warn(_differing(path, height, recorded))
    return height


def _differing(path: Path, height: int, recorded: Any) -> str:
    text = f"ledger {str(path)!r} recorded height {recorded}, its blocks give {height}"
    if isinstance(recorded, int) and recorded > height:
        text += (
            f": block {height} and those after it are missing; "
            "if a copy has them, load it: chaindock load FILE"
        )
    return text


def _fill(
    db: sqlite3.Connection, path: Path, channel: ChannelId, *, whole: bool
) -> tuple[int, Any]:
    """Fill the new file; return its height, and that of `path`, None if unreadable."""
    recorded, refused = None, _REFUSED.format(_HASHED)
    db.execute("ATTACH ? AS former", (str(path),))
    db.create_function("sha256", 1, lambda data: sha256(data).digest())
    with immediate(db):
        create(db, channel)
        rebuild(db, path, channel)
        db.execute(_HEIGHT)
        for part, act in (
            ("snapshots", partial(db.execute, _META)),
            ("private data", partial(_take_private, db, path)),
            ("names of collections", partial(db.execute, _NAMES)),
            ("private data of refused transactions", partial(db.execute, refused)),
            ("private data of transactions to come", partial(db.execute, _TRANSIENT)),
            ("indexes of rich queries", partial(take_over, db)),
        ):
            try:
                with translated(path):
                    act()
            except ChaindockError as error:  # it was damaged, or an earlier schema
                if whole:
                    raise
                _log.warning("not taken over", part=part, error=str(error))
        with suppress(sqlite3.Error):
            row = db.execute(_OLD_HEIGHT).fetchone()
            recorded = row and row[0]
        height = int(read_meta(db, path, "height"))
    db.execute("DETACH former")
    return height, recorded


def _take_private(db: sqlite3.Connection, path: Path) -> None:
    db.execute(_PRIVATE.format(_HASHED))
    if lost := db.execute(_LOST).fetchone()[0]:
        raise corrupt(path, f"private values that fit no hash in a block: {lost}")
