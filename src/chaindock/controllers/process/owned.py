"""Which build each chaincode of each node uses, so that it can be removed with it.

Owns:    `<cache>/owners/`: one small file per chaincode of a node.
Not:     the builds themselves (builds.py), which the nodes of a user share.
Entry:   Owned
Holds:   a file that is lost or torn costs disk space, never a build in use; there are
         at most KEPT, though versions that were replaced or failed leave theirs.
Source:  needs.md row 24; launch.md §9 W38
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.ids import Ccid

KEPT = 500
"""Files; the oldest go first, and with them only the wish to remove a build early."""


class Owned:
    """From a chaincode to the place of its build in the index: (label, source).

    Args:
        folder: shared by nodes, so that none removes the build of another.
        owner: names this node.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder, self._owner = folder, owner

    def put(self, ccid: Ccid, label: str, source: str) -> None:
        """Take note of the build of `ccid`. What cannot be written is left out."""
        path = self._path(ccid)
        try:
            if self._read(path) == (label, source):
                os.utime(path)
                return
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text(json.dumps([label, source]))
            self._drop_oldest()
        except OSError:
            return

    def _drop_oldest(self) -> None:
        files = list(self._folder.iterdir())
        if len(files) > KEPT:
            files.sort(key=lambda path: path.stat().st_mtime_ns)
            for path in files[:-KEPT]:
                path.unlink(missing_ok=True)

    def find(self, ccid: Ccid) -> tuple[str, str] | None:
        """Return the build of `ccid` unless another chaincode or node has the same."""
        own = self._path(ccid)
        found = self._read(own)
        if found is None:
            return None
        others = (self._read(p) for p in self._folder.iterdir() if p != own)
        return None if found in others else found

    def drop(self, ccid: Ccid) -> None:
        """Forget that `ccid` has a build."""
        self._path(ccid).unlink(missing_ok=True)

    def _path(self, ccid: Ccid) -> Path:
        owner = f"{self._owner}:{ccid}".encode()
        return self._folder / f"{hashlib.sha256(owner).hexdigest()}.json"

    @staticmethod
    def _read(path: Path) -> tuple[str, str] | None:
        try:
            label, source = json.loads(path.read_text())
        except (OSError, ValueError, TypeError):
            return None
        return str(label), str(source)
