"""The conditions that a selector is made of, each with the values that meet it.

A condition on a missing field is false, except `$exists: false`.
Source: docs/fabric/rich-queries.md#selectors
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from typing_extensions import override

from chaindock.errors import InvalidInput
from chaindock.ledger.mango.order import COLLATED, rank, sort_key
from chaindock.ledger.mango.values import BAD_PATH, NOT_FOUND
from chaindock.ledger.mango.values import field as field_of

MAX_VISITS: Final = 1_000_000
"""Conditions on elements of arrays that a query evaluates for one document, each element
counted; more end the query."""
MAX_WORK: Final = 20_000_000
"""What a query does for one document, in instructions of a pattern times bytes of a text;
more ends the query. Takes 0.3 s."""
QUICK_VISITS, QUICK_WORK = 5_000, 300_000
"""So much of both is done on the event loop, in some 5 ms; another process does more."""
MAX_INDEX_WORK: Final = 1_000_000
"""The same of the selector of a partial index, which is evaluated for each document of a
block; with more, the index does not have the document."""
_KEY_WORK: Final = 20
"""For a byte of the sort key of an array or object."""
_ELEMENT_WORK: Final = 200
"""For an element of an array that `$in` or `$all` looks at."""
_COLLATION_WORK: Final = 60
"""For a character of a text that is not ASCII."""
_SHORT: Final = 64
"""Characters of ASCII whose sort key takes no time worth counting."""
COMPARE: Final[dict[str, Callable[[bytes, bytes], bool]]] = {
    "$lt": bytes.__lt__,
    "$lte": bytes.__le__,
    "$eq": bytes.__eq__,
    "$ne": bytes.__ne__,
    "$gte": bytes.__ge__,
    "$gt": bytes.__gt__,
}


class Slow(Exception):
    """A document takes too long for the event loop: `apart.apart` does it."""


@dataclass
class Work:
    """What a selector has done for the document at hand."""

    limit: int = MAX_WORK
    """As MAX_WORK."""
    done: int = 0
    visits: int = 0
    quick: bool = False

    def begin(self, *, quick: bool) -> None:
        """Begin with another document; `quick`: more than QUICK_WORK is Slow."""
        self.done = self.visits = 0
        self.quick = quick

    def add(self, work: int) -> None:
        """Count what comes next. Raises: Slow."""
        self.done += work
        if self.quick and self.done > QUICK_WORK:
            raise Slow

    def check(self, operator: str) -> None:
        """Raise InvalidInput if too much was done, or Slow."""
        self.add(0)
        if self.done > self.limit:
            raise InvalidInput(
                f"{operator}: the conditions of the selector take too long for one document",
                hint="use fewer conditions, or conditions on smaller values",
            )

    def key(self, operator: str, value: Any, *, raw: bool) -> bytes:
        """Return the sort key of `value`, and count what that took."""
        if isinstance(value, (list, dict)):
            self.check(operator)
            if self.quick and len(value) > QUICK_VISITS:
                raise Slow
            key = _key(value, raw=raw)
            self.done += len(key) * _KEY_WORK
            return key
        if isinstance(value, str) and not (len(value) < _SHORT and value.isascii()):
            self.check(operator)
            each = 1 if value.isascii() else _COLLATION_WORK
            self.done += len(value) + min(len(value), COLLATED) * (each - 1)
        return _key(value, raw=raw)


class Node(ABC):
    """A condition on a value."""

    @abstractmethod
    def matches(self, value: Any) -> bool:
        """Return whether `value` meets the condition."""


class NeverMatches(Exception):
    """CouchDB cannot evaluate this below `$elemMatch`; there it counts as false."""


@dataclass(frozen=True)
class And(Node):
    """All of `parts`; true without any."""

    parts: tuple[Node, ...]

    @override
    def matches(self, value: Any) -> bool:
        # Half as long as all() with a generator.
        for part in self.parts:  # noqa: SIM110
            if not part.matches(value):
                return False
        return True


@dataclass(frozen=True)
class Or(Node):
    """One of `parts`; true without any, too."""

    parts: tuple[Node, ...]

    @override
    def matches(self, value: Any) -> bool:
        return not self.parts or any(part.matches(value) for part in self.parts)


@dataclass(frozen=True)
class Nor(Node):
    """None of `parts`; only below `$elemMatch` and the like it stays in the tree."""

    parts: tuple[Node, ...]

    @override
    def matches(self, value: Any) -> bool:
        raise NeverMatches


@dataclass(frozen=True)
class Not(Node):
    """The opposite of `part`."""

    part: Node

    @override
    def matches(self, value: Any) -> bool:
        return not self.part.matches(value)


@dataclass(frozen=True)
class Field(Node):
    """`condition` on the field that `name` leads to; "" = on the value itself."""

    name: str
    path: tuple[str, ...]
    condition: Node

    @override
    def matches(self, value: Any) -> bool:
        found = field_of(value, self.path)
        if found is NOT_FOUND:
            return isinstance(self.condition, Exists) and not self.condition.wanted
        return found is not BAD_PATH and self.condition.matches(found)


@dataclass(frozen=True)
class Compare(Node):
    """A comparison in the order of all JSON values; `raw`: of `_id`, a text, bytewise."""

    operator: str
    argument: Any
    work: Work
    raw: bool = False
    key: bytes = field(init=False)
    compare: Callable[[bytes, bytes], bool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", _key(self.argument, raw=self.raw))
        object.__setattr__(self, "compare", COMPARE[self.operator])

    @override
    def matches(self, value: Any) -> bool:
        if isinstance(value, (list, dict)) and self.key[:1] != rank(value):
            return self.compare(rank(value), self.key)  # their types decide
        return self.compare(self.work.key(self.operator, value, raw=self.raw), self.key)


def _key(value: Any, *, raw: bool) -> bytes:
    if not raw:
        return sort_key(value)
    # Erlang's own order, in which text is greater than all other JSON.
    return b"\1" + value.encode() if isinstance(value, str) else b"\0" + sort_key(value)


@dataclass(frozen=True)
class In(Node):
    """`$in` or `$nin`: the value, or an element of it, is equal to an argument."""

    operator: str
    arguments: tuple[Any, ...]
    work: Work
    raw: bool = False
    keys: frozenset[bytes] = field(init=False)

    def __post_init__(self) -> None:
        keys = frozenset(_key(value, raw=self.raw) for value in self.arguments)
        object.__setattr__(self, "keys", keys)

    @override
    def matches(self, value: Any) -> bool:
        values = value if isinstance(value, list) else [value]
        self.work.check(self.operator)
        self.work.add(len(values) * _ELEMENT_WORK)
        found = any(
            self.work.key(self.operator, each, raw=self.raw) in self.keys
            for each in values
        )
        return found is (self.operator == "$in")


@dataclass(frozen=True)
class Exists(Node):
    """`$exists`; a missing field is decided by `Field`."""

    wanted: bool

    @override
    def matches(self, value: Any) -> bool:
        return self.wanted


@dataclass(frozen=True)
class Type(Node):
    """`$type`."""

    name: str

    @override
    def matches(self, value: Any) -> bool:
        return type_of(value) == self.name


def type_of(value: Any) -> str:
    """Return the name of a JSON type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", list: "array"}
    return names.get(type(value), "object")


