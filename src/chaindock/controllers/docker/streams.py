"""Read the engine's streams: multiplexed output, JSON progress, archives to send.

Owns:    frames to lines, progress text to objects, files to chunks.
Not:     asking for the streams (engine.py), where lines go (container/attempt.py).
Entry:   OutputLines, JsonObjects, chunks_of
Holds:   memory stays bounded whatever the other side sends; frames and lines may be
         split at any byte.
Source:  launch.md §3.4, §9 W24, W65; needs.md tables 1a, 1b
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Literal

from chaindock.container.attempt import LINE_BYTES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import BinaryIO

HEADER_BYTES = 8
_REFUSED = b'{"cause"'
"""Begins what Podman appends to output that it cannot read any more (4.3)."""
CHUNK_BYTES = 256 * 1024
MAX_OBJECT_BYTES = 4 * 1024 * 1024
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


class JsonObjects:
    """Progress: one JSON object per line. What is no object is skipped."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the objects whose lines are complete now."""
        *whole, rest = data.split(b"\n")
        for part in whole:
            self._line += part
            yield from self.end()
        self._line += rest[: max(0, MAX_OBJECT_BYTES - len(self._line))]

    def end(self) -> Iterator[dict[str, Any]]:
        """Yield the object of the last line if that has no end."""
        text = bytes(self._line)
        self._line.clear()
        try:
            found = json.loads(text)
        except ValueError:
            return
        if isinstance(found, dict):
            yield found


async def chunks_of(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield a file from its beginning, read in a thread.

    The pause before each chunk lets the loop see an answer that came early: an engine
    that refuses an upload answers, then hangs up, and writing on would lose the answer.
    """
    file.seek(0)
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        await asyncio.sleep(0)
        yield chunk
