"""The calls of one stream: their order, their time limits, their requests.

Each caller gets one outcome, at the latest when the stream ends. A call is remembered
until the chaincode has answered it, also when its caller has left; a call that is never
answered ends the stream, and with it the instance.
Source: docs/fabric/shim-protocol.md#calls
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chaindock.aio import Latch
from chaindock.chaincode import requests
from chaindock.chaincode.correlator import OutputCorrelator
from chaindock.chaincode.invocation import outcome_of
from chaindock.chaincode.limiter import ConcurrencyLimiter
from chaindock.errors import ChaindockError, InvalidInput, NotFound
from chaindock.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

    from chaindock.aio import Tasks
    from chaindock.chaincode.handler import Outbox
    from chaindock.chaincode.invocation import Invocation, Outcome
    from chaindock.chaincode.options import StreamOptions
    from chaindock.chaincode.queries import Query
    from chaindock.ids import ChannelId, TxId

    Serving = Generator[None, None, tuple[ChaincodeMessage, int]]

MAX_QUERIES = 1000
"""Open queries of one call; the next one is refused. Shims close theirs."""
MAX_WRITTEN_BYTES = 256 * 1024 * 1024
"""Bytes that one call may write: a transaction has to fit into a message of 100 MiB."""
MAX_BACKLOG = 64
MAX_BACKLOG_BYTES = 1024 * 1024
"""Requests of one call that wait behind a long one. Beyond, the stream is not read until
they were carried out; shims wait for each reply."""
_MESSAGE_ROOM: Final = 64 * 1024
"""Bytes of the largest message that payload and proposal must leave free."""
_FUNCTION_MAX: Final = 100
"""Characters of a function's name that are shown."""


@dataclass(frozen=True)
class OpenCall:
    """A call that the chaincode has not answered.

    Args:
        function: its first argument, as text.
        since: when it came, in seconds of the epoch.
        sent: the chaincode has got it; else it waits until others are answered.
        caller_left: its caller does not wait for the answer any more.
    """

    tx_id: TxId
    channel_id: ChannelId
    function: str
    since: float
    sent: bool
    caller_left: bool


class Call:
    """One call, from `Calls.execute` until the chaincode has answered it."""

    __slots__ = (
        "backlog",
        "final",
        "invocation",
        "is_init",
        "key",
        "namespace",
        "over",
        "queries",
        "sent",
        "simulator",
        "since",
        "timeout_s",
        "timer",
        "worker",
        "written",
    )

    def __init__(self, invocation: Invocation, timeout_s: float) -> None:
        self.invocation = invocation
        self.key = (invocation.channel_id, invocation.tx_id)
        self.namespace = invocation.namespace
        self.simulator = invocation.simulator
        self.is_init = invocation.is_init
        self.timeout_s = timeout_s
        self.since = time.time()
        # An error is a result here: an abandoned future must not log it.
        self.final: asyncio.Future[ChaincodeMessage | ChaindockError] = (
            asyncio.get_running_loop().create_future()
        )
        self.timer: asyncio.TimerHandle | None = None
        self.queries: dict[str, Query] = {}
        self.written = 0
        self.sent = False
        self.over = False
        """The outcome was told, or the caller has left."""
        self.worker: asyncio.Task[None] | None = None
        """Carries out a request that takes more than one step."""
        self.backlog: deque[ChaincodeMessage] = deque()
        """Requests that came meanwhile."""

    def finish(self, final: ChaincodeMessage | ChaindockError) -> None:
        """Tell the caller the outcome, and release the queries. The first one counts."""
        self.over = True
        for query in self.queries.values():
            query.close()
        self.queries.clear()
        if not self.final.done():
            self.final.set_result(final)

    def note_written(self, size: int) -> None:
        """Count `size` more bytes. Raises: InvalidInput beyond the limit."""
        self.written += size
        if self.written > MAX_WRITTEN_BYTES:
            raise InvalidInput(
                f"transaction wrote {self.written} bytes, more than the limit of "
                f"{MAX_WRITTEN_BYTES}"
            )

    def add_query(self, query: Query) -> None:
        """Keep an open query. Raises: InvalidInput beyond the limit."""
        if len(self.queries) >= MAX_QUERIES:
            query.close()
            raise InvalidInput(
                f"transaction holds {MAX_QUERIES} open queries; close some of them"
            )
        self.queries[query.name] = query


