"""metadata.json of a package, read and written as Fabric does.

What is written is byte for byte what `peer lifecycle chaincode package` writes.
Source: docs/fabric/packages.md#metadatajson
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from chaindock.errors import InvalidInput
from chaindock.ids import require_label
from chaindock.packaging.rules import broken

NAME = "metadata.json"
LABEL_BYTES = 183
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


def parse_metadata(raw: bytes) -> Metadata:
    """Return the values of metadata.json.

    Raises:
        PackageInvalid: not JSON, a wrong type, a value missing, or a bad label.
    """
    members = _members(raw)
    for key, value in members.items():
        if not isinstance(value, str):
            raise broken(NAME, f"{key!r} is a string", type(value).__name__)
    metadata = Metadata(
        members.get("label", ""), members.get("type", ""), members.get("path", "")
    )
    check_label(metadata.label)
    if not metadata.package_type:
        raise broken(NAME, "'type' names the language or kind of package", "none")
    return metadata


def check_label(label: str) -> None:
    """Refuse a label that Fabric refuses or that gives too long a file name.

    Raises:
        PackageInvalid: it does.
    """
    try:
        require_label(label)
    except InvalidInput as error:
        raise broken(NAME, error.message, hint=error.hint) from error
    if len(label) > LABEL_BYTES:
        raise broken(
            NAME, f"a label has at most {LABEL_BYTES} bytes", f"{len(label)} bytes"
        )


def encode_metadata(metadata: Metadata) -> bytes:
    """Return compact JSON, keys in the order path, type, label."""
    text = json.dumps(
        {
            "path": metadata.import_path,
            "type": metadata.package_type,
            "label": metadata.label,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
    return text.translate(_ESCAPES).encode()


def label_warning(label: str) -> str | None:
    """Return why a peer could not name an image after `label`, else None."""
    if not _UNFIT_FOR_IMAGES.search(label):
        return None
    return (
        f"label {label!r} has two of . _ + - in a row or at its end: a peer that builds "
        "with Docker refuses to install it"
    )


def _members(raw: bytes) -> dict[str, Any]:
    """Return the known members with lower-case keys; null counts as absent."""
    rule = "metadata.json is one JSON object in UTF-8"
    try:
        pairs = json.loads(raw.decode(), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise broken(NAME, rule, _why(error)) from error
    if not isinstance(pairs, _Pairs):
        raise broken(NAME, rule, type(pairs).__name__)
    members: dict[str, Any] = {}
    for key, value in pairs:
        known = key.lower()
        if known not in _KEYS:
            continue
        if known in members:
            raise broken(NAME, "a key occurs once, whatever its case", repr(key))
        members[known] = value
    return {key: value for key, value in members.items() if value is not None}


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, so that a key that occurs twice is seen."""


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values nested too deep"
    return str(error)[:200] or type(error).__name__
