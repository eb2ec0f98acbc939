"""Read what builds and chaincode wrote, also while they write.

Owns:    output files of container/output.py as batches of lines.
Not:     which files belong to a chaincode (NodeFacade.log_files).
Entry:   Tail
Holds:   a follower sees every line of the files that exist while it follows, once,
         and moves on to the next attempt by itself; the loop never reads more than
         `CHUNK` bytes at a time.
Source:  needs.md row 3
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
    from pathlib import Path

CHUNK = 256 * 1024
POLL_S = 0.2
LOOKS = 10
_STREAMS = ("build", "stdout", "stderr")


@dataclass(frozen=True)
class LogLine:
    """One line: when (ISO 8601 UTC, "" for our own remarks), stream, text.

    `tx` is the transaction that wrote it; None = none, or it is not known.
    """

    time: str
    stream: str
    line: str
    tx: str | None = None

    def as_dict(self) -> dict[str, str | None]:
        """JSON shape."""
        return {
            "time": self.time,
            "stream": self.stream,
            "tx": self.tx,
            "line": self.line,
        }


def parse_line(raw: bytes) -> LogLine:
    """Take `<iso time> <stream>[@<tx>] <text>` apart; other lines are remarks."""
    text = raw.decode(errors="replace")
    parts = text.split(" ", 2)
    if len(parts) == 3:
        stream, _, tx = parts[1].partition("@")
        if stream in _STREAMS:
            return LogLine(parts[0], stream, parts[2], tx or None)
    return LogLine("", "note", text)


class Tail:
    """The output of one chaincode.

    Args:
        files: returns the files there are, oldest first; asked again while following.
        previous: read the attempt before the last one.
        poll_s: how often a follower looks for more; files have no portable signal.
        over: whether nothing more can come, so that a follower ends.
    """

    def __init__(
        self,
        files: Callable[[], Sequence[Path]],
        *,
        previous: bool = False,
        poll_s: float = POLL_S,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._files = files
        self._previous = previous
        self._poll_s = poll_s
        self._over = over

    async def batches(
        self, *, follow: bool = False
    ) -> AsyncGenerator[list[LogLine], None]:
        """Yield the lines, oldest first; with `follow`, until it is over."""
        path = self._pick()
        while follow and path is None and not self._over():
            await asyncio.sleep(self._poll_s)
            path = self._pick()
        while path is not None:
            reader = _Reader(path)
            try:
                async for batch in self._drain(reader, follow=follow):
                    yield batch
            finally:
                reader.close()
            path = self._after(path) if follow else None

    def _pick(self) -> Path | None:
        files = self._files()
        wanted = 2 if self._previous else 1
        return files[-wanted] if len(files) >= wanted else None

    def _after(self, path: Path) -> Path | None:
        return next((file for file in self._files() if file.name > path.name), None)

    async def _drain(
        self, reader: _Reader, *, follow: bool
    ) -> AsyncIterator[list[LogLine]]:
        last_look = False
        while True:
            lines = await asyncio.to_thread(reader.take)
            if lines:
                yield lines
            elif not follow or last_look:
                break
            elif self._over() or self._after(reader.path) is not None:
                last_look = True  # what was written between reading and looking
            else:
                await asyncio.sleep(self._poll_s)
        if rest := reader.rest():
            yield rest


class _Reader:
    """One file, which may be cut to its newest half between two reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = b""
        self._last = b""
        self._offset = 0
        self._looks = 0
        self._file: BinaryIO | None = None

    def take(self) -> list[LogLine]:
        """Return the complete lines of the next chunk; [] = no more for now."""
        try:
            if self._file is None:
                self._file = self.path.open("rb")
            if self.path.stat().st_size < self._offset and not self._resume():
                return []
            data = self._file.read(CHUNK)
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if lines:
            self._last = lines[-1]
        if data and not lines:
            return self.take() if len(self._partial) < CHUNK else self.rest()
        return [parse_line(line) for line in lines]

    def rest(self) -> list[LogLine]:
        """Return what is left without a line end."""
        partial, self._partial = self._partial, b""
        return [parse_line(partial)] if partial else []

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _resume(self) -> bool:
        """Go on after the last line seen, in the file that was cut.

        It may be on its way to the disk still, so a line that is not there is looked
        for again some times; then it was among those that were dropped.
        """
        if self._file is None:
            return False
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
