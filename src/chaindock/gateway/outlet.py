"""Send responses: what clients have not taken yet is bounded for all of them together.

A response is held in memory until the client has taken it.
Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from chaindock.gateway.statuses import Refusal
from chaindock.rpc.frames import Bundle
from chaindock.rpc.status import Status
from chaindock.rpc.stream import Stream
from chaindock.values import KIB, MIB

_LARGE: Final = 64 * KIB
MOST_BYTES: Final = 256 * MIB
"""Of large responses that are being sent; as much may wait for its turn."""
PATIENT_S: Final = 1.0
"""A client that takes longer for a response gives way when others wait."""


def _now() -> float:
    return asyncio.get_running_loop().time()


@dataclass(eq=False)
class _Response:
    """A large response to the connection `source`; its call is `task`."""

    source: str
    size: int
    task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    since: float = field(default_factory=_now)
    refused: bool = False


class Outlet:
    """Where the responses to all clients of the node pass."""

    def __init__(self) -> None:
        self._sent: dict[_Response, None] = {}
        self._waiting: dict[_Response, None] = {}

    async def answer(self, size: int, source: str) -> None:
        """Wait until a response may be sent, which counts until the call is over.

        Raises: Refusal.
        """
        if size > _LARGE:
            sent = await self._turn(size, source)
            if sent.task is not None:
                sent.task.add_done_callback(lambda _: self._sent.pop(sent, None))

    @contextmanager
    def _queued(self, response: _Response) -> Iterator[None]:
        self._waiting[response] = None
        try:
            yield
        except asyncio.CancelledError:
            if not response.refused or response.task is None:
                raise
            response.task.uncancel()
            raise _refusal() from None
        finally:
            self._waiting.pop(response, None)

    async def _turn(self, size: int, source: str) -> _Response:
        response = _Response(source, size)
        with self._queued(response):
            while _bytes(self._waiting) > MOST_BYTES and len(self._waiting) > 1:
                last = _of_largest(self._waiting)
                if last is response:
                    raise _refusal()
                self._end(last)
            while self._sent and _bytes(self._sent) + size > MOST_BYTES:
                await self._room()
        response.since = _now()
        self._sent[response] = None
        return response

    async def _room(self) -> None:
        """Take the place of a client that is slow, or wait until one is."""
        slow = [one for one in self._sent if _now() - one.since >= PATIENT_S]
        if slow:
            self._end(_of_largest(slow))
        else:
            oldest = min(one.since for one in self._sent)
            await asyncio.sleep(max(0.02, oldest + PATIENT_S - _now()))

    def _end(self, response: _Response) -> None:
        """End a call; one whose response was being sent gets no status: it reads nothing."""
        response.refused = True
        self._sent.pop(response, None)
        self._waiting.pop(response, None)
        if response.task is not None:
            response.task.cancel()

    async def write(self, stream: Stream, message: bytes | Bundle, source: str) -> None:
        """Write responses of a stream. Raises: Refusal, CallEnded."""
        sent, size = None, len(message)
        if isinstance(message, Bundle) and stream.write_now(message):
            if not stream.connection.full:
                return
            message = Bundle(())  # all is written: what is left is to wait
        if size > _LARGE:
            sent = await self._turn(size, source)
        try:
            await stream.write(message)
        finally:
            if sent is not None:
                self._sent.pop(sent, None)


def _bytes(responses: Iterable[_Response]) -> int:
    return sum(one.size for one in responses)


def _of_largest(responses: Iterable[_Response]) -> _Response:
    """Return the oldest response of the connection that has the most bytes."""
    sizes: Counter[str] = Counter()
    for one in responses:
        sizes[one.source] += one.size
    return max(responses, key=lambda one: sizes[one.source])


def _refusal() -> Refusal:
    text = "too many large responses wait for slow clients; try again"
    return Refusal(Status.RESOURCE_EXHAUSTED, text)
