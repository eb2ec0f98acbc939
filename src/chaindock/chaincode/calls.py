"""The calls of one stream: their order, their time limits, their requests, their output.

Each caller gets one outcome, at the latest when the stream ends. A call is remembered
until the chaincode has answered it, also when its caller has left; a call that is never
answered ends the stream, and with it the instance.
Source: docs/fabric/shim-protocol.md#calls
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError

from chaindock.aio import off_loop
from chaindock.chaincode import requests
from chaindock.chaincode.invocation import Call, Kind, outcome_of
from chaindock.chaincode.outbox import ConcurrencyLimiter
from chaindock.chaincode.wire import head_of, parsed
from chaindock.errors import (
    BudgetExceeded,
    ChaindockError,
    ExecuteFailed,
    ExecuteTimeout,
    InvalidInput,
    NotFound,
    TransactionExists,
)
from chaindock.ledger.budget import Budget
from chaindock.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

    from chaindock.aio import Tasks
    from chaindock.chaincode.invocation import Invocation, Outcome
    from chaindock.chaincode.options import StreamOptions
    from chaindock.chaincode.outbox import Outbox
    from chaindock.chaincode.requests import Serving
    from chaindock.ids import TxId

MAX_BACKLOG = 64
MAX_BACKLOG_BYTES = 1024 * 1024
"""Requests that wait behind a long one of their call, and bytes of all that wait. Beyond,
the stream is not read until those of a call were carried out; shims wait for each reply."""
LATE_S: Final = 0.25
"""Seconds after the answer of a call in which its lines may still arrive."""
MOST: Final = 64
"""With more calls than that at a time no line is marked."""
_MESSAGE_ROOM: Final = 64 * 1024
"""Bytes of the largest message that payload and proposal must leave free."""


class Calls:
    """The calls of one stream.

    Args:
        options: limits.
        overran: ends the stream; gets the seconds that a call was not answered.

    Attributes:
        ccid: of the registered chaincode; "" before that.
    """

    def __init__(
        self, options: StreamOptions, overran: Callable[[float], None]
    ) -> None:
        self._options, self._overran = options, overran
        self._calls: dict[tuple[str, str], Call] = {}
        self._outbox: Outbox
        self._tasks: Tasks
        self._ready = self._draining = False
        self.budget = Budget(
            options.contract_bytes,
            "the open calls of this chaincode (chaindock.memory.contract)",
        )
        self._backlog_bytes = 0
        self.limiter = ConcurrencyLimiter(self._start)
        self.correlator = OutputCorrelator()
        self.ccid = ""

    def begin(self, outbox: Outbox, tasks: Tasks) -> None:
        """Take calls from now on; requests that take long run in `tasks`."""
        self._outbox, self._tasks, self._ready = outbox, tasks, True
        budget = self.budget  # without `self`: the metric outlives the stream
        metrics.held_bytes(self.ccid, lambda: budget.held)

    def close(self, reason: str) -> int:
        """Fail the calls that wait: the stream ended. Returns: how many callers waited."""
        self._ready = False
        waiting = self.count
        calls, self._calls = list(self._calls.values()), {}
        self.limiter.waiting.clear()
        self.correlator.close()
        for call in calls:
            if call.timer is not None:
                call.timer.cancel()
            call.finish(call.invocation.lost_stream(reason, sent=call.sent))
        self.budget.give_back()
        return waiting

    @property
    def open(self) -> bool:
        """Whether `execute` may be called: ready, and not about to be stopped."""
        return self._ready and not self._draining

    @property
    def count(self) -> int:
        """How many callers wait."""
        return sum(not call.over for call in self._calls.values())

    @property
    def unanswered(self) -> list[Call]:
        """The calls that the chaincode has not answered, oldest first."""
        return list(self._calls.values())

    # --- the life of a call -----------------------------------------------------------

    async def execute(self, invocation: Invocation, timeout_s: float) -> Outcome:
        """Run one call on this stream.

        `timeout_s` counts from when the message is sent, which may be later. Without an
        answer `overrun_s` after that the stream ends, also when the caller has left.

        Raises:
            TransactionExists, ExecuteTimeout, StreamTerminated, ChaincodeError;
            ExecuteFailed when the message is too large to be sent.
        Cancelled: the chaincode keeps running it; what it still asks gets an ERROR.
        """
        if not self.open:
            raise invocation.lost_stream("stream is not ready", sent=False)
        name = f"transaction {invocation.tx_id} (chaindock.memory.transaction)"
        budget = Budget(self._options.transaction_bytes, name, self.budget)
        call = Call(invocation, timeout_s, budget)
        if call.key in self._calls:
            exists = f"txid: {invocation.tx_id}({invocation.channel_id}) exists"
            raise TransactionExists(invocation.unsent(exists), tx_id=invocation.tx_id)
        self._calls[call.key] = call
        try:
            self.limiter.admit(call)
            if not call.sent:  # a hung call before it is over by then
                turn_s = timeout_s + self._options.overrun_s
                self._set_timer(call, turn_s, self._give_up_turn, call, turn_s)
            final = await call.final
        finally:
            if not call.over:
                call.finish(invocation.lost_stream("caller left", sent=call.sent))
                if not call.sent:
                    self._withdraw(call)
        if isinstance(final, ChaindockError):
            raise final
        return outcome_of(final, invocation)

    def _start(self, call: Call) -> None:
        invocation = call.invocation
        message = invocation.message()
        size = len(message.payload) + len(invocation.signed_proposal.proposal_bytes)
        limit = self._options.max_message_bytes - _MESSAGE_ROOM
        call.sent = True
        if size > limit:
            cause = f"message of {size} bytes is larger than the limit of {limit}"
            error = ExecuteFailed(invocation.unsent(cause), tx_id=invocation.tx_id)
            self._remove(call, error)
            return
        self._set_timer(call, call.timeout_s, self._expire, call)
        self.correlator.began(invocation.tx_id)
        self._outbox.put(message, size)

    @staticmethod
    def _set_timer(
        call: Call, seconds: float, act: Callable[..., object], *to: object
    ) -> None:
        if call.timer is not None:
            call.timer.cancel()
        call.timer = asyncio.get_running_loop().call_later(seconds, act, *to)

    def _give_up_turn(self, call: Call, turn_s: float) -> None:
        self._withdraw(call)
        invocation = call.invocation
        cause = f"chaincode {invocation.namespace} is still at earlier calls after "
        call.finish(
            ExecuteTimeout(
                invocation.unsent(f"{cause}{turn_s:g} s"),
                hint="it was not told of this call: send it again; what runs: "
                "chaindock ps --calls",
                tx_id=invocation.tx_id,
                limit_s=turn_s,
                sent=False,
                retryable=True,
            )
        )

    def _withdraw(self, call: Call) -> None:
        """Forget a call that the chaincode was never told of."""
        self._forget(call)
        self.limiter.waiting.remove(call)

    def _expire(self, call: Call) -> None:
        # Nothing is sent: the protocol cannot cancel a call, so the chaincode runs on.
        limit_s, overrun_s = call.timeout_s, self._options.overrun_s
        self._set_timer(call, overrun_s, self._overran, limit_s + overrun_s)
        if call.over:
            return
        metrics.EXECUTE_TIMEOUTS.labels(self.ccid).inc()
        cause = (
            "timeout expired while executing transaction: chaincode "
            f"{call.invocation.namespace} did not answer in {limit_s:g} s"
        )
        call.finish(
            ExecuteTimeout(
                call.invocation.unsent(cause),
                hint="the chaincode may still run the call; without an answer after "
                f"{limit_s + overrun_s:g} s the node restarts the chaincode. Raise the "
                "limit of a call with --timeout",
                tx_id=call.invocation.tx_id,
                limit_s=limit_s,
            )
        )

    def take_final(self, message: ChaincodeMessage) -> None:
        """Finish the call that a COMPLETED or ERROR message answers, if there is one."""
        call = self._calls.get((message.channel_id, message.txid))
        if call is not None and call.sent:
            self.correlator.ended(call.invocation.tx_id)
            self._remove(call, message)

    def _remove(self, call: Call, final: ChaincodeMessage | ChaindockError) -> None:
        """Finish a call that runs no more."""
        self._forget(call)
        call.finish(final)
        self.limiter.release()

    def _forget(self, call: Call) -> None:
        del self._calls[call.key]
        if call.timer is not None:
            call.timer.cancel()

    async def drain(self) -> None:
        """Take no more calls, and return when no caller waits."""
        self._draining = True
        while waits := [one.final for one in self._calls.values() if not one.over]:
            await asyncio.wait(waits)

    # --- requests of a call -----------------------------------------------------------

    async def parse(self, raw: bytes) -> tuple[ChaincodeMessage, Any]:
        """Parse a large message, off the loop if it takes long.

        Returns: the message; of a request without its payload, but with what that holds,
            or with the error that answers the request.
        Raises: InvalidInput, DecodeError: it is no message.
        """
        message, payload = head_of(raw)
        call = self._calls.get((message.channel_id, message.txid))
        request = requests.REQUESTS.get(message.type)
        if request is not None and (call is None or call.over):
            return message, None
        # The answer of a call is nothing that its transaction keeps.
        budget = self.budget if request is None or call is None else call.budget
        form, data = (Kind, raw) if request is None else (request[0], payload)
        try:
            budget.take(len(raw))
            try:
                work = partial(parsed, message.type, payload, self._options, form, data)
                found = await off_loop(len(raw), work)
            finally:
                budget.give_back(len(raw))
        except (BudgetExceeded, InvalidInput, DecodeError) as error:
            if request is None and message.type not in {Kind.COMPLETED, Kind.ERROR}:
                raise
            if request is None:
                message.type, message.payload = Kind.ERROR, str(error).encode()
            return message, error
        return (found, None) if request is None else (message, found)

    def take_request(
        self, message: ChaincodeMessage, request: Any = None
    ) -> asyncio.Task[None] | None:
        """Carry out a request, or its first step; replies of one call keep their order.

        `request`: what `parse` has returned.

        Returns: what the reader of the stream has to wait for, if anything.
        """
        call = self._calls.get((message.channel_id, message.txid))
        if call is not None and not call.sent:
            call = None
        if call is not None and call.worker is not None:
            call.backlog.append((message, request))
            self._backlog_bytes += message.ByteSize()
            full = (
                len(call.backlog) >= MAX_BACKLOG or request is not None
            )  # a large one
            return (
                call.worker
                if full or self._backlog_bytes >= MAX_BACKLOG_BYTES
                else None
            )
        serving = self._serve(call, message, request)
        if not self._step(serving) and call is not None:
            call.worker = self._tasks.start(self._work_off(call, serving), "request")
        return None

    def _serve(
        self, call: Call | None, message: ChaincodeMessage, request: Any
    ) -> Serving:
        options, budget = self._options, self.budget
        return requests.serve(call, message, options, self.ccid, budget, request)

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
                    (message, request), error = call.backlog.popleft(), None
                    self._backlog_bytes -= message.ByteSize()
                    serving = self._serve(call, message, request)
        finally:
            call.worker = None
            serving.close()


class OutputCorrelator:
    """Tells which transaction a line of a chaincode's output belongs to.

    A line is marked only when a single call can have written it, or when it names one
    call by the first 8 digits of its transaction id, as shims do. A line comes through
    a pipe and the answer through a connection, so for a moment a call may have written
    what comes after its answer.
    """

    def __init__(self) -> None:
        self._open: dict[TxId, None] = {}
        self._recent: deque[tuple[float, TxId]] = deque(maxlen=MOST + 1)
        self._closed = False

    def began(self, tx_id: TxId) -> None:
        """Take note that the chaincode was given this call."""
        self._open[tx_id] = None

    def ended(self, tx_id: TxId) -> None:
        """Take note that the chaincode has answered this call."""
        if self._open.pop(tx_id, self) is None:
            self._recent.append((time.monotonic(), tx_id))

    def close(self) -> None:
        """Take note that the stream has ended: what is written now is of these calls."""
        self._forget_old()
        self._closed = True
        for tx_id in tuple(self._open)[:MOST]:
            self.ended(tx_id)
        self._open.clear()

    def transaction_of(self, line: str) -> str | None:
        """Return the transaction that wrote `line` now; None = it cannot be known."""
        self._forget_old()
        count = len(self._open) + len(self._recent)
        if count == 0 or count > MOST:
            return None
        ids = [*self._open, *(tx_id for _, tx_id in self._recent)]
        named = [tx_id for tx_id in ids if count == 1 or tx_id[:8] in line]
        return named[0] if len(named) == 1 else None

    def _forget_old(self) -> None:
        recent, since = self._recent, time.monotonic() - LATE_S
        while not self._closed and recent and recent[0][0] < since:
            recent.popleft()
