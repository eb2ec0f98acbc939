"""Build a selector's tree as CouchDB normalises it.

Field names are moved down to the conditions, and negations down to the operators that
have an opposite; below `$elemMatch` and the like negations stay where they are.
Source: docs/fabric/rich-queries.md#selectors
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from chaindock.errors import InvalidInput
from chaindock.ledger.mango.conditions import (
    COMPARE,
    All,
    And,
    BeginsWith,
    Compare,
    Elements,
    Exists,
    Field,
    In,
    Mod,
    Node,
    Nor,
    Not,
    Or,
    Regex,
    Size,
    Type,
    is_integer,
)
from chaindock.ledger.mango.failures import bad_argument, erlang, refused

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONDITIONS: Final = 1000
"""Conditions of one selector; more are refused."""
_OPPOSITE: Final = {
    "$lt": "$gte",
    "$lte": "$gt",
    "$eq": "$ne",
    "$ne": "$eq",
    "$gte": "$lt",
    "$gt": "$lte",
    "$in": "$nin",
    "$nin": "$in",
}
_UNSUPPORTED: Final = frozenset(
    ("$where", "$geoWithin", "$geoIntersects", "$near", "$nearSphere", "$text")
)
_UNESCAPED_DOT: Final = re.compile(r"(?<!\\)\.")
ID: Final = "_id"


@dataclass(frozen=True)
class Selector:
    """A whole selector. `root` None = everything matches."""

    root: Node | None
    visits: list[int]

    def matches(self, document: dict[str, Any]) -> bool:
        """Return whether a document, with its `_id`, matches. Raises: InvalidInput."""
        if self.root is None:
            return True
        self.visits[0] = 0
        return self.root.matches(document)

    def selects(self, document: dict[str, Any]) -> bool:
        """Return whether a partial index has a document.

        If a limit ends `matches`, the index does not have the document: an error here would
        make the whole block fail that writes the document.
        """
        try:
            return self.matches(document)
        except InvalidInput:
            return False


def parse_selector(value: Any) -> Selector:
    """Return the tree. `value` is at most MAX_DEPTH deep.

    Raises: InvalidInput with CouchDB's text.
    """
    if not isinstance(value, dict):
        raise refused(
            "invalid_selector_json",
            f"Selector must be a JSON object, not: {erlang(value)}",
        )
    parser = _Parser()
    if not value:
        return Selector(None, parser.visits)
    root = _pushed(parser.build(value, ""))
    if isinstance(root, Field) and not root.name:
        raise refused(
            "invalid_selector", "One or more conditions is missing a field name."
        )
    return Selector(root, parser.visits)


@lru_cache(1024)
def parse_path(name: str) -> tuple[str, ...]:
    """Split a field name at its dots; a backslash takes a dot's meaning away."""
    parts = _UNESCAPED_DOT.split(name)
    if not all(parts):
        raise refused("invalid_field_name", f"Invalid field name: {name}")
    return tuple(part.replace("\\", "") for part in parts)


class _Parser:
    def __init__(self) -> None:
        self.visits = [0]
        self._conditions = 0

    def build(self, value: Any, path: str) -> Node:
        """Return the node of a condition on the field `path`, not yet negated."""
        if not isinstance(value, dict) or not value:
            return self._field(path, self._terminal("$eq", value, path))
        if len(value) > 1:
            return And(
                tuple(self.build({name: value[name]}, path) for name in sorted(value))
            )
        [(name, argument)] = value.items()
        if not name.startswith("$"):
            return self.build(argument, f"{path}.{name}" if path else name)
        if name in {"$and", "$or", "$nor"}:
            if not isinstance(argument, list):
                raise bad_argument(name, argument)
            parts = tuple(self.build(each, path) for each in argument)
            return (
                And(parts) if name == "$and" else (Or if name == "$or" else Nor)(parts)
            )
        if name == "$not":
            if not isinstance(argument, dict):
                raise bad_argument(name, argument)
            return Not(self.build(argument, path))
        return self._field(path, self._terminal(name, argument, path))

    def _field(self, path: str, condition: Node) -> Field:
        return Field(path, parse_path(path) if path else (), condition)

    def _terminal(self, name: str, argument: Any, path: str) -> Node:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidInput(
                f"the selector has more than {MAX_CONDITIONS} conditions",
                hint="use $in for many values of one field",
            )
        if name in COMPARE:
            return Compare(name, argument, raw=path == ID)
        if name in {"$elemMatch", "$allMatch", "$keyMapMatch"}:
            if not isinstance(argument, dict):
                raise bad_argument(name, argument)
            return Elements(name, self.build(argument, ""), self.visits)
        if name in {"$in", "$nin"} and isinstance(argument, list):
            return In(name, tuple(argument), raw=path == ID)
        return _simple(name, argument)


