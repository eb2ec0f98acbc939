"""The output of a container: frames, lines, and one run followed to its end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Literal

from chaindock.container.attempt import LINE_BYTES
from chaindock.errors import EngineError, NotFound
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from chaindock.aio import Tasks
    from chaindock.controllers.docker.engine import Engine

HEADER_BYTES = 8
_REFUSED = b'{"cause"'
"""Begins what Podman appends to output that it cannot read any more (4.3)."""
Output = Literal["stdout", "stderr"]
_STREAMS: dict[int, Output] = {0: "stdout", 1: "stdout", 2: "stderr"}


class Demultiplexer:
    """Split `{stream, 0, 0, 0, length}` frames; a stream without them is stdout.

    An engine sends plain bytes for a container with a terminal; ours have none, but a
    first header that is none must not turn output into nonsense. An error of the engine
    is no output: it is dropped, and it is the last that comes.
    """

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0
        self._stream: Output = "stdout"
        self._plain = self._refused = False

    def feed(self, data: bytes) -> Iterator[tuple[Output, bytes]]:
        """Yield the payload in `data` with the stream it belongs to."""
        at = 0
        while at < len(data) and not self._refused:
            if self._plain:
                yield "stdout", data[at:]
                return
            if self._left:
                part = data[at : at + self._left]
                self._left -= len(part)
                at += len(part)
                yield self._stream, part
                continue
            missing = HEADER_BYTES - len(self._header)
            self._header += data[at : at + missing]
            at += missing
            if len(self._header) == HEADER_BYTES:
                yield from self._open_frame()

    def _open_frame(self) -> Iterator[tuple[Output, bytes]]:
        header = bytes(self._header)
        self._header.clear()
        self._refused = header == _REFUSED
        if self._refused:
            return
        if header[0] not in _STREAMS or header[1:4] != b"\0\0\0":
            self._plain = True
            yield "stdout", header
            return
        self._stream = _STREAMS[header[0]]
        self._left = int.from_bytes(header[4:], "big")


class OutputLines:
    """Multiplexed output, handed on line by line.

    Args:
        take: gets (line without its end, stream). Bytes that are not UTF-8 are replaced;
            of a longer line the first 8 KiB and one character more are handed on.
    """

    def __init__(self, take: Callable[[str, Output], None]) -> None:
        self._take = take
        self._frames = Demultiplexer()
        self._lines: dict[Output, bytearray] = {
            "stdout": bytearray(),
            "stderr": bytearray(),
        }

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        for stream, part in self._frames.feed(data):
            self.add(stream, part)

    def add(self, stream: Output, part: bytes) -> None:
        """Take payload that somebody else split into streams."""
        at = 0
        while (end := part.find(b"\n", at)) >= 0:
            self._grow(stream, part[at:end])
            self._emit(stream)
            at = end + 1
        self._grow(stream, part[at:])

    def end(self) -> None:
        """Hand on lines that have no end."""
        for stream, line in self._lines.items():
            if line:
                self._emit(stream)

    def _grow(self, stream: Output, part: bytes) -> None:
        line = self._lines[stream]
        line += part[: max(0, LINE_BYTES + 1 - len(line))]

    def _emit(self, stream: Output) -> None:
        line = self._lines[stream]
        text = line.decode("utf-8", "replace").removesuffix("\r")
        line.clear()
        self._take(text, stream)


_log = get_logger("docker")
QUIET_S, DRAIN_S = 1.0, 30.0
"""After the end, output is read until it pauses for QUIET_S, at most for DRAIN_S.

Some engines leave the stream of an ended container open.
"""
BYTES_PER_S, BURST = 2 * 1024 * 1024, 16 * 1024 * 1024
_LAST_LINES = 50
LOST = "[some output is missing here]"


class RunOutput:
    """Reads what a container writes, line by line.

    Args:
        take: gets (line, stream).
    """

    def __init__(
        self, engine: Engine, container: str, take: Callable[[str, Output], None]
    ) -> None:
        self._engine, self._container = engine, container
        self._hand_on = take
        self._lines = OutputLines(self._took)
        self._seen: dict[Output, int] = {"stdout": 0, "stderr": 0}
        self._last: tuple[str, Output] | None = None
        self._reads = 0
        self._budget, self._then = float(BURST), time.monotonic()
        self._follow: asyncio.Task[None] | None = None

    def follow(self, tasks: Tasks, since: float) -> None:
        """Read in a task of `tasks` what was written after Unix time `since`."""
        if self._follow is not None:
            self._follow.cancel()
        self._follow = tasks.start(self._read(since), f"{self._container} output")

    async def _read(self, since: float) -> None:
        frames = Demultiplexer()
        output = self._engine.follow_logs(self._container, since)
        try:
            async with contextlib.aclosing(output):
                async for data in output:
                    for stream, part in frames.feed(data):
                        self._seen[stream] += len(part)
                        self._lines.add(stream, part)
                    await self._pace(len(data))
        except (EngineError, NotFound) as error:
            _log.debug("output ended early", error=str(error))

    async def finish(self) -> None:
        """Hand on what was written before the container ended."""
        end = time.monotonic() + DRAIN_S
        while self._follow is not None and time.monotonic() < end:
            before = self._reads
            done, _ = await asyncio.wait([self._follow], timeout=QUIET_S)
            if done or self._reads == before:
                self._follow.cancel()
                break
        await self._complete()

    async def _complete(self) -> None:
        """Hand on what was written before the end and not followed.

        Podman stops following when the container ends, wherever the reading was.
        """
        self._lines.end()
        with contextlib.suppress(EngineError, NotFound):
            tail = await self._tail(1)
            if not tail or tail[-1] == self._last:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._catch_up()
            self._lines.end()
            if tail[-1] == self._last:
                return
            self._took(LOST, "stderr")
            for line, stream in await self._tail(_LAST_LINES):
                self._took(line, stream)

    async def _catch_up(self) -> None:
        """Read everything again, and hand on what was not seen."""
        left, frames = dict(self._seen), Demultiplexer()
        async with contextlib.aclosing(self._kept("all")) as output:
            async for data in output:
                for stream, part in frames.feed(data):
                    known = min(left[stream], len(part))
                    left[stream] -= known
                    self._lines.add(stream, part[known:])
                await self._pace(len(data))

    async def _tail(self, count: int) -> list[tuple[str, Output]]:
        found: list[tuple[str, Output]] = []
        lines = OutputLines(lambda line, stream: found.append((line, stream)))
        async with contextlib.aclosing(self._kept(str(count))) as output:
            async for data in output:
                lines.feed(data)
        lines.end()
        return found

    def _kept(self, tail: str) -> AsyncGenerator[bytes]:
        return self._engine.read_logs(self._container, tail, DRAIN_S)

    def _took(self, line: str, stream: Output) -> None:
        self._last = (line, stream)
        self._hand_on(line, stream)

    async def _pace(self, size: int) -> None:
        self._reads += 1
        now = time.monotonic()
        refill = (now - self._then) * BYTES_PER_S
        self._budget, self._then = min(self._budget + refill, BURST) - size, now
        if self._budget < 0:  # a flood: read slower, the engine keeps the rest
            await asyncio.sleep(-self._budget / BYTES_PER_S)