@dataclass(frozen=True)
class Mod(Node):
    """`$mod`: of integers, the remainder has the sign of the value."""

    divisor: int
    remainder: int

    @override
    def matches(self, value: Any) -> bool:
        if not is_integer(value):
            return False
        rest = abs(value) % abs(self.divisor)
        return bool((-rest if value < 0 else rest) == self.remainder)


def is_integer(value: Any) -> bool:
    """Return whether a JSON value is a number without fraction and exponent."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Regex(Node):
    """`$regex`, searched in the UTF-8 bytes of a text."""

    pattern: str
    search: Any
    size: int
    work: Work

    @override
    def matches(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        raw = value.encode(errors="surrogatepass")
        self.work.add(len(raw) * self.size)
        if self.work.done > self.work.limit:
            raise InvalidInput(
                f"$regex: a pattern of {self.size} instructions over a text of "
                f"{len(raw)} bytes takes too long, with what the selector has done before "
                "for the document",
                hint="use a shorter pattern, or fewer of them",
            )
        return bool(self.search(raw))


@dataclass(frozen=True)
class BeginsWith(Node):
    """`$beginsWith`."""

    prefix: str

    @override
    def matches(self, value: Any) -> bool:
        return isinstance(value, str) and value.startswith(self.prefix)


@dataclass(frozen=True)
class All(Node):
    """`$all`: an array has each argument, in value and type (1 is not 1.0)."""

    arguments: tuple[Any, ...]
    work: Work

    @override
    def matches(self, value: Any) -> bool:
        if not isinstance(value, list) or not self.arguments:
            return False
        self.work.check("$all")
        self.work.add(len(value) * _ELEMENT_WORK)
        wanted = {_exactly(each) for each in self.arguments}
        found = {_exactly(each) for each in value}
        self.work.done += sum(map(len, found))
        if wanted <= found:
            return True
        only = self.arguments[0]
        return (
            len(self.arguments) == 1
            and isinstance(only, list)
            and sort_key(only) == self.work.key("$all", value, raw=False)
        )


def _exactly(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


@dataclass(frozen=True)
class Size(Node):
    """`$size` of an array."""

    size: int

    @override
    def matches(self, value: Any) -> bool:
        return isinstance(value, list) and len(value) == self.size


@dataclass(frozen=True)
class Elements(Node):
    """`$elemMatch`, `$allMatch` (of arrays) or `$keyMapMatch` (of an object's names)."""

    operator: str
    part: Node
    work: Work
    conditions: int

    @override
    def matches(self, value: Any) -> bool:
        if not isinstance(value, dict if self.operator == "$keyMapMatch" else list):
            return False
        self.work.visits += len(value) * self.conditions
        if self.work.quick and self.work.visits > QUICK_VISITS:
            raise Slow
        if self.work.visits > MAX_VISITS:
            raise InvalidInput(
                f"{self.operator}: more than {MAX_VISITS} conditions on elements in one "
                "document",
                hint="use fewer conditions on elements",
            )
        try:
            if self.operator == "$allMatch":
                return bool(value) and all(map(self.part.matches, value))
            return any(map(self.part.matches, value))
        except NeverMatches:
            return False
