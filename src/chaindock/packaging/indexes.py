"""META-INF: which files it may hold, and what an index definition must look like.

Source: docs/fabric/packages.md#meta-inf
"""

from __future__ import annotations

import json
import re
from typing import Any

from chaindock.packaging.rules import broken

PREFIX = "META-INF/"
_PATHS = re.compile(
    r"META-INF/statedb/couchdb/(collections/[A-Za-z0-9_-]+/)?indexes/.*[.]json"
)
_ORDERS = frozenset({"asc", "desc"})


def is_index_path(name: str) -> bool:
    """Whether an entry of a code archive is checked as an index definition."""
    return name.startswith(PREFIX) and not name.rpartition("/")[2].startswith(".")


def check_index(name: str, data: bytes) -> None:
    """Refuse a file under META-INF that is not an index definition in its place.

    Raises:
        PackageInvalid: it is not.
    """
    if not _PATHS.fullmatch(name):
        raise broken(
            name,
            "META-INF holds statedb/couchdb/indexes/*.json and "
            "statedb/couchdb/collections/NAME/indexes/*.json, nothing else",
        )
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        found = str(error)[:200] or type(error).__name__
        raise broken(name, "an index definition is JSON in UTF-8", found) from error
    if not isinstance(document, dict):
        raise broken(
            name, "an index definition is a JSON object", type(document).__name__
        )
    if "index" not in document:
        raise broken(name, "an index definition has an 'index' object", "none")
    for key, value in document.items():
        _check_member(name, key, value)


def _check_member(name: str, key: str, value: Any) -> None:
    if key == "index":
        _check_fields(name, value)
    elif key in {"ddoc", "name"}:
        if not isinstance(value, str):
            raise broken(name, f"{key!r} is a string", type(value).__name__)
    elif key == "type":
        if value != "json":
            raise broken(name, "'type' is 'json'", repr(value)[:80])
    else:
        raise broken(
            name,
            "an index definition has the members index, ddoc, name and type",
            repr(key[:80]),
        )


def _check_fields(name: str, index: Any) -> None:
    if not isinstance(index, dict):
        raise broken(name, "'index' is an object", type(index).__name__)
    for key, value in index.items():
        if key == "partial_filter_selector":
            continue
        if key != "fields":
            raise broken(
                name,
                "'index' has the members fields and partial_filter_selector",
                repr(key[:80]),
            )
        if not isinstance(value, list):
            raise broken(name, "'fields' is an array", type(value).__name__)
        for field in value:
            _check_field(name, field)


def _check_field(name: str, field: Any) -> None:
    if isinstance(field, str):
        return
    if not isinstance(field, dict):
        raise broken(
            name, "a field is a name, or a name with an order", repr(field)[:80]
        )
    for order in field.values():
        if not isinstance(order, str) or order.lower() not in _ORDERS:
            raise broken(name, "an order is 'asc' or 'desc'", repr(order)[:80])
