"""The socket file on which the admin API of a home listens.

If its path is too long for a socket, it is bound and dialled through a link to the home.
The node that opens the socket holds the lock of the home, so an existing file is stale.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from chaindock.errors import NodeError

PATH_BYTES = 103
"""Longest path of a socket: macOS allows 104 bytes with the final zero, Linux 108."""


def find_socket(home: Path) -> Path:
    """Return where the node of `home` listens, or would if it ran."""
    return home / "admin.sock"


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """Give the address of a socket file inside the block. Raises: OSError."""
    if len(os.fsencode(path)) <= PATH_BYTES:
        yield str(path)
        return
    # TMPDIR may be as long.
    with tempfile.TemporaryDirectory(prefix="chaindock-", dir="/tmp") as folder:
        link = Path(folder) / "home"
        link.symlink_to(path.parent)
        yield str(link / path.name)


@contextlib.contextmanager
def opened_socket(home: Path) -> Iterator[socket.socket]:
    """Bind the admin socket of `home` with mode 0600; replace that of a killed node.

    The file of the socket is removed at the end. If another node has put its own socket
    there meanwhile, because a user has made the home anew, that one stays.

    Raises: NodeError when it cannot be bound.
    """
    path = find_socket(home)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    try:
        path.unlink(missing_ok=True)
        # Linux makes the file with the mode of the unbound socket; others refuse, and
        # there the directory (0700) guards the moment before chmod.
        with contextlib.suppress(OSError):
            os.fchmod(listener.fileno(), 0o600)
        with reachable(path) as address:
            listener.bind(address)
        path.chmod(0o600)
        inode = path.stat().st_ino
    except OSError as error:
        listener.close()
        raise NodeError(
            f"the admin socket of home {str(home)!r} cannot be opened: {error}",
            hint="choose a home on a local file system with --home DIR",
            home=str(home),
        ) from error
    try:
        yield listener
    finally:
        listener.close()
        if path.exists() and path.stat().st_ino == inode:
            path.unlink()
