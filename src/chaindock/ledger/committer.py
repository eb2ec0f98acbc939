"""Make a block of transactions, validate them, and commit the block with its effects.

A block, its transactions, the state and the history change in one SQLite transaction or
not at all. Everything here runs on the ledger's writer thread.
Source: docs/fabric/ledger.md#order-of-checks, docs/fabric/ledger.md#mvcc
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KeyModification
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.errors import InvalidInput, LedgerClosed, LedgerError
from chaindock.ledger.blocks import Tip, build_block, commit_hash, read_tip
from chaindock.ledger.database import (
    WRITER_TIMEOUT_S,
    closed_on_error,
    connect_writer,
    create,
    immediate,
    mark,
    migrate,
    read_meta,
    translated,
)
from chaindock.ledger.rwset import ReadsSummary
from chaindock.ledger.snapshots import ABOVE_ALL, after
from chaindock.ledger.transaction import code_name, parse_transaction
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Sequence
    from pathlib import Path

    from chaindock.ids import ChannelId
    from chaindock.ledger.blocks import BlockSigner, Change, ChangeKey
    from chaindock.ledger.transaction import ParsedTransaction, Space

_log = get_logger("ledger")
_TRIM_WAIT_MS = 500

# A value written to an existing key keeps the key's metadata.
_PUT = (
    "INSERT INTO state (ns, key, block, tx, value) VALUES (?, ?, ?, ?, ?) "
    "ON CONFLICT (ns, key) DO UPDATE "
    "SET block=excluded.block, tx=excluded.tx, value=excluded.value"
)
_DELETE = "DELETE FROM state WHERE ns=? AND key=?"
_LABEL = "UPDATE state SET metadata=?, block=?, tx=? WHERE ns=? AND key=?"
_VALUE = "SELECT value FROM state WHERE ns=? AND key=?"
_REMEMBER = "INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?)"
_KNOWN = "SELECT 1 FROM transactions WHERE tx_id=? LIMIT 1"
_VERSION = "SELECT block, tx FROM state WHERE ns=? AND key=?"
_VERSIONS = (
    "SELECT key, block, tx FROM state WHERE ns=? AND key>=? AND key<? ORDER BY key"
)


@dataclass(frozen=True)
class CommittedBlock:
    """A block that is on disk.

    Args:
        codes: TxValidationCode of each transaction, in order.
        seconds: from the beginning of validation until it was on disk.
    """

    number: int
    codes: bytes
    seconds: float = 0.0


class Committer:
    """Writes blocks. Make and use it on one thread.

    Args:
        wal_limit_bytes: when the log is longer, try to shorten it after a commit.
        marker: as for `Ledger`.
    """

    def __init__(
        self,
        path: Path,
        channel: ChannelId,
        signer: BlockSigner,
        wal_limit_bytes: int,
        marker: Path | None,
    ) -> None:
        self._marker = marker
        self._path = path
        self._channel = channel
        self._signer = signer
        self._wal = path.with_name(path.name + "-wal")
        self._wal_limit = self._next_trim = wal_limit_bytes
        self._db: sqlite3.Connection | None = None
        self._tip = Tip(0, b"", b"", 0)
        self.log_is_long = False
        """Whether `trim_log` is due since the last commit."""
        self.trimming = False
        """Whether `trim_log` waits for snapshots to end; read by the event loop."""

    def open(self, genesis: Callable[[], bytes]) -> int:
        """Open the file, create it if there is none, check it; return the height."""
        db, empty = connect_writer(self._path, self._channel, self._marker)
        with closed_on_error(db), translated(self._path):
            if empty:
                with immediate(db):
                    create(db, self._channel)
                    self._write_genesis(db, genesis())
            self._tip = read_tip(db, self._path)
            migrate(db, self._path)
            mark(self._path, self._marker)
            db.execute(f"PRAGMA journal_size_limit={self._wal_limit}")
        self._db = db
        return self._tip.height

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write_genesis(self, db: sqlite3.Connection, envelope: bytes) -> None:
        tx = parse_transaction(envelope, self._channel)
        if tx.code != codes.NOT_VALIDATED or not tx.is_config:
            raise InvalidInput(
                f"the genesis envelope is not a config transaction of channel "
                f"{self._channel!r}: {code_name(tx.code)}"
            )
        _store(db, Tip(0, b"", b"", 0), [tx], bytes([codes.VALID]), b"", None)

    def commit(self, txs: Sequence[ParsedTransaction]) -> CommittedBlock:
        """Build, validate and write one block; as `Ledger.commit`."""
        if not txs:
            raise InvalidInput("a block needs at least one transaction, found none")
        db = self._db
        if db is None:
            raise LedgerClosed("the ledger is not open")
        began = time.perf_counter()
        with translated(self._path), immediate(db):
            self._require_tip(db)
            number = self._tip.height
            filter_, changes = _apply(db, txs, number)
            commit = commit_hash(filter_, changes, number, self._tip.commit)
            tip = _store(db, self._tip, txs, filter_, commit, self._signer)
        self._tip = tip
        self.log_is_long = self._is_log_long()
        return CommittedBlock(number, filter_, time.perf_counter() - began)

    def _require_tip(self, db: sqlite3.Connection) -> None:
        """Refuse to write a second block of one number."""
        height = read_meta(db, self._path, "height")
        if height != self._tip.height:
            raise LedgerError(
                f"ledger {str(self._path)!r} has {height} blocks, expected "
                f"{self._tip.height}: another program wrote to it",
                hint="stop the other program, then start again",
                path=self._path,
            )

    def _is_log_long(self) -> bool:
        try:
            size = self._wal.stat().st_size
        except OSError:
            return False
        if size < self._wal_limit:
            self._next_trim = self._wal_limit
        return size >= self._next_trim

    def trim_log(self) -> None:
        """Shorten the write-ahead log; never raises.

        SQLite restarts the log by itself when a commit finds no snapshot that reads
        from the log. Under constant load there always is such a snapshot, so wait up to
        0.5 s for them to end; meanwhile no block is written. If they stay, the next try
        comes when the log has grown by its limit again.
        """
        db = self._db
        if db is None:
            return
        try:
            size = self._wal.stat().st_size
            self.trimming = True
            db.execute(f"PRAGMA busy_timeout={_TRIM_WAIT_MS}")
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            self._next_trim = self._wal_limit + (size if busy else 0)
        except (OSError, sqlite3.Error) as error:
            self._next_trim += self._wal_limit
            _log.warning("WAL not shortened", path=str(self._path), exc_info=error)
        finally:
            self.log_is_long = self.trimming = False
            with suppress(sqlite3.Error):
                db.execute(f"PRAGMA busy_timeout={int(WRITER_TIMEOUT_S * 1000)}")


def _apply(
    db: sqlite3.Connection, txs: Sequence[ParsedTransaction], number: int
) -> tuple[bytes, dict[ChangeKey, Change]]:
    """Decide each transaction in order and write the effects of the valid ones.

    Returns: the TxValidationCode of each transaction, and what the block changed.
    """
    decided = bytearray()
    changes: dict[ChangeKey, Change] = {}
    ids: set[str] = set()
    for position, tx in enumerate(txs):
        code = tx.code
        if code == codes.NOT_VALIDATED:
            known = tx.tx_id and db.execute(_KNOWN, (tx.tx_id,)).fetchone()
            if known or tx.tx_id in ids:
                code = codes.DUPLICATE_TXID
            else:
                code = _conflict(db, tx.spaces, changes)
            # Within a block, an id is used up by a transaction that passed all checks
            # but those against the state, as markTXIdDuplicates of Fabric's v20
            # validator.go does it: an envelope that anybody can forge uses up none.
            if tx.tx_id:
                ids.add(tx.tx_id)
        decided.append(code)
        if code == codes.VALID:
            for space in tx.spaces:
                _write(db, space, (number, position), changes)
                if not space.collection:
                    _remember(db, space, tx, (number, position))
    return bytes(decided), changes


def _conflict(
    db: sqlite3.Connection, spaces: list[Space], changed: Container[ChangeKey]
) -> int:
    """Return VALID, MVCC_READ_CONFLICT or PHANTOM_READ_CONFLICT: the first found.

    `db` holds the block's open transaction, and so sees what earlier valid transactions
    of the block wrote; `changed` also has what they deleted or re-labelled.
    """
    for space in spaces:
        for key, version in space.reads:
            if (space.ns, space.collection, key) in changed:
                return int(codes.MVCC_READ_CONFLICT)
            if db.execute(_VERSION, (space.table, key)).fetchone() != version:
                return int(codes.MVCC_READ_CONFLICT)
        for info in space.ranges:
            if _range_changed(db, space.table, info):
                return int(codes.PHANTOM_READ_CONFLICT)
    return int(codes.VALID)


def _range_changed(db: sqlite3.Connection, ns: str, info: Any) -> bool:
    stop = info.end_key.encode()
    if stop and not info.itr_exhausted:
        stop = after(stop)  # the last key that was taken belongs to the range
    rows = db.execute(_VERSIONS, (ns, info.start_key.encode(), stop or ABOVE_ALL))
    if info.HasField("reads_merkle_hashes"):
        recorded = info.reads_merkle_hashes
        summary = ReadsSummary(recorded.max_degree)
        for key, block, position in rows:
            summary.add(key, block, position)
        now = kv_rwset_pb2.RangeQueryInfo()
        summary.write_to(now)
        return bool(now.reads_merkle_hashes != recorded)
    for read in info.raw_reads.kv_reads:
        row = next(rows, None)
        version = (read.version.block_num, read.version.tx_num)
        if row is None or row[0] != read.key.encode() or row[1:] != version:
            return True
    return next(rows, None) is not None


def _write(
    db: sqlite3.Connection,
    space: Space,
    version: tuple[int, int],
    changes: dict[ChangeKey, Change],
) -> None:
    table = space.table
    for key, value in space.writes:
        if value is None:
            db.execute(_DELETE, (table, key))
        else:
            db.execute(_PUT, (table, key, *version, value))
        changes[space.ns, space.collection, key] = (value, version[1])
    for key, metadata in space.metadata:
        # Metadata of an absent key is ignored.
        if db.execute(_LABEL, (metadata, *version, table, key)).rowcount:
            value = db.execute(_VALUE, (table, key)).fetchone()[0]
            changes[space.ns, space.collection, key] = (value, version[1])


def _remember(
    db: sqlite3.Connection,
    space: Space,
    tx: ParsedTransaction,
    version: tuple[int, int],
) -> None:
    for key, value in space.writes:
        # The timestamp is always present: the Node shim fails without it.
        entry = KeyModification(
            tx_id=tx.tx_id,
            value=value or b"",
            timestamp=tx.timestamp,
            is_delete=value is None,
        ).SerializeToString()
        db.execute(_REMEMBER, (space.ns, key, *version, entry))


def _store(
    db: sqlite3.Connection,
    tip: Tip,
    txs: Sequence[ParsedTransaction],
    filter_: bytes,
    commit: bytes,
    signer: BlockSigner | None,
) -> Tip:
    """Write the block after `tip` and the index of its transactions."""
    number = tip.height
    judged = list(zip(txs, filter_, strict=True))
    configured = any(tx.is_config and code == codes.VALID for tx, code in judged)
    last_config = number if configured else tip.last_config
    block, block_hash = build_block(
        number,
        tip.hash,
        [tx.envelope for tx in txs],
        codes=filter_,
        last_config=last_config,
        commit=commit,
        signer=signer,
    )
    db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (number, block_hash, block))
    db.executemany(
        "INSERT INTO transactions VALUES (?, ?, ?, ?)",
        ((tx.tx_id, number, index, code) for index, (tx, code) in enumerate(judged)),
    )
    db.execute("REPLACE INTO meta VALUES ('height', ?)", (number + 1,))
    return Tip(number + 1, block_hash, commit, last_config)
