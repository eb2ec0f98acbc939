"""Installed packages: one file each, named after its id, and their extraction.

A package is read and hashed again each time it is used. Extraction touches nothing outside
its target, and leaves nothing there unless all of it succeeded.
Source: docs/fabric/packages.md
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from chaindock.aio import finish
from chaindock.durable import storing, sync_folder
from chaindock.errors import AlreadyExists, NotFound, PackageInvalid
from chaindock.ids import Ccid, require_ccid, split_ccid
from chaindock.packaging.archive import Entry, TarReader
from chaindock.packaging.format import Hashing, PackageInfo, opened, read_package
from chaindock.packaging.rules import CHUNK, Limits

_FILE = re.compile(
    r"(?P<label>[A-Za-z0-9][A-Za-z0-9_.+-]*)\.(?P<hash>[0-9a-f]{64})\.tar\.gz"
)
_INDEX_FILES = 16
"""All index definitions of a package are at most as large as so many of the largest."""
_PARTIAL = ".incoming-"
_STORE = "package store"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class StoredPackage:
    """A package in the store."""

    ccid: Ccid
    label: str
    package_type: str
    """Lower case."""
    import_path: str
    code_digest: str
    """SHA-256 of code.tar.gz, hex."""
    path: Path
    """The package file; it belongs to the store."""
    limits: Limits = field(default_factory=Limits, repr=False)
    index_names: tuple[str, ...] = ()
    """Of the index definitions in code.tar.gz."""

    async def unpack(self, into: Path) -> None:
        """Extract code.tar.gz into `into`, an empty directory, made when missing.

        Raises:
            PackageInvalid: the package changed on disk, or breaks a rule.
            AlreadyExists: `into` is not empty. StorageError: disk full and the like.
        Cancelled, or any error: `into` is removed.
        """
        await finish(
            asyncio.to_thread(unpack_code, self.path, self.ccid, into, self.limits),
            undo=lambda _: asyncio.to_thread(shutil.rmtree, into),
        )

    def indexes(self) -> dict[str, bytes]:
        """Return the index definitions under META-INF by their names in code.tar.gz.

        Blocking. Raises: PackageInvalid: it changed on disk, or they are too large.
            StorageError.
        """
        found: dict[str, bytes] = {}
        left = _INDEX_FILES * self.limits.index_bytes

        def keep(entry: Entry, archive: TarReader) -> None:
            nonlocal left
            if entry.name in self.index_names:
                most = min(left, self.limits.index_bytes)
                found[entry.name] = archive.read_whole(entry, most)
                left -= len(found[entry.name])

        with storing(_STORE, self.path):
            _require_id(
                read_package(self.path, self.limits, keep), self.ccid, self.path
            )
        return found


class PackageStore:
    """All packages of a node, in a directory made when the first one comes. Blocking."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        self._root, self._limits = root, limits or Limits()

    def add(self, package: bytes | Path) -> StoredPackage:
        """Check a package and keep it on disk; the same one again changes nothing.

        Raises:
            PackageInvalid: it breaks a rule; nothing was kept. NotFound: no such file.
            StorageError: it cannot be written.
        """
        with self._incoming(package) as (file, path):
            info = read_package(file, self._limits)
            target = self._path(info.id)
            with storing(_STORE, target):
                os.fsync(file.fileno())
                path.replace(target)
                sync_folder(self._root)
        return self._stored(info, target)

    def get(self, ccid: Ccid) -> StoredPackage:
        """Return a package after reading and checking its file again.

        Raises: NotFound: it is not installed. PackageInvalid: the file is damaged.
        """
        path = self._path(ccid)
        if path.is_symlink() or not path.is_file():
            raise _not_installed(ccid)
        try:
            with storing(_STORE, path):
                info = read_package(path, self._limits)
        except PackageInvalid as error:
            raise _damaged(ccid, path, error.message) from error
        _require_id(info, ccid, path)
        return self._stored(info, path)

    def read(self, ccid: Ccid) -> bytes:
        """Return the bytes of a package as they came. Raises: as `get`."""
        path = self.get(ccid).path
        with storing(_STORE, path):
            return path.read_bytes()

    def list(self) -> list[Ccid]:
        """Return the ids of all packages in order; only file names are looked at."""
        if not self._root.is_dir():
            return []
        with storing(_STORE, self._root):
            names = sorted(path.name for path in self._root.iterdir())
        found = (_FILE.fullmatch(name) for name in names)
        return [Ccid(f"{one['label']}:{one['hash']}") for one in found if one]

    def remove(self, ccid: Ccid) -> None:
        """Remove a package for good. Raises: NotFound, StorageError."""
        path = self._path(ccid)
        with storing(_STORE, path):
            try:
                path.unlink()
            except FileNotFoundError as error:
                raise _not_installed(ccid) from error
            sync_folder(self._root)

    def sweep(self, wanted: Collection[Ccid]) -> Sequence[Ccid]:
        """Remove half-written files of a killed process; return unused packages.

        Call it at the start, before `add`.

        Raises: StorageError: something cannot be removed.
        """
        if not self._root.is_dir():
            return []
        with storing(_STORE, self._root):
            for path in self._root.glob(f"{_PARTIAL}*"):
                path.unlink(missing_ok=True)
            sync_folder(self._root)
        return [ccid for ccid in self.list() if ccid not in wanted]

    def _path(self, ccid: Ccid) -> Path:
        label, digest = split_ccid(require_ccid(ccid))
        return self._root / f"{label}.{digest}.tar.gz"

    def _stored(self, info: PackageInfo, path: Path) -> StoredPackage:
        return StoredPackage(
            ccid=info.id,
            label=info.label,
            package_type=info.package_type.lower(),
            import_path=info.import_path,
            code_digest=info.code_digest,
            path=path,
            limits=self._limits,
            index_names=info.indexes,
        )

    @contextlib.contextmanager
    def _incoming(self, package: bytes | Path) -> Iterator[tuple[BinaryIO, Path]]:
        """A private copy (mode 0600) that is gone afterwards unless it was renamed."""
        with opened(package) as source, storing(_STORE, self._root):
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(prefix=_PARTIAL, dir=self._root)
            path = Path(name)
            try:
                with os.fdopen(number, "w+b") as file:
                    bounded = Hashing(source, self._limits.package_bytes)
                    while data := bounded.read(CHUNK):
                        file.write(data)
                    file.seek(0)
                    yield file, path
            finally:
                path.unlink(missing_ok=True)


