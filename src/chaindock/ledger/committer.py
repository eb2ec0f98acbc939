"""Make a block of transactions, validate them, and commit the block with its effects.

A block, its transactions, the state and the history change in one SQLite transaction or
not at all. Everything here runs on the ledger's writer thread.
Source: docs/fabric/ledger.md#order-of-checks, docs/fabric/ledger.md#mvcc
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fabric_protos.peer import transaction_pb2 as codes

from chaindock.errors import InvalidInput, LedgerClosed, LedgerError
from chaindock.ids import ChannelId
from chaindock.ledger.blocks import BlockSigner, Tip, build_block, commit_hash, read_tip
from chaindock.ledger.database import (
    SCHEMA_VERSION,
    WRITER_TIMEOUT_S,
    closed_on_error,
    connect_writer,
    create,
    immediate,
    in_slices,
    mark,
    read_meta,
    schema_of,
    translated,
)
from chaindock.ledger.effects import Effects, index, keep, read_kept, remove_kept
from chaindock.ledger.packing import store_block
from chaindock.ledger.rebuild import (
    Watermark,
    read_watermark,
    rebuild_file,
    save_watermark,
    verify,
)
from chaindock.ledger.transaction import (
    UNKNOWN,
    ParsedTransaction,
    code_name,
    packed_id,
    parse_transaction,
    unpacked_id,
)
from chaindock.ledger.validation import CommittedState, Validator, conflict
from chaindock.ledger.versions import Versions
from chaindock.telemetry import get_logger, metrics

T = TypeVar("T")
_log = get_logger("ledger")
_TRIM_WAIT_MS = 500

_KNOWN = "SELECT tx_id FROM transactions WHERE tx_id IN ({})"
_ADVANCE = "UPDATE meta SET value=?2 WHERE name='height' AND value=?1"


@dataclass(frozen=True)
class CommittedBlock:
    """A block that is on disk."""

    number: int
    codes: bytes
    """TxValidationCode of each transaction, in order."""
    seconds: float = 0.0
    """From the beginning of validation until it was on disk."""


class Committer:
    """Writes blocks. Make and use it on one thread.

    When the log is longer than `wal_limit_bytes`, it tries to shorten it after a
    commit. `marker`: as for `Ledger`.
    """

    def __init__(
        self,
        path: Path,
        channel: ChannelId,
        signer: BlockSigner,
        wal_limit_bytes: int,
        marker: Path | None,
    ) -> None:
        self.validator: Validator | None = None
        self._versions: Versions
        self._marker = marker
        self._path = path
        self._channel = channel
        self._signer = signer
        self._wal = path.with_name(path.name + "-wal")
        self._wal_limit = self._next_trim = wal_limit_bytes
        self._db: sqlite3.Connection | None = None
        self._tip = Tip(0, b"", b"", 0)
        self._verified: Watermark | None = None
        self._removed = False
        """Whether private data that was removed still stands in the log."""
        self.log_is_long = False
        """Whether `trim_log` is due since the last commit."""
        self.trim_again = False
        """Whether `trim_log` left removed private data in the log."""

    def open(self, genesis: Callable[[], bytes]) -> int:
        """Open the file, create it if there is none, check it; return the height."""
        db, empty = connect_writer(self._path, self._channel, self._marker)
        if not empty and schema_of(db) != SCHEMA_VERSION:
            with closing(db), translated(self._path):
                read_tip(db, self._path)
            _log.info("ledger is converted to another schema", path=str(self._path))
            rebuild_file(self._path, self._channel, whole=True)
            db, _ = connect_writer(self._path, self._channel, self._marker)
        with closed_on_error(db), translated(self._path):
            if empty:
                with immediate(db):
                    create(db, self._channel)
                    self._write_genesis(db, genesis())
            self._tip = read_tip(db, self._path)
            mark(self._path, self._marker)
            db.execute(f"PRAGMA journal_size_limit={self._wal_limit}")
            # After a crash, private data that was removed may stand in the log.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._db = db
        self._versions = Versions(db)
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
        db.execute("INSERT INTO meta VALUES ('height', 1)")

    def commit(self, txs: Sequence[ParsedTransaction]) -> CommittedBlock:
        """Build, validate and write one block; as `Ledger.commit`."""
        if not txs:
            raise InvalidInput("a block needs at least one transaction, found none")
        db = self._require_open()
        began = time.perf_counter()
        number = self._tip.height
        with translated(self._path), self._block(db) as versions:
            if db.execute(_ADVANCE, (number, number + 1)).rowcount != 1:
                self._require_tip(db)
            effects = Effects(versions, number, txs)
            filter_ = self._apply(db, versions, txs, effects)
            commit = commit_hash(filter_, effects.changes, number, self._tip.commit)
            tip = _store(db, self._tip, txs, filter_, commit, self._signer)
        self._tip = tip
        self._removed = self._removed or effects.removed
        due = self._removed and not self.trim_again
        self.log_is_long = due or self._is_log_long()
        return CommittedBlock(number, filter_, time.perf_counter() - began)

    @contextmanager
    def _block(self, db: sqlite3.Connection) -> Iterator[Versions]:
        """Run the body in one transaction of the database."""
        try:
            with immediate(db):
                yield self._versions
        except BaseException:
            self._versions = Versions(db)
            raise

    def _apply(
        self,
        db: sqlite3.Connection,
        versions: Versions,
        txs: Sequence[ParsedTransaction],
        effects: Effects,
    ) -> bytes:
        """Decide each transaction, write the effects of valid ones; return their codes."""
        number = self._tip.height
        decided = bytearray()
        ids: set[str] = set()
        for position, checked in enumerate(self._check(db, versions, txs)):
            tx, code = txs[position], checked
            if code == codes.NOT_VALIDATED and tx.tx_id in ids:
                code = codes.DUPLICATE_TXID
            elif code == codes.NOT_VALIDATED:
                code = conflict(versions, tx.spaces, effects.changes)
            # Within a block, an id is used up by a transaction that passed all checks
            # but those against the state, as markTXIdDuplicates of Fabric's v20
            # validator.go does it: an envelope that anybody can forge uses up none.
            if checked == codes.NOT_VALIDATED and tx.tx_id:
                ids.add(tx.tx_id)
            decided.append(code)
            valid = code == codes.VALID
            effects.write(tx, position, read_kept(db, tx, valid=valid), valid=valid)
        effects.finish()
        remove_kept(db, txs, number)
        return bytes(decided)

    def _check(
        self,
        db: sqlite3.Connection,
        versions: Versions,
        txs: Sequence[ParsedTransaction],
    ) -> list[int]:
        """Return the codes after the checks that need nothing of the block itself."""
        number = self._tip.height
        state = CommittedState(versions, number)
        if self.validator is not None:
            self.validator.begin(number)
        ids = {packed_id(tx.tx_id) for tx in txs if tx.tx_id}
        known = {
            unpacked_id(row[0])
            for some in in_slices(ids)
            for row in db.execute(_KNOWN.format(",".join("?" * len(some))), some)
        }
        decided = []
        for tx in txs:
            code = tx.code
            if code == codes.NOT_VALIDATED:
                if tx.tx_id in known:
                    code = codes.DUPLICATE_TXID
                elif self.validator is not None and not tx.is_config:
                    code = self.validator.check(tx, state)
            decided.append(int(code))
        return decided

    def keep_private(self, tx_id: str, sets: bytes) -> None:
        """Keep private data until its transaction is committed; as `Ledger`."""
        db = self._require_open()
        with translated(self._path), immediate(db):
            keep(db, tx_id, self._tip.height, sets)

    def run(self, job: Callable[[sqlite3.Connection, Tip], T]) -> T:
        """Return what `job` returns; all that it changes in the file stays, or nothing."""
        db = self._require_open()
        with translated(self._path), self._block(db):
            self._require_tip(db)
            found = job(db, self._tip)
            tip = read_tip(db, self._path)
        self._versions = Versions(db)
        if tip != self._tip:  # blocks were removed
            self._tip, self._verified = tip, None
        return found

    def _require_open(self) -> sqlite3.Connection:
        if self._db is None:
            raise LedgerClosed("the ledger is not open")
        return self._db

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

    def verify_some(self) -> bool:
        """Check some blocks; return whether there are more. Raises: LedgerError."""
        db = self._require_open()
        with translated(self._path):
            mark = self._verified or read_watermark(db)
            self._verified, more = verify(db, self._path, mark)
            if not more:
                with immediate(db):
                    save_watermark(db, self._verified)
        return more

    def trim_log(self) -> None:
        """Shorten the write-ahead log; never raises.

        SQLite restarts the log by itself when a commit finds no reader of it. Under constant
        load there always is one, so the ledger holds no transaction open meanwhile. If another
        reader does for 0.5 s, the next try comes when the log has grown by its limit again;
        `trim_again`: or sooner, since private data that was removed still stands in it.
        """
        db = self._db
        if db is None:
            return
        try:
            size = self._wal.stat().st_size
            db.execute(f"PRAGMA busy_timeout={_TRIM_WAIT_MS}")
            busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            self._next_trim = self._wal_limit + (size if busy else 0)
            self._removed = self._removed and bool(busy)
        except (OSError, sqlite3.Error) as error:
            self._next_trim += self._wal_limit
            _log.warning("WAL not shortened", path=str(self._path), exc_info=error)
        finally:
            self.log_is_long, self.trim_again = False, self._removed
            with suppress(sqlite3.Error):
                db.execute(f"PRAGMA busy_timeout={int(WRITER_TIMEOUT_S * 1000)}")


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
    judged = zip(txs, filter_, strict=True)
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
    store_block(db, number, block_hash, block)
    index(db, number, txs, filter_)
    return Tip(number + 1, block_hash, commit, last_config)


def count(
    channel: str, block: CommittedBlock, txs: Sequence[ParsedTransaction]
) -> None:
    """Count a block and its transactions."""
    metrics.BLOCK_PROCESSING_TIME.labels(channel).observe(block.seconds)
    alike = Counter(
        (tx.kind, tx.name, tx.version, code)
        for tx, code in zip(txs, block.codes, strict=True)
    )
    for (kind, name, version, code), number in alike.items():
        called = f"{name}:{version}" if name else UNKNOWN
        labels = channel, kind, metrics.bounded(called), code_name(code)
        metrics.TRANSACTION_COUNT.labels(*labels).inc(number)
