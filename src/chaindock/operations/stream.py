"""Answer with one JSON object a line: events of an attempt, or lines of output files.

If a client reads too slowly, lines of output are dropped and counted; phases and the
result never are. A follower of output files gets every line once, and goes on with the
file of the next attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from aiohttp import web

from chaindock.aio import Tasks
from chaindock.container.attempt import Event, Watch
from chaindock.errors import ChaindockError
from chaindock.operations import wire
from chaindock.operations.facade import Deployment
from chaindock.telemetry import get_logger

MAX_WAITING = 10_000
"""Events that wait for a client; output after that is dropped."""
CHUNK = 256 * 1024
"""Bytes of an output file that are read at a time, in a thread."""
POLL_S = 0.2
LOOKS = 10
"""Times that the last line is looked for in a file that was cut."""
_STREAMS = ("build", "stdout", "stderr")
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
    return json.dumps(body, default=vars).encode() + b"\n"


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
        queue.end({"event": wire.EVENT_RESULT, "result": done})
    except ChaindockError as error:
        queue.end({"event": wire.EVENT_ERROR, "error": error.as_dict()})
    except Exception as error:  # noqa: BLE001  # the client must get an end
        _log.exception("deployment failed")
        queue.end({"event": wire.EVENT_ERROR, "error": wire.internal_error(error)})


async def stream_lines(
    request: web.Request,
    batches: AsyncGenerator[list[dict[str, Any]], None],
    kind: str = "line",
) -> web.StreamResponse:
    """Stream batches of lines until they end or the client disconnects.

    The next batch is made when the client has room for it: a slow client costs the
    memory of one batch. `kind` is the `event` of each object.
    """
    response = await _open(request)
    with contextlib.suppress(ConnectionError):
        async with contextlib.aclosing(batches) as open_batches:
            async for batch in open_batches:
                lines = (_line({"event": kind, **one}) for one in batch)
                await response.write(b"".join(lines))
        await response.write_eof()
    return response


# --- output files ---------------------------------------------------------------------


def parse_line(raw: bytes) -> dict[str, Any]:
    """Return `time`, `stream`, `line` and `tx` of `<iso time> <stream>[@<tx>] <text>`.

    `tx` is the transaction that wrote the line; None = none, or not known. Any other line
    is a note of the node, without a time ("").
    """
    text = raw.decode(errors="replace")
    parts = text.split(" ", 2)
    if len(parts) == 3:
        stream, _, tx = parts[1].partition("@")
        if stream in _STREAMS:
            time, _, line = parts
            return {"time": time, "stream": stream, "line": line, "tx": tx or None}
    return {"time": "", "stream": "note", "line": text, "tx": None}


@dataclass(frozen=True)
class Tail:
    """The output of one chaincode."""

    files: Callable[[], Sequence[Path]]
    """Returns the output files, oldest first; asked again while following."""
    previous: bool = False
    """Read the file before the last one."""
    poll_s: float = POLL_S
    over: Callable[[], bool] = lambda: False
    """Whether a follower is to end."""

    async def batches(
        self, *, follow: bool = False
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield the lines, oldest first; with `follow`, until `over`."""
        path = self._pick()
        while follow and path is None and not self.over():
            await asyncio.sleep(self.poll_s)
            path = self._pick()
        while path is not None:
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                async for batch in self._drain(path, _Reader(file), follow=follow):
                    yield batch
            path = self._after(path) if follow else None

    def _pick(self) -> Path | None:
        files = self.files()
        wanted = 2 if self.previous else 1
        return files[-wanted] if len(files) >= wanted else None

    def _after(self, path: Path) -> Path | None:
        return next((file for file in self.files() if file.name > path.name), None)

    async def _drain(
        self, path: Path, reader: _Reader, *, follow: bool
    ) -> AsyncIterator[list[dict[str, Any]]]:
        last_look = False
        while True:
            lines = await asyncio.to_thread(reader.take)
            if lines:
                yield lines
            elif not follow or last_look:
                break
            elif self.over() or self._after(path) is not None:
                last_look = True  # for lines written since the last read
            else:
                await asyncio.sleep(self.poll_s)
        if rest := reader.rest():
            yield rest


class _Reader:
    """One file; between two reads, the writer may cut it to its newest half."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._partial = b""
        self._last = b""
        self._offset = 0
        self._looks = 0

    def take(self) -> list[dict[str, Any]]:
        """Return the complete lines of the next chunk; [] = none at present."""
        size = os.fstat(self._file.fileno()).st_size
        if size < self._offset and not self._resume():
            return []
        data = self._file.read(CHUNK)
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if lines:
            self._last = lines[-1]
        if data and not lines:
            return self.take() if len(self._partial) < CHUNK else self.rest()
        return [parse_line(line) for line in lines]

    def rest(self) -> list[dict[str, Any]]:
        """Return the last line if it has no end."""
        partial, self._partial = self._partial, b""
        return [parse_line(partial)] if partial else []

    def _resume(self) -> bool:
        """Continue after the last line that was read, in a file that was cut.

        The writer may not have flushed that line yet, so it is looked for `LOOKS` times;
        after that it was cut away, and reading begins at the start of the file.
        """
        self._file.seek(0)
        content = self._file.read()
        at = content.rfind(self._last + b"\n") if self._last else -1
        self._looks += 1
        if at < 0 and self._looks < LOOKS:
            return False
        self._looks = 0
        self._offset = at + len(self._last) + 1 if at >= 0 else 0
        self._partial = b""
        self._file.seek(self._offset)
        return True