def _simple(name: str, argument: Any) -> Node:
    if name in _UNSUPPORTED:
        raise refused("not_supported", f"Unsupported operator: {name}")
    if name not in _SIMPLE:
        raise refused("invalid_operator", f"Invalid operator: {name}")
    accepts, make = _SIMPLE[name]
    if not accepts(argument):
        raise bad_argument(name, argument)
    return make(argument)


def _regex(pattern: str) -> Regex:
    import re2  # noqa: PLC0415  # only the node needs it, and only for such a query

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, as CouchDB searches
    options.log_errors = False
    try:
        compiled = re2.compile(pattern.encode(errors="replace"), options)
    except re2.error:
        raise bad_argument("$regex", pattern) from None
    return Regex(pattern, compiled.search, compiled.programsize)


def _is_mod(argument: Any) -> bool:
    return (
        isinstance(argument, list)
        and len(argument) == 2
        and all(map(is_integer, argument))
        and argument[0] != 0
    )


def _is_text(argument: Any) -> bool:
    return isinstance(argument, str)


_SIMPLE: Final[dict[str, tuple[Callable[[Any], bool], Callable[[Any], Node]]]] = {
    "$in": (lambda argument: False, Exists),  # noqa: ARG005
    "$nin": (lambda argument: False, Exists),  # noqa: ARG005
    "$exists": (lambda argument: isinstance(argument, bool), Exists),
    "$type": (_is_text, Type),
    "$mod": (_is_mod, lambda argument: Mod(*argument)),
    "$regex": (_is_text, _regex),
    "$beginsWith": (_is_text, BeginsWith),
    "$all": (
        lambda argument: isinstance(argument, list),
        lambda argument: All(tuple(argument)),
    ),
    "$size": (lambda argument: is_integer(argument) and argument >= 0, Size),
}


def _pushed(node: Node) -> Node:
    """Return `node` with its negations moved down."""
    if isinstance(node, Not):
        return _negated(node.part)
    if isinstance(node, Nor):
        return And(tuple(map(_negated, node.parts)))
    if isinstance(node, (And, Or)):
        return type(node)(tuple(map(_pushed, node.parts)))
    return node


def _negated(node: Node) -> Node:
    if isinstance(node, Not):
        return _pushed(node.part)
    if isinstance(node, Nor):
        return Or(tuple(map(_pushed, node.parts)))
    if isinstance(node, And):
        return Or(tuple(map(_negated, node.parts)))
    if isinstance(node, Or):
        return And(tuple(map(_negated, node.parts)))
    if not isinstance(node, Field):  # nothing else has conditions
        return Not(node)
    condition = node.condition
    opposite: Node
    if isinstance(condition, Compare):
        opposite = Compare(
            _OPPOSITE[condition.operator], condition.argument, condition.raw
        )
    elif isinstance(condition, In):
        opposite = In(_OPPOSITE[condition.operator], condition.arguments, condition.raw)
    elif isinstance(condition, Exists):
        opposite = Exists(not condition.wanted)
    else:
        opposite = Not(condition)
    return Field(node.name, node.path, opposite)
