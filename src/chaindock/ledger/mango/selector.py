"""Build a selector's tree as CouchDB normalises it.

Field names are moved down to the conditions, and negations down to the operators that
have an opposite; below `$elemMatch` and the like negations stay where they are.
Source: docs/fabric/rich-queries.md#selectors
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from chaindock.errors import InvalidInput
from chaindock.ledger.mango.conditions import (
    COMPARE,
    MAX_INDEX_WORK,
    MAX_WORK,
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
    Work,
    is_integer,
)
from chaindock.ledger.mango.values import bad_argument, erlang, refused

MAX_CONDITIONS: Final = 1000
"""Conditions of one selector; more are refused."""
LONG: Final = 1024 * 1024
"""Bytes of a value in which no text is looked for on the event loop."""
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
_PATTERN_BYTES: Final = 64 * 1024
"""Of a compiled pattern; a larger one is refused, as by PCRE. To compile as much takes 8 ms,
`.{0,1000}` a hundred times would take 26 s, and keeps the interpreter's lock."""
_UNSUPPORTED: Final = frozenset(
    ("$where", "$geoWithin", "$geoIntersects", "$near", "$nearSphere", "$text")
)
_UNESCAPED_DOT: Final = re.compile(r"(?<!\\)\.")
ID: Final = "_id"


@dataclass(frozen=True)
class Selector:
    """A whole selector. `root` None = everything matches."""

    root: Node | None
    work: Work
    texts: tuple[bytes, ...] = ()
    """What each value that matches has in it, if none of its text is written in another way."""

    def may_match(self, value: bytes) -> bool:
        """Return whether a value has to be parsed to know whether it matches.

        Takes 0.2 µs. Escapes, and characters that the order of CouchDB ignores, are other
        ways to write a text: a value with one always has to be.
        """
        if len(value) > LONG:
            return True
        for text in self.texts:
            if text not in value:
                return not value.isascii() or b"\\" in value or b"\x7f" in value
        return True

    def matches(self, document: dict[str, Any], *, quick: bool = False) -> bool:
        """Return whether a document, with its `_id`, matches.

        Raises: InvalidInput. Slow: it takes more than some ms, and is to be `quick`.
        """
        if self.root is None:
            return True
        self.work.begin(quick=quick)
        return self.root.matches(document)

    def selects(self, document: dict[str, Any], *, quick: bool = False) -> bool:
        """Return whether a partial index has a document. Raises: Slow, as `matches`.

        If a limit ends `matches`, the index does not have the document: an error here would
        make the whole block fail that writes the document.
        """
        try:
            return self.matches(document, quick=quick)
        except InvalidInput:
            return False


def parse_selector(value: Any, limit: int = MAX_WORK) -> Selector:
    """Return the tree. `value` is at most MAX_DEPTH deep, `limit` as MAX_WORK.

    Raises: InvalidInput with CouchDB's text.
    """
    if not isinstance(value, dict):
        raise refused(
            "invalid_selector_json",
            f"Selector must be a JSON object, not: {erlang(value)}",
        )
    parser = _Parser(Work(limit))
    if not value:
        return Selector(None, parser.work)
    root = _pushed(parser.build(value, ""))
    if isinstance(root, Field) and not root.name:
        raise refused(
            "invalid_selector", "One or more conditions is missing a field name."
        )
    return Selector(root, parser.work, tuple(_texts(root)))


def _texts(node: Node) -> list[bytes]:
    """Return what the attribute `texts` of a selector is to have for a condition."""
    if isinstance(node, And):
        return [text for part in node.parts for text in _texts(part)]
    if not isinstance(node, Field) or node.path[:1] in {(), (ID,)}:
        return []
    condition = node.condition
    found = []
    if isinstance(condition, BeginsWith):
        found.append(f'"{condition.prefix}')
    elif isinstance(condition, Compare) and condition.operator == "$eq":
        if isinstance(condition.argument, str):
            found.append(f'"{condition.argument}"')
    elif isinstance(condition, Exists) and not condition.wanted:
        return []
    found.append(f'"{node.path[0]}"')
    return [text.encode() for text in found if text.isascii() and text.isprintable()]


