"""Where the output of builds and runs is kept.

Owns:    one file per attempt, bounded in size and number.
Not:     reading it as it comes (attempt.py watchers).
Entry:   OutputStore
Holds:   at most `keep` files a chaincode, also of `former` chaincodes; a file never grows
         beyond `max_bytes`, the newest half survives.
Source:  needs.md row 3
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.errors import StorageError, is_retryable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from io import FileIO

    from chaindock.ids import Ccid


@dataclass(frozen=True)
class OutputOptions:
    """How much output is kept.

    Args:
        keep: attempts per chaincode.
        max_bytes: per attempt.
        former: chaincodes that are deployed no more.
        echo: log what runs write at level info; else at debug.
    """

    keep: int = 5
    max_bytes: int = 16 * 1024 * 1024
    former: int = 10
    echo: bool = False


class OutputFile:
    """The output of one attempt: lines of `<iso time> <stream> <text>`.

    Where it is known which transaction wrote a line, the stream is `<stream>@<tx id>`.

    A line that cannot be written, as when the disk is full, is dropped: that must fail
    neither the build nor the chaincode. The next one that can be tells how many were.
    """

    def __init__(self, path: Path, options: OutputOptions) -> None:
        self.path = path
        self._options = options
        self._file: FileIO | None = None
        self._dropped = 0

    def begin(self) -> None:
        """Make the file, and drop the oldest ones beyond `keep`.

        Not before the attempt really begins: one that turns out to be needless must not
        push out the output of what runs.

        Raises: StorageError.
        """
        try:
            self._open()
        except OSError as error:
            folder = str(self.path.parent)
            raise StorageError(
                f"output cannot be kept in {folder!r}: {error.strerror}",
                hint="check free space and permissions there",
                path=folder,
                retryable=is_retryable(error),
            ) from error

    def _open(self) -> FileIO:
        if self._file is None:
            folder = self.path.parent
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in sorted(folder.glob("*.log"))[: 1 - self._options.keep or None]:
                old.unlink(missing_ok=True)
        if self._file is None or self._file.closed:
            self._file = self.path.open("ab", buffering=0)
        return self._file

    def write(self, line: str, stream: str, tx: str | None = None) -> None:
        """Append one line; it is readable at once."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        if tx is not None:
            stream = f"{stream}@{tx}"
        data = f"{stamp}Z {stream} {line}\n"
        if self._dropped:
            data = f"\n[{self._dropped} lines could not be written]\n{data}"
        try:
            self._append(data.encode(errors="replace"))
        except OSError:
            self._dropped += 1

    def _append(self, data: bytes) -> None:
        file = self._open()
        while data:  # a disk that fills up takes a part
            data = data[file.write(data) :]
        self._dropped = 0
        if file.tell() > self._options.max_bytes:
            file.close()
            self._keep_newest_half()

    def _keep_newest_half(self) -> None:
        with self.path.open("rb") as old:
            old.seek(-self._options.max_bytes // 2, 2)
            old.readline()
            rest = old.read()
        with self.path.open("wb") as new:
            new.write(b"[earlier output dropped]\n" + rest)

    def close(self) -> None:
        """Close the file; it stays on disk."""
        if self._file is not None:
            self._file.close()


class OutputStore:
    """All output files of a node: `<root>/<ccid with . for :>/<time>-<n>.log`."""

    def __init__(self, root: Path, options: OutputOptions | None = None) -> None:
        self._root = root
        self._options = options or OutputOptions()

    def open(self, ccid: Ccid) -> OutputFile:
        """Return the file for an attempt that may begin now."""
        path = self._folder(ccid) / f"{time.time_ns():020d}.log"
        return OutputFile(path, self._options)

    def files(self, ccid: Ccid) -> list[Path]:
        """Return the files of a chaincode, oldest first."""
        return sorted(self._folder(ccid).glob("*.log"))

    def drop_former(self, current: Iterable[Ccid]) -> None:
        """Drop the output of chaincodes that are not `current`, but of the newest ones.

        For the start: nobody writes.
        """
        kept = {self._folder(ccid) for ccid in current}
        former = [path for path in self._root.iterdir() if path not in kept]
        former.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for path in former[self._options.former :]:
            shutil.rmtree(path, ignore_errors=True)

    def _folder(self, ccid: Ccid) -> Path:
        return self._root / Path(ccid.replace(":", ".")).name
