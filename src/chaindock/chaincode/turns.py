"""How many invocations run on one stream at a time, and who is next.

Owns:    the limit of a stream, the queue before it, the rest between two turns.
Not:     what a turn is (handler.py).
Entry:   Turns
Holds:   never more than `limit` turns are taken; who waits goes in order of arrival.
Source:  shim-protocol.md §12.4
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.context import Context

    Rest = Callable[[Callable[[], None]], None]
    """Calls what it is given, once, when the rest is over."""

_PAUSE_S: Final = 0.003


def pause(done: Callable[[], None]) -> None:
    """Rest for some milliseconds: the best there is when nothing can be asked."""
    asyncio.get_running_loop().call_later(_PAUSE_S, done)


class Turns:
    """The turns of one stream.

    Args:
        start: begins an invocation whose turn it is.
    """

    def __init__(self, start: Callable[[Context], None]) -> None:
        self._start = start
        self._waiting: deque[Context] = deque()
        self.limit: int | None = None
        self.rest: Rest | None = None
        """A turn stays taken for so long after its invocation is over."""
        self.taken = 0

    def take(self, context: Context) -> None:
        """Start `context` now, or when those before it are done."""
        if self.limit is None or self.taken < self.limit:
            self._begin(context)
        else:
            self._waiting.append(context)

    def give_back(self) -> None:
        """End one turn; the next one may begin after the rest."""
        if self.rest is None:
            self._free()
        else:
            self.rest(self._free)

    def clear(self) -> None:
        """Drop who waits: the stream has ended."""
        self._waiting.clear()

    def _free(self) -> None:
        self.taken -= 1
        while self._waiting and (self.limit is None or self.taken < self.limit):
            context = self._waiting.popleft()
            if not context.over:
                self._begin(context)

    def _begin(self, context: Context) -> None:
        self.taken += 1
        self._start(context)
