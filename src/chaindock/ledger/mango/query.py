"""The text of a rich query, checked as peer and CouchDB check it.

Source: docs/fabric/rich-queries.md#request
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from chaindock.errors import InvalidInput
from chaindock.ledger.mango.conditions import type_of
from chaindock.ledger.mango.order import can_collate
from chaindock.ledger.mango.selector import Selector, parse_path, parse_selector
from chaindock.ledger.mango.values import erlang, refused

MAX_BYTES: Final = 256 * 1024
"""Length of a query's text; a longer one is refused."""
_SHORT: Final = 2048
"""Characters of a query's text up to which its tree is kept for the next time."""
MAX_DEPTH: Final = 64
"""Levels of a query's JSON; a deeper one is refused."""
_GO_SPACE: Final = " \t\r\n"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Query:
    """A query.

    Attributes:
        fields: paths of what is wanted of a document; None = all of it.
        sort: names of fields; all in one direction.
        use_index: design document, and name if there is one; empty = any index.
        limit: most results, which a peer replaces; None = none, or no number of them.
        text: what `parse_query` was given.
    """

    selector: Selector
    fields: tuple[tuple[str, ...], ...] | None = None
    sort: tuple[str, ...] = ()
    descending: bool = False
    skip: int = 0
    bookmark: str = ""
    use_index: tuple[str, ...] = ()
    limit: int | None = None
    text: str = ""


def is_quick(text: str) -> bool:
    """Return whether `parse_query` takes less than a ms, so that no thread has to do it.

    To compile a pattern may take 0.5 s. A backslash may hide the name of the operator.
    """
    plain = "regex" not in text and "\\" not in text
    return len(text) <= _SHORT and plain and can_collate(text)


def parse_query(text: str, bookmark: str = "") -> Query:
    """Return the query; as `parse_anew`, which is done once for a short text."""
    return (_parse_once if len(text) <= _SHORT else parse_anew)(text, bookmark)


def parse_anew(text: str, bookmark: str) -> Query:
    """Return the query.

    A `bookmark` of the request replaces one in the text, unless "".

    Raises:
        InvalidInput: with the text of peer or CouchDB; or beyond MAX_BYTES, MAX_DEPTH or
        MAX_CONDITIONS, with ours.
    """
    if len(text) > MAX_BYTES:
        raise InvalidInput(
            f"the query has {len(text)} characters, more than the limit of {MAX_BYTES}"
        )
    query = _decode(text)
    if not isinstance(query.get("fields", []), list):
        raise InvalidInput("fields definition must be an array")
    if "selector" not in query:
        raise refused("missing_required_key", "Missing required key: selector")
    selector = parse_selector(query["selector"])
    use_index = _use_index(query.get("use_index", []))
    bookmark = _bookmark(bookmark or query.get("bookmark"))
    skip = _count(query.get("skip", 0))
    sort, descending = _sort(query.get("sort", []))
    paths = None
    if "fields" in query:
        paths = tuple(parse_path(_field_name(name)) for name in query["fields"])
    for name, check in _OTHERS.items():
        if name in query:
            check(query[name])
    for name in sorted(query):
        if name not in _KNOWN:
            raise refused("invalid_key", f"Invalid key {name} for this request.")
    limit = query.get("limit")  # a wrong one never reaches CouchDB
    limit = limit if type(limit) is int and limit >= 0 else None
    found = (selector, paths, sort, descending, skip, bookmark, use_index, limit)
    return Query(*found, text)


_parse_once: Final = lru_cache(64)(parse_anew)


def _decode(text: str) -> dict[str, Any]:
    """Return the first JSON value of `text`, as the peer does. Raises: InvalidInput."""
    text = text.lstrip(_GO_SPACE)
    if not text:
        raise InvalidInput("EOF")
    try:
        query, _ = json.JSONDecoder(parse_constant=_no_constant).raw_decode(text)
    except json.JSONDecodeError as error:
        wrong = f"invalid character {text[error.pos :][:1]!r} looking for beginning of value"
        ended = error.pos >= len(text)
        raise InvalidInput("unexpected EOF" if ended else wrong) from error
    except RecursionError:
        raise InvalidInput("exceeded max depth") from None
    except ValueError as error:
        raise InvalidInput(f"invalid character in the query: {error}") from error
    if not isinstance(query, dict):
        raise InvalidInput(
            f"json: cannot unmarshal {type_of(query).removesuffix('ean')} into Go value "
            "of type map[string]interface {}"
        )
    return checked(query, text, "the query")


