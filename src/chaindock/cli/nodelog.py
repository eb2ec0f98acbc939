"""The log of a node in a process of its own.

Owns:    `node.log` in the home: opening it, keeping it from growing without end.
Not:     how a line looks (telemetry.py).
Entry:   open_log, NodeLog
Holds:   two files of about `LOG_BYTES` at the most, whatever writes to the log.
Source:  docs/security.md
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO

from chaindock.errors import NodeError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOG_NAME = "node.log"
LOG_BYTES = 16 * 1024 * 1024
_LOOK_BYTES = 256 * 1024
"""How much is written before the size is looked at again."""


def open_log(home: Path) -> BinaryIO:
    """Open the log of `home` at its end; make both when they are missing.

    Raises: NodeError.
    """
    path = home / LOG_NAME
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(_former(path))
        file = open(_append(path), "ab")  # noqa: SIM115  # a descriptor
        file.seek(0, os.SEEK_END)
    except OSError as error:
        raise NodeError(
            f"home {str(home)!r} cannot be written: {error.strerror}",
            hint="choose another one with --home DIR or CHAINDOCK_HOME",
            home=str(home),
        ) from error
    return file


class NodeLog:
    """A text stream to the log that this process was started with.

    When the file is full it becomes `node.log.1`, and a new one takes its place.

    Args:
        path: the file.
        descriptors: all that lead to it; the first one is written to.
    """

    def __init__(
        self,
        path: Path,
        descriptors: Sequence[int] = (2, 1),
        max_bytes: int = LOG_BYTES,
    ) -> None:
        self._path, self._descriptors, self._max = path, descriptors, max_bytes
        self._unseen = 0

    def write(self, text: str) -> int:
        """Write `text`. Raises: OSError."""
        data = text.encode(errors="backslashreplace")
        os.write(self._descriptors[0], data)
        self._unseen += len(data)
        if self._unseen >= min(_LOOK_BYTES, self._max):
            self._unseen = 0
            self._look()
        return len(text)

    def flush(self) -> None:
        """Nothing waits to be written."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return False

    def _look(self) -> None:
        now = os.fstat(self._descriptors[0])
        if now.st_size < self._max or not os.path.samestat(now, self._path.stat()):
            return
        self._path.replace(_former(self._path))
        fresh = _append(self._path)
        for descriptor in self._descriptors:
            os.dup2(fresh, descriptor)
        os.close(fresh)


def _former(path: Path) -> Path:
    return path.with_suffix(".log.1")


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
