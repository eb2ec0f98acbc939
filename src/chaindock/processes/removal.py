"""Remove directories that chaincode and builds have filled, whatever they look like.

Few descriptors and no recursion, however deep a tree is; links are not followed.
`shutil.rmtree` opens a descriptor and calls itself for each level: a program that nests a
thousand directories would take all descriptors of the node.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_OWN = 0o700


def remove_tree(path: Path) -> None:
    """Remove a directory, also when something in it was made unwritable; blocks.

    What cannot be removed stays, without an error.
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
