"""The invocations that run on one stream, or wait for their turn.

Owns:    one context each; sending, final messages, time-outs; draining before a stop.
Not:     the stream and its registration (handler.py), who is next (turns.py), what
         requests do (requests.py).
Entry:   Calls.execute
Holds:   every invocation gets one outcome, at the latest with the end of the stream.
Source:  shim-protocol.md §4, §10
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from chaindock.aio import Latch
from chaindock.chaincode import requests
from chaindock.chaincode.context import Context
from chaindock.chaincode.invocation import outcome_of
from chaindock.chaincode.marks import Marks
from chaindock.chaincode.observer import StreamObserver
from chaindock.chaincode.turns import Turns
from chaindock.errors import ChaindockError

if TYPE_CHECKING:
    from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

    from chaindock.chaincode.invocation import Invocation, Outcome
    from chaindock.chaincode.options import StreamOptions
    from chaindock.chaincode.outbox import Outbox
    from chaindock.chaincode.turns import End

_MESSAGE_ROOM: Final = 64 * 1024
"""Of the largest message: left for all but payload and proposal."""


class Calls:
    """The invocations of one stream.

    Args:
        options: limits.
        end: ends the stream.
    """

    def __init__(self, options: StreamOptions, end: End) -> None:
        self._options, self._end = options, end
        self._contexts: dict[tuple[str, str], Context] = {}
        self._outbox: Outbox
        self._ready = False
        self._draining: Latch[None] | None = None
        self.turns = Turns(self._start)
        self.marks = Marks()
        self.observer = StreamObserver()

    def begin(self, outbox: Outbox) -> None:
        """Take invocations from now on: the stream is ready."""
        self._outbox, self._ready = outbox, True

    def close(self, reason: str) -> int:
        """Take no more, and fail those that wait: the stream ended because of `reason`.

        Returns: how many those were.
        """
        self._ready = False
        contexts, self._contexts = list(self._contexts.values()), {}
        self.turns.clear()
        self.marks.close()
        for context in contexts:
            context.finish(context.invocation.lost_stream(reason, sent=context.sent))
        self._check_drained()
        return len(contexts)

    @property
    def open(self) -> bool:
        """Whether `execute` may be called: ready, and not about to be stopped."""
        return self._ready and self._draining is None

    @property
    def count(self) -> int:
        """How many invocations have no final message yet."""
        return len(self._contexts)

    async def execute(self, invocation: Invocation, timeout_s: float) -> Outcome:
        """Run one invocation on this stream.

        `timeout_s` counts from when the message is sent, which on a stream with
        limited concurrency may be later.

        Raises:
            TransactionExists, ExecuteTimeout, StreamTerminated, ChaincodeError;
            ExecuteFailed when the message is too large to be sent.
        Cancelled: the chaincode keeps running it; what it still asks gets an ERROR.
        """
        if not self.open:
            raise invocation.lost_stream("stream is not ready", sent=False)
        context = Context(invocation, timeout_s)
        if context.key in self._contexts:
            raise invocation.already_runs()
        self._contexts[context.key] = context
        try:
            self.turns.take(context)
            final = await context.final
        finally:
            if not context.over:
                left = invocation.lost_stream("caller left", sent=context.sent)
                self._drop(context, left, runs_on=context.sent)
        if isinstance(final, ChaindockError):
            raise final
        return outcome_of(final, invocation)

    def take_final(self, message: ChaincodeMessage) -> None:
        """Finish the invocation that a COMPLETED or ERROR message ends, if it waits."""
        self.marks.ended(message.txid)
        key = message.channel_id, message.txid
        context = self._contexts.get(key)
        if not self.turns.came_back(key) and context is not None and context.sent:
            self._drop(context, message)

    async def take_request(self, message: ChaincodeMessage) -> None:
        """Answer a request; return when the stream takes more."""
        context = self._contexts.get((message.channel_id, message.txid))
        if context is not None and not context.sent:
            context = None
        outbox = self._outbox
        outbox.put(
            *await requests.serve(context, message, self._options, self.observer)
        )
        if outbox.full:
            await outbox.room()

    async def drain(self) -> None:
        """Take no more invocations, and return when none is open."""
        if self._draining is None:
            self._draining = Latch()
        self._check_drained()
        await self._draining.wait()

    def _start(self, context: Context) -> None:
        invocation = context.invocation
        message = invocation.message()
        size = len(message.payload) + len(invocation.signed_proposal.proposal_bytes)
        limit = self._options.max_message_bytes - _MESSAGE_ROOM
        context.sent = True
        if size > limit:
            self._drop(context, invocation.too_large(size, limit))
            return
        context.timer = asyncio.get_running_loop().call_later(
            context.timeout_s, self._expire, context
        )
        self.marks.began(invocation.tx_id)
        self._outbox.put(message, size)

    def _expire(self, context: Context) -> None:
        # Nothing is sent: the chaincode keeps running it (§10).
        self.observer.timed_out()
        error = context.invocation.took_too_long(context.timeout_s)
        self._drop(context, error, runs_on=True)

    def _drop(
        self,
        context: Context,
        final: ChaincodeMessage | ChaindockError,
        *,
        runs_on: bool = False,
    ) -> None:
        """Finish an invocation; its turn goes to the next one, once it runs no more."""
        self._contexts.pop(context.key, None)
        context.finish(final)
        if context.sent:
            if runs_on:
                self.turns.keep(context.key, self._options.overrun_s, self._end)
            else:
                self.turns.give_back()
        self._check_drained()

    def _check_drained(self) -> None:
        if self._draining is not None and not self._contexts:
            self._draining.settle(None)
