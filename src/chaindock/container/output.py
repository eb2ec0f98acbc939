"""Output of builds and runs: cut into lines, then a bounded file per attempt, and the log.

A file never grows beyond `max_bytes`; its newest half survives. Files are written and
trimmed by one thread of the store, never on the loop.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from chaindock.durable import storing
from chaindock.ids import Ccid
from chaindock.options import option
from chaindock.telemetry import RateLimitedLog, get_logger, is_on
from chaindock.values import MIB, Bytes, Count

LINE_BYTES: Final = 8192
SLICE_LINES, REST_S = 200, 0.01
"""After so many lines, or parts, other tasks get their turn: 20,000 lines a second."""
PENDING_BYTES: Final = 4 * 1024 * 1024
"""Of one attempt, not written yet. Lines beyond are dropped, and the file says so."""
LOGGER: Final = "peer.chaincode"
_MOST_LINES: Final = 3000
"""Lines of one attempt that are logged in a minute."""
_LINE_MAX: Final = 2000
"""Characters of a line that are logged."""
_CAUSE: Final = "output"


@dataclass(frozen=True)
class OutputOptions:
    """How much output is kept."""

    keep: Count = option(5, "chaindock.output.keep")
    """Number of attempts per chaincode whose output is kept."""
    max_bytes: Bytes = option(16 * MIB, "chaindock.output.size")
    """Size of the output kept of one attempt."""
    former: int = 10
    """Removed chaincodes whose output is kept."""
    echo: bool = option(False, "vm.docker.attachStdout")
    """Log the output of chaincode, also of processes, at level info instead of
    debug."""


class OutputFile:
    """The output of one attempt: lines of `<iso time> <stream> <text>`.

    Where it is known which transaction wrote a line, the stream is `<stream>@<tx id>`.
    Lines that cannot be written, as when the disk is full, are dropped: that must fail
    neither the build nor the chaincode. The file tells how many are missing.
    """

    def __init__(self, path: Path, options: OutputOptions, writer: Executor) -> None:
        self.path = path
        self._options, self._writer = options, writer
        self._lock = threading.Lock()
        self._pending = bytearray()
        self._overflowed = 0
        # Of the writing thread alone:
        self._file: FileIO | None = None
        self._lost = 0

    def begin(self) -> None:
        """Make the file, and drop the oldest ones beyond `keep`.

        Not before the attempt really begins: one that turns out to be needless must not
        push out the output of what runs.

        Raises: StorageError.
        """
        folder = self.path.parent
        with storing("output cannot be kept in", folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in sorted(folder.glob("*.log"))[: 1 - self._options.keep or None]:
                old.unlink(missing_ok=True)
            self.path.touch()

    def write(self, line: str, stream: str, tx: str | None = None) -> None:
        """Append one line; it can be read a moment later."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        if tx is not None:
            stream = f"{stream}@{tx}"
        data = f"{stamp}Z {stream} {line}\n".encode(errors="replace")
        with self._lock:
            idle = not self._pending
            if len(self._pending) + len(data) > PENDING_BYTES:
                self._overflowed += 1
                return
            self._pending += data
        if idle:
            self._writer.submit(self._flush)

    def close(self) -> None:
        """Close the file when everything is written; it stays on disk."""
        self._writer.submit(self._close)

    # --- on the writing thread ------------------------------------------------------

    def _flush(self) -> None:
        with self._lock:
            data, self._pending = bytes(self._pending), bytearray()
            overflowed, self._overflowed = self._overflowed, 0
        lines = data.count(b"\n") + overflowed
        if self._lost:
            data = b"\n" + _missing(self._lost) + data
        if overflowed:
            data += _missing(overflowed)
        try:
            while data:  # a disk that fills up takes a part
                data = data[self._open().write(data) :]
            self._lost = 0
            self._trim()
        except OSError:
            self._lost += min(lines, data.count(b"\n"))

    def _open(self) -> FileIO:
        if self._file is None or self._file.closed:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        return self._file

    def _trim(self) -> None:
        """Keep the newest half of a file that has grown too large."""
        if self._open().tell() <= self._options.max_bytes:
            return
        self._open().close()
        with self.path.open("rb") as old:
            old.seek(-self._options.max_bytes // 2, 2)
            old.readline()
            rest = old.read()
        with self.path.open("wb") as new:
            new.write(b"[earlier output dropped]\n" + rest)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()


def _missing(count: int) -> bytes:
    return f"[{count} lines could not be written]\n".encode()


class OutputStore:
    """All output files of a node: `<root>/<ccid with . for :>/<time>.log`.

    `writer` runs what writes, in order; default: a thread that ends with the process.
    """

    def __init__(
        self,
        root: Path,
        options: OutputOptions | None = None,
        writer: Executor | None = None,
    ) -> None:
        self._root = root
        self._options = options or OutputOptions()
        self._writer = writer or ThreadPoolExecutor(1, thread_name_prefix="output")

    def open(self, ccid: Ccid) -> OutputFile:
        """Return the file for an attempt that may begin now."""
        path = self._folder(ccid) / f"{time.time_ns():020d}.log"
        return OutputFile(path, self._options, self._writer)

    def files(self, ccid: Ccid) -> list[Path]:
        """Return the files of a chaincode, oldest first."""
        return sorted(self._folder(ccid).glob("*.log"))

    async def flush(self) -> None:
        """Return when what was written so far can be read."""
        await asyncio.wrap_future(self._writer.submit(lambda: None))

    def drop_former(self, current: Iterable[Ccid]) -> None:
        """Drop the output of all but the newest that are not `current`; at the start."""
        kept = {self._folder(ccid).name for ccid in current}
        former = [
            path
            for path in self._root.iterdir()
            if path.name.partition("@")[0] not in kept
        ]
        former.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in former[self._options.former :]:
            shutil.rmtree(path, ignore_errors=True)

    def _folder(self, ccid: Ccid) -> Path:
        return self._root / Path(ccid.replace(":", ".")).name


class Echo:
    """Logs the lines of one attempt at `level` (info, debug), as `peer.chaincode.LABEL`.

    A chaincode that writes without end gets 3000 lines a minute; one more line then says
    how many are missing. All of them are in the output file.
    """

    def __init__(self, ccid: Ccid, attempt: str, level: str) -> None:
        label = ccid.rpartition(":")[0] or ccid
        # A logging specification has no + and no other letters.
        self._name = f"{LOGGER}.{label.replace('+', '_').strip('.')}"
        self._log = get_logger(self._name).bind(ccid=ccid, attempt=attempt)
        self._level, self._limited = level, RateLimitedLog(self._log, _MOST_LINES)

    def line(self, line: str, stream: str, tx: str | None) -> None:
        """Log a line, or count it when there were too many."""
        if is_on(self._name, self._level):
            facts = {"stream": stream, "line": line[:_LINE_MAX]}
            facts |= {"tx": tx} if tx is not None else {}
            log = getattr(self._log, self._level)
            self._limited.say(_CAUSE, log, "chaincode output", **facts)

    def close(self) -> None:
        """Tell how many lines are missing: no more come."""
        self._limited.sum_up(_CAUSE)


class Lines:
    """The bytes of one stream, handed on to `take` line by line, without the line ends.

    Bytes that are not UTF-8 are replaced; of a longer line the first 8 KiB and one
    character more are handed on. Memory is bounded by one part and one line.
    """

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take, self._line = take, bytearray()
        self._taken = 0

    async def add(self, part: bytes) -> None:
        """Take what was read."""
        rest = part
        while True:
            *ended, rest = rest.split(b"\n", SLICE_LINES)
            for line in ended:
                self._grow(line)
                self._emit()
            self._taken += max(1, len(ended))
            if self._taken >= SLICE_LINES:
                self._taken = 0
                await asyncio.sleep(REST_S)
            if len(ended) < SLICE_LINES:
                break
        self._grow(rest)

    def end(self) -> None:
        """Hand on a line that has no end."""
        if self._line:
            self._emit()

    def _grow(self, part: bytes) -> None:
        # One byte too many is kept to know that the line is cut.
        self._line += part[: max(0, LINE_BYTES + 1 - len(self._line))]

    def _emit(self) -> None:
        text = self._line.decode("utf-8", "replace").removesuffix("\r")
        self._line.clear()
        self._take(text)
