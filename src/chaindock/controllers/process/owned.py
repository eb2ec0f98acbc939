"""Which build each chaincode of this node uses, so that it can be removed with it.

Owns:    `<root>/built/`: one small file per chaincode.
Not:     the builds themselves (builds.py), which nodes share.
Entry:   Owned
Holds:   a file that is lost or torn costs disk space, never a build in use; there are
         at most KEPT, though versions that were replaced or failed leave theirs.
Source:  needs.md row 24; launch.md §9 W38
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.ids import Ccid

KEPT = 200
"""Files; the oldest go first, and with them only the wish to remove a build early."""


class Owned:
    """From a chaincode to the place of its build in the index: (label, source)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, ccid: Ccid, label: str, source: str) -> None:
        """Take note of the build of `ccid`. What cannot be written is left out."""
        if self._read(self._path(ccid)) == (label, source):
            return
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path(ccid).write_text(json.dumps([label, source]))
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
        """Return the build of `ccid` unless another chaincode has the same."""
        own = self._path(ccid)
        found = self._read(own)
        if found is None:
            return None
        others = (self._read(p) for p in self._folder.iterdir() if p != own)
        return None if found in others else found

    def drop(self, ccid: Ccid) -> None:
        """Forget `ccid`, whose build is gone or has others that use it."""
        self._path(ccid).unlink(missing_ok=True)

    def _path(self, ccid: Ccid) -> Path:
        return self._folder / f"{hashlib.sha256(ccid.encode()).hexdigest()}.json"

    @staticmethod
    def _read(path: Path) -> tuple[str, str] | None:
        try:
            label, source = json.loads(path.read_text())
        except (OSError, ValueError, TypeError):
            return None
        return str(label), str(source)
