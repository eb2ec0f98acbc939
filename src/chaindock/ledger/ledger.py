"""The ledger of one channel: opening, closing, reading, and who is told of commits.

A block is on disk before anybody is told of it: first `height` moves, then callbacks are
called, then `commit` returns, all in the order of the blocks.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fabric_protos.common import ledger_pb2
from fabric_protos.peer import transaction_pb2

from chaindock.errors import LedgerClosed, NotFound
from chaindock.ledger.committer import CommittedBlock, Committer
from chaindock.ledger.database import connect_reader, translate
from chaindock.ledger.simulator import Simulator
from chaindock.ledger.snapshots import SnapshotPool
from chaindock.options import option
from chaindock.telemetry import get_logger, metrics
from chaindock.values import Count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from chaindock.ids import ChannelId, TxId
    from chaindock.ledger.blocks import BlockSigner
    from chaindock.ledger.transaction import ParsedTransaction

T = TypeVar("T")
_log = get_logger("ledger")


@dataclass(frozen=True)
class LedgerOptions:
    """Limits of the ledger."""

    total_query_limit: Count = option(100_000, "ledger.state.totalQueryLimit")
    wal_limit_bytes: int = 64 << 20
    """Length of the write-ahead log above which it is shortened actively."""


@dataclass(frozen=True)
class TxLocation:
    """Where a transaction is on the ledger, and its TxValidationCode."""

    block: int
    index: int
    code: int


class _State(Enum):
    NEW = auto()
    OPEN = auto()
    CLOSED = auto()


class Ledger:
    """Blocks, world state and history in one SQLite file; an async context manager.

    All methods belong on the event loop. The plain ones are point reads of some
    microseconds; they raise LedgerClosed when the ledger is not open, LedgerError when
    the file cannot be read.

    Entering raises LedgerError when the file cannot be opened or belongs to another
    schema or channel, LedgerCorrupt when it contradicts itself, InvalidInput when
    the genesis envelope is none.

    Args:
        path: the database file; it and its directory are made when absent.
        channel: an existing ledger must be of this channel.
        signer: signs blocks, on the writer thread.
        genesis: returns the envelope of block 0, a config transaction; called on the
            writer thread, only for a new ledger.
        options: None = the defaults.
    """

    def __init__(
        self,
        path: Path,
        channel: ChannelId,
        signer: BlockSigner,
        genesis: Callable[[], bytes],
        options: LedgerOptions | None = None,
    ) -> None:
        options = options or LedgerOptions()
        self.channel = channel
        self._path = path
        self._genesis = genesis
        self._options = options
        self._committer = Committer(path, channel, signer, options.wal_limit_bytes)
        self._snapshots = SnapshotPool(path)
        self._state = _State.NEW
        self._height = 0
        self._callbacks: list[Callable[[CommittedBlock], None]] = []
        self._writer: ThreadPoolExecutor
        self._reader: sqlite3.Connection
        self._closed: asyncio.Future[None]

    async def __aenter__(self) -> Self:
        if self._state is not _State.NEW:
            raise LedgerClosed(f"ledger {str(self._path)!r} can be entered only once")
        self._writer = ThreadPoolExecutor(1, f"ledger-{self.channel}")
        try:
            self._height = await self._write(
                partial(self._committer.open, self._genesis)
            )
            self._reader = connect_reader(self._path)
        except BaseException:
            await self._close_writer()
            raise
        self._state = _State.OPEN
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish the commits that were asked for, then close the file.

        Simulators still open raise LedgerClosed from now on.
        Cancelled: the writer thread still finishes and closes the file.
        """
        if self._state is _State.NEW:
            self._state = _State.CLOSED
        elif self._state is _State.OPEN:
            self._snapshots.close()
            self._reader.close()
            await self._close_writer()
        elif hasattr(self, "_closed"):
            await asyncio.shield(self._closed)

    async def _close_writer(self) -> None:
        self._state = _State.CLOSED
        self._closed = self._write(self._committer.close)
        self._writer.shutdown(wait=False)
        await asyncio.shield(self._closed)

    def _write(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Queue `job` for the writer thread, which runs one job after the other."""
        return asyncio.get_running_loop().run_in_executor(self._writer, job)

    @property
    def height(self) -> int:
        """Number of blocks, the genesis block included."""
        return self._height

    def new_simulator(self, tx_id: TxId) -> Simulator:
        """Return a simulator over the state as committed now; call its `done`."""
        self._require_open()
        snapshot = self._snapshots.acquire(self._height, renew=self._committer.trimming)
        return Simulator(
            tx_id, snapshot, self._snapshots.release, self._options.total_query_limit
        )

    async def commit(self, txs: Sequence[ParsedTransaction]) -> CommittedBlock:
        """Make the next block of `txs`, validate and commit it.

        Args:
            txs: at least one, in block order. NOT_VALIDATED is decided here:
                DUPLICATE_TXID, MVCC_READ_CONFLICT, PHANTOM_READ_CONFLICT or VALID. Any
                other code is recorded as it is; that transaction has no effect.

        Returns:
            the block, flushed to disk.

        Raises:
            InvalidInput: no transactions. LedgerClosed: not open. LedgerError: the
            block could not be written, and nothing of it was; the ledger stays usable.
        Cancelled: the block is committed all the same and callbacks hear of it.
        """
        self._require_open()
        done = self._write(partial(self._committer.commit, tuple(txs)))
        done.add_done_callback(self._committed)  # called before the waiter below
        return await asyncio.shield(done)

    def _committed(self, done: asyncio.Future[CommittedBlock]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        block = done.result()
        _count(self.channel, block)
        self._height = block.number + 1
        if self._committer.log_is_long and self._state is _State.OPEN:
            self._writer.submit(self._committer.trim_log)
        for callback in tuple(self._callbacks):
            try:
                callback(block)
            except Exception as error:  # noqa: BLE001  # the block is committed
                _log.error("commit callback failed", block=block.number, exc_info=error)

    def on_commit(
        self, callback: Callable[[CommittedBlock], None]
    ) -> Callable[[], None]:
        """Call `callback` on the loop for each block from now; return what ends that.

        An error of the callback is logged and stops nobody else.
        """
        self._callbacks.append(callback)

        def end() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return end

    def find_transaction(self, tx_id: TxId) -> TxLocation | None:
        """Return the first occurrence of a transaction id, valid or not."""
        if not tx_id:
            return None
        row = self._read(
            "SELECT block, position, code FROM transactions WHERE tx_id=? "
            "ORDER BY block, position LIMIT 1",
            tx_id,
        )
        return TxLocation(*row) if row else None

    def get_block(self, number: int) -> bytes:
        """Return a serialised block.

        Raises:
            NotFound: the ledger is not that high.
        """
        row = self._read("SELECT block FROM blocks WHERE number=?", number)
        if row is None:
            raise NotFound(
                f"channel {self.channel!r} has no block {number}; "
                f"its height is {self._height}",
                number=number,
            )
        return bytes(row[0])

    def info(self) -> Any:
        """Return `common.BlockchainInfo`: height, hash of the last block and before."""
        height = self._height
        hashes = [
            row[0] if row else b""
            for row in (
                self._read("SELECT hash FROM blocks WHERE number=?", number)
                for number in (height - 1, height - 2)
            )
        ]
        return ledger_pb2.BlockchainInfo(
            height=height, currentBlockHash=hashes[0], previousBlockHash=hashes[1]
        )

    def _read(self, sql: str, value: Any) -> tuple[Any, ...] | None:
        self._require_open()
        try:
            row: tuple[Any, ...] | None = self._reader.execute(sql, (value,)).fetchone()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return row

    def _require_open(self) -> None:
        if self._state is not _State.OPEN:
            raise LedgerClosed(
                f"the ledger of channel {self.channel!r} is not open",
                channel=self.channel,
            )


def _count(channel: str, block: CommittedBlock) -> None:
    metrics.BLOCK_PROCESSING_TIME.labels(channel).observe(block.seconds)
    for one in block.transactions:
        code = transaction_pb2.TxValidationCode.Name(one.code)
        chaincode = metrics.bounded(one.chaincode)
        metrics.TRANSACTION_COUNT.labels(channel, one.kind, chaincode, code).inc()
