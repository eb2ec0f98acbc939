"""The package format: what a package file holds, read in one pass to its last byte.

Source: docs/fabric/packages.md
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from chaindock.errors import NotFound
from chaindock.ids import Ccid
from chaindock.packaging.archive import GzipReader, TarReader
from chaindock.packaging.content import (
    METADATA,
    check_index,
    is_index_path,
    label_warning,
    parse_metadata,
)
from chaindock.packaging.rules import CHUNK, Limits, broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chaindock.packaging.archive import Entry, Source

    Visit = Callable[[Entry, TarReader], None]

PACKAGE = "package"
CODE = "code.tar.gz"


@dataclass(frozen=True)
class PackageInfo:
    """What a package file says of itself.

    Args:
        id: `label:sha256`.
        label, package_type, import_path: as metadata.json has them.
        size: bytes of the package file.
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
    code_digest: str
    entries: tuple[Entry, ...]
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


def read_package(
    package: bytes | Path | BinaryIO,
    limits: Limits | None = None,
    visit: Visit | None = None,
) -> PackageInfo:
    """Return what a package holds after checking all of it.

    Args:
        package: its bytes, its file, or an open file.
        limits: what it may be.
        visit: takes each code entry instead of the check of META-INF; what `visit`
            leaves unread is skipped. `entries` and `indexes` stay empty then.

    Raises:
        PackageInvalid: it breaks a rule. NotFound: no such file. What `visit` raises.
    """
    limits = limits or Limits()
    entries: list[Entry] = []
    indexes: list[str] = []

    def check(entry: Entry, archive: TarReader) -> None:
        if not entry.is_folder:
            entries.append(entry)
            if is_index_path(entry.name):
                check_index(entry.name, archive.read_whole(entry, limits.index_bytes))
                indexes.append(entry.name)

    with opened(package) as file:
        source = Hashing(file, limits.package_bytes)
        raw, code_digest, unexpected = _read_outer(source, limits, visit or check)
    values = parse_metadata(raw)
    warnings = [
        f"unexpected file {name!r} in the top level of the package: it is ignored"
        for name in unexpected
    ]
    if text := label_warning(values.label):
        warnings.append(text)
    return PackageInfo(
        id=Ccid(f"{values.label}:{source.hexdigest()}"),
        label=values.label,
        package_type=values.package_type,
        import_path=values.import_path,
        size=source.count,
        code_digest=code_digest,
        entries=tuple(entries),
        indexes=tuple(indexes),
        warnings=tuple(warnings),
    )


def _read_outer(
    source: Hashing, limits: Limits, visit: Visit
) -> tuple[bytes, str, list[str]]:
    """Return metadata.json, the SHA-256 of code.tar.gz, and names of other files."""
    outer = TarReader(GzipReader(source, limits, PACKAGE), limits, PACKAGE, plain=True)
    raw: bytes | None = None
    code_digest: str | None = None
    unexpected: list[str] = []
    for entry in outer.entries():
        if entry.name == METADATA:
            raw = outer.read_whole(entry, limits.metadata_bytes)
        elif entry.name == CODE:
            hashing = Hashing(outer)
            code = TarReader(GzipReader(hashing, limits, CODE), limits, CODE)
            for one in code.entries():
                visit(one, code)
            code_digest = hashing.hexdigest()
        else:
            unexpected.append(entry.name)
    if raw is not None and code_digest is not None:
        return raw, code_digest, unexpected
    raise broken(
        METADATA if raw is None else CODE,
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
