"""Make a block of envelopes and commit it with its effects.

Owns:    the order of checks; every write to the ledger; the tip of the chain.
Not:     threads (writer.py), reads of clients (ledger.py).
Entry:   Committer.open, Committer.commit
Holds:   a block, its transactions, the state and the history change in one SQLite
         transaction or not at all; only valid transactions have effects; all of it
         runs on the writer thread.
Source:  ledger-gateway.md §3.3, §4.1, §6
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KeyModification
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.errors import InvalidInput, LedgerClosed, LedgerError
from chaindock.ids import TxId
from chaindock.ledger.blocks import (
    build_block,
    commit_hash,
)
from chaindock.ledger.database import (
    WRITER_TIMEOUT_S,
    closed_on_error,
    connect_writer,
    create,
    immediate,
    read_meta,
    translated,
)
from chaindock.ledger.decoding import UNKNOWN, Decoded, Space, decode
from chaindock.ledger.mvcc import conflict
from chaindock.ledger.tip import Tip, read_tip
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chaindock.ids import ChannelId
    from chaindock.ledger.blocks import BlockSigner, Change, ChangeKey

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


@dataclass(frozen=True)
class CommittedTx:
    """One transaction of a block and its TxValidationCode."""

    tx_id: TxId
    """"" if the envelope could not be decoded that far."""
    code: int
    index: int
    kind: str = UNKNOWN
    """Name of its header type."""
    chaincode: str = UNKNOWN
    """name:version of what was called."""


@dataclass(frozen=True)
class CommittedBlock:
    """A block that is on disk."""

    number: int
    transactions: tuple[CommittedTx, ...]
    block: bytes
    """serialised `common.Block`"""
    seconds: float = 0.0
    """From the beginning of validation until it was on disk."""


class Committer:
    """Writes blocks. Make and use it on one thread.

    Args:
        wal_limit_bytes: when the log is longer, try to shorten it after a commit.
    """

    def __init__(
        self, path: Path, channel: ChannelId, signer: BlockSigner, wal_limit_bytes: int
    ) -> None:
        self._path = path
        self._channel = channel
        self._signer = signer
        self._wal = path.with_name(path.name + "-wal")
        self._wal_limit = self._next_trim = wal_limit_bytes
        self._db: sqlite3.Connection | None = None
        self._tip = Tip(0, b"", b"", 0)

    def open(self, genesis: Callable[[], bytes]) -> int:
        """Open the file, create it if there is none, check it; return the height.

        Raises:
            LedgerError: it cannot be opened, or is not ours. LedgerCorrupt: it
            contradicts itself.
        """
        db, empty = connect_writer(self._path, self._channel)
        with closed_on_error(db), translated(self._path):
            if empty:
                with immediate(db):
                    create(db, self._channel)
                    self._write_genesis(db, genesis())
            self._tip = read_tip(db, self._path)
            db.execute(f"PRAGMA journal_size_limit={self._wal_limit}")
        self._db = db
        return self._tip.height

    def close(self) -> None:
        """Close the file."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _write_genesis(self, db: sqlite3.Connection, envelope: bytes) -> None:
        tx = decode(envelope, self._channel)
        if tx.code != codes.VALID or not tx.is_config:
            raise InvalidInput(
                f"the genesis envelope is not a config transaction of channel "
                f"{self._channel!r}: {codes.TxValidationCode.Name(tx.code)}"
            )
        _store(db, Tip(0, b"", b"", 0), [envelope], [tx], b"", None)

    def commit(self, envelopes: Sequence[tuple[bytes, int]]) -> CommittedBlock:
        """Build, validate and write one block; it is on disk when this returns.

        Args:
            envelopes: at least one; each with VALID or NOT_VALIDATED if it is still to
                be decided here, else with the code that is recorded.

        Raises:
            InvalidInput: no envelopes. LedgerError: nothing was written.
        """
        if not envelopes:
            raise InvalidInput("a block needs at least one envelope, found none")
        db = self._db
        if db is None:
            raise LedgerClosed("the ledger is not open")
        began = time.perf_counter()
        with translated(self._path), immediate(db):
            self._require_tip(db)
            txs = [self._decided(*envelope) for envelope in envelopes]
            changes = _apply(db, txs, self._tip.height)
            filter_ = bytes(tx.code for tx in txs)
            commit = commit_hash(filter_, changes, self._tip.height, self._tip.commit)
            tip, block = _store(
                db, self._tip, [e for e, _ in envelopes], txs, commit, self._signer
            )
        number, self._tip = self._tip.height, tip
        return CommittedBlock(
            number,
            tuple(
                CommittedTx(TxId(t.tx_id), t.code, i, t.kind, t.chaincode)
                for i, t in enumerate(txs)
            ),
            block,
            time.perf_counter() - began,
        )

    def _decided(self, envelope: bytes, code: int) -> Decoded:
        tx = decode(envelope, self._channel)
        if code not in {codes.VALID, codes.NOT_VALIDATED}:
            tx.code = code
        return tx

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

    def trim_log(self) -> None:
        """Shorten the write-ahead log when it is long; never raises.

        SQLite restarts the log by itself when a commit finds no snapshot that reads
        from it. Under constant load there always is one, so wait a moment for those to
        end; meanwhile no block is written. If they stay, the next try comes when the
        log has grown by its limit again.
        """
        db = self._db
        if db is None:
            return
        try:
            size = self._wal.stat().st_size
            if size < self._wal_limit:
                self._next_trim = self._wal_limit
            if size < self._next_trim:
                return
            db.execute(f"PRAGMA busy_timeout={_TRIM_WAIT_MS}")
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            self._next_trim = self._wal_limit + (size if busy else 0)
            db.execute(f"PRAGMA busy_timeout={int(WRITER_TIMEOUT_S * 1000)}")
        except (OSError, sqlite3.Error) as error:
            self._next_trim += self._wal_limit
            _log.warning("log not shortened", path=str(self._path), exc_info=error)