def parse_partial(text: str) -> Selector:
    """Return the tree of a partial index's selector, for use on this thread only."""
    return _partial(text, threading.get_ident())


@lru_cache(64)
def _partial(text: str, _thread: int) -> Selector:
    # The reader and the writer evaluate one selector at the same time: each has its Work.
    return parse_selector(json.loads(text), MAX_INDEX_WORK)


@lru_cache(1024)
def parse_path(name: str) -> tuple[str, ...]:
    """Split a field name at its dots; a backslash takes a dot's meaning away."""
    parts = _UNESCAPED_DOT.split(name)
    if not all(parts):
        raise refused("invalid_field_name", f"Invalid field name: {name}")
    return tuple(part.replace("\\", "") for part in parts)


class _Parser:
    def __init__(self, work: Work) -> None:
        self.work = work
        self.conditions = 0

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
        self.conditions += 1
        if self.conditions > MAX_CONDITIONS:
            raise InvalidInput(
                f"the selector has more than {MAX_CONDITIONS} conditions",
                hint="use $in for many values of one field",
            )
        if name in COMPARE:
            return Compare(name, argument, self.work, raw=path == ID)
        if name in {"$elemMatch", "$allMatch", "$keyMapMatch"}:
            if not isinstance(argument, dict):
                raise bad_argument(name, argument)
            before = self.conditions - 1
            part = self.build(argument, "")
            return Elements(name, part, self.work, self.conditions - before)
        if name in {"$in", "$nin"}:
            if not isinstance(argument, list):
                raise bad_argument(name, argument)
            return In(name, tuple(argument), self.work, raw=path == ID)
        if name in _UNSUPPORTED:
            raise refused("not_supported", f"Unsupported operator: {name}")
        if name not in _SIMPLE:
            raise refused("invalid_operator", f"Invalid operator: {name}")
        accepts, make = _SIMPLE[name]
        if not accepts(argument):
            raise bad_argument(name, argument)
        return make(argument, self)


def _regex(pattern: str, parser: _Parser) -> Regex:
    import re2  # noqa: PLC0415  # only the node needs it, and only for such a query

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes, as CouchDB searches
    options.log_errors = False
    options.max_mem = _PATTERN_BYTES
    try:
        compiled = re2.compile(pattern.encode(errors="replace"), options)
    except re2.error:
        raise bad_argument("$regex", pattern) from None
    parser.conditions += compiled.programsize // 64
    return Regex(pattern, compiled.search, compiled.programsize, parser.work)


def _is_mod(argument: Any) -> bool:
    return (
        isinstance(argument, list)
        and len(argument) == 2
        and all(map(is_integer, argument))
        and argument[0] != 0
    )


def _is_text(argument: Any) -> bool:
    return isinstance(argument, str)


_Make = Callable[[Any, _Parser], Node]


def _plain(make: Callable[[Any], Node]) -> _Make:
    return lambda argument, _: make(argument)


_SIMPLE: Final[dict[str, tuple[Callable[[Any], bool], _Make]]] = {
    "$exists": (lambda argument: isinstance(argument, bool), _plain(Exists)),
    "$type": (_is_text, _plain(Type)),
    "$mod": (_is_mod, _plain(lambda argument: Mod(*argument))),
    "$regex": (_is_text, _regex),
    "$beginsWith": (_is_text, _plain(BeginsWith)),
    "$all": (
        lambda argument: isinstance(argument, list),
        lambda argument, parser: All(tuple(argument), parser.work),
    ),
    "$size": (lambda argument: is_integer(argument) and argument >= 0, _plain(Size)),
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
    if isinstance(condition, (Compare, In)):
        opposite = replace(condition, operator=_OPPOSITE[condition.operator])
    elif isinstance(condition, Exists):
        opposite = Exists(not condition.wanted)
    else:
        opposite = Not(condition)
    return Field(node.name, node.path, opposite)
