"""Write packages whose bytes depend on nothing but the files and the label.

The same names and contents give the same bytes on any day, machine, user, Python and
zlib. Which files are packaged is up to the platforms.
Source: docs/fabric/packages.md, docs/adr/0002-stored-gzip.md
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import tempfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from chaindock.errors import PackageInvalid, SourceInvalid
from chaindock.ids import require_label
from chaindock.packaging.archive import BLOCK
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
        with _archive(code, owner=_OWNER) as tar:
            for file in files:
                _add_file(tar, file)
        size = code.tell()
        code.seek(0)
        with _archive(package, owner=0) as tar:
            tar.add(METADATA, len(raw))
            tar.write(raw)
            tar.add(CODE, size)
            shutil.copyfileobj(code, tar, CHUNK)
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
def _archive(out: SupportsWrite[bytes], owner: int) -> Iterator[TarWriter]:
    gzip = StoredGzip(out)
    tar = TarWriter(gzip, owner)
    yield tar
    tar.close()
    gzip.close()


class TarWriter:
    """Regular files in ustar, with a pax header for names that do not fit.

    `owner` is the uid and gid of every entry.
    """

    def __init__(self, out: SupportsWrite[bytes], owner: int) -> None:
        self._out, self._owner, self._written = out, owner, 0

    def add(self, name: str, size: int) -> None:
        """Begin an entry; exactly `size` bytes are written next."""
        self._pad()
        prefix, last = _ustar_name(name)
        if not last:
            record = _pax_record("path", name)
            self._out.write(_header(b"PaxHeader", b"", len(record), b"x", self._owner))
            self._out.write(record + bytes(-len(record) % BLOCK))
            last = name.encode("ascii", "replace").replace(b"?", b"_")[-99:]
        self._out.write(_header(last, prefix, size, b"0", self._owner))

    def write(self, data: bytes, /) -> int:
        """Take content of the current entry."""
        self._out.write(data)
        self._written += len(data)
        return len(data)

    def close(self) -> None:
        """Write the end mark."""
        self._pad()
        self._out.write(bytes(2 * BLOCK))

    def _pad(self) -> None:
        self._out.write(bytes(-self._written % BLOCK))
        self._written = 0


def _header(name: bytes, prefix: bytes, size: int, kind: bytes, owner: int) -> bytes:
    numbers = b"%07o\0%07o\0%011o\0%011o\0" % (owner, owner, size, 0)
    start = name.ljust(100, b"\0") + b"0100644\0" + numbers
    devices = b"0000000\0" * 2
    end = kind + bytes(100) + b"ustar\x0000" + bytes(64) + devices
    end += prefix.ljust(155, b"\0") + bytes(12)
    return start + b"%06o\0 " % (sum(start) + sum(end) + 8 * 0x20) + end


def _ustar_name(name: str) -> tuple[bytes, bytes]:
    """Return (prefix, name) of a ustar header; both are empty if `name` does not fit."""
    raw = name.encode()
    cut = raw.rfind(b"/", 0, 156)
    if name.isascii() and len(raw) <= 100:
        return b"", raw
    if name.isascii() and cut > 0 and len(raw) - cut - 1 <= 100:
        return raw[:cut], raw[cut + 1 :]
    return b"", b""


def _pax_record(keyword: str, value: str) -> bytes:
    body = f" {keyword}={value}\n".encode()
    size = len(body)
    while len(str(size)) + len(body) != size:
        size = len(str(size)) + len(body)
    return str(size).encode() + body


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


def _add_file(tar: TarWriter, file: SourceFile) -> None:
    with _reading(file), file.path.open("rb") as content:
        left = os.fstat(content.fileno()).st_size
        tar.add(file.name, left)
        while data := content.read(min(CHUNK, left)):
            tar.write(data)
            left -= len(data)
        if left or content.read(1):
            raise SourceInvalid(
                f"source file {str(file.path)!r} changed while it was packaged",
                hint="package again when nothing writes to it",
                path=str(file.path),
            )


@contextmanager
def _reading(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceInvalid(
            f"source file {str(file.path)!r} cannot be read: {error.strerror}",
            hint="change its permissions, or move it out of the source directory",
            path=str(file.path),
        ) from error


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
