"""The log of a detached node: `node.log` of its home, and the file before it."""

from __future__ import annotations

import contextlib
import io
import os
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOG_NAME = "node.log"
LOG_BYTES = 16 * 1024 * 1024
"""A larger log becomes `node.log.1`, so two files of about this size are kept."""


def open_log(home: Path) -> BinaryIO:
    """Open the log of `home` at its end; create both when they are missing.

    Raises: NodeError; ConfigInvalid when others can write the home, too.
    """
    from chaindock.config.environment import require_own
    from chaindock.errors import NodeError, os_errors_as

    require_own(home)
    path = home / LOG_NAME
    with os_errors_as(
        NodeError,
        f"home {str(home)!r}",
        "written",
        hint="choose another one with --home DIR or CHAINDOCK_HOME",
        home=str(home),
    ):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        file = open(_append(path), "ab")  # noqa: SIM115  # a descriptor
        file.seek(0, os.SEEK_END)
    return file


class NodeLog(io.TextIOBase):
    """A text stream to the log that this process was started with.

    A file above `max_bytes` becomes `node.log.1`; then all `descriptors` lead to a new
    one. The first of them is written to.
    """

    def __init__(
        self,
        path: Path,
        descriptors: Sequence[int] = (2, 1),
        max_bytes: int = LOG_BYTES,
    ) -> None:
        self._path, self._descriptors, self._max = path, descriptors, max_bytes

    def write(self, text: str) -> int:
        """Write `text`. Raises: OSError."""
        os.write(self._descriptors[0], text.encode(errors="backslashreplace"))
        now = os.fstat(self._descriptors[0])
        # A log that somebody moved or removed is written on.
        with contextlib.suppress(FileNotFoundError):
            if now.st_size >= self._max and os.path.samestat(now, self._path.stat()):
                self._path.replace(self._path.with_suffix(".log.1"))
                fresh = _append(self._path)
                for descriptor in self._descriptors:
                    os.dup2(fresh, descriptor)
                os.close(fresh)
        return len(text)


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