def checked(value: dict[str, Any], text: str, name: str) -> dict[str, Any]:
    """Return `value`, the JSON of `text`, without halves of surrogate pairs.

    Raises: InvalidInput with `name` if there are more than MAX_DEPTH levels.
    """
    _require_flat(value, MAX_DEPTH, name)
    if "\\u" in text:  # half of a surrogate pair is no text for Go
        fixed = _SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False))
        return dict(json.loads(fixed))
    return value


def _no_constant(text: str) -> Any:
    raise InvalidInput(f"invalid character {text[0]!r} looking for beginning of value")


def _require_flat(value: Any, depth: int, name: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise refused("bad_request", "invalid UTF-8 JSON")
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise InvalidInput(f"{name} has more than {MAX_DEPTH} levels")
        for each in value.values() if isinstance(value, dict) else value:
            _require_flat(each, depth - 1, name)


def _use_index(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return tuple(value.removeprefix("_design/").split("/", 1))
    if (
        isinstance(value, list)
        and len(value) <= 2
        and all(isinstance(each, str) for each in value)
    ):
        return tuple(each.removeprefix("_design/") for each in value)
    raise refused("invalid_index_name", f"Invalid index name: {erlang(value)}")


def _bookmark(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    raise _bad_bookmark(value)


def _bad_bookmark(value: Any) -> InvalidInput:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return refused("invalid_bookmark", f"Invalid bookmark value: {text}")


def position_of(bookmark: str, width: int) -> tuple[tuple[bytes, ...], bytes]:
    """Return what `Scan.bookmark` has told: sort keys of `width` columns, and the key.

    Raises: InvalidInput: no query has given this bookmark.
    """
    try:
        padded = bookmark + "=" * (-len(bookmark) % 4)
        parts = json.loads(base64.b64decode(padded, b"-_", validate=True))
        columns = [bytes.fromhex(each) for each in parts]
        columns[-1].decode()
    except (ValueError, TypeError, LookupError, RecursionError):
        raise _bad_bookmark(bookmark) from None
    if len(columns) != width + 1:
        raise _bad_bookmark(bookmark)
    return tuple(columns[:-1]), columns[-1]


def _count(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise refused(
        "invalid_non_neg_integer",
        f"{erlang(value)} is not an integer greater than or equal to zero",
    )


def _positive(value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise refused(
            "invalid_pos_integer",
            f"{erlang(value)} is not an integer greater than zero",
        )


def _boolean(value: Any) -> None:
    if not isinstance(value, bool):
        raise refused("invalid_boolean", f"Invalid boolean value: {erlang(value)}")


def _anything(value: Any) -> None:
    del value


_OTHERS: Final[dict[str, Callable[[Any], None]]] = {
    "partition": _anything,
    "r": _positive,
    "conflicts": _boolean,
    "stale": _anything,
    "update": _boolean,
    "stable": _boolean,
    "execution_stats": _boolean,
    "allow_fallback": _boolean,
}
_KNOWN: Final = frozenset(
    ("selector", "use_index", "bookmark", "limit", "skip", "sort", "fields", *_OTHERS)
)


def _sort(value: Any) -> tuple[tuple[str, ...], bool]:
    """Return the names, and whether they are in descending order."""
    if not isinstance(value, list):
        raise refused(
            "invalid_sort_json",
            f"Sort must be an array of sort specs, not: {erlang(value)}",
        )
    fields = [sort_field(each) for each in value]
    if len({direction for _, direction in fields}) > 1:
        raise refused(
            "unsupported_mixed_sort",
            "Sorts currently only support a single direction for all fields.",
        )
    return tuple(name for name, _ in fields), bool(fields) and fields[0][1] == "desc"


def sort_field(value: Any) -> tuple[str, str]:
    """Return name and direction of one entry of `sort`, or of an index's fields."""
    if isinstance(value, str) and value:
        return value, "asc"
    if isinstance(value, dict) and len(value) == 1:
        [(name, direction)] = value.items()
        if direction in {"asc", "desc"}:
            parse_path(name)
            return name, direction
    raise refused("invalid_sort_field", f"Invalid sort field: {erlang(value)}")


def _field_name(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise refused("invalid_field", f"Invalid JSON for field spec: {erlang(value)}")
