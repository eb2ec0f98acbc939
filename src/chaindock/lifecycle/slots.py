"""How many launches work at the same time.

Owns:    places, the queue before them, who may go beyond them.
Not:     what is done in a place (custodian.py).
Entry:   Slots.place
Holds:   who waits goes in order of arrival; no more than the limit begin at once; those
         that hang keep the next one out for less than 100 ms, whether they use a
         processor or not; of those that use one, no more than four times the limit hold
         a place.
Source:  launch.md §9 W1; needs.md rows 28, 29

Nobody can tell a slow compiler from one that hangs by what it prints. One that uses no
processor only waits, wherever it runs, and is not counted. One that spins looks like one
that works, so the limit gives way when nobody has come or gone for a while. A queue that
moves is left alone: more side by side than there are processors take longer in all.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections import deque
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_LOOK_S: Final = 0.03
"""While somebody waits, it is looked so often whether processors have no work."""
_STILL_S: Final = 0.07
"""When nobody has come or gone for so long, one more is let in though all have work."""
_CROWD: Final = 4
"""So many times the limit, and no more are let in while all processors work."""
_ENOUGH: Final = 0.6
"""So much of a processor must have been without work to count as one."""


class Slots:
    """Places for `limit` launches at once, and one by one for more.

    Args:
        limit: how many work side by side.
        patience_s: whoever holds a place for longer is not counted any more.
    """

    def __init__(self, limit: int, patience_s: float) -> None:
        self._limit, self._patience_s = limit, patience_s
        self._taken = 0
        self._moved_at = -math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._seen = (0.0, 0.0)

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place in the block; wait for one before."""
        loop = asyncio.get_running_loop()
        if self._taken >= self._limit or self._waiting:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            self._watch()
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # let in, and gone
                    self._taken -= 1
                    self._admit()
                else:
                    self._waiting.remove(turn)
                raise
        else:
            self._taken += 1
        held = _Held(self._leave)
        timer = loop.call_later(self._patience_s, held.give_up)
        try:
            yield
        finally:
            timer.cancel()
            held.give_up()

    def _leave(self) -> None:
        self._taken -= 1
        self._moved_at = asyncio.get_running_loop().time()
        self._admit()

    def _admit(self, beyond: int = 0) -> None:
        """Let in who may: up to the limit, and `beyond` more."""
        while self._waiting and (self._taken < self._limit or beyond > 0):
            if self._taken >= self._limit:
                beyond -= 1
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)

    def _watch(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._seen = (loop.time(), processors_idle_s())
            self._timer = loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._timer = None
        then, before_s = self._seen
        now = asyncio.get_running_loop().time()
        idle = (processors_idle_s() - before_s) / (now - then)
        more = int(idle + 1 - _ENOUGH)
        if not more and now - self._moved_at >= _STILL_S:
            more = int(self._taken < _CROWD * self._limit)
        if more:
            self._moved_at = now
            self._admit(beyond=more)
        if self._waiting:
            self._watch()


class _Held:
    """A place that can be given up once."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def give_up(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()


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
