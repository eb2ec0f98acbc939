"""How many invocations run on one stream at a time, and who is next.

Owns:    the limit of a stream, the queue before it, the rest between two turns.
Not:     what a turn is for (calls.py).
Entry:   Turns
Holds:   never more than `limit` turns are taken, also by invocations that were given up
         and run on in the shim; who waits goes in order of arrival.
Source:  shim-protocol.md §12.4
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.context import Context

    End = Callable[[grpc.StatusCode, str], None]
    """Ends the stream: code and reason."""
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
        self._late: dict[tuple[str, str], asyncio.TimerHandle] = {}

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

    def keep(self, key: tuple[str, str], limit_s: float, end: End) -> None:
        """Keep the turn of an invocation that nobody waits for and that still runs.

        It is given back by `came_back`. After `limit_s` seconds `end` ends the stream:
        others wait for the turn, and the shim cannot be told to stop.
        """
        if self.limit is None:
            self.give_back()
            return
        reason = (
            f"an invocation that was given up runs on for more than {limit_s:g} s and "
            "lets no other begin"
        )
        self._late[key] = asyncio.get_running_loop().call_later(
            limit_s, end, grpc.StatusCode.ABORTED, reason
        )

    def came_back(self, key: tuple[str, str]) -> bool:
        """Give back a kept turn: its final message came. False = none was kept."""
        timer = self._late.pop(key, None)
        if timer is None:
            return False
        timer.cancel()
        self.give_back()
        return True

    def clear(self) -> None:
        """Drop who waits: the stream has ended."""
        self._waiting.clear()
        for timer in self._late.values():
            timer.cancel()
        self._late.clear()

    def _free(self) -> None:
        self.taken -= 1
        while self._waiting and (self.limit is None or self.taken < self.limit):
            context = self._waiting.popleft()
            if not context.over:
                self._begin(context)

    def _begin(self, context: Context) -> None:
        self.taken += 1
        self._start(context)
