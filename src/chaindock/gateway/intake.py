"""Receive requests: what arrives slowly, and what is large, is bounded for all clients.

A request is worked on as a whole; what has arrived of it is held in memory.
Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psutil

from chaindock.gateway.statuses import Refusal
from chaindock.rpc.status import Status
from chaindock.rpc.stream import Stream
from chaindock.values import GIB, MIB

QUICK_S: Final = 0.5
SLOW_S: Final = 60.0
MOST_SLOW, FEW_SLOW = 1000, 16
"""Requests that take more than `QUICK_S` to arrive, at a time; few when memory is short."""
GROWN_BYTES: Final = GIB
"""Memory is short when the process has that much more than when it began to listen."""
_LOOK_S: Final = 0.25
_LARGE: Final = MIB
MOST_BYTES: Final = 256 * MIB
"""Of all large requests that are worked on; parts of them are copied some times."""


class Intake:
    """Receives the requests of all clients of the node."""

    def __init__(self) -> None:
        self._slow: dict[_Reading, None] = {}
        """The oldest first."""
        self._held = 0
        self._process = psutil.Process()
        self._short_bytes = self._process.memory_info().rss + GROWN_BYTES
        self._look: asyncio.TimerHandle | None = None

    async def read(
        self, stream: Stream, source: str, limit_s: float | None = None
    ) -> Any:
        """Return the next request of a call of a connection, or None at the end.

        `limit_s`: most seconds that it may take; None = any. Raises: Refusal.
        """
        reading = _Reading(self, source, limit_s)
        try:
            return await stream.read()
        except asyncio.CancelledError:
            reading.check()
            raise
        finally:
            reading.end()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count a request as long as it is worked on. Raises: Refusal."""
        size = size if size > _LARGE else 0
        if size and self._held and self._held + size > MOST_BYTES:
            raise Refusal(
                Status.RESOURCE_EXHAUSTED, "too many large requests at once; try again"
            )
        self._held += size
        try:
            yield
        finally:
            self._held -= size

    def slow(self, reading: _Reading) -> None:
        """Count a request that arrives slowly, until `arrived`."""
        self._slow[reading] = None
        if self._look is None:
            self._shrink()

    def arrived(self, reading: _Reading) -> None:
        """Count it no more."""
        self._slow.pop(reading, None)

    def _shrink(self) -> None:
        """Refuse slow requests that are too many; look again while they may become so."""
        self._look = None
        if len(self._slow) > FEW_SLOW:
            short = self._process.memory_info().rss > self._short_bytes
            for one in _surplus(self._slow, FEW_SLOW if short else MOST_SLOW):
                text = "too many requests arrive slowly at once; try again"
                one.refuse(Refusal(Status.RESOURCE_EXHAUSTED, text))
            loop = asyncio.get_running_loop()
            self._look = loop.call_later(_LOOK_S, self._shrink)


def _surplus(slow: dict[_Reading, None], most: int) -> list[_Reading]:
    """Return all but `most`; each connection keeps as many as the others, its newest."""
    kept: Counter[str] = Counter()
    ranked = []
    for one in reversed(slow):
        kept[one.source] += 1
        ranked.append((kept[one.source], one))
    ranked.sort(key=lambda pair: pair[0])
    return [one for _, one in ranked[most:]]


class _Reading:
    """A request on its way, from the connection `source`."""

    def __init__(self, intake: Intake, source: str, limit_s: float | None) -> None:
        self.source = source
        self._intake, self._limit_s = intake, limit_s
        self._refusal: Refusal | None = None
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(QUICK_S, self._late)

    def _late(self) -> None:
        if self._limit_s is not None:
            late = Refusal(
                Status.DEADLINE_EXCEEDED, "the request did not arrive in time"
            )
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._limit_s, self.refuse, late)
        self._intake.slow(self)

    def refuse(self, refusal: Refusal) -> None:
        """End the call, unless that is done already."""
        if self._refusal is None and self._task is not None:
            self._refusal = refusal
            self._intake.arrived(self)
            self._task.cancel()

    def check(self) -> None:
        """Raise Refusal if that is why the task was cancelled."""
        if self._refusal is not None and self._task is not None:
            self._task.uncancel()
            raise self._refusal from None

    def end(self) -> None:
        """The request is there, or the client has left."""
        self._timer.cancel()
        self._intake.arrived(self)
