"""The package format: the package file, and the files in it that have a meaning.

A package file is read in one pass to its last byte. metadata.json is written byte for byte
as `peer lifecycle chaincode package` writes it.
Source: docs/fabric/packages.md
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import msgspec

from chaindock.errors import InvalidInput, NotFound
from chaindock.ids import Ccid, require_label
from chaindock.packaging.archive import Entry, GzipReader, Source, TarReader
from chaindock.packaging.rules import CHUNK, Limits, broken

Visit = Callable[[Entry, TarReader], None]
PACKAGE = "package"
CODE = "code.tar.gz"


@dataclass(frozen=True)
class PackageInfo:
    """What a package file says of itself; label, type and path as in metadata.json."""

    id: Ccid
    """`label:sha256`."""
    label: str
    package_type: str
    import_path: str
    size: int
    """Bytes of the package file."""
    code_digest: str
    """SHA-256 of code.tar.gz, hex."""
    entries: tuple[Entry, ...]
    """The files of code.tar.gz, in their order there."""
    indexes: tuple[str, ...]
    """Names of those that are CouchDB index definitions."""
    warnings: tuple[str, ...]
    """What a peer would ignore or refuse."""


class Hashing:
    """A source that counts and hashes what is read, and ends at `max_bytes`."""

    def __init__(self, source: Source, max_bytes: int | None = None) -> None:
        self._source, self._max = source, max_bytes
        self._digest = hashlib.sha256()
        self.count = 0

    def read(self, size: int, /) -> bytes:
        """Return the next bytes. Raises: PackageInvalid: more than `max_bytes`."""
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

    `visit` takes each code entry instead of the check of META-INF, and may leave some
    unread; `entries` and `indexes` stay empty then.

    Raises: PackageInvalid: it breaks a rule. NotFound: no such file. What `visit` raises.
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
    label, package_type, import_path = parse_metadata(raw)
    warnings = [
        f"unexpected file {name!r} in the top level of the package: it is ignored"
        for name in unexpected
    ]
    if _UNFIT_FOR_IMAGES.search(label):
        warnings.append(
            f"label {label!r} has two of . _ + - in a row or at its end: a peer that "
            "builds with Docker refuses to install it"
        )
    return PackageInfo(
        id=Ccid(f"{label}:{source.hexdigest()}"),
        label=label,
        package_type=package_type,
        import_path=import_path,
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
        text = f"there is no package file {str(package)!r}"
        raise NotFound(text, hint="check the path") from error
    except OSError as error:
        raise broken(str(package), "a package can be read", str(error)) from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise broken(str(package), "a package is a regular file")
    with os.fdopen(number, "rb", buffering=CHUNK) as file:
        yield file


# --- metadata.json

METADATA = "metadata.json"
_LABEL_BYTES = 183
"""A store file name `LABEL.SHA256.tar.gz` has at most 255 bytes."""
_KEYS = frozenset({"path", "type", "label"})
_UNFIT_FOR_IMAGES = re.compile(r"[._+-]{2}|[._+-]\Z")
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, so that a key that occurs twice is seen."""


def parse_metadata(raw: bytes) -> tuple[str, str, str]:
    """Return label, type as written, and path (the Go import path) of metadata.json.

    Keys count in any case, and null as absent.

    Raises: PackageInvalid: not JSON, a wrong type, a value missing, or a bad label.
    """
    rule = "metadata.json is one JSON object in UTF-8"
    try:
        pairs = json.loads(raw.decode(), object_pairs_hook=_Pairs)
    except RecursionError as error:
        raise broken(METADATA, rule, "values nested too deep") from error
    except ValueError as error:
        raise broken(METADATA, rule, str(error)[:200]) from error
    if not isinstance(pairs, _Pairs):
        raise broken(METADATA, rule, type(pairs).__name__)
    members = dict.fromkeys(_KEYS, "")
    seen: set[str] = set()
    for written, value in pairs:
        key = written.lower()
        if key in seen:
            rule = "a key occurs once, whatever its case"
            raise broken(METADATA, rule, repr(written))
        if key in _KEYS and not isinstance(value, str | None):
            raise broken(METADATA, f"{key!r} is a string", type(value).__name__)
        if key in _KEYS:
            seen.add(key)
            members[key] = value or ""
    check_label(members["label"])
    if not members["type"]:
        rule = "'type' names the language or kind of package"
        raise broken(METADATA, rule, "none")
    return members["label"], members["type"], members["path"]


def check_label(label: str) -> None:
    """Raise PackageInvalid for a label that Fabric refuses or no file name can hold."""
    try:
        require_label(label)
    except InvalidInput as error:
        raise broken(METADATA, error.message, hint=error.hint) from error
    if len(label) > _LABEL_BYTES:
        rule = f"a label has at most {_LABEL_BYTES} bytes"
        raise broken(METADATA, rule, f"{len(label)} bytes")


def encode_metadata(label: str, package_type: str, import_path: str) -> bytes:
    """Return compact JSON, keys in the order path, type, label."""
    members = {"path": import_path, "type": package_type, "label": label}
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPES).encode()


# --- META-INF

_PATHS = re.compile(
    r"META-INF/statedb/couchdb/(collections/(?P<collection>[A-Za-z0-9_-]+)/)?"
    r"indexes/.*[.]json"
)


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    fields: tuple[str | dict[str, str], ...] = ()
    partial_filter_selector: Any = None

    def __post_init__(self) -> None:
        for field in self.fields:
            for order in field.values() if isinstance(field, dict) else ():
                if order.lower() not in {"asc", "desc"}:
                    raise ValueError(f"{order!r} is no order: expected 'asc' or 'desc'")


class _Definition(msgspec.Struct, forbid_unknown_fields=True):
    index: _Index
    ddoc: str = ""
    name: str = ""
    type: Literal["json"] = "json"


def is_index_path(name: str) -> bool:
    """Whether an entry of a code archive is checked as an index definition."""
    return name.startswith("META-INF/") and not name.rpartition("/")[2].startswith(".")


def collection_of(name: str) -> str:
    """Return the collection that an index definition is for; "" = the public state."""
    place = _PATHS.fullmatch(name)
    return (place["collection"] or "") if place else ""


def check_index(name: str, data: bytes) -> None:
    """Raise PackageInvalid if a file under META-INF is no index definition in its place."""
    if not _PATHS.fullmatch(name):
        raise broken(
            name,
            "META-INF holds statedb/couchdb/indexes/*.json and "
            "statedb/couchdb/collections/NAME/indexes/*.json, nothing else",
        )
    try:
        msgspec.json.decode(data, type=_Definition)
    except (ValueError, RecursionError) as error:
        raise broken(
            name,
            "an index definition is a JSON object with 'index' and optional ddoc, name "
            "and type 'json'; 'index' holds fields (each a name, or a name with the "
            "order 'asc' or 'desc') and partial_filter_selector",
            f"this error: {str(error)[:200]}",
        ) from error
