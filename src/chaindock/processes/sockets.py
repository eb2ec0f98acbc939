"""Where a chaincode that serves is dialled: a Unix socket in the run's own directory.

Only the user of the node gets as far as the socket. The socket ends with the directory;
what a killed node left of it is found by its name.
Source: docs/security.md; docs/adr (ADR-0005)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final
from urllib.parse import quote

from chaindock.errors import StartFailed

PATH_BYTES: Final = 100
"""Linux takes 107, macOS 103."""
_NAME: Final = "cc.sock"
_LINK: Final = "r"


class Sockets:
    """The sockets of the runs of one node.

    Where the path of a run's directory is too long, or has characters that an address
    cannot hold, a short link leads there from a directory that nobody else may enter.

    Args:
        runs: holds the directories of the runs.
        node_id: goes into the name of what lies elsewhere.
    """

    def __init__(self, runs: Path, node_id: str) -> None:
        self._runs = runs
        self._prefix = f"chaindock-run-{Path(node_id).name}-"
        self._short: Path | None = None

    def address_in(self, private: Path) -> str:
        """Return `unix:` and the path of the socket of the run with this directory.

        Raises: StartFailed when there is no path that a socket can have.
        """
        path = private / _NAME
        if not _usable(path):
            path = self._link() / private.name / _NAME
        if not _usable(path):
            raise StartFailed(
                f"no path for a socket: {str(path)!r} has {len(os.fsencode(path))} bytes "
                f"(at most {PATH_BYTES}), or a character that gRPC cannot dial",
                hint="choose a shorter home with --home DIR, or a shorter TMPDIR",
            )
        return f"unix:{path}"

    def reap(self) -> None:
        """Remove what an earlier process of this node left."""
        for folder in Path(tempfile.gettempdir()).glob(f"{self._prefix}*"):
            if folder != self._short:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Remove what this object made. Idempotent."""
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)
            self._short = None

    def _link(self) -> Path:
        if self._short is None or not _leads(self._short):
            self._short = Path(tempfile.mkdtemp(prefix=self._prefix))
            (self._short / _LINK).symlink_to(self._runs.absolute())
        return self._short / _LINK


def _leads(folder: Path) -> bool:
    """Whether the link in `folder` is there, and ours.

    What cleans up temporary files may have removed it, and then anybody may have made it.
    """
    try:
        about = folder.lstat()
        return about.st_uid == os.geteuid() and (folder / _LINK).is_symlink()
    except OSError:
        return False


def _usable(path: Path) -> bool:
    """Whether `path` can be bound, and stands for itself in an address."""
    text = str(path)
    return len(os.fsencode(path)) <= PATH_BYTES and quote(text) == text
