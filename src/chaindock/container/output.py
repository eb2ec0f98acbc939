"""Where the output of builds and runs is kept.

Owns:    one file per attempt, bounded in size and number.
Not:     reading it as it comes (attempt.py watchers).
Entry:   OutputStore
Holds:   at most `keep` files a chaincode; a file never grows beyond `max_bytes`, the
         newest half survives.
Source:  needs.md row 3
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from chaindock.ids import Ccid


@dataclass(frozen=True)
class OutputOptions:
    """How much output is kept.

    Args:
        keep: attempts per chaincode.
        max_bytes: per attempt.
    """

    keep: int = 5
    max_bytes: int = 16 * 1024 * 1024


class OutputFile:
    """The output of one attempt: lines of `<iso time> <stream> <text>`."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max = max_bytes
        self._file: BinaryIO = path.open("ab")

    def write(self, line: str, stream: str) -> None:
        """Append one line; it is readable at once."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        self._file.write(f"{stamp}Z {stream} {line}\n".encode(errors="replace"))
        self._file.flush()
        if self._file.tell() > self._max:
            self._keep_newest_half()

    def _keep_newest_half(self) -> None:
        self._file.close()
        with self.path.open("rb") as old:
            old.seek(-self._max // 2, 2)
            old.readline()
            rest = old.read()
        with self.path.open("wb") as new:
            new.write(b"[earlier output dropped]\n" + rest)
        self._file = self.path.open("ab")

    def close(self) -> None:
        """Close the file; it stays on disk."""
        self._file.close()


class OutputStore:
    """All output files of a node: `<root>/<ccid with . for :>/<time>-<n>.log`."""

    def __init__(self, root: Path, options: OutputOptions | None = None) -> None:
        self._root = root
        self._options = options or OutputOptions()

    def open(self, ccid: Ccid) -> OutputFile:
        """Open a new file for an attempt and drop what is beyond `keep`."""
        folder = self._folder(ccid)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{time.time_ns():020d}.log"
        file = OutputFile(path, self._options.max_bytes)
        for old in self.files(ccid)[: -self._options.keep]:
            old.unlink(missing_ok=True)
        return file

    def files(self, ccid: Ccid) -> list[Path]:
        """Return the files of a chaincode, oldest first."""
        return sorted(self._folder(ccid).glob("*.log"))

    def _folder(self, ccid: Ccid) -> Path:
        return self._root / Path(ccid.replace(":", ".")).name
