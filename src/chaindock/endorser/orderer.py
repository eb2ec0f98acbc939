"""Put transactions in order and have them committed.

Owns:    what is accepted, cutting batches, telling each submitter what became of his.
Not:     validation without state (transactions.py), blocks and conflicts (ledger).
Entry:   Orderer.submit
Holds:   what was accepted is committed in order of acceptance, also when the submitter
         left or the node goes down in order; what may wait is bounded, in number and
         bytes.
Source:  ledger-gateway.md §3.1, §3.2, §4.1
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self

from fabric_protos.common import common_pb2
from fabric_protos.peer import transaction_pb2 as codes
from google.protobuf.message import DecodeError

from chaindock.aio import Tasks
from chaindock.errors import (
    ChaindockError,
    Denied,
    InvalidInput,
    LedgerClosed,
    LedgerError,
)
from chaindock.identity.msp import Role
from chaindock.ids import TxId
from chaindock.lifecycle.definitions import NAMESPACE, read_sequence
from chaindock.options import option
from chaindock.telemetry import get_logger
from chaindock.values import MIB, Bytes, Count, SecondsOrNone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.endorser.transactions import Checked, TransactionChecks
    from chaindock.identity.msp import Identity
    from chaindock.ids import ChannelId
    from chaindock.ledger.committer import CommittedBlock
    from chaindock.ledger.simulator import Simulator

_log = get_logger("orderer")
_CONFIGS: Final = frozenset({common_pb2.CONFIG, common_pb2.CONFIG_UPDATE})


class Blocks(Protocol):
    """Where blocks go; ledger.Ledger is one."""

    @property
    def channel(self) -> ChannelId:
        """The channel."""

    def new_simulator(self, tx_id: TxId) -> Simulator:
        """Return a view of the committed state."""

    async def commit(self, envelopes: Sequence[tuple[bytes, int]]) -> CommittedBlock:
        """Commit a block. Raises: nothing was committed then."""


@dataclass(frozen=True)
class OrdererOptions:
    """How blocks are cut; the names are those of Fabric's BatchSize.

    Args:
        max_waiting, max_waiting_bytes: transactions in the queue; when it is full,
            submitters wait.
    """

    max_message_count: Count = option(
        500,
        "chaindock.block.maxMessageCount",
        "Largest number of transactions in a block.",
    )
    absolute_max_bytes: Bytes = option(
        10 * MIB, "chaindock.block.absoluteMaxBytes", "Largest transaction."
    )
    preferred_max_bytes: Bytes = option(
        2 * MIB,
        "chaindock.block.preferredMaxBytes",
        "Largest block; a larger transaction gets a block of its own.",
    )
    batch_timeout_s: SecondsOrNone = option(
        0.0,
        "chaindock.block.batchTimeout",
        "Time that a block waits for more transactions; 0s = a block takes those "
        "that came while the previous one was committed.",
    )
    max_waiting: int = 5000
    max_waiting_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Commit:
    """What became of a transaction.

    Args:
        code: TxValidationCode; 0 = it took effect.
        index: position in the block.
    """

    block: int
    code: int
    tx_id: TxId
    index: int


@dataclass(eq=False, slots=True)
class _Waiting:
    envelope: bytes
    checked: Checked
    arrived_s: float
    done: asyncio.Future[Commit]


class Orderer:
    """Orders the transactions of one channel; an async context manager."""

    def __init__(
        self,
        ledger: Blocks,
        checks: TransactionChecks,
        options: OrdererOptions | None = None,
    ) -> None:
        self._ledger = ledger
        self._checks = checks
        self._options = options or OrdererOptions()
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False
        self._defined: set[str] = {NAMESPACE}
        self._tasks = Tasks("orderer")
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = self._tasks.start(self._work(), "blocks")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Accept nothing more, commit what was accepted, then return."""
        self._closing = True
        self._arrived.set()
        self._room.set()
        if self._worker is not None:
            await asyncio.wait({self._worker})
        await self._tasks.aclose()

    async def submit(self, envelope: bytes) -> Commit:
        """Order a signed transaction and wait until it is committed.

        Args:
            envelope: serialised common.Envelope.

        Returns:
            where it is, valid or not.

        Raises:
            InvalidInput: it is refused: empty, too large, of another channel or kind.
            Denied: the creator may not write, or its certificate has run out.
            LedgerClosed: the node goes down. LedgerError: the block was not written.
        Cancelled: once accepted it is committed all the same.
        """
        self._admit(envelope)
        checked = self._checks.check(envelope)
        if (creator := checked.creator) is not None:
            _check_writer(creator)
        while not self._closing and self._full(len(envelope)):
            self._room.clear()
            await self._room.wait()
        if self._closing:
            raise LedgerClosed("the orderer is going down; nothing was submitted")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(envelope, checked, loop.time(), loop.create_future())
        self._queue.append(waiting)
        self._bytes += len(envelope)
        self._arrived.set()
        return await waiting.done

    def _admit(self, envelope: bytes) -> None:
        """Refuse what an orderer refuses at once (§3.2)."""
        limit = self._options.absolute_max_bytes
        try:
            outer = common_pb2.Envelope.FromString(envelope)
            payload = common_pb2.Payload.FromString(outer.payload)
            header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        except DecodeError as error:
            raise InvalidInput(f"the envelope cannot be read: {error}") from error
        if not outer.payload:
            raise InvalidInput("Message was empty")
        size = len(outer.payload) + len(outer.signature)
        if size > limit:
            raise InvalidInput(
                f"message payload is {size} bytes and exceeds maximum allowed {limit} "
                "bytes"
            )
        if header.type in _CONFIGS:
            raise InvalidInput("message is of type that cannot be processed directly")
        if header.channel_id != self._ledger.channel:
            raise InvalidInput(f"channel does not exist: {header.channel_id!r}")

    def _full(self, size: int) -> bool:
        options = self._options
        return len(self._queue) >= options.max_waiting or (
            bool(self._queue) and self._bytes + size > options.max_waiting_bytes
        )

    # ---- the worker

    async def _work(self) -> None:
        try:
            while await self._some():
                await self._commit(self._cut())
        finally:
            self._closing = True
            gone = LedgerClosed(
                "the orderer ended before the transaction was committed"
            )
            for waiting in self._queue:
                _fail(waiting, gone)
            self._queue.clear()
            self._room.set()

    async def _some(self) -> bool:
        """Wait until a batch is to be cut. False = closed and nothing is left."""
        options = self._options
        while not self._queue:
            if self._closing:
                return False
            self._arrived.clear()
            await self._arrived.wait()
        while options.batch_timeout_s and not self._closing and not self._cuttable():
            # The clock starts with the first transaction of the batch.
            deadline = self._queue[0].arrived_s + options.batch_timeout_s
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                break
        return True

    def _cuttable(self) -> bool:
        """Whether the waiting transactions fill a block."""
        return self._count() < len(self._queue) or (
            len(self._queue) >= self._options.max_message_count
            or len(self._queue[0].envelope) > self._options.preferred_max_bytes
        )

    def _count(self) -> int:
        """Return how many of the waiting transactions the next block takes."""
        options, size, count = self._options, 0, 0
        for waiting in self._queue:
            size += len(waiting.envelope)
            if count and size > options.preferred_max_bytes:
                break
            count += 1
            if count >= options.max_message_count:
                break
        return count

    def _cut(self) -> list[_Waiting]:
        batch = [self._queue.popleft() for _ in range(self._count())]
        self._bytes -= sum(len(waiting.envelope) for waiting in batch)
        self._room.set()
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            self._learn({n for w in batch for n in w.checked.chaincodes})
            block = await self._ledger.commit(
                [(waiting.envelope, self._code(waiting.checked)) for waiting in batch]
            )
        except ChaindockError as error:
            _log.error("block not committed", transactions=len(batch), exc_info=error)
            for waiting in batch:
                _fail(waiting, error)
            return
        except Exception as error:  # noqa: BLE001  # a defect must not end all ordering
            _log.exception("block not committed", transactions=len(batch))
            defect = LedgerError(
                f"the block could not be made: unexpected {type(error).__name__}",
                hint="this is a defect of Chaindock; the node's log holds the trace",
            )
            for waiting in batch:
                _fail(waiting, defect)
            return
        except BaseException:
            gone = LedgerClosed("the orderer ended while the block was committed")
            for waiting in batch:
                _fail(waiting, gone)
            raise
        for waiting, tx in zip(batch, block.transactions, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(
                    Commit(block.number, tx.code, tx.tx_id, tx.index)
                )

    def _code(self, checked: Checked) -> int:
        defined = checked.chaincodes <= self._defined
        return checked.code if defined else int(codes.INVALID_CHAINCODE)

    def _learn(self, names: set[str]) -> None:
        """Find out which chaincodes are defined before this block; none ever ceases."""
        unknown = names - self._defined
        if not unknown:
            return
        simulator = self._ledger.new_simulator(TxId(""))
        try:
            self._defined |= {n for n in unknown if read_sequence(simulator, n)}
        finally:
            simulator.done()


def _check_writer(creator: Identity) -> None:
    if creator.expired:
        raise Denied("broadcast client identity expired")
    if creator.role not in {Role.CLIENT, Role.ADMIN}:
        raise Denied(
            "permission denied: implicit policy evaluation failed for "
            f"/Channel/Writers; the creator is a {creator.role}"
        )


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
