"""The files in a package that Fabric gives a meaning: metadata.json and META-INF.

metadata.json is written byte for byte as `peer lifecycle chaincode package` writes it.
Source: docs/fabric/packages.md
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from chaindock.errors import InvalidInput
from chaindock.ids import require_label
from chaindock.packaging.rules import broken

# --- metadata.json

METADATA = "metadata.json"
_LABEL_BYTES = 183
"""A store file name `LABEL.SHA256.tar.gz` has at most 255 bytes."""
_KEYS = frozenset({"path", "type", "label"})
_UNFIT_FOR_IMAGES = re.compile(r"[._+-]{2}|[._+-]\Z")
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Metadata:
    """What metadata.json says.

    Args:
        package_type: as written; compare in lower case.
        import_path: the Go import path; "" for other languages.
    """

    label: str
    package_type: str
    import_path: str


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, so that a key that occurs twice is seen."""


def parse_metadata(raw: bytes) -> Metadata:
    """Return the values of metadata.json; keys in any case, null counts as absent.

    Raises:
        PackageInvalid: not JSON, a wrong type, a value missing, or a bad label.
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
    return Metadata(members["label"], members["type"], members["path"])


def check_label(label: str) -> None:
    """Refuse a label that Fabric refuses or that gives too long a file name.

    Raises: PackageInvalid.
    """
    try:
        require_label(label)
    except InvalidInput as error:
        raise broken(METADATA, error.message, hint=error.hint) from error
    if len(label) > _LABEL_BYTES:
        rule = f"a label has at most {_LABEL_BYTES} bytes"
        raise broken(METADATA, rule, f"{len(label)} bytes")


def encode_metadata(metadata: Metadata) -> bytes:
    """Return compact JSON, keys in the order path, type, label."""
    members = {
        "path": metadata.import_path,
        "type": metadata.package_type,
        "label": metadata.label,
    }
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_ESCAPES).encode()


def label_warning(label: str) -> str | None:
    """Return why a peer could not name an image after `label`, else None."""
    if not _UNFIT_FOR_IMAGES.search(label):
        return None
    return (
        f"label {label!r} has two of . _ + - in a row or at its end: a peer that builds "
        "with Docker refuses to install it"
    )


# --- META-INF

_PATHS = re.compile(
    r"META-INF/statedb/couchdb/(collections/[A-Za-z0-9_-]+/)?indexes/.*[.]json"
)
_Order = Annotated[str, msgspec.Meta(pattern=r"^(?i:asc|desc)\Z")]


class _Index(msgspec.Struct, forbid_unknown_fields=True):
    fields: tuple[str | dict[str, _Order], ...] = ()
    partial_filter_selector: Any = None


class _Definition(msgspec.Struct, forbid_unknown_fields=True):
    index: _Index
    ddoc: str = ""
    name: str = ""
    type: Literal["json"] = "json"


def is_index_path(name: str) -> bool:
    """Whether an entry of a code archive is checked as an index definition."""
    return name.startswith("META-INF/") and not name.rpartition("/")[2].startswith(".")


def check_index(name: str, data: bytes) -> None:
    """Refuse a file under META-INF that is not an index definition in its place.

    Raises: PackageInvalid.
    """
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
            str(error)[:200],
        ) from error
