"""Answer with one JSON object a line: the events of an attempt, or log lines.

If a client reads too slowly, lines of output are dropped and counted; phases and the
result never are. The events are listed in admin.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from aiohttp import web

from chaindock.aio import Tasks
from chaindock.errors import ChaindockError
from chaindock.operations import wire
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from chaindock.container.attempt import Event
    from chaindock.operations.facade import Deployment, Watch
    from chaindock.operations.tail import LogLine

MAX_WAITING = 10_000
"""Events that wait for a client; output after that is dropped."""
_log = get_logger("admin")


class EventQueue:
    """Events that wait to be sent to one client."""

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self._limit = limit
        self._waiting: deque[dict[str, Any]] = deque()
        self._dropped = 0
        self._more = asyncio.Event()
        self._ended = False

    def put(self, event: Event) -> None:
        """Take an event of the attempt; never blocks."""
        if event.kind == "output" and len(self._waiting) >= self._limit:
            self._dropped += 1
            return
        self._add({"event": event.kind, **event.data})

    def end(self, last: dict[str, Any]) -> None:
        """Take the last event."""
        if self._dropped:
            text = f"{self._dropped} lines of output not shown here"
            self._add({"event": "note", "text": text})
        self._ended = True
        self._add(last)

    def _add(self, body: dict[str, Any]) -> None:
        self._waiting.append(body)
        self._more.set()

    async def batches(self) -> AsyncIterator[bytes]:
        """Yield the events as lines of JSON, until the last one."""
        while self._waiting or not self._ended:
            await self._more.wait()
            self._more.clear()
            ready, self._waiting = self._waiting, deque()
            if ready:
                yield b"".join(_line(body) for body in ready)


def _line(body: Any) -> bytes:
    return json.dumps(body).encode() + b"\n"


async def _open(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": wire.NDJSON})
    await response.prepare(request)
    return response


async def stream_work(
    request: web.Request, work: Callable[[Watch], Awaitable[Deployment]]
) -> web.StreamResponse:
    """Run `work`, stream its events, then its result or error.

    Cancelled, or the client disconnects: `work` is cancelled and has ended.
    """
    response = await _open(request)
    queue = EventQueue()
    with contextlib.suppress(ConnectionError):
        async with Tasks("admin") as tasks:
            settled = tasks.start(_settle(work, queue), request.path)
            async for lines in queue.batches():
                await response.write(lines)
            await settled
        await response.write_eof()
    return response


async def _settle(
    work: Callable[[Watch], Awaitable[Deployment]], queue: EventQueue
) -> None:
    try:
        done = await work(queue.put)
        queue.end(
            {"event": wire.EVENT_RESULT, "result": dataclasses.asdict(done)},
        )
    except ChaindockError as error:
        queue.end({"event": wire.EVENT_ERROR, "error": error.as_dict()})
    except Exception as error:  # noqa: BLE001  # the client must get an end
        _log.exception("deployment failed")
        queue.end({"event": wire.EVENT_ERROR, "error": wire.internal_error(error)})


async def stream_lines(
    request: web.Request, batches: AsyncGenerator[list[LogLine], None]
) -> web.StreamResponse:
    """Stream batches of log lines until they end or the client disconnects."""
    response = await _open(request)
    with contextlib.suppress(ConnectionError):
        async with contextlib.aclosing(batches) as open_batches:
            async for batch in open_batches:
                lines = [_line({"event": "line", **line.as_dict()}) for line in batch]
                await response.write(b"".join(lines))
        await response.write_eof()
    return response