def _apply(
    db: sqlite3.Connection, txs: list[Decoded], number: int
) -> dict[ChangeKey, Change]:
    """Decide each transaction in order and write the effects of the valid ones."""
    changes: dict[ChangeKey, Change] = {}
    ids: set[str] = set()
    for position, tx in enumerate(txs):
        if tx.code == codes.VALID and tx.tx_id:
            known = tx.tx_id in ids or db.execute(_KNOWN, (tx.tx_id,)).fetchone()
            tx.code = (
                codes.DUPLICATE_TXID if known else conflict(db, tx.spaces, changes)
            )
        ids.add(tx.tx_id)
        if tx.code == codes.VALID:
            for space in tx.spaces:
                _write(db, space, (number, position), changes)
                if not space.collection:
                    _remember(db, space, tx, (number, position))
    return changes


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
    db: sqlite3.Connection, space: Space, tx: Decoded, version: tuple[int, int]
) -> None:
    db.executemany(
        _REMEMBER,
        (
            (
                space.ns,
                key,
                *version,
                # The timestamp is always present: the Node shim fails without it.
                KeyModification(
                    tx_id=tx.tx_id,
                    value=value or b"",
                    timestamp=tx.timestamp,
                    is_delete=value is None,
                ).SerializeToString(),
            )
            for key, value in space.writes
        ),
    )


def _store(
    db: sqlite3.Connection,
    tip: Tip,
    envelopes: list[bytes],
    txs: list[Decoded],
    commit: bytes,
    signer: BlockSigner | None,
) -> tuple[Tip, bytes]:
    """Write the block after `tip` and the index of its transactions."""
    number = tip.height
    configured = any(tx.is_config and tx.code == codes.VALID for tx in txs)
    last_config = number if configured else tip.last_config
    block, block_hash = build_block(
        number,
        tip.hash,
        envelopes,
        codes=bytes(tx.code for tx in txs),
        last_config=last_config,
        commit=commit,
        signer=signer,
    )
    db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (number, block_hash, block))
    db.executemany(
        "INSERT INTO transactions VALUES (?, ?, ?, ?)",
        ((tx.tx_id, number, position, tx.code) for position, tx in enumerate(txs)),
    )
    db.execute("REPLACE INTO meta VALUES ('height', ?)", (number + 1,))
    return Tip(number + 1, block_hash, commit, last_config), block
