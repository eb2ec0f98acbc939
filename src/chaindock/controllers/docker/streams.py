"""The bytes that go into a container (tars) and come out of it (frames, lines)."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from chaindock.aio import Tasks
from chaindock.container.contracts import ClientTls
from chaindock.container.environment import tls_files
from chaindock.container.output import Lines
from chaindock.controllers.docker.engine import Engine
from chaindock.errors import EngineError, NotFound
from chaindock.telemetry import get_logger

_log = get_logger("docker")
_CHUNK_BYTES = 256 * 1024
HEADER_BYTES = 8
_REFUSED = b'{"cause"'
"""Begins what Podman appends to output that it cannot read any more (4.3)."""
Output = Literal["stdout", "stderr"]
_STREAMS: dict[int, Output] = {0: "stdout", 1: "stdout", 2: "stderr"}
QUIET_S, DRAIN_S = 1.0, 30.0
"""After the end, output is read until it pauses for QUIET_S, at most for DRAIN_S.

Some engines leave the stream of an ended container open.
"""
BYTES_PER_S, BURST = 2 * 1024 * 1024, 16 * 1024 * 1024
_LAST_LINES = 50
LOST = "[some output is missing here]"


class Demultiplexer:
    """Split `{stream, 0, 0, 0, length}` frames; a stream without them is stdout.

    An error of the engine is no output: it is dropped, and nothing comes after it.
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
        if header == _REFUSED:
            self._refused = True
        elif header[0] not in _STREAMS or header[1:4] != b"\0\0\0":
            self._plain = True
            yield "stdout", header
        else:
            self._stream = _STREAMS[header[0]]
            self._left = int.from_bytes(header[4:], "big")


class OutputLines:
    """Multiplexed output; `take` gets (line, stream), as `Lines` hands lines on."""

    def __init__(self, take: Callable[[str, Output], None]) -> None:
        self._frames = Demultiplexer()

        def lines_of(stream: Output) -> Lines:
            return Lines(lambda line: take(line, stream))

        self._lines = {stream: lines_of(stream) for stream in _STREAMS.values()}

    async def feed(self, data: bytes) -> None:
        """Take what was read."""
        for stream, part in self._frames.feed(data):
            await self.add(stream, part)

    async def add(self, stream: Output, part: bytes) -> None:
        """Take payload that somebody else split into streams."""
        await self._lines[stream].add(part)

    def end(self) -> None:
        """Hand on lines that have no end."""
        for lines in self._lines.values():
            lines.end()


