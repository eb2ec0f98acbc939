"""The output of one run, followed through everything an engine does to it.

Owns:    following, slowing down a flood, completing what the engine cut off.
Not:     frames and lines (streams.py), where lines go (container/attempt.py).
Entry:   RunOutput
Holds:   after `complete` the last lines are those that the chaincode wrote last; no
         wait for output is longer than DRAIN_S.
Source:  launch.md §9 W65; needs.md row 3, table 1b
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from chaindock.controllers.docker.streams import Demultiplexer, OutputLines
from chaindock.errors import EngineError, NotFound
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.streams import Output

_log = get_logger("docker")
QUIET_S, DRAIN_S = 1.0, 30.0
"""After the end, output is waited for until it pauses so long, and no longer than that.

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

    async def follow(self, since: float = 0.0) -> None:
        """Read until the container ends or the engine goes away.

        Args:
            since: Unix time of what is read; for a second call after a break.
        """
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

    async def drained(self, follow: asyncio.Task[None]) -> None:
        """Wait until the task that follows has read what there was."""
        end = time.monotonic() + DRAIN_S
        while time.monotonic() < end:
            before = self._reads
            done, _ = await asyncio.wait([follow], timeout=QUIET_S)
            if done or self._reads == before:
                return

    async def complete(self) -> None:
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

    def end(self) -> None:
        """Hand on lines that have no end."""
        self._lines.end()

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
