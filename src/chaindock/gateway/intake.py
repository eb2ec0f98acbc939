"""Receive requests: what arrives slowly, and what is large, is bounded for all clients.

gRPC gives a request only as a whole, and holds in memory what has arrived of it.
Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc.aio

from chaindock.gateway.statuses import Refusal, Status
from chaindock.values import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.gateway.listener import Context

QUICK_S: Final = 0.5
SLOW_S: Final = 60.0
MOST_SLOW: Final = 32
"""Requests that take more than `QUICK_S` to arrive, at a time."""
_LARGE: Final = MIB
MOST_BYTES: Final = 512 * MIB
"""Of all large requests that are worked on."""


class Intake:
    """Receives the requests of all clients of the node."""

    def __init__(self) -> None:
        self._slow = self._held = 0

    async def read(self, context: Context) -> bytes:
        """Return the request of a call. Raises: Refusal."""
        reading = _Reading(self)
        try:
            request = await context.read()
        except asyncio.CancelledError:
            reading.check()
            raise
        finally:
            reading.end()
        if request is grpc.aio.EOF:
            raise Refusal(Status.INTERNAL, "grpc: the request is missing")
        return bytes(request)

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

    def slow(self, change: int) -> bool:
        """Count a slow request; whether there may be more."""
        self._slow += change
        return self._slow < MOST_SLOW


class _Reading:
    """A request on its way."""

    def __init__(self, intake: Intake) -> None:
        self._intake, self._is_slow = intake, False
        self._refusal: Refusal | None = None
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(QUICK_S, self._late)

    def _late(self) -> None:
        if self._is_slow:
            text = "the request did not arrive in time"
            self._refuse(Refusal(Status.DEADLINE_EXCEEDED, text))
        elif not self._intake.slow(0):
            text = "too many requests arrive slowly at once; try again"
            self._refuse(Refusal(Status.RESOURCE_EXHAUSTED, text))
        else:
            self._is_slow = True
            self._intake.slow(1)
            self._timer = self._loop.call_later(SLOW_S, self._late)

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        if self._task is not None:
            self._task.cancel()

    def check(self) -> None:
        """Raise Refusal if that is why the task was cancelled."""
        if self._refusal is not None and self._task is not None:
            self._task.uncancel()
            raise self._refusal from None

    def end(self) -> None:
        """The request is there, or the client has left."""
        self._timer.cancel()
        if self._is_slow:
            self._intake.slow(-1)