class Calls:
    """The calls of one stream.

    Args:
        options: limits.
        overran: ends the stream; gets the seconds that a call was not answered.
    """

    def __init__(
        self, options: StreamOptions, overran: Callable[[float], None]
    ) -> None:
        self._options, self._overran = options, overran
        self._calls: dict[tuple[str, str], Call] = {}
        self._outbox: Outbox
        self._tasks: Tasks
        self._ready = False
        self._draining: Latch[None] | None = None
        self.limiter = ConcurrencyLimiter(self._start)
        self.correlator = OutputCorrelator()
        self.ccid = ""
        """Of the registered chaincode."""

    def begin(self, outbox: Outbox, tasks: Tasks) -> None:
        """Take calls from now on: the stream is ready.

        `tasks` end with the stream; requests that take long run there.
        """
        self._outbox, self._tasks, self._ready = outbox, tasks, True

    def close(self, reason: str) -> int:
        """Take no more, and fail those that wait: the stream ended because of `reason`.

        Returns: how many callers waited.
        """
        self._ready = False
        waiting = self.count
        calls, self._calls = list(self._calls.values()), {}
        self.limiter.clear()
        self.correlator.close()
        for call in calls:
            if call.timer is not None:
                call.timer.cancel()
            call.finish(call.invocation.lost_stream(reason, sent=call.sent))
        self._check_drained()
        return waiting

    @property
    def open(self) -> bool:
        """Whether `execute` may be called: ready, and not about to be stopped."""
        return self._ready and self._draining is None

    @property
    def count(self) -> int:
        """How many callers wait."""
        return sum(not call.over for call in self._calls.values())

    @property
    def unanswered(self) -> list[OpenCall]:
        """The calls that the chaincode has not answered, oldest first."""
        return [
            OpenCall(
                call.invocation.tx_id,
                call.invocation.channel_id,
                call.invocation.function[:_FUNCTION_MAX],
                call.since,
                call.sent,
                call.over,
            )
            for call in self._calls.values()
        ]

    async def execute(self, invocation: Invocation, timeout_s: float) -> Outcome:
        """Run one call on this stream.

        `timeout_s` counts from when the message is sent, which on a stream with
        limited concurrency may be later. A call that has no answer `overrun_s` after
        its timeout ends the stream, also when its caller has left before.

        Raises:
            TransactionExists, ExecuteTimeout, StreamTerminated, ChaincodeError;
            ExecuteFailed when the message is too large to be sent.
        Cancelled: the chaincode keeps running it; what it still asks gets an ERROR.
        """
        if not self.open:
            raise invocation.lost_stream("stream is not ready", sent=False)
        call = Call(invocation, timeout_s)
        if call.key in self._calls:
            raise invocation.already_runs()
        self._calls[call.key] = call
        try:
            self.limiter.admit(call)
            if not call.sent:  # a hung call before it is over by then
                turn_s = timeout_s + self._options.overrun_s
                loop = asyncio.get_running_loop()
                call.timer = loop.call_later(turn_s, self._give_up_turn, call, turn_s)
            final = await call.final
        finally:
            if not call.over:
                call.finish(invocation.lost_stream("caller left", sent=call.sent))
                if not call.sent:
                    self._withdraw(call)
                self._check_drained()
        if isinstance(final, ChaindockError):
            raise final
        return outcome_of(final, invocation)

    def take_final(self, message: ChaincodeMessage) -> None:
        """Finish the call that a COMPLETED or ERROR message answers, if there is one."""
        call = self._calls.get((message.channel_id, message.txid))
        if call is not None and call.sent:
            self.correlator.ended(call.invocation.tx_id)
            self._remove(call, message)

    def take_request(self, message: ChaincodeMessage) -> asyncio.Task[None] | None:
        """Carry out a request, or its first step; replies of one call keep their order.

        Returns: what the reader of the stream has to wait for, if anything.
        """
        call = self._calls.get((message.channel_id, message.txid))
        if call is not None and not call.sent:
            call = None
        if call is not None and call.worker is not None:
            call.backlog.append(message)
            size = sum(one.ByteSize() for one in call.backlog)
            full = len(call.backlog) >= MAX_BACKLOG or size >= MAX_BACKLOG_BYTES
            return call.worker if full else None
        serving = self._serve(call, message)
        if not self._step(serving) and call is not None:
            call.worker = self._tasks.start(self._work_off(call, serving), "request")
        return None

    def _serve(self, call: Call | None, message: ChaincodeMessage) -> Serving:
        return requests.serve(call, message, self._options, self.ccid)

    def _step(self, serving: Serving, error: Exception | None = None) -> bool:
        """Do one step of a request. Returns: whether it is done, and its reply sent."""
        try:
            if error is None:
                next(serving)
            else:
                serving.throw(error)
        except StopIteration as done:
            self._outbox.put(*done.value)
            return True
        return False

    async def _work_off(self, call: Call, serving: Serving) -> None:
        """Do the remaining steps of a request, and the requests that came meanwhile."""
        try:
            while True:
                await asyncio.sleep(0)  # other streams and calls are served now
                error = NotFound(requests.NO_CONTEXT) if call.over else None
                while self._step(serving, error):
                    if not call.backlog:
                        return
                    if self._outbox.full:
                        await self._outbox.room()
                    serving, error = self._serve(call, call.backlog.popleft()), None
        finally:
            call.worker = None
            serving.close()

    async def drain(self) -> None:
        """Take no more calls, and return when no caller waits."""
        if self._draining is None:
            self._draining = Latch()
        self._check_drained()
        await self._draining.wait()

    def _withdraw(self, call: Call) -> None:
        """Forget a call that the chaincode was never told of."""
        del self._calls[call.key]
        self.limiter.withdraw(call)
        if call.timer is not None:
            call.timer.cancel()

    def _give_up_turn(self, call: Call, turn_s: float) -> None:
        self._withdraw(call)
        call.finish(call.invocation.had_no_turn(turn_s))
        self._check_drained()

    def _start(self, call: Call) -> None:
        if call.timer is not None:  # of its turn
            call.timer.cancel()
        invocation = call.invocation
        message = invocation.message()
        size = len(message.payload) + len(invocation.signed_proposal.proposal_bytes)
        limit = self._options.max_message_bytes - _MESSAGE_ROOM
        call.sent = True
        if size > limit:
            self._remove(call, invocation.too_large(size, limit))
            return
        call.timer = asyncio.get_running_loop().call_later(
            call.timeout_s, self._expire, call
        )
        self.correlator.began(invocation.tx_id)
        self._outbox.put(message, size)

    def _expire(self, call: Call) -> None:
        # Nothing is sent: the protocol cannot cancel a call, so the chaincode runs on.
        overrun_s = self._options.overrun_s
        call.timer = asyncio.get_running_loop().call_later(
            overrun_s, self._overran, call.timeout_s + overrun_s
        )
        if not call.over:
            metrics.EXECUTE_TIMEOUTS.labels(self.ccid).inc()
            call.finish(call.invocation.took_too_long(call.timeout_s, overrun_s))
            self._check_drained()

    def _remove(self, call: Call, final: ChaincodeMessage | ChaindockError) -> None:
        """Finish a call that runs no more."""
        del self._calls[call.key]
        if call.timer is not None:
            call.timer.cancel()
        call.finish(final)
        self.limiter.release()
        self._check_drained()

    def _check_drained(self) -> None:
        if self._draining is not None and not self.count:
            self._draining.settle(None)
