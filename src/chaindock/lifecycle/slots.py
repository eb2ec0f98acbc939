"""How many launches work at the same time.

Owns:    places, the queue before them, who may go beyond them.
Not:     what is done in a place (custodian.py).
Entry:   Slots.place
Holds:   who waits goes in order of arrival; a launch counts against the limit while it
         is fresh, which is less than 100 ms, and for longer it keeps nobody out; while
         all processors work, no more than eight times the limit hold a place.
Source:  launch.md §9 W1; needs.md rows 28, 29

Nobody can tell a slow compiler from one that hangs by what it prints or uses. So the limit
spreads a crowd, because launches side by side take more processor time than one after
the other, and ends nobody's hope. Where processors have nothing to do, it does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_FRESH_S: Final = 0.08
"""So long a launch counts against the limit."""
_CROWD: Final = 8
"""So many times the limit may hold a place while all processors work."""
_LOOK_S: Final = 0.04
"""While somebody waits, it is looked so often whether processors have no work."""
_ENOUGH: Final = 0.6
"""So much of a processor must have been without work to count as one."""


class Slots:
    """Places for `limit` launches that begin at once, and for more after a while.

    Args:
        limit: how many are fresh side by side.
        patience_s: whoever holds a place for longer is not counted at all any more.
    """

    def __init__(self, limit: int, patience_s: float) -> None:
        self._limit, self._patience_s = limit, patience_s
        self._fresh = self._taken = 0
        self._waiting: deque[asyncio.Future[_Held]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._seen = (0.0, 0.0)

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place in the block; wait for one before."""
        turn: asyncio.Future[_Held] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            held = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in, and gone
                turn.result().leave()
            raise
        try:
            yield
        finally:
            held.leave()

    def _admit(self, beyond: int = 0) -> None:
        """Let in who may, and `beyond` more; whoever has gone meanwhile is forgotten."""
        while self._waiting:
            if self._waiting[0].done():
                _ = self._waiting.popleft()
                continue
            free = self._fresh < self._limit and self._taken < _CROWD * self._limit
            if not free and beyond < 1:
                self._watch()
                return
            beyond -= not free
            self._waiting.popleft().set_result(_Held(self._count, self._patience_s))

    def _count(self, fresh: int, taken: int) -> None:
        self._fresh += fresh
        self._taken += taken
        if fresh < 0 or taken < 0:
            self._admit()

    def _watch(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._seen = (loop.time(), processors_idle_s())
            self._timer = loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        then, before_s = self._seen
        spent_s = asyncio.get_running_loop().time() - then
        idle = (processors_idle_s() - before_s) / spent_s
        self._admit(beyond=int(idle + 1 - _ENOUGH))


class _Held:
    """A place: fresh, then just taken, then not counted any more.

    Args:
        count: is told how many fresh and taken places there are more, or less.
    """

    def __init__(self, count: Callable[[int, int], None], patience_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._count = count
        self._fresh = self._taken = 1
        self._timers = (
            loop.call_later(min(_FRESH_S, patience_s), self._grow_old),
            loop.call_later(patience_s, self.leave),
        )
        count(1, 1)

    def _grow_old(self) -> None:
        fresh, self._fresh = self._fresh, 0
        self._count(-fresh, 0)

    def leave(self) -> None:
        """Count no more; may be called again."""
        for timer in self._timers:
            timer.cancel()
        fresh, self._fresh = self._fresh, 0
        taken, self._taken = self._taken, 0
        self._count(-fresh, -taken)


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def processors_idle_s() -> float:
    """Return how long processors had nothing to do since some moment, in seconds.

    Waiting for a disk counts as nothing to do.
    """
    times = psutil.cpu_times()
    return float(times.idle + getattr(times, "iowait", 0.0))
