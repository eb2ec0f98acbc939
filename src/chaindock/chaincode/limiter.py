"""How many calls run on one stream at a time.

The Python shim takes one call at a time; other shims take any number.
Source: docs/fabric/shim-protocol.md
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.calls import Call

    Rest = Callable[[Callable[[], None]], None]
    """Calls its argument once, when the pause between two calls is over."""


class ConcurrencyLimiter:
    """Lets a number of calls run on a stream at a time, in order of arrival.

    Args:
        start: begins a call that may run.
    """

    def __init__(self, start: Callable[[Call], None]) -> None:
        self._start = start
        self._waiting: deque[Call] = deque()
        self.limit: int | None = None
        """None = any number."""
        self.rest: Rest | None = None
        """Waits after an answer until the next call may begin; None = no pause."""
        self.running = 0

    def admit(self, call: Call) -> None:
        """Start `call` now, or when calls before it were answered."""
        if self.limit is None or self.running < self.limit:
            self.running += 1
            self._start(call)
        else:
            self._waiting.append(call)

    def release(self) -> None:
        """Take note that a call was answered."""
        if self.rest is None:
            self._next()
        else:
            self.rest(self._next)

    def withdraw(self, call: Call) -> None:
        """Forget a call that waits."""
        self._waiting.remove(call)

    def clear(self) -> None:
        """Forget the calls that wait: the stream has ended."""
        self._waiting.clear()

    def _next(self) -> None:
        self.running -= 1
        while self._waiting and (self.limit is None or self.running < self.limit):
            call = self._waiting.popleft()
            if not call.over:
                self.running += 1
                self._start(call)
