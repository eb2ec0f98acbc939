"""Write packages whose bytes depend on nothing but the files and the label.

The same names and contents give the same bytes on any day, machine, user, Python and
zlib. Which files are packaged is up to the platforms.
Source: docs/fabric/packages.md, docs/adr/0002-stored-gzip.md
"""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import tarfile
import tempfile
import zlib
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, BinaryIO, cast

from chaindock.errors import PackageInvalid, SourceInvalid, os_errors_as
from chaindock.ids import require_label
from chaindock.packaging.format import (
    CODE,
    METADATA,
    PackageInfo,
    check_index,
    check_label,
    encode_metadata,
    is_index_path,
    read_package,
)
from chaindock.packaging.rules import CHUNK, Limits, Names, broken
from chaindock.platforms.registry import recognise
from chaindock.values import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from _typeshed import SupportsWrite

    from chaindock.platforms.base import Selection
    from chaindock.platforms.tree import SourceFile

    _Add = Callable[[str, int, BinaryIO], None]
    """Takes name, size and content of a file."""

_OWNER = 500
"""uid and gid of code entries: the user of Fabric's build image."""
_LARGEST_SHOWN = 3
_SEPARATORS = "._+-"
_NOT_IN_LABELS = re.compile(r"[^A-Za-z0-9]+")


def write_package(
    selection: Selection, label: str, out: BinaryIO, limits: Limits | None = None
) -> PackageInfo:
    """Write the package of `selection` to `out`, which gets nothing after an error.

    Raises:
        PackageInvalid: a name, an index or the whole breaks a rule of the format.
        SourceInvalid: a file cannot be read, or changes meanwhile.
        InvalidInput: `label`.
    """
    limits = limits or Limits()
    require_label(label)
    check_label(label)
    files = sorted(selection.files, key=lambda file: file.name)
    _check(files, limits)
    raw = encode_metadata(label, selection.package_type, selection.import_path)
    with tempfile.TemporaryFile() as code, tempfile.TemporaryFile() as package:
        with _archive(code, owner=_OWNER) as add:
            for file in files:
                _add_file(add, file)
        size = code.tell()
        code.seek(0)
        with _archive(package, owner=0) as add:
            add(METADATA, len(raw), io.BytesIO(raw))
            add(CODE, size, code)
        if package.tell() > limits.package_bytes:
            raise _too_large(files, limits.package_bytes)
        package.seek(0)
        info = read_package(package, limits)
        package.seek(0)
        shutil.copyfileobj(package, out, CHUNK)
    return info


def package_directory(
    source: Path,
    out: BinaryIO,
    label: str | None = None,
    *,
    limits: Limits | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> PackageInfo:
    """Write the package of a source directory to `out`, which gets nothing after an error.

    The default label is `default_label(source)`. `warn` gets what the user should know
    about what was packaged.

    Raises: SourceInvalid, ToolMissing, PackageInvalid, InvalidInput.
    """
    selection = recognise(source).select(source)
    for text in selection.warnings:
        warn(text)
    return write_package(selection, label or default_label(source), out, limits)


def default_label(source: Path) -> str:
    """Return `<directory name>_1.0`, with `-` for what a label cannot have."""
    name = _NOT_IN_LABELS.sub(
        lambda run: run[0][0] if run[0][0] in _SEPARATORS else "-",
        source.resolve().name,
    )
    name = name.strip(_SEPARATORS)[:100].rstrip(_SEPARATORS)
    return f"{name or 'chaincode'}_1.0"


class StoredGzip:
    """Gzip without compression: what compressors make of the same bytes differs."""

    _BLOCK = 0xFFFF

    def __init__(self, out: SupportsWrite[bytes]) -> None:
        self._out, self._crc, self._size = out, 0, 0
        self._pending = bytearray()
        out.write(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff")

    def write(self, data: bytes, /) -> int:
        """Take any number of bytes; block borders do not depend on the calls."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._pending += data
        while len(self._pending) >= self._BLOCK:
            self._put(bytes(self._pending[: self._BLOCK]), last=False)
            del self._pending[: self._BLOCK]
        return len(data)

    def close(self) -> None:
        """Write the rest and the trailer."""
        self._put(bytes(self._pending), last=True)
        self._out.write(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))

    def _put(self, data: bytes, *, last: bool) -> None:
        size = len(data)
        self._out.write(struct.pack("<BHH", last, size, size ^ 0xFFFF) + data)


@contextmanager
def _archive(out: SupportsWrite[bytes], owner: int) -> Iterator[_Add]:
    """Give what takes a regular file; `owner` is the uid and gid of each."""
    gzip = StoredGzip(out)
    file = cast("BinaryIO", gzip)
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, size: int, content: BinaryIO) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.uid, entry.gid = size, owner, owner
            tar.addfile(entry, content)

        yield add
    gzip.close()


def _check(files: list[SourceFile], limits: Limits) -> None:
    names = Names(limits)
    total = 0
    for file in files:
        names.add_file(file.name)
        size = _size(file)
        total += size
        if not is_index_path(file.name):
            continue
        if size > limits.index_bytes:
            rule = f"an index definition has at most {limits.index_bytes} bytes"
            raise broken(file.name, rule, f"{size} bytes")
        with _reading(file):
            check_index(file.name, file.path.read_bytes())
    if total > (most := min(limits.unpacked_bytes, limits.package_bytes)):
        raise _too_large(files, most)


def _size(file: SourceFile) -> int:
    with _reading(file):
        return file.path.stat().st_size


def _add_file(add: _Add, file: SourceFile) -> None:
    with _reading(file), file.path.open("rb") as content:
        size = os.fstat(content.fileno()).st_size
        try:
            add(file.name, size, content)
            unchanged = not content.read(1)
        except OSError as error:
            if error.errno:
                raise
            unchanged = False  # tarfile found fewer bytes
        if not unchanged:
            raise SourceInvalid(
                f"source file {str(file.path)!r} changed while it was packaged",
                hint="package again when nothing writes to it",
                path=str(file.path),
            )


def _reading(file: SourceFile) -> AbstractContextManager[None]:
    return os_errors_as(
        SourceInvalid,
        f"source file {str(file.path)!r}",
        hint="change its permissions, or move it out of the source directory",
        path=str(file.path),
    )


def _too_large(files: list[SourceFile], max_bytes: int) -> PackageInvalid:
    largest = sorted(files, key=_size, reverse=True)[:_LARGEST_SHOWN]
    shown = ", ".join(f"{file.name} ({_size(file) / MIB:.1f} MiB)" for file in largest)
    return PackageInvalid(
        f"the source is too large for a package: more than {max_bytes} bytes; "
        f"its largest files are {shown}",
        hint="move what the chaincode does not need out of the source directory",
        entry="package",
        rule=f"a package has at most {max_bytes} bytes",
    )
