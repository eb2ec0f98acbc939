"""The socket file on which the admin API of a home listens.

If the path in the home is too long for a socket, the socket is in a temporary folder and
`admin.path` in the home names it. The node that opens the socket holds the lock of the
home, so an existing socket file is stale.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
from pathlib import Path

from chaindock.errors import NodeError

PATH_BYTES = 103
"""Longest path of a socket: macOS allows 104 bytes with the final zero, Linux 108."""

_NAME = "admin.sock"
_RECORD = "admin.path"
_PREFIX = "chaindock-"


def fits(path: Path) -> bool:
    """Whether a socket can be bound at `path`."""
    return len(os.fsencode(path)) <= PATH_BYTES


def find_socket(home: Path) -> Path:
    """Return where the node of `home` listens, or would if it ran."""
    try:
        recorded = (home / _RECORD).read_text().strip()
    except (OSError, UnicodeDecodeError):
        recorded = ""
    return Path(recorded) if recorded else home / _NAME


def open_socket(home: Path) -> socket.socket:
    """Bind the admin socket of `home` with mode 0600.

    Raises: NodeError when it cannot be bound.
    """
    close_socket(home)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        path = home / _NAME
        if not fits(path):
            path = Path(tempfile.mkdtemp(prefix=_PREFIX)) / _NAME
            (home / _RECORD).write_text(f"{path}\n")
        # Linux makes the file with the mode of the unbound socket; others refuse, and
        # there the directory (0700) guards the moment before chmod.
        with contextlib.suppress(OSError):
            os.fchmod(listener.fileno(), 0o600)
        listener.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        listener.close()
        raise NodeError(
            f"the admin socket of home {str(home)!r} cannot be opened: {error}",
            hint="choose a home on a local file system with --home DIR",
            home=str(home),
        ) from error
    return listener


def close_socket(home: Path, inode: int | None = None) -> None:
    """Remove the socket file of `home`, also that of a killed node.

    With `inode` no other file: whoever deletes a home and starts a node in a new one
    keeps its socket when the former node ends.
    """
    path = find_socket(home)
    if inode is not None and (not path.exists() or path.stat().st_ino != inode):
        return
    if path.parent == home:
        path.unlink(missing_ok=True)
        return
    (home / _RECORD).unlink(missing_ok=True)
    if _is_ours(path.parent):
        shutil.rmtree(path.parent, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return (
        folder.name.startswith(_PREFIX)
        and stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.getuid()
        and all(entry.name == _NAME for entry in folder.iterdir())
    )
