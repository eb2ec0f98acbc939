"""JSON values as Fabric and CouchDB keep them: their text, their fields, and errors.

Source: docs/fabric/rich-queries.md#values, docs/fabric/rich-queries.md#errors
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import msgspec

from chaindock.errors import InvalidInput

RESERVED: Final = ("_id", "_rev", "~version")
"""Fields of CouchDB and the peer, which no value that a query returns has."""
MAX_DEPTH: Final = 200
"""Levels of a document; a value with more counts as no JSON, so that none can use up the
stack of what reads it."""
_INTEGRAL: Final = 1e21
"""From here Go prints a float with an exponent."""
_GO_ERRORS: Final = "chaindock-go"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_INDEX: Final = re.compile(r"[+-]?[0-9]{1,9}")
decode: Final[Callable[[bytes | str], Any]] = msgspec.json.Decoder().decode
"""Parses JSON that needs no change; five times as fast as the standard library."""
_ANOTHER: Final = re.compile(rb"[0-9][.eE]|[0-9]{16}")
"""What a value has in it if CouchDB may keep other numbers than stand there."""
_ENCODE: Final = json.JSONEncoder(
    ensure_ascii=False, sort_keys=True, separators=(",", ":")
).encode


class Missing:
    """Why a path leads to no value."""


NOT_FOUND: Final = Missing()
"""An object on the path has no such field."""
BAD_PATH: Final = Missing()
"""The path leads through a value that has no fields, or past the end of an array."""


def _one_mark_a_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd", error.start + 1


codecs.register_error(_GO_ERRORS, _one_mark_a_byte)


def parse_document(value: bytes) -> dict[str, Any] | None:
    """Return the document that CouchDB keeps of a value; None if it is no JSON object."""
    try:
        document = None if _ANOTHER.search(value) else _fast(value)
        if document is None:
            document = _DECODER.decode(value.decode(errors=_GO_ERRORS))
        if value.count(b"{") + value.count(b"[") > MAX_DEPTH:
            _require_flat(document)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    for name in RESERVED:
        document.pop(name, None)
    return document


def document_of(value: bytes) -> str | None:
    """Return the text of `parse_document`: what a rich query returns of a value.

    Names are sorted, numbers went through a 64-bit float, escapes are those of Go.
    """
    document = parse_document(value)
    return None if document is None else text_of(document)


def _fast(value: bytes) -> Any:
    """Return a value that needs no change; None if Go may read more into it."""
    try:
        return decode(value)
    except ValueError:  # as for halves of surrogate pairs
        return None


def _require_flat(value: Any, depth: int = MAX_DEPTH) -> None:
    """Raise RecursionError if `value` has more levels than `depth`."""
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise RecursionError
        for each in value.values() if isinstance(value, dict) else value:
            _require_flat(each, depth - 1)


def _stored_number(text: str) -> int | float:
    if len(text) < 16 and text.lstrip("-").isdigit():
        return int(text)
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    if abs(number) < _INTEGRAL and number.is_integer():
        return int(Decimal(repr(number)))  # the shortest digits, then zeros
    return number


def _no_constant(text: str) -> Any:
    raise ValueError(text)


_DECODER: Final = json.JSONDecoder(
    parse_int=_stored_number, parse_float=_stored_number, parse_constant=_no_constant
)


def text_of(value: Any) -> str:
    """Return JSON as Go's encoder writes it. Raises: RecursionError."""
    text = _write(value) if _has_exponent(value) else _ENCODE(value)
    for mark in "<>&\u2028\u2029":
        if mark in text:
            text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _has_exponent(value: Any) -> bool:
    """Return whether Python's text of a number in `value` differs from Go's."""
    if isinstance(value, float):
        return "e" in repr(value)
    if isinstance(value, dict):
        return any(map(_has_exponent, value.values()))
    return isinstance(value, list) and any(map(_has_exponent, value))


def _write(value: Any) -> str:
    if isinstance(value, dict):
        fields = (f"{_write(name)}:{_write(value[name])}" for name in sorted(value))
        return "{" + ",".join(fields) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_write, value)) + "]"
    if isinstance(value, float) and "e" in repr(value):
        digits, _, exponent = repr(value).partition("e")
        if -7 < int(exponent) < 0:
            return format(Decimal(repr(value)), "f")
        return f"{digits}e{int(exponent):+d}"
    return json.dumps(value, ensure_ascii=False)


# --- fields ---------------------------------------------------------------------------


def field(value: Any, path: Sequence[str]) -> Any:
    """Return what `path` leads to, or NOT_FOUND or BAD_PATH."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step, NOT_FOUND)
            if value is NOT_FOUND:
                return NOT_FOUND
        elif isinstance(value, list):
            index = int(step) if _INDEX.fullmatch(step) else -1
            if not 0 <= index < len(value):
                return BAD_PATH
            value = value[index]
        else:
            return BAD_PATH
    return value


def projection(value: Any, paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return an object with only the fields that `paths` name, nested as they are."""
    result: dict[str, Any] = {}
    for path in paths:
        found = field(value, path)
        if isinstance(found, Missing):
            continue
        place: Any = result
        for step in path[:-1]:
            place = place.setdefault(step, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[path[-1]] = found
    return result


def refused(error: str, reason: str, status: int = 400) -> InvalidInput:
    """Return the error for an answer of CouchDB other than 200."""
    return InvalidInput(
        f"error handling CouchDB request. Error:{error},  Status Code:{status},  "
        f"Reason:{reason}"
    )


def bad_argument(operator: str, argument: Any) -> InvalidInput:
    """Return the error for an argument of another type than the operator's."""
    return refused(
        "bad_arg", f"Bad argument for operator {operator}: {erlang(argument)}"
    )


def erlang(value: Any) -> str:
    """Return JSON as Erlang prints it (`~w`): text is a list of its bytes."""
    if isinstance(value, str):
        return "<<" + ",".join(map(str, value.encode(errors="replace"))) + ">>"
    if isinstance(value, list):
        return "[" + ",".join(map(erlang, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{{{erlang(name)},{erlang(value[name])}}}" for name in sorted(value))
        return "{[" + ",".join(pairs) + "]}"
    if isinstance(value, float):
        digits, _, exponent = repr(value).partition("e")
        digits += "" if "." in digits else ".0"
        return f"{digits}e{int(exponent)}" if exponent else digits
    return "null" if value is None else str(value).lower()
