"""Read hostile archives as streams: gzip, and the tar inside it.

Of tar, regular files and directories are read as Fabric, GNU tar, BSD tar and Python
write them. In memory are two chunks and the header of one entry, never its content.
Source: docs/adr/0008-own-tar-reader.md; pax and ustar as POSIX describes them
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from chaindock.packaging.rules import CHUNK, Limits, Names, broken

BLOCK: Final = 512
_EXTENSION_BYTES: Final = 64 * 1024
_EXTENSIONS: Final = 4
"""In a row, before an entry."""
_PAX_RECORDS: Final = 100
"""Writers need about ten; reading ten thousand for each entry takes minutes in all."""
_INTACT = "an archive is one intact gzip stream"
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_CHANGES_MEANING = re.compile(
    rb"size|linkpath|hdrcharset|SCHILY\.realsize|GNU\.sparse\..*", re.DOTALL
)
_REGULAR = "an entry is a regular file or a directory"
_WHOLE = "a tar archive is whole"
_ONE_MEANING = "an entry has one meaning for every reader"
_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"K": "a long link name",
    b"S": "a sparse file",
}


class Source(Protocol):
    """Bytes to read."""

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or b"" at the end."""


class GzipReader:
    """The decompressed bytes of `source`, an archive that errors call `archive`."""

    def __init__(self, source: Source, limits: Limits, archive: str) -> None:
        self._source, self._limits, self._archive = source, limits, archive
        self._inflate = zlib.decompressobj(wbits=31)
        self._pending = b""
        self._taken = self._given = 0

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes, or b"" at the end.

        Raises: PackageInvalid: not gzip, cut, damaged, something behind it, or a bomb.
        """
        while not self._inflate.eof:
            data = self._step(size)
            if data:
                return data
        return b""

    def _step(self, size: int) -> bytes:
        if not self._pending:
            self._pending = self._source.read(CHUNK)
            self._taken += len(self._pending)
        at_end = not self._pending
        try:
            data = self._inflate.decompress(self._pending, size)
        except zlib.error as error:
            raise broken(self._archive, _INTACT, str(error)) from error
        self._pending = self._inflate.unconsumed_tail
        if self._inflate.eof and (self._inflate.unused_data or self._source.read(1)):
            raise broken(self._archive, _INTACT, "bytes behind its end")
        if at_end and not data and not self._inflate.eof:
            raise broken(self._archive, _INTACT, "its end is missing")
        self._given += len(data)
        self._require_within_limits()
        return data

    def _require_within_limits(self) -> None:
        limits = self._limits
        if self._given > limits.unpacked_bytes:
            raise broken(
                self._archive,
                f"an archive has at most {limits.unpacked_bytes} bytes unpacked",
                hint="a larger archive needs a larger limit in the configuration",
            )
        if self._given > max(limits.ratio_from_bytes, limits.ratio * self._taken):
            rule = f"an archive unpacks to at most {limits.ratio} times"
            raise broken(self._archive, rule)


@dataclass(frozen=True)
class Entry:
    """One file or directory of an archive."""

    name: str
    """Checked; no slash at the end."""
    size: int
    """Bytes of content; 0 for a directory."""
    is_folder: bool = False
    executable: bool = False


@dataclass(frozen=True)
class _Header:
    name: bytes
    size: int
    kind: bytes
    mode: int


class TarReader:
    """The entries of a decompressed tar archive, which errors call `archive`, in its order.

    `plain`: only regular files, names exactly as they are (the outer archive);
    otherwise directories and a leading `./` are allowed, too.
    """

    def __init__(
        self, stream: GzipReader, limits: Limits, archive: str, *, plain: bool = False
    ) -> None:
        self._stream, self._archive, self._plain = stream, archive, plain
        self._names, self._limits = Names(limits), limits
        self._left = self._padding = 0

    def entries(self) -> Iterator[Entry]:
        """Yield each entry; `read` gives its content until the next one is asked for.

        Raises: PackageInvalid: an entry or the archive breaks a rule.
        """
        count = 0
        while (header := self._next_header()) is not None:
            count += 1
            if count > self._limits.files:
                rule = f"an archive has at most {self._limits.files} entries"
                raise broken(self._archive, rule)
            entry = self._entry(header)
            if entry is not None:
                yield entry
            while self.read(CHUNK):
                pass
            self._require(self._padding)

    def read(self, size: int, /) -> bytes:
        """Return 1 to `size` bytes of the current entry, or b"" at its end."""
        wanted = min(size, self._left, CHUNK)
        if not wanted:
            return b""
        data = self._stream.read(wanted)
        if not data:
            raise broken(self._archive, _WHOLE, "it ends inside an entry")
        self._left -= len(data)
        return data

    def read_whole(self, entry: Entry, max_bytes: int) -> bytes:
        """Return the content of the entry. Raises: PackageInvalid: above `max_bytes`."""
        if entry.size > max_bytes:
            rule = f"at most {max_bytes} bytes here"
            raise broken(entry.name, rule, f"{entry.size} bytes")
        return b"".join(iter(lambda: self.read(CHUNK), b""))

    def _next_header(self) -> _Header | None:
        block = self._take(BLOCK)
        if not block:
            return None  # no end mark: some writers forget it; gzip proved the archive whole
        if len(block) < BLOCK:
            raise broken(self._archive, _WHOLE, "it ends inside a header")
        if not any(block):
            while rest := self._stream.read(CHUNK):
                if any(rest):
                    raise broken(self._archive, _WHOLE, "data behind its end mark")
            return None
        header = self._parse(block)
        self._left, self._padding = header.size, -header.size % BLOCK
        return header

    def _parse(self, block: bytes) -> _Header:
        stored = _octal(block[148:156])
        total = sum(block) - sum(block[148:156]) + 8 * 0x20
        if stored != total:
            raise broken(self._archive, _WHOLE, "a header with a wrong checksum")
        name = _until_nul(block[:100])
        if block[257:263] == b"ustar\0" and (prefix := _until_nul(block[345:500])):
            name = prefix + b"/" + name
        size = _octal(block[124:136])
        if size is None:
            rule = "a size is a plain octal number"
            raise broken(name, rule, repr(block[124:136]))
        return _Header(name, size, block[156:157], _octal(block[100:108]) or 0)

    def _entry(self, header: _Header) -> Entry | None:
        renamed: bytes | None = None
        for _ in range(_EXTENSIONS):
            if header.kind not in {b"x", b"g", b"L"}:
                break
            longer = self._extension(header)
            if longer is not None and renamed is not None:
                found = "two names for the same entry"
                raise broken(longer, _ONE_MEANING, found)
            renamed = longer or renamed
            following = self._next_header()
            if following is None:
                raise broken(self._archive, _WHOLE, "it ends behind an extension")
            header = following
        else:
            raise broken(self._archive, _ONE_MEANING, "a chain of extension headers")
        return self._checked(header, header.name if renamed is None else renamed)

    def _extension(self, header: _Header) -> bytes | None:
        if header.size > _EXTENSION_BYTES:
            rule = f"an extension header has at most {_EXTENSION_BYTES} bytes"
            raise broken(header.name, rule)
        data = self._require(header.size)
        self._left = 0
        self._require(self._padding)
        if header.kind == b"L":
            return data.removesuffix(b"\0")
        records = _pax_records(data, header.name)
        if header.kind == b"g" and (self._plain or b"path" in records):
            raise broken(header.name, _REGULAR, "a global pax header")
        return records.get(b"path")

    def _checked(self, header: _Header, raw: bytes) -> Entry | None:
        try:
            name = raw.decode()
        except UnicodeDecodeError as error:
            raise broken(raw, "a name is UTF-8", repr(raw[:80])) from error
        is_folder = header.kind == b"5" or (header.kind == b"\0" and name.endswith("/"))
        if not is_folder and header.kind not in {b"0", b"\0"}:
            kind = _TYPES.get(header.kind, f"type {header.kind!r}")
            raise broken(name, _REGULAR, kind)
        if self._plain and is_folder:
            raise broken(name, "a package holds regular files only", "a directory")
        if not self._plain:
            name = "" if name == "." else name.removeprefix("./")
        if not is_folder:
            self._names.add_file(name)
            return Entry(name, header.size, executable=bool(header.mode & 0o100))
        if header.size:
            raise broken(name, "a directory has no content", f"{header.size} bytes")
        name = name.removesuffix("/")
        if not name:
            return None
        self._names.add_folder(name)
        return Entry(name, 0, is_folder=True)

    def _take(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size and (data := self._stream.read(size)):
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _require(self, size: int) -> bytes:
        data = self._take(size)
        if len(data) < size:
            raise broken(self._archive, _WHOLE, "it ends inside an entry")
        return data


def _until_nul(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _octal(field: bytes) -> int | None:
    found = _OCTAL.fullmatch(field)
    return int(found[1] or b"0", 8) if found else None


def _pax_records(data: bytes, entry: bytes) -> dict[bytes, bytes]:
    """Return keyword to value; refuse keywords that change what an entry is."""
    records: dict[bytes, bytes] = {}
    while data:
        digits, space, _ = data[:10].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record, data = data[:length], data[length:]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if len(record) < length or not record.endswith(b"\n") or not equals:
            raise broken(entry, _WHOLE, "a pax record of the wrong form")
        if len(records) >= _PAX_RECORDS:
            raise broken(entry, f"a pax header has at most {_PAX_RECORDS} records")
        shown = repr(keyword[:40].decode(errors="replace"))
        if keyword in records:
            raise broken(entry, _ONE_MEANING, f"pax {shown} twice")
        if _CHANGES_MEANING.fullmatch(keyword):
            raise broken(entry, _ONE_MEANING, f"pax {shown}")
        records[keyword] = value
    return records
