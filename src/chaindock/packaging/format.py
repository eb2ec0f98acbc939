"""The package format: what a package file holds, read in one pass to its last byte.

Source: docs/fabric/packages.md
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from chaindock.errors import NotFound
from chaindock.ids import Ccid
from chaindock.packaging import metadata
from chaindock.packaging.archive import Entry, GzipReader, TarReader
from chaindock.packaging.indexes import check_index, is_index_path
from chaindock.packaging.rules import CHUNK, Limits, broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chaindock.packaging.archive import Source

    Visit = Callable[[Entry, TarReader], None]
    """Takes one code entry; what it leaves unread is skipped."""

PACKAGE = "package"
CODE = "code.tar.gz"


@dataclass(frozen=True)
class CodeEntry:
    """One file of code.tar.gz."""

    name: str
    size: int


@dataclass(frozen=True)
class PackageInfo:
    """What a package file says of itself.

    Args:
        id: `label:sha256`.
        label, package_type, import_path: as metadata.json has them.
        size: bytes of the package file.
        metadata: metadata.json as it is.
        code_digest: SHA-256 of code.tar.gz, hex.
        entries: its files, in the order of the archive.
        indexes: names of those that are CouchDB index definitions.
        warnings: what a peer would ignore or refuse.
    """

    id: Ccid
    label: str
    package_type: str
    import_path: str
    size: int
    metadata: bytes
    code_digest: str
    entries: tuple[CodeEntry, ...]
    indexes: tuple[str, ...]
    warnings: tuple[str, ...]


class Hashing:
    """A source that counts and hashes what is read, and ends at `max_bytes`."""

    def __init__(self, source: Source, max_bytes: int | None = None) -> None:
        self._source, self._max = source, max_bytes
        self._digest = hashlib.sha256()
        self.count = 0

    def read(self, size: int, /) -> bytes:
        """Return the next bytes.

        Raises:
            PackageInvalid: there are more than `max_bytes`.
        """
        data = self._source.read(size)
        self._digest.update(data)
        self.count += len(data)
        if self._max is not None and self.count > self._max:
            raise broken(
                PACKAGE,
                f"a package has at most {self._max} bytes",
                hint="a larger package needs a larger limit in the configuration",
            )
        return data

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was read so far."""
        return self._digest.hexdigest()


@dataclass
class _Checker:
    """Checks META-INF, and keeps the names and sizes of all files."""

    limits: Limits
    entries: list[CodeEntry] = field(default_factory=list)
    indexes: list[str] = field(default_factory=list)

    def add(self, entry: Entry, archive: TarReader) -> None:
        if entry.is_folder:
            return
        self.entries.append(CodeEntry(entry.name, entry.size))
        if is_index_path(entry.name):
            data = archive.read_whole(entry, self.limits.index_bytes)
            check_index(entry.name, data)
            self.indexes.append(entry.name)


def read_package(
    package: bytes | Path | BinaryIO, limits: Limits | None = None
) -> PackageInfo:
    """Return what a package holds after checking all of it.

    Raises:
        PackageInvalid: it breaks a rule. NotFound: no such file.
    """
    limits = limits or Limits()
    checker = _Checker(limits)
    with opened(package) as file:
        found = scan(file, limits, checker.add)
    values = metadata.parse_metadata(found.metadata)
    warnings = [
        f"unexpected file {name!r} in the top level of the package: it is ignored"
        for name in found.unexpected
    ]
    if text := metadata.label_warning(values.label):
        warnings.append(text)
    return PackageInfo(
        id=Ccid(f"{values.label}:{found.digest}"),
        label=values.label,
        package_type=values.package_type,
        import_path=values.import_path,
        size=found.size,
        metadata=found.metadata,
        code_digest=found.code_digest,
        entries=tuple(checker.entries),
        indexes=tuple(checker.indexes),
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class Scan:
    """What one pass over a package found."""

    metadata: bytes
    code_digest: str
    digest: str
    size: int
    unexpected: tuple[str, ...]


def scan(file: Source, limits: Limits, visit: Visit) -> Scan:
    """Read a package to its end, and call `visit` with each of its code entries.

    Raises:
        PackageInvalid: it breaks a rule; whatever `visit` raises.
    """
    source = Hashing(file, limits.package_bytes)
    outer = TarReader(GzipReader(source, limits, PACKAGE), limits, PACKAGE, plain=True)
    raw: bytes | None = None
    code_digest: str | None = None
    unexpected: list[str] = []
    for entry in outer.entries():
        if entry.name == metadata.NAME:
            raw = outer.read_whole(entry, limits.metadata_bytes)
        elif entry.name == CODE:
            code_digest = _scan_code(outer, limits, visit)
        else:
            unexpected.append(entry.name)
    if raw is None:
        raise _missing(metadata.NAME, unexpected)
    if code_digest is None:
        raise _missing(CODE, unexpected)
    return Scan(raw, code_digest, source.hexdigest(), source.count, tuple(unexpected))


def _scan_code(outer: TarReader, limits: Limits, visit: Visit) -> str:
    source = Hashing(outer)
    code = TarReader(GzipReader(source, limits, CODE), limits, CODE)
    for entry in code.entries():
        visit(entry, code)
    return source.hexdigest()


def _missing(name: str, unexpected: list[str]) -> Exception:
    return broken(
        name,
        "a package holds metadata.json and code.tar.gz in its top level",
        f"{len(unexpected)} other files" if unexpected else "it is missing",
        hint="make packages with: chaindock package DIRECTORY",
    )


@contextmanager
def opened(package: bytes | Path | BinaryIO) -> Iterator[BinaryIO]:
    """Open a package for reading, without waiting on a fifo or reading a device."""
    if isinstance(package, bytes):
        yield io.BytesIO(package)
        return
    if not isinstance(package, Path):
        yield package
        return
    try:
        number = os.open(package, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"no package file {str(package)!r}") from error
    except OSError as error:
        raise broken(str(package), "a package can be read", str(error)) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise broken(str(package), "a package is a regular file")
    with os.fdopen(number, "rb", buffering=CHUNK) as file:
        yield file
