"""What the node sends on a stream: one message at a time, and a number of calls at a time.

The Python shim takes one call at a time; other shims take any number.
Source: docs/fabric/shim-protocol.md
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from functools import partial

from chaindock.aio import LARGE_BYTES, off_loop
from chaindock.chaincode.invocation import Call
from chaindock.chaincode.wire import Message, serialized
from chaindock.ledger.budget import Budget
from chaindock.rpc.status import CallEnded
from chaindock.rpc.stream import Stream

Rest = Callable[[Callable[[], None]], None]
"""Calls its argument once, when the pause between two calls is over."""

WAITING_MESSAGES = 256
WAITING_BYTES = 16 * 1024 * 1024
"""A chaincode that asks more than it reads is not read while this much waits for it."""


class Outbox:
    """The one writer of a stream.

    A write is never cancelled because a caller has left.

    Args:
        budget: of the stream; gets back what an answer took when it is sent.
    """

    def __init__(self, stream: Stream, budget: Budget) -> None:
        self._stream, self._budget = stream, budget
        self._queue: deque[tuple[Message, int, int]] = deque()
        self._bytes = 0
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()
        self.writing: Message | None = None

    def put(self, message: Message, size: int, taken: int = 0) -> None:
        """Send `message`, of about `size` bytes, after those that wait.

        The budget gets `taken` bytes back afterwards.
        """
        if size <= LARGE_BYTES and not self._queue and self.writing is None:
            with contextlib.suppress(CallEnded):  # `run` tells of it
                if self._stream.write_now(serialized(message)):
                    self._budget.give_back(taken)
                    return
        self._queue.append((message, size, taken))
        self._bytes += size
        self._filled.set()

    @property
    def lost(self) -> bool:
        """Whether the stream has broken; those who wait for answers may not know yet."""
        return self._stream.ended is not None

    @property
    def full(self) -> bool:
        """Whether the reader has to wait for `room`."""
        return len(self._queue) >= WAITING_MESSAGES or self._bytes >= WAITING_BYTES

    async def room(self) -> None:
        """Return when it is no longer full."""
        while self.full:
            self._emptied.clear()
            await self._emptied.wait()

    async def run(self) -> None:
        """Write until that fails; then `writing` is the message that failed."""
        queue, write = self._queue, self._stream.write
        while True:
            if not queue:
                self._filled.clear()
                await self._filled.wait()
            self.writing, size, taken = queue.popleft()
            await write(await off_loop(size, partial(serialized, self.writing)))
            self.writing = None
            self._bytes -= size
            self._budget.give_back(taken)
            if not self.full:
                self._emptied.set()


class ConcurrencyLimiter:
    """Lets a number of calls run on a stream at a time, in order of arrival.

    Calls that a chaincode has made come first: they hold up a call of another stream.

    Args:
        start: begins a call that may run.

    Attributes:
        waiting: calls that wait for others to be answered.
        limit: None = any number.
        rest: waits after an answer until the next call may begin; None = no pause.
    """

    def __init__(self, start: Callable[[Call], None]) -> None:
        self._start = start
        self.waiting: deque[Call] = deque()
        self.limit: int | None = None
        self.rest: Rest | None = None
        self.running = 0

    def admit(self, call: Call) -> None:
        """Start `call` now, or when calls before it were answered."""
        if call.invocation.caller is None:
            self.waiting.append(call)
        else:
            self.waiting.appendleft(call)
        self._fill()

    def release(self) -> None:
        """Take note that a call was answered."""
        if self.rest is None:
            self._next()
        else:
            self.rest(self._next)

    def _next(self) -> None:
        self.running -= 1
        self._fill()

    def _fill(self) -> None:
        while self.waiting and (self.limit is None or self.running < self.limit):
            self.running += 1
            self._start(self.waiting.popleft())
