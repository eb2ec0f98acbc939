"""Extract the code archive of a package into a directory.

Owns:    writing files of a hostile archive, and removing them when anything is wrong.
Not:     reading the archive (format.py), its rules (rules.py).
Entry:   unpack_code
Holds:   nothing outside the target is touched; the package still has its hash, else
         nothing is left.
Source:  launch.md §2.5, §9 W32, W35, W37
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from chaindock.errors import AlreadyExists, PackageInvalid, StorageError, is_retryable
from chaindock.ids import split_ccid
from chaindock.packaging.format import opened, scan
from chaindock.packaging.rules import CHUNK

if TYPE_CHECKING:
    import threading
    from pathlib import Path

    from chaindock.ids import Ccid
    from chaindock.packaging.rules import Limits
    from chaindock.packaging.tar_reader import Entry, TarReader

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Stopped(Exception):  # never leaves this package
    """The caller was cancelled."""


def unpack_code(
    package: Path, ccid: Ccid, into: Path, limits: Limits, stop: threading.Event
) -> None:
    """Extract code.tar.gz of `package` into `into`; see StoredPackage.unpack.

    Files get mode 0644, or 0755 when the archive says their owner may execute them;
    directories 0755, whatever the umask.
    """
    try:
        is_new = not into.exists()
        into.mkdir(exist_ok=True)
        if any(into.iterdir()):
            raise AlreadyExists(
                f"directory {str(into)!r} is not empty: a package is unpacked into an "
                "empty one",
                path=str(into),
            )
    except OSError as error:
        raise _failed(into, error) from error
    try:
        _extract(package, ccid, limits, _Extractor(into, stop))
    except BaseException as error:
        _clear(into)
        if is_new:
            into.rmdir()
        if isinstance(error, OSError):
            raise _failed(into, error) from error
        raise


def _extract(package: Path, ccid: Ccid, limits: Limits, visitor: _Extractor) -> None:
    with opened(package) as file:
        found = scan(file, limits, visitor)
    if found.digest != split_ccid(ccid)[1]:
        raise PackageInvalid(
            f"the stored file of package {ccid!r} changed since it was installed",
            hint=f"remove {str(package)!r} and install the package again",
            entry="package",
            rule="a stored package has the hash in its name",
        )


class _Extractor:
    def __init__(self, into: Path, stop: threading.Event) -> None:
        self._into, self._stop = into, stop

    def visit(self, entry: Entry, archive: TarReader) -> None:
        target = self._into / entry.name
        if self._stop.is_set():
            raise Stopped
        if entry.is_folder:
            self._make_folder(target)
            return
        self._make_folder(target.parent)
        number = os.open(target, _NEW_FILE, 0o600)
        with os.fdopen(number, "wb") as file:
            while data := archive.read(CHUNK):
                if self._stop.is_set():
                    raise Stopped
                file.write(data)
            os.fchmod(number, 0o755 if entry.executable else 0o644)

    def _make_folder(self, folder: Path) -> None:
        if folder == self._into or folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def _clear(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        else:
            child.unlink()


def _failed(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"unpacking to {str(path)!r}: {error.strerror or error}",
        hint="check free space and permissions there",
        path=str(path),
        retryable=is_retryable(error),
    )