class RunOutput:
    """Reads what a container writes; `take` gets (line, stream)."""

    def __init__(
        self, engine: Engine, container: str, take: Callable[[str, Output], None]
    ) -> None:
        self._engine, self._container, self._hand_on = engine, container, take
        self._lines = OutputLines(self._took)
        self._seen: Counter[Output] = Counter()
        self._last: tuple[str, Output] | None = None
        self._reads, self._budget, self._then = 0, float(BURST), time.monotonic()
        self._follow: asyncio.Task[None] | None = None

    def follow(self, tasks: Tasks, since: float) -> None:
        """Read in a task of `tasks` what was written after Unix time `since`."""
        if self._follow is not None:
            self._follow.cancel()
        self._follow = tasks.start(self._read(since), f"{self._container} output")

    async def _read(self, since: float) -> None:
        after = {"since": f"{since:.9f}"} if since else {}
        output = self._engine.logs(self._container, None, follow="1", **after)
        try:
            await self._take(output, Counter())
        except (EngineError, NotFound) as error:
            _log.debug("output ended early", error=str(error))

    async def _take(
        self, output: AsyncGenerator[bytes], known: Counter[Output]
    ) -> None:
        """Hand on the lines of `output` but for the first `known` bytes of each stream."""
        frames = Demultiplexer()
        async with contextlib.aclosing(output):
            async for data in output:
                for stream, part in frames.feed(data):
                    skip = min(known[stream], len(part))
                    known[stream] -= skip
                    self._seen[stream] += len(part) - skip
                    await self._lines.add(stream, part[skip:])
                await self._pace(len(data))

    async def finish(self) -> None:
        """Hand on what was written before the container ended."""
        end = time.monotonic() + DRAIN_S
        while self._follow is not None and time.monotonic() < end:
            before = self._reads
            done, _ = await asyncio.wait([self._follow], timeout=QUIET_S)
            if done or self._reads == before:
                self._follow.cancel()
                break
        # Podman stops following when the container ends, wherever the reading was.
        self._lines.end()
        with contextlib.suppress(EngineError, NotFound):
            tail = await self._tail(1)
            if not tail or tail[-1] == self._last:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await self._take(self._kept("all"), Counter(self._seen))
            self._lines.end()
            if tail[-1] == self._last:
                return
            self._took(LOST, "stderr")
            for line, stream in await self._tail(_LAST_LINES):
                self._took(line, stream)

    async def _tail(self, count: int) -> list[tuple[str, Output]]:
        found: list[tuple[str, Output]] = []
        lines = OutputLines(lambda line, stream: found.append((line, stream)))
        async with contextlib.aclosing(self._kept(str(count))) as output:
            async for data in output:
                await lines.feed(data)
        lines.end()
        return found

    def _kept(self, tail: str) -> AsyncGenerator[bytes]:
        return self._engine.logs(self._container, DRAIN_S, tail=tail)

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


# --- tars ----------------------------------------------------------------------------


def pack_input(
    file: BinaryIO,
    tree: Path,
    under: str,
    owner: int,
    folders: Iterable[str],
    files: dict[str, bytes],
) -> None:
    """Write the tar that a build container is filled with, for its `/`. Blocking.

    `under` is where `tree` goes; `folders` exist afterwards. All paths are absolute,
    and everything belongs to the uid and gid `owner`.
    """

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = owner
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o111 else 0o644
        return entry

    with _tar(file) as tar:
        for folder in folders:
            entry = tarfile.TarInfo(folder.strip("/"))
            entry.type = tarfile.DIRTYPE
            tar.addfile(owned(entry))
        for name, data in files.items():
            tar.addfile(owned(_entry(name.strip("/"), len(data))), io.BytesIO(data))
        tar.add(tree, under.strip("/"), filter=owned)


def tls_archive(tls: ClientTls) -> bytes:
    """Return the tar of the TLS files of a chaincode."""
    packed = io.BytesIO()
    with _tar(packed) as tar:
        for name, data in tls_files(tls).items():
            tar.addfile(_entry(name, len(data)), io.BytesIO(data))
    return packed.getvalue()


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry


@contextlib.contextmanager
def _tar(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    # Podman reads up to the mark of the end, and may fail on what is written after it:
    # https://github.com/containers/buildah/issues/6573
    with tarfile.open(fileobj=file, mode="w") as tar:
        yield tar
        end = file.tell() + 2 * tarfile.BLOCKSIZE
    file.truncate(end)


async def chunks_of(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield a file from its beginning, read in a thread.

    The pause before each chunk lets the loop see an answer that came early: an engine
    that refuses an upload answers, then hangs up, and writing on would lose the answer.
    """
    file.seek(0)
    while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
        await asyncio.sleep(0)
        yield chunk


async def image_context(dockerfile: str, artifact: BinaryIO) -> AsyncIterator[bytes]:
    """Yield the tar context of an image: Dockerfile and binpackage.tar."""
    text, size = dockerfile.encode(), artifact.seek(0, 2)
    yield _entry("Dockerfile", len(text)).tobuf(tarfile.GNU_FORMAT)
    yield text + _padding(len(text))
    yield _entry("binpackage.tar", size).tobuf(tarfile.GNU_FORMAT)
    async for chunk in chunks_of(artifact):
        yield chunk
    yield _padding(size) + bytes(2 * tarfile.BLOCKSIZE)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