def _not_installed(ccid: Ccid) -> NotFound:
    return NotFound(
        f"package {ccid!r} is not installed",
        hint="install the package first",
        ccid=ccid,
    )


def _require_id(info: PackageInfo, ccid: Ccid, path: Path) -> None:
    if info.id != ccid:
        raise _damaged(ccid, path, f"its content has the id {info.id!r}")


def _damaged(ccid: Ccid, path: Path, why: str) -> PackageInvalid:
    return PackageInvalid(
        f"the stored file of package {ccid!r} changed since it was installed: {why}",
        hint=f"remove {str(path)!r} and install the package again",
        entry="package",
        rule="a stored package has the hash in its name",
    )


# --- extraction


def unpack_code(package: Path, ccid: Ccid, into: Path, limits: Limits) -> None:
    """Extract code.tar.gz of `package` into `into`; see StoredPackage.unpack.

    Whatever the umask, files get mode 0644, or 0755 if their owner may execute them in
    the archive; directories get 0755.
    """
    with storing("cannot unpack to", into):
        into.mkdir(exist_ok=True)
        if any(into.iterdir()):
            raise AlreadyExists(
                f"directory {str(into)!r} is not empty: a package is unpacked into an "
                "empty one",
                path=str(into),
            )
        try:
            info = read_package(package, limits, partial(_extract, into))
            _require_id(info, ccid, package)
        except BaseException:
            shutil.rmtree(into, ignore_errors=True)
            raise


def _extract(into: Path, entry: Entry, archive: TarReader) -> None:
    target = into / entry.name
    if entry.is_folder:
        _make_folder(target)
        return
    _make_folder(target.parent)
    number = os.open(target, _NEW_FILE, 0o600)
    with os.fdopen(number, "wb") as file:
        while data := archive.read(CHUNK):
            file.write(data)
        os.fchmod(number, 0o755 if entry.executable else 0o644)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)
