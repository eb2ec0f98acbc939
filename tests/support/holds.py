"""How long callbacks and steps of tasks hold the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Holds:
    """The longest time that one callback took, in seconds, and what it was.

    `cpu_s` counts the processor time of the loop's thread alone: other programs and
    threads add nothing to it.
    """

    wall_s: float = 0.0
    cpu_s: float = 0.0
    what: str = ""


@dataclass
class Beats:
    """How much too late the latest timer came, in seconds."""

    latest_s: float = 0.0


@contextlib.contextmanager
def watched() -> Iterator[Holds]:
    """Measure all callbacks of the loop that runs in this block."""
    found, run = Holds(), asyncio.Handle._run

    def timed(self: Any) -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        run(self)
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        found.wall_s = max(found.wall_s, wall)
        if cpu > found.cpu_s:
            found.cpu_s, found.what = cpu, _named(self._callback)

    asyncio.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        asyncio.Handle._run = run  # type: ignore[method-assign]


def _named(callback: Any) -> str:
    """Return what runs; not its arguments, which may be large."""
    of = getattr(callback, "__self__", None)
    return repr(of.get_coro() if isinstance(of, asyncio.Task) else callback)


def cpu_of(work: Callable[[], object]) -> float:
    """Return how long `work` takes the processor, in seconds: to compare holds with."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


@contextlib.contextmanager
def beating() -> Iterator[Beats]:
    """Have a timer of the loop, of 1 ms, see how late it comes, whoever has held it up."""
    found, loop = Beats(), asyncio.get_running_loop()
    timers: list[asyncio.Handle] = []

    def beat(due_s: float) -> None:
        found.latest_s = max(found.latest_s, loop.time() - due_s)
        due_s = loop.time() + 0.001
        timers[:] = [loop.call_at(due_s, beat, due_s)]

    beat(loop.time())
    try:
        yield found
    finally:
        timers[0].cancel()
