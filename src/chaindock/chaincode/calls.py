"""The calls of one stream: their order, their time limits, their requests.

Each caller gets one outcome, at the latest when the stream ends. A call is remembered
until the chaincode has answered it, also when its caller has left; a call that is never
answered ends the stream, and with it the instance.
Source: docs/fabric/shim-protocol.md#calls
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Final

from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

from chaindock.aio import Tasks
from chaindock.chaincode.answers import Answers
from chaindock.chaincode.correlator import OutputCorrelator
from chaindock.chaincode.invocation import Call, Invocation
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.outbox import ConcurrencyLimiter, Outbox
from chaindock.errors import (
    ChaindockError,
    ExecuteFailed,
    ExecuteTimeout,
    TransactionExists,
)
from chaindock.ledger.budget import Budget
from chaindock.telemetry import metrics

_MESSAGE_ROOM: Final = 64 * 1024
"""Bytes of the largest message that payload and proposal must leave free."""


class Calls:
    """The calls of one stream.

    Args:
        options: limits.
        overran: ends the stream; gets the transaction id of a call, and the seconds that
            it was not answered.

    Attributes:
        ccid: of the registered chaincode; "" before that.
        answers: carries out the requests of the calls.
    """

    def __init__(
        self, options: StreamOptions, overran: Callable[[str, float], None]
    ) -> None:
        self._options, self._overran = options, overran
        self._calls: dict[tuple[str, str], Call] = {}
        self._outbox: Outbox
        self._ready = self._draining = False
        self.budget = Budget(
            options.contract_bytes,
            "the open calls of this chaincode (chaindock.memory.contract)",
        )
        self.answers = Answers(options, self._calls, self.budget)
        self.limiter = ConcurrencyLimiter(self._start)
        self.correlator = OutputCorrelator()
        self.ccid = ""

    def begin(self, outbox: Outbox, tasks: Tasks) -> None:
        """Take calls from now on; requests that take long run in `tasks`."""
        self._outbox, self._ready = outbox, True
        self.answers.begin(self.ccid, outbox, tasks)
        budget = self.budget  # without `self`: the metric outlives the stream
        metrics.held_bytes(self.ccid, lambda: budget.held)

    def close(self, reason: str) -> int:
        """Fail the calls that wait: the stream ended. Returns: how many callers waited."""
        self._ready = False
        waiting = self.count
        calls = self.unanswered
        self._calls.clear()
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
        """Whether `execute` may be called: ready, not lost, and not about to be stopped."""
        return self._ready and not self._draining and not self._outbox.lost

    @property
    def count(self) -> int:
        """How many callers wait."""
        return sum(not call.over for call in self._calls.values())

    @property
    def unanswered(self) -> list[Call]:
        """The calls that the chaincode has not answered, oldest first."""
        return list(self._calls.values())

    # --- the life of a call -----------------------------------------------------------

    async def execute(
        self, invocation: Invocation, timeout_s: float
    ) -> ChaincodeMessage:
        """Run one call on this stream; return the COMPLETED or ERROR that answers it.

        `timeout_s` counts from when the message is sent, which may be later. Without an
        answer `overrun_s` after that the stream ends, also when the caller has left.

        Raises:
            TransactionExists, ExecuteTimeout, StreamTerminated; ExecuteFailed when the
            message is too large to be sent, and when a chaincode made the call and its
            turn would come only after its own outcome.
        Cancelled: the chaincode keeps running it; what it still asks gets an ERROR.
        """
        if not self.open:
            raise invocation.lost_stream("stream is not ready", sent=False)
        call = Call(invocation, timeout_s, self._budget_of(invocation), self.running)
        caller = invocation.caller
        if call.key in self._calls:
            exists = f"txid: {invocation.tx_id}({invocation.channel_id}) exists"
            raise TransactionExists(invocation.unsent(exists), tx_id=invocation.tx_id)
        self._calls[call.key] = call
        if caller is not None:
            caller.callee = call
        try:
            self.limiter.admit(call)
            if not call.sent and caller is not None:
                self._require_turn(call)
            if not call.sent:  # a hung call before it is over by then
                turn_s = timeout_s + self._options.overrun_s
                self._set_timer(call, turn_s, self._give_up_turn, call, turn_s)
            final = await call.final
        finally:
            if not call.over:
                call.finish(invocation.lost_stream("caller left", sent=call.sent))
            if not call.sent and self._calls.get(call.key) is call:
                self._withdraw(call)
            if caller is not None:
                caller.callee = None
        if isinstance(final, ChaindockError):
            # A copy: `call` may stay, and would keep the frames of all its callers.
            raise copy.copy(final) from final.__cause__
        return final

    def _budget_of(self, invocation: Invocation) -> Budget:
        """Return the budget of a call: that of its transaction."""
        if invocation.caller is not None:
            return invocation.caller.budget
        name = f"transaction {invocation.tx_id} (chaindock.memory.transaction)"
        return Budget(self._options.transaction_bytes, name, self.budget)

    def _require_turn(self, call: Call) -> None:
        """Refuse a call of a chaincode that waits for calls that wait for it.

        Without that, two chaincodes that call each other, and take few calls at a time,
        would wait until their limits.
        """
        if call.is_stuck():
            cause = (
                f"all calls that chaincode {call.invocation.namespace} takes at a time "
                "wait for the outcome of this one"
            )
            raise ExecuteFailed(
                call.invocation.unsent(cause), tx_id=call.invocation.tx_id
            )

    def running(self) -> list[Call] | None:
        """The calls that take all turns; None if the next turn comes by itself."""
        sent = [call for call in self._calls.values() if call.sent]
        return sent if len(sent) >= self.limiter.running else None

    def _start(self, call: Call) -> None:
        invocation, size = call.invocation, call.invocation.nbytes
        limit = self._options.max_message_bytes - _MESSAGE_ROOM
        call.sent = True
        if size > limit:
            cause = f"message of {size} bytes is larger than the limit of {limit}"
            error = ExecuteFailed(invocation.unsent(cause), tx_id=invocation.tx_id)
            self._remove(call, error)
            return
        self._set_timer(call, call.timeout_s, self._expire, call)
        self.correlator.began(invocation.tx_id)
        self._outbox.put(invocation.message(), size)

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
        hung = call.invocation.tx_id, limit_s + overrun_s
        self._set_timer(call, overrun_s, self._overran, *hung)
        if call.over:
            return
        metrics.EXECUTE_TIMEOUTS.labels(self.ccid).inc()
        call.finish(
            ExecuteTimeout(
                call.invocation.unsent("timeout expired while executing transaction"),
                hint=f"chaincode {call.invocation.namespace} did not answer in "
                f"{limit_s:g} s and may still run the call; without an answer after "
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
