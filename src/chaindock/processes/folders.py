"""The directory of a build or run: made, named to its program, reached, removed.

Nothing of the node's own environment is inherited. Removing takes few descriptors and no
recursion, however deep a tree is, and follows no link.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final
from urllib.parse import quote

from chaindock.container.contracts import ClientTls
from chaindock.container.environment import CA_VARIABLES, merged_ca, tls_files
from chaindock.errors import StartFailed

PATH_BYTES: Final = 100
"""Longest path of a socket: Linux takes 107, macOS 103."""
_LINK: Final = "r"
_LANG = "C.UTF-8" if sys.platform != "darwin" else "en_US.UTF-8"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OWN = 0o700


def base_environment(private: Path, path: Iterable[str]) -> dict[str, str]:
    """Return what every program gets; makes HOME and TMPDIR below `private`.

    Every name is a shell identifier: the gate is a shell and drops others.
    """
    home, temp = private / "home", private / "tmp"
    for folder in (home, temp):
        folder.mkdir(mode=_OWN, parents=True, exist_ok=True)
    return {
        "PATH": ":".join(dict.fromkeys(path)),
        "HOME": str(home),
        "TMPDIR": str(temp),
        "LANG": _LANG,
    }


def ca_environment(bundle: Path, private: Path) -> dict[str, str]:
    """Return the variables that make tools trust `bundle`, too. Raises: ConfigInvalid."""
    both = private / "ca.pem"
    both.write_bytes(merged_ca(bundle))
    variables = dict.fromkeys(CA_VARIABLES, str(both))
    return variables | {"NODE_EXTRA_CA_CERTS": str(bundle)}  # it keeps its own list


def write_tls(tls: ClientTls, folder: Path) -> None:
    """Write the TLS files into `folder`."""
    folder.mkdir(mode=_OWN, parents=True, exist_ok=True)
    for name, content in tls_files(tls).items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)


class Sockets:
    """The Unix sockets on which chaincode that serves is dialled, one in each run.

    Only the user of the node gets as far as the socket, which ends with the directory of
    its run. Where the path of that directory is too long, or has characters that an
    address cannot hold, a short link leads there from a directory that nobody else may
    enter. What a killed node left of it is found by its name, which has `node_id`.
    Source: docs/security.md; docs/adr (ADR-0005)
    """

    def __init__(self, runs: Path, node_id: str) -> None:
        self._runs = runs
        self._prefix = f"chaindock-run-{Path(node_id).name}-"
        self._short: Path | None = None

    def address_in(self, private: Path) -> str:
        """Return `unix:` and the path of the socket of the run with this directory.

        Raises: StartFailed when there is no path that a socket can have.
        """
        path = private / "cc.sock"
        if not is_usable(path):
            path = self._link() / private.name / path.name
        if not is_usable(path):
            raise StartFailed(
                f"no path for a socket: {str(path)!r} has {len(os.fsencode(path))} bytes "
                f"(at most {PATH_BYTES}), or a character that gRPC cannot dial",
                hint="choose a shorter home with --home DIR, or a shorter TMPDIR",
            )
        return f"unix:{path}"

    def reap(self) -> None:
        """Remove what an earlier process of this node left."""
        remove_leftovers(self._prefix, but=self._short)

    def close(self) -> None:
        """Remove what this object made. Idempotent."""
        if self._short is not None:
            remove_tree(self._short)
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


def is_usable(path: Path) -> bool:
    """Whether `path` can be bound, and stands for itself in an address."""
    return len(os.fsencode(path)) <= PATH_BYTES and quote(str(path)) == str(path)


def remove_leftovers(prefix: str, but: Path | None = None) -> None:
    """Remove this user's temporary directories whose names begin with `prefix`; blocks.

    Those of other users stay: they can make any number of them, as deep as they like.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if path != but and path.lstat().st_uid == os.geteuid():
                remove_tree(path)


def remove_tree(path: Path) -> None:
    """Remove a directory, also when something in it was made unwritable; blocks.

    What cannot be removed stays, without an error. `shutil.rmtree` opens a descriptor and
    calls itself for each level: a program that nests a thousand directories would take
    all descriptors of the node.
    """
    with contextlib.suppress(OSError):
        if not path.is_symlink():
            path.chmod(_OWN)
        top = os.open(path, _FOLDER)
        try:
            _empty(top)
        finally:
            os.close(top)
        path.rmdir()


def _empty(top: int) -> None:
    """Remove what is in a directory; what lies deeper is first moved up into it."""
    prefix, waiting = uuid.uuid4().hex, _clear(top)
    moved = 0
    while waiting:
        name = waiting.pop()
        with contextlib.suppress(OSError):
            folder = os.open(name, _FOLDER, dir_fd=top)
            try:
                for inner in _clear(folder):
                    moved += 1
                    above = f"{prefix}-{moved}"
                    os.rename(inner, above, src_dir_fd=folder, dst_dir_fd=top)
                    waiting.append(above)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=top)


def _clear(folder: int) -> list[str]:
    """Remove the files of a directory; return the names of those in it, made usable."""
    folders = []
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        with contextlib.suppress(OSError):
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=folder)
                continue
            if entry.stat(follow_symlinks=False).st_mode & _OWN != _OWN:
                os.chmod(entry.name, _OWN, dir_fd=folder)
            folders.append(entry.name)
    return folders
