"""The ledger of one channel: opening, closing, reading, and handing blocks to the writer.

A block is on disk before `height` moves, and `height` has moved when `commit` returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from chaindock.aio import Waiters
from chaindock.errors import LedgerClosed, LedgerCorrupt, LedgerError, NotFound
from chaindock.ids import ChannelId, TxId
from chaindock.ledger.blocks import BlockSigner
from chaindock.ledger.committer import CommittedBlock, Committer, count
from chaindock.ledger.mango.documents import fill
from chaindock.ledger.mango.upkeep import put_indexes
from chaindock.ledger.marks import Mark, drop_mark, marks, put_mark, revert
from chaindock.ledger.packing import read_block
from chaindock.ledger.simulator import Simulator
from chaindock.ledger.snapshots import Reader, Snapshot
from chaindock.ledger.transaction import ParsedTransaction, packed_id
from chaindock.ledger.validation import Validator
from chaindock.telemetry import get_logger
from chaindock.values import MIB

T = TypeVar("T")
_log = get_logger("ledger")
_TRIM_AGAIN_S = 10.0
"""Until the log is shortened again, if removed private data stays in it.

A try may hold the writer for 0.5 s."""


@dataclass(frozen=True)
class TxLocation:
    """Where a transaction is on the ledger, and its TxValidationCode; 0 = it took effect."""

    block: int
    index: int
    code: int


class Ledger:
    """Blocks, world state and history in one SQLite file; an async context manager.

    All methods belong on the event loop. The plain ones are point reads of some
    microseconds; they raise LedgerClosed, or LedgerError if the file cannot be read.
    Entering raises LedgerError, LedgerCorrupt, or InvalidInput if the genesis is none.

    The file at `path`, and its directory, are made when absent; but not if a file
    `marker` elsewhere says that the ledger was made. On the writer thread `signer`
    signs blocks, and `genesis` returns the envelope of block 0 of a new ledger, a
    config transaction. Above `wal_limit_bytes` the write-ahead log is shortened
    actively. `strict`: as for `Simulator`.
    """

    def __init__(
        self,
        path: Path,
        channel: ChannelId,
        signer: BlockSigner,
        genesis: Callable[[], bytes],
        *,
        wal_limit_bytes: int = 64 * MIB,
        marker: Path | None = None,
        strict: bool = True,
    ) -> None:
        self.channel, self.signer = channel, signer
        self._strict = strict
        self._path = path
        self._genesis = genesis
        self._committer = Committer(path, channel, signer, wal_limit_bytes, marker)
        self._entered = self._is_open = False
        self._height = 0
        self.reverts = 0
        """How often `revert` was called."""
        self._reverting = 0
        """How many calls of `revert` are not done."""
        self.reverted_to: list[int] = []
        """The heights that it went back to."""
        self.damage: LedgerCorrupt | None = None
        """What was found when the blocks of before were checked in the background."""
        self._blocks: Waiters[int, None] = Waiters()
        self.awaited: Waiters[str, TxLocation] = Waiters()
        """Who waits in `committed`; the orderer fails those of a transaction it loses."""
        self.watchers: list[Callable[..., None]] = [partial(count, channel)]
        """Each is told of a block and its transactions as soon as reads see them."""
        self._retry: asyncio.TimerHandle | None = None
        """The next try to shorten the log, if one is due."""
        self._writer: ThreadPoolExecutor
        self._reader: Reader

    async def __aenter__(self) -> Self:
        if self._entered:
            raise LedgerClosed(f"ledger {str(self._path)!r} can be entered only once")
        self._entered = True
        self._writer = ThreadPoolExecutor(1, f"ledger-{self.channel}")
        try:
            opened = partial(self._committer.open, self._genesis)
            self._height = await self._write(opened)
            self._reader = Reader(self._path, self._height)
        except BaseException:
            await self._close_writer()
            raise
        self._is_open = True
        self._verify()
        self._fill_documents()
        return self

    def _verify(self) -> None:
        """Have the blocks of before checked, between the commits."""
        checked = self._write(self._committer.verify_some)
        checked.add_done_callback(self._verified)

    def _verified(self, checked: asyncio.Future[bool]) -> None:
        if checked.cancelled() or not self._is_open:
            return
        error = checked.exception()
        if isinstance(error, LedgerCorrupt):
            self.damage = error
        if error is not None:
            _log.error("ledger not verified", path=str(self._path), error=str(error))
        elif checked.result():
            self._verify()

    async def __aexit__(self, *_: object) -> None:
        """Finish the commits that were asked for, then close the file.

        Simulators still open raise LedgerClosed from now on.
        Cancelled: the writer thread still finishes and closes the file.
        """
        if self._is_open:
            self._is_open = False
            self._cancel_retry()
            self._reader.close()
            self._blocks.fail(self._closed)
            self.awaited.fail(self._closed)
            await self._close_writer()

    async def _close_writer(self) -> None:
        closed = self._write(self._committer.close)
        self._writer.shutdown(wait=False)
        await asyncio.shield(closed)

    def _write(self, job: Callable[[], T]) -> asyncio.Future[T]:
        """Queue `job` for the writer thread, which runs one job after the other."""
        return asyncio.get_running_loop().run_in_executor(self._writer, job)

    @property
    def height(self) -> int:
        """Number of blocks, the genesis block included."""
        return self._height

    def new_simulator(self, tx_id: TxId) -> Simulator:
        """Return a simulator over the state as committed now; call its `done`.

        Raises: LedgerClosed: not open, or `revert` is not done and `tx_id` is not "". A
            transaction would read what goes, and `reverts` would not show that.
        """
        self._require_open()
        if self._reverting and tx_id:
            raise LedgerClosed(
                f"the ledger of channel {self.channel!r} is being reverted",
                hint="call again when the revert is done",
                channel=self.channel,
            )
        snapshot = Snapshot(self._reader, self._height)
        return Simulator(tx_id, snapshot, strict=self._strict)

    def check_with(self, validator: Validator) -> None:
        """Have transactions checked by policies from the next block on."""
        self._committer.validator = validator

    async def keep_private(self, tx_id: str, sets: bytes) -> None:
        """Keep a serialised `TxPvtReadWriteSet` until its transaction is committed.

        It is on disk when this returns. It is removed with the block of the transaction,
        or 20,000 blocks later.

        Raises: LedgerClosed, LedgerError. Cancelled: it is kept all the same.
        """
        self._require_open()
        kept = self._write(partial(self._committer.keep_private, tx_id, sets))
        await asyncio.shield(kept)

    async def put_indexes(self, ns: str, files: Mapping[str, bytes]) -> None:
        """Make the indexes of rich queries that a package brings; they stay.

        Queries use an index when it has all documents, which are added between blocks.
        `files` are by name in the code archive; a bad one is logged and left out.

        Raises: LedgerClosed, LedgerError. Cancelled: the indexes are made all the same.
        """
        self._require_open()
        await asyncio.shield(
            self._write(partial(self._committer.run, partial(put_indexes, ns, files)))
        )
        if self._is_open:
            self._reader.renew()
            self._fill_documents()

    def _fill_documents(self) -> None:
        """Queue a slice of the documents that indexes lack, until there are no more."""
        if self._is_open:
            slice_ = self._write(partial(self._committer.run, fill))
            slice_.add_done_callback(self._filled)

    def _filled(self, done: asyncio.Future[bool]) -> None:
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or not self._is_open:
            return
        if error is not None:
            _log.warning("documents of an index not added", exc_info=error)
            return
        self._reader.renew()
        if done.result():
            self._fill_documents()

    async def commit(self, txs: Sequence[ParsedTransaction]) -> CommittedBlock:
        """Make the next block of `txs`, validate it, flush it to disk and return it.

        Args:
            txs: at least one, in block order. NOT_VALIDATED is decided here:
                DUPLICATE_TXID, MVCC_READ_CONFLICT, PHANTOM_READ_CONFLICT or VALID. Any
                other code is recorded as it is; that transaction has no effect.

        Raises:
            InvalidInput: no transactions. LedgerClosed: not open. LedgerError: the
            block could not be written, and nothing of it was; the ledger stays usable.
        Cancelled: the block is committed all the same.
        """
        self._require_open()
        done = self._write(partial(self._committer.commit, txs))
        # Called before the waiter below.
        done.add_done_callback(partial(self._committed, txs))
        return await asyncio.shield(done)

    def _committed(
        self, txs: Sequence[ParsedTransaction], done: asyncio.Future[CommittedBlock]
    ) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        block = done.result()
        self._height = block.number + 1
        self._blocks.settle(block.number, None)
        for index, tx in enumerate(txs):  # the first one of an id counts
            place = TxLocation(block.number, index, block.codes[index])
            self.awaited.settle(tx.tx_id, place)
        if self._is_open:
            self._reader.follow(self._height, txs)
            for watch in self.watchers:
                watch(block, txs)
            if self._committer.log_is_long:
                self._trim()

    def _trim(self) -> None:
        """Queue `trim_log`, during which the reader keeps no transaction open."""
        self._reader.renew()
        self._reader.paused = True
        trimmed = self._write(self._committer.trim_log)
        trimmed.add_done_callback(self._trimmed)

    def _trimmed(self, _: object) -> None:
        self._reader.paused = False
        self._cancel_retry()
        if self._is_open and self._committer.trim_again:
            loop = asyncio.get_running_loop()
            self._retry = loop.call_later(_TRIM_AGAIN_S, self._trim)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    async def snapshots(self) -> list[Mark]:
        """Return the snapshots, the newest last. Raises: LedgerClosed, LedgerError."""
        return await self._change(marks)

    async def take_snapshot(self, name: str) -> Mark:
        """Give the newest state a name; a snapshot of that name moves.

        Raises: InvalidInput, LedgerClosed, LedgerError.
        """
        return await self._change(put_mark, name)

    async def drop_snapshot(self, name: str) -> None:
        """Forget a snapshot. Raises: NotFound, LedgerClosed, LedgerError."""
        await self._change(drop_mark, name)

    async def revert(self, name: str) -> Mark:
        """Go back to a snapshot: later blocks and everything they did are gone.

        A simulator of before raises LedgerClosed, and none is made meanwhile. A transaction
        that was simulated before must not be committed afterwards: versions of later blocks
        come again for other values. So `reverts` grows when this is called.

        Raises: NotFound. InvalidInput: chaincode was defined, or the channel configured,
            since. LedgerClosed, LedgerError. Nothing has changed then.
        Cancelled: it is done all the same.
        """
        self._require_open()
        self.reverts += 1
        self._reverting += 1
        done = self._change(revert, name)
        done.add_done_callback(self._reverted)
        return await asyncio.shield(done)

    def _change(self, act: Callable[..., T], *args: str) -> asyncio.Future[T]:
        self._require_open()
        return self._write(partial(self._committer.run, partial(act, *args)))

    def _reverted(self, done: asyncio.Future[Mark]) -> None:
        self._reverting -= 1
        if done.cancelled() or done.exception() is not None or not self._is_open:
            return
        height = self._height = done.result().height
        self.reverted_to.append(height)
        self._blocks.fail(self.reverted, lambda above: above > height)
        self._reader.close()
        self._reader = Reader(self._path, self._height)

    def reverted(self) -> LedgerError:
        """Return the error for a reader of blocks that a revert removed."""
        height = self._height
        message = f"channel {self.channel!r} was reverted to height {height} meanwhile"
        return LedgerError(message, hint="read the blocks again", height=height)

    async def wait_above(self, height: int) -> None:
        """Return as soon as there are more than `height` blocks, perhaps at once.

        Raises: LedgerClosed. LedgerError: a revert went below `height` meanwhile.
        """
        self._require_open()
        if self._height <= height:
            await self._blocks.wait(height)

    async def committed(self, tx_id: TxId) -> TxLocation:
        """Return where a transaction is, valid or not, as soon as it is committed.

        Of an id that occurs twice the first occurrence counts. Raises: LedgerClosed.
        """
        found = self.find_transaction(tx_id)
        # Its block may be on disk before simulations see it.
        if found is not None and found.block < self._height:
            return found
        return await self.awaited.wait(tx_id)

    def find_transaction(self, tx_id: TxId) -> TxLocation | None:
        """Return the first occurrence of a transaction id, valid or not."""
        self._require_open()
        if not tx_id:
            return None
        row = self._reader.one(
            "SELECT block, position, code FROM transactions WHERE tx_id=? "
            "ORDER BY block, position LIMIT 1",
            (packed_id(tx_id),),
        )
        return TxLocation(*row) if row else None

    def get_block(self, number: int) -> bytes:
        """Return a serialised block. Raises: NotFound."""
        self._require_open()
        row = self._reader.one("SELECT block FROM blocks WHERE number=?", (number,))
        if row is None:
            height = f"its height is {self._height}"
            message = f"channel {self.channel!r} has no block {number}; {height}"
            raise NotFound(message, number=number)
        return read_block(self._reader.execute, self._path, number, row[0])

    def _require_open(self) -> None:
        if not self._is_open:
            raise self._closed()

    def _closed(self) -> LedgerClosed:
        message = f"the ledger of channel {self.channel!r} is not open"
        return LedgerClosed(message, channel=self.channel)
