"""Put transactions in order and have them committed.

An accepted transaction is committed in order of acceptance, also when the submitter
left or the node shuts down in order; only a definition of chaincode does not wait where
blocks are cut late. The number and bytes of waiting transactions are bounded.
Source: docs/fabric/ledger.md#transaction
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Final, Self

from chaindock.aio import Tasks, finish, off_loop
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import AUTO, MANUAL, OrdererOptions, in_force
from chaindock.endorser.plan import PER_BYTE
from chaindock.endorser.updates import next_configuration
from chaindock.endorser.validator import Validator, parse_and_check
from chaindock.endorser.waiting import (
    UPDATE,
    Waiting,
    fail,
    failure,
    overtakes,
    reverted,
)
from chaindock.errors import ChaindockError, Denied, InvalidInput, LedgerClosed
from chaindock.identity.msp import Identity
from chaindock.ledger.ledger import Ledger, TxLocation
from chaindock.ledger.marks import Mark
from chaindock.ledger.simulator import require_size
from chaindock.ledger.transaction import ParsedTransaction, code_name, parse_transaction
from chaindock.telemetry import get_logger

_log = get_logger("orderer")
_UNCHECKED: Final = "config update for existing channel did not pass initial checks: "
_WRITERS: Final = "/Channel/Writers"
_CLOSED: Final = "the orderer is shutting down; nothing was submitted"
MOST_URGENT: Final = 16
"""Definitions and configurations that wait for their block; a further one waits outside."""
_TURNS, _GATHERED = 4, 100
"""A block is cut when no transaction came in so many turns of the event loop, or so many
wait."""
FRAME_BYTES: Final = 16
"""Most that an envelope takes beside payload and signature."""


class Orderer:
    """Orders the transactions of one channel; an async context manager."""

    def __init__(
        self,
        ledger: Ledger,
        configuration: Configuration,
        options: OrdererOptions | None = None,
    ) -> None:
        self._ledger = ledger
        self._configuration = configuration
        self._validator = Validator(configuration)
        ledger.check_with(self._validator)
        self._given = options or OrdererOptions()
        self._options = in_force(self._given, configuration.config)
        self._updating = asyncio.Lock()
        self._queue: deque[Waiting] = deque()
        self._urgent: deque[Waiting] = deque()
        self._to_cut = 0
        """Transactions that `cut` has asked for and that wait."""
        self._bytes = 0
        self._reverting = 0
        """Reverts that the ledger has not answered yet: no block is cut."""
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self.updated: Callable[[], Awaitable[None]] | None = None
        """Called when a configuration is in force that somebody has asked for."""
        self._closing = False
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

        Raises: as `order`. LedgerError: the block was not written.
        Cancelled: once accepted it is committed all the same.
        """
        return await asyncio.shield(await self.order(envelope))

    async def order(self, envelope: bytes) -> asyncio.Future[TxLocation]:
        """Order a signed transaction, a common.Envelope; return when it is accepted.

        An envelope of type CONFIG_UPDATE makes a configuration, which is ordered and
        committed in its place. While too many transactions wait for their block,
        acceptance takes until there is room.

        Returns: what is done when the transaction is committed; it fails as `submit` does.
            It belongs to the orderer: shield it, or drop it.

        Raises:
            InvalidInput: empty, too large, of another channel or kind; as
            `next_configuration`. Denied: the creator may not write, or its certificate
            has expired. Unsupported: as `next_configuration`. LedgerClosed: the node
            is shutting down. LedgerError: the ledger was reverted meanwhile.
        """
        require_size(len(envelope) - FRAME_BYTES, self._options.absolute_max_bytes)
        reverts = self._ledger.reverts
        # What only claims to be urgent is invalid.
        urgent = self._options.mode != AUTO and await off_loop(
            len(envelope), partial(overtakes, envelope)
        )
        await self._reserve(len(envelope), urgent=urgent)
        try:
            work = partial(self._check, envelope)
            msps = self._configuration.msps
            tx, creator = await off_loop(len(envelope), work)
            while msps is not self._configuration.msps:  # who signed may have left
                msps = self._configuration.msps
                tx, creator = await off_loop(len(envelope), work)
            self._admit(tx, creator)
        except BaseException:
            self._release(len(envelope))
            raise
        if tx.kind == UPDATE:
            self._release(len(envelope))
            return await finish(self._update(envelope, reverts))
        return self._order(tx, reverts, urgent=urgent)

    def _check(self, envelope: bytes) -> tuple[ParsedTransaction, Identity | None]:
        msps = self._configuration.msps
        return parse_and_check(envelope, self._ledger.channel, msps)

    def _check_again(self, waiting: Iterable[Waiting]) -> None:
        for one in waiting:
            one.tx, _ = self._check(one.tx.envelope)

    async def _update(
        self, envelope: bytes, reverts: int
    ) -> asyncio.Future[TxLocation]:
        """Commit the configuration that an update makes, in a block of its own."""
        channel, size = self._ledger.channel, len(envelope) * PER_BYTE
        async with self._updating:  # each is made of the one before
            now, signer = self._configuration, self._ledger.signer
            make = partial(next_configuration, now, envelope, signer)
            made = await off_loop(size, make)
            tx = await off_loop(size, partial(parse_transaction, made, channel))
            await self._reserve(len(made), urgent=True)
            done = self._order(tx, reverts, urgent=True)
            await asyncio.shield(done)
        if self.updated is not None:
            await self.updated()
        return done

    def _order(
        self, tx: ParsedTransaction, reverts: int, *, urgent: bool
    ) -> asyncio.Future[TxLocation]:
        """Queue a transaction that has its place; return what is done with its block.

        `reverts`: of the ledger when the transaction came. `urgent`: as for `_reserve`.
        """
        if self._closing or self._ledger.reverts != reverts:
            self._release(len(tx.envelope))
        if self._closing:
            raise LedgerClosed(_CLOSED)
        if self._ledger.reverts != reverts:
            raise reverted()
        loop = asyncio.get_running_loop()
        waiting = Waiting(tx, loop.time(), loop.create_future())
        (self._urgent if urgent else self._queue).append(waiting)
        self._arrived.set()
        return waiting.done

    async def _reserve(self, size: int, *, urgent: bool) -> None:
        """Wait until an envelope of `size` bytes has a place, before it is parsed.

        Parsed it takes up to four times as much. What is urgent, a definition or a
        configuration, gets a block of its own at once, so it waits only for others of its
        kind: the queue may be full until somebody cuts a block. Raises: LedgerClosed.
        """
        options = self._options
        while not self._closing and (
            len(self._urgent) >= MOST_URGENT
            if urgent
            else len(self._queue) >= options.max_waiting
            or (self._bytes and self._bytes + size > options.max_waiting_bytes)
        ):
            self._room.clear()
            await self._room.wait()
        if self._closing:
            raise LedgerClosed(_CLOSED)
        self._bytes += size

    def _release(self, *sizes: int) -> None:
        self._bytes -= sum(sizes)
        self._room.set()

    @property
    def max_bytes(self) -> int:
        """Bytes of payload and signature that an envelope may have."""
        return self._options.absolute_max_bytes

    @property
    def mode(self) -> tuple[str, float]:
        """When blocks are cut, as `read_mode` gives it."""
        return self._options.mode

    @property
    def waiting(self) -> int:
        """How many transactions wait for their block."""
        return len(self._queue)

    async def cut(self) -> int:
        """Put what waits into blocks now; return how many, when they are committed.

        Cancelled: they are committed all the same.
        """
        waiting = [one.done for one in self._queue]
        if waiting:
            self._to_cut = len(waiting)
            self._arrived.set()
            await asyncio.wait(waiting)
        return len(waiting)

    async def revert(self, name: str) -> Mark:
        """Go back to a snapshot, as `Ledger.revert`; what waits for a block is refused.

        No block is cut meanwhile. If the ledger refuses to revert, everything waits on.
        """
        return await finish(self._revert(name))

    async def _revert(self, name: str) -> Mark:
        kept = [(queue, len(queue)) for queue in (self._urgent, self._queue)]
        self._reverting += 1
        try:
            mark = await self._ledger.revert(name)
            for queue, count in kept:
                lost = [queue.popleft() for _ in range(min(count, len(queue)))]
                self._release(*(len(one.tx.envelope) for one in lost))
                self._refuse(lost, reverted())
            self._to_cut = min(self._to_cut, len(self._queue))
        finally:
            self._reverting -= 1
            self._arrived.set()
        return mark

    def _admit(self, tx: ParsedTransaction, creator: Identity | None) -> None:
        """Refuse what Fabric's orderer refuses at once. Raises: as `submit`."""
        if not tx.size:
            raise InvalidInput("Message was empty")
        require_size(tx.size, self._options.absolute_max_bytes)
        if tx.channel is None:
            raise InvalidInput(f"the envelope cannot be read: {code_name(tx.code)}")
        if tx.kind in {"CONFIG", "ORDERER_TRANSACTION"}:
            raise InvalidInput("message is of type that cannot be processed directly")
        if tx.channel != self._ledger.channel:
            raise InvalidInput(f"channel does not exist: {tx.channel!r}")
        if creator is not None and creator.expired:
            raise Denied("broadcast client identity expired")
        # Without a creator whose signature is right, nobody writes: anybody could fill
        # blocks, and use up the ids of transactions of others.
        signers = [] if creator is None else [creator]
        reason = self._configuration.policies.reason(_WRITERS, signers)
        if reason is not None:
            said = _UNCHECKED if tx.kind == UPDATE else ""
            raise Denied(f"{said}{reason}: permission denied", policy=_WRITERS)

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
            for waiting in (*self._urgent, *self._queue):
                fail(waiting, gone)
            self._urgent.clear()
            self._queue.clear()
            self._room.set()

    async def _some(self) -> bool:
        """Wait until a batch is to be cut. False = closed and nothing is left."""
        while not (self._is_due() and await self._all_came()):
            if self._closing and not self._reverting:
                return False
            self._arrived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline_s()):
                    await self._arrived.wait()
        return True

    async def _all_came(self) -> bool:
        """Wait while transactions come that the block can take; return if it still is due.

        Callers whose transactions were in the block before send their next ones one by
        one, and a block costs the node as much as several transactions.
        """
        most, turns = min(self._options.most, _GATHERED), 0
        while turns < _TURNS and self._options.wait_s == 0 and not self._urgent:
            if (count := len(self._queue)) >= most:
                break
            await asyncio.sleep(0)
            turns = 0 if len(self._queue) > count else turns + 1
        return self._is_due()

    def _deadline_s(self) -> float | None:
        """Return when the next batch is cut at the latest; None = no such time."""
        wait_s = 0 if self._reverting else self._options.wait_s
        # The clock starts with the first transaction of the batch.
        return self._queue[0].arrived_s + wait_s if self._queue and wait_s else None

    def _is_due(self) -> bool:
        options = self._options
        if self._reverting:
            return False
        if self._urgent or not self._queue:
            return bool(self._urgent)
        if self._closing or self._to_cut or options.wait_s == 0:
            return True
        deadline_s = self._deadline_s()
        if deadline_s is not None and asyncio.get_running_loop().time() >= deadline_s:
            return True
        return options.mode != MANUAL and self._next()[1]

    def _next(self) -> tuple[int, bool]:
        sizes = (len(waiting.tx.envelope) for waiting in self._queue)
        return self._options.next_block(sizes)

    def _cut(self) -> list[Waiting]:
        if self._urgent:
            batch = [self._urgent.popleft()]
        else:
            batch = [self._queue.popleft() for _ in range(self._next()[0])]
            self._to_cut = max(0, self._to_cut - len(batch))
        return batch

    def _refuse(self, batch: list[Waiting], error: ChaindockError) -> None:
        """Fail the submitters of a batch, and all who wait for its commit."""
        for waiting in batch:
            fail(waiting, error)
        lost = {waiting.tx.tx_id for waiting in batch}
        self._ledger.awaited.fail(partial(copy.copy, error), lost.__contains__)

    async def _commit(self, batch: list[Waiting]) -> None:
        try:
            txs = [waiting.tx for waiting in batch]
            try:
                block = await self._ledger.commit(txs)
            finally:
                self._release(*(len(tx.envelope) for tx in txs))
        except BaseException as error:
            self._refuse(batch, failure(error))
            if not isinstance(error, Exception):
                raise
            _log.error("block not committed", transactions=len(batch), exc_info=error)
            return
        if txs[0].is_config:
            made, size = partial(Configuration, txs[0].envelope), len(txs[0].envelope)
            before = self._configuration.definitions
            self._configuration.adopt(await off_loop(size * PER_BYTE, made))
            if not before <= self._configuration.definitions:
                # What waits may be signed by somebody who has left or was revoked.
                again = partial(self._check_again, (*self._urgent, *self._queue))
                await off_loop(self._bytes * PER_BYTE, again)
            self._options = in_force(self._given, self._configuration.config)
        for index, waiting in enumerate(batch):
            if not waiting.done.done():
                place = TxLocation(block.number, index, block.codes[index])
                waiting.done.set_result(place)
