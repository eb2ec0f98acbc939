"""Put transactions in order and have them committed.

An accepted transaction is committed in order of acceptance, also when the submitter
left or the node shuts down in order. The number and bytes of waiting transactions are
bounded.
Source: docs/fabric/ledger.md#transaction
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from fabric_protos.peer import transaction_pb2 as codes

from chaindock.aio import Tasks, off_loop
from chaindock.endorser.checks import WRITERS, check_transaction
from chaindock.errors import (
    ChaindockError,
    Denied,
    InvalidInput,
    LedgerClosed,
    LedgerError,
)
from chaindock.ids import TxId
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.simulator import require_size
from chaindock.ledger.transaction import code_name
from chaindock.lifecycle.definitions import (
    NAMESPACE,
    has_default_policy,
    read_definition,
)
from chaindock.options import option
from chaindock.telemetry import get_logger
from chaindock.values import MIB, Bytes, Count, SecondsOrNone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.identity.msp import Identity, Msp
    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.simulator import Simulator
    from chaindock.ledger.transaction import ParsedTransaction

_log = get_logger("orderer")
_CONFIGS: Final = frozenset({"CONFIG", "CONFIG_UPDATE"})
_FRAME_BYTES: Final = 16
"""Most that an envelope takes beside payload and signature."""


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


@dataclass(eq=False, slots=True)
class _Waiting:
    tx: ParsedTransaction
    arrived_s: float
    done: asyncio.Future[TxLocation]


class Orderer:
    """Orders the transactions of one channel; an async context manager."""

    def __init__(
        self,
        ledger: Ledger,
        msp: Msp,
        options: OrdererOptions | None = None,
    ) -> None:
        self._ledger = ledger
        self._msp = msp
        self._options = options or OrdererOptions()
        self._queue: deque[_Waiting] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._closing = False
        self._committable: set[str] = {NAMESPACE}
        self._tasks = Tasks("orderer")
        self._worker: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._worker = self._tasks.start(self._work(), "blocks")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Accept nothing more, commit what was accepted, then return."""
        self._closing = True
        self._arrived.set()
        self._room.set()
        if self._worker is not None:
            await asyncio.wait({self._worker})
        await self._tasks.aclose()

    async def submit(self, envelope: bytes) -> TxLocation:
        """Order a signed transaction, a common.Envelope, and wait until it is committed.

        Raises:
            InvalidInput: empty, too large, of another channel or kind. Denied: the
            creator may not write, or its certificate has expired. LedgerClosed: the node
            is shutting down. LedgerError: the block was not written.
        Cancelled: once accepted it is committed all the same.
        """
        require_size(len(envelope) - _FRAME_BYTES, self._options.absolute_max_bytes)
        check = partial(check_transaction, envelope, self._ledger.channel, self._msp)
        tx, creator = await off_loop(len(envelope), check)
        self._admit(tx, creator)
        while not self._closing and self._full(len(envelope)):
            self._room.clear()
            await self._room.wait()
        if self._closing:
            raise LedgerClosed("the orderer is shutting down; nothing was submitted")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(tx, loop.time(), loop.create_future())
        self._queue.append(waiting)
        self._bytes += len(envelope)
        self._arrived.set()
        return await waiting.done

    def _admit(self, tx: ParsedTransaction, creator: Identity | None) -> None:
        """Refuse what Fabric's orderer refuses at once. Raises: as `submit`."""
        if not tx.size:
            raise InvalidInput("Message was empty")
        require_size(tx.size, self._options.absolute_max_bytes)
        if tx.channel is None:
            raise InvalidInput(f"the envelope cannot be read: {code_name(tx.code)}")
        if tx.kind in _CONFIGS:
            raise InvalidInput("message is of type that cannot be processed directly")
        if tx.channel != self._ledger.channel:
            raise InvalidInput(f"channel does not exist: {tx.channel!r}")
        if creator is not None and creator.expired:
            raise Denied("broadcast client identity expired")
        if creator is not None and creator.role not in WRITERS:
            raise Denied(
                "permission denied: implicit policy evaluation failed for "
                f"/Channel/Writers; the creator is a {creator.role}"
            )

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
        while options.batch_timeout_s and not self._closing and not self._next()[1]:
            # The clock starts with the first transaction of the batch.
            deadline = self._queue[0].arrived_s + options.batch_timeout_s
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                break
        return True

    def _next(self) -> tuple[int, bool]:
        """Return how many waiting transactions the next block takes; if it is full."""
        options, size, count = self._options, 0, 0
        for waiting in self._queue:
            size += len(waiting.tx.envelope)
            if count and size > options.preferred_max_bytes:
                return count, True
            count += 1
            if count >= options.max_message_count or size > options.preferred_max_bytes:
                return count, True
        return count, False

    def _cut(self) -> list[_Waiting]:
        batch = [self._queue.popleft() for _ in range(self._next()[0])]
        self._bytes -= sum(len(waiting.tx.envelope) for waiting in batch)
        self._room.set()
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        try:
            txs = [waiting.tx for waiting in batch]
            self._check_definitions(txs)
            block = await self._ledger.commit(txs)
        except BaseException as error:
            failure = _failure(error)
            for waiting in batch:
                _fail(waiting, failure)
            if not isinstance(error, Exception):
                raise
            _log.error("block not committed", transactions=len(batch), exc_info=error)
            return
        for index, waiting in enumerate(batch):
            if not waiting.done.done():
                place = TxLocation(block.number, index, block.codes[index])
                waiting.done.set_result(place)

    def _check_definitions(self, txs: Sequence[ParsedTransaction]) -> None:
        """Refuse transactions of chaincodes that cannot be committed to as of now.

        A chaincode that is defined with the channel's default policy stays so: other
        policies are refused when a definition is committed.
        """
        names = {name for tx in txs for name in tx.namespaces} - self._committable
        if not names:
            return
        with self._ledger.new_simulator(TxId("")) as simulator:
            found = {name: _definition_code(simulator, name) for name in names}
        refused = {
            name: code for name, code in found.items() if code != codes.NOT_VALIDATED
        }
        self._committable |= found.keys() - refused.keys()
        for tx in txs:
            wrong = sorted(tx.namespaces & refused.keys())
            if wrong and tx.code == codes.NOT_VALIDATED:
                tx.code = refused[wrong[0]]


def _definition_code(simulator: Simulator, name: str) -> int:
    """Return NOT_VALIDATED, or the code for a missing definition or its policy."""
    definition = read_definition(simulator, name)
    if definition is None:
        return int(codes.INVALID_CHAINCODE)
    if not has_default_policy(definition):
        _log.warning(
            "transaction refused: the endorsement policy of its chaincode is not the "
            "channel's default and is not evaluated yet",
            chaincode=name,
        )
        return int(codes.ENDORSEMENT_POLICY_FAILURE)
    return int(codes.NOT_VALIDATED)


def _failure(error: BaseException) -> ChaindockError:
    """Return what the submitters of a block that failed with `error` are told."""
    if isinstance(error, ChaindockError):
        return error
    if isinstance(error, Exception):  # a defect must not end all ordering
        return LedgerError(
            f"the block could not be made: unexpected {type(error).__name__}",
            hint="this is a defect of Chaindock; the node's log holds the trace",
        )
    return LedgerClosed("the orderer ended while the block was committed")


def _fail(waiting: _Waiting, error: ChaindockError) -> None:
    if not waiting.done.done():
        # An exception of its own for each: raising one again lengthens its traceback.
        own = type(error)(error.message, hint=error.hint, **error.facts)
        own.__cause__ = error
        waiting.done.set_exception(own)
