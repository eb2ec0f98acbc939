"""Index definitions of META-INF, and the choice of the index that serves a query.

Source: docs/fabric/rich-queries.md#indexes
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

from chaindock.errors import InvalidInput
from chaindock.ledger.mango.conditions import And, Compare, Exists, Field, Node, Or
from chaindock.ledger.mango.query import MAX_BYTES, Query, checked, sort_field
from chaindock.ledger.mango.selector import ID, parse_path, parse_selector
from chaindock.ledger.mango.values import refused
from chaindock.telemetry import get_logger

_log = get_logger("ledger.indexes")
_PLACE: Final = re.compile(
    r"META-INF/statedb/couchdb/(?:collections/([^/]+)/)?indexes/[^/]+\.json"
)
MAX_INDEXES: Final = 100
"""Of one package; more are left out. To make 2000 takes 11 s, in which no block is committed."""
MAX_COLUMNS: Final = 16
"""Fields of one index; a definition with more is refused."""
_IMPLICIT: Final = frozenset((ID, "_rev"))
"""Fields that every document has."""


@dataclass(frozen=True)
class Definition:
    """What an index file says.

    `columns` are names of fields, as in the file; `partial` is the selector of the
    documents that are in it, as JSON; "" = all.
    """

    ddoc: str
    name: str
    columns: tuple[str, ...]
    partial: str = ""


@dataclass(frozen=True)
class Index(Definition):
    """An index of the database, `number` in its name there."""

    number: int = 0


@dataclass(frozen=True)
class Bounds:
    """What the values of a column lie between, as sort keys; None = no bound."""

    low: bytes | None = None
    high: bytes | None = None
    with_low: bool = True
    with_high: bool = True

    @property
    def fixed(self) -> bool:
        """Whether only one value is left."""
        whole = self.with_low and self.with_high
        return whole and self.low is not None and self.low == self.high


@dataclass(frozen=True)
class Plan:
    """How to find the documents of a query.

    Attributes:
        index: None = all documents in the order of their keys.
        bounds: of the first columns of `index`.
        columns: names of the fields that rows are ordered by, before their keys.
        partial: selector of which documents an index has, as JSON; "" = of all.
        exact: what is in `bounds` matches, without a further look.
    """

    index: Index | None = None
    bounds: tuple[Bounds, ...] = ()
    columns: tuple[str, ...] = ()
    partial: str = ""
    exact: bool = False


def parse_index(text: bytes) -> Definition:
    """Return what an index file says. Raises: InvalidInput, as the peer's check."""
    if len(text) > MAX_BYTES:
        raise InvalidInput(
            f"the index has {len(text)} bytes, more than the limit of {MAX_BYTES}"
        )
    try:
        decoded = text.decode()
        entry = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the index is not valid JSON: {error}") from error
    if not isinstance(entry, dict):
        raise InvalidInput("the index is not a JSON object")
    entry = checked(entry, decoded, "the index")
    for name, value in entry.items():
        _check_entry(name, value)
    index = entry.get("index")
    if index is None or "fields" not in index:
        raise InvalidInput('Index definition must include a "fields" definition')
    columns = _columns(index["fields"])
    partial = index.get("partial_filter_selector") or {}
    parse_selector(partial)
    filtered = json.dumps(partial, sort_keys=True) if partial else ""
    # CouchDB hashes its own form of the definition; nobody uses such a name.
    drawn = hashlib.sha1(f"{columns}{filtered}".encode(), usedforsecurity=False)
    name = str(entry.get("name", drawn.hexdigest()))
    ddoc = str(entry.get("ddoc", name)).removeprefix("_design/")
    return Definition(ddoc, name, columns, filtered)


def definitions_of(files: Mapping[str, bytes]) -> list[tuple[str, Definition]]:
    """Return collection ("" = the namespace) and definition of each index file.

    `files` are by name in a code archive, META-INF and all; others are passed over.
    """
    found = list[tuple[str, Definition]]()
    for name in sorted(files):
        if (place := _PLACE.fullmatch(name)) is None:
            continue
        if len(found) == MAX_INDEXES:
            _log.error("indexes left out", first=name, limit=MAX_INDEXES)
            break
        try:
            found.append((place[1] or "", parse_index(files[name])))
        except InvalidInput as error:
            _log.error("index left out", file=name, error=error.message)
    return found


def _check_entry(name: str, value: Any) -> None:
    if name == "index":
        if not isinstance(value, dict):
            raise InvalidInput('Invalid entry, "index" must be a JSON')
        for part in value:
            if part not in {"fields", "partial_filter_selector"}:
                raise InvalidInput(f"Invalid Entry.  Entry {part}")
    elif name in {"ddoc", "name"}:
        if not isinstance(value, str):
            raise InvalidInput(f'Invalid entry, "{name}" must be a string')
    elif name == "type":
        if value != "json":
            raise InvalidInput("Index type must be json")
    else:
        raise InvalidInput(f"Invalid Entry.  Entry {name}")


def _columns(fields: Any) -> tuple[str, ...]:
    if not isinstance(fields, list):
        raise InvalidInput("Expecting a JSON array of fields")
    if not 0 < len(fields) <= MAX_COLUMNS:
        raise InvalidInput(
            f"an index has 1 to {MAX_COLUMNS} fields, found {len(fields)}"
        )
    columns = tuple(sort_field(each)[0] for each in fields)
    for name in columns:
        parse_path(name)
    return columns


# --- the choice -----------------------------------------------------------------------


def plan(
    query: Query, indexes: Sequence[Index], *, strict: bool, filled: bool = True
) -> Plan:
    """Choose as CouchDB does, among the indexes of the namespace or collection.

    `strict`: a sort that no index serves is refused; else documents are sorted. If the
    indexes are not `filled`, which means have all documents, the plan gives the same
    rows in the same order without them.

    Raises: InvalidInput: CouchDB's `no_usable_index`.
    """
    root = query.selector.root
    named = query.use_index
    names = {each: (each.ddoc, each.name)[: len(named)] for each in indexes}
    wanted = {each for each in indexes if named and names[each] == tuple(named)}
    usable = [
        each
        for each in indexes
        if (not each.partial or each in wanted) and _is_usable(each, root, query.sort)
    ]
    usable = [each for each in usable if each in wanted] or usable
    ranges = dict(_ranges(root))
    if usable:
        best = min(usable, key=lambda each: _rank(each, ranges))
        if not filled:
            return Plan(columns=best.columns, partial=best.partial)
        prefix = _prefix(best, ranges)
        bounds = tuple(ranges[name] for name in prefix)
        exact = _decides(root, prefix, bounds)
        return Plan(best, bounds, best.columns, best.partial, exact=exact)
    if query.sort in {(), (ID,)}:
        return Plan()
    if strict:
        raise refused(
            "no_usable_index",
            "No index exists for this sort, try indexing by the sort fields.",
        )
    return Plan(columns=query.sort)


def _decides(
    root: Node | None, prefix: Sequence[str], bounds: Sequence[Bounds]
) -> bool:
    """Return whether the bounds that a search uses are the whole selector."""
    loose = [at for at, each in enumerate(bounds) if not each.fixed]
    if loose and loose[0] != len(bounds) - 1:
        return False
    parts = root.parts if isinstance(root, And) else (root,)
    return all(
        isinstance(part, Field)
        and part.name in prefix
        and isinstance(part.condition, Compare)
        and part.condition.operator != "$ne"
        for part in parts
    )


def _is_usable(index: Index, root: Node | None, sort: Sequence[str]) -> bool:
    required = set(index.columns) - set(sort) - _IMPLICIT
    if root is None:
        return not required and _serves(index.columns, sort, frozenset())
    fixed = frozenset(
        part.name
        for part in _conjuncts(root)
        if isinstance(part.condition, Compare) and part.condition.operator == "$eq"
    )
    return required <= _required(root) and _serves(index.columns, sort, fixed)


def _required(node: Node) -> set[str]:
    """Return the fields without which no document matches."""
    if isinstance(node, And):
        return set().union(*map(_required, node.parts))
    if isinstance(node, Or):
        parts = list(map(_required, node.parts))
        return set.intersection(*parts) if parts else set()
    if isinstance(node, Field):
        condition = node.condition
        optional = isinstance(condition, Exists) and not condition.wanted
        return set() if optional else {node.name}
    return set()


def _serves(columns: Sequence[str], sort: Sequence[str], fixed: frozenset[str]) -> bool:
    """Return whether rows in the order of `columns` are in the order of `sort`."""
    if not sort:
        return True
    for at, name in enumerate(columns):
        if name == sort[0]:
            return tuple(columns[at : at + len(sort)]) == tuple(sort)
        if name not in fixed:
            return False
    return False


def _rank(index: Index, ranges: dict[str, Bounds]) -> tuple[int, int, str, str]:
    rest = len(ranges) - len(_prefix(index, ranges))
    return rest, len(index.columns), index.ddoc, index.name


def _prefix(index: Index, ranges: dict[str, Bounds]) -> list[str]:
    return list(takewhile(ranges.__contains__, index.columns))


def _conjuncts(node: Node | None) -> list[Field]:
    """Return the conditions that every match meets."""
    if isinstance(node, And):
        return [field for part in node.parts for field in _conjuncts(part)]
    return [node] if isinstance(node, Field) else []


def _ranges(root: Node | None) -> list[tuple[str, Bounds]]:
    """Return the bounds of each field that comparisons bind."""
    found: dict[str, Bounds] = {}
    for part in _conjuncts(root):
        test = part.condition
        if isinstance(test, Compare) and test.operator != "$ne" and not test.raw:
            found[part.name] = _narrowed(found.get(part.name, Bounds()), test)
    return sorted(found.items())


def _narrowed(bounds: Bounds, test: Compare) -> Bounds:
    low, high = (bounds.low, bounds.with_low), (bounds.high, bounds.with_high)
    if test.operator in {"$gt", "$gte", "$eq"}:
        new = (test.key, test.operator != "$gt")
        if low[0] is None or new[0] > low[0] or (new[0] == low[0] and not new[1]):
            low = new
    if test.operator in {"$lt", "$lte", "$eq"}:
        new = (test.key, test.operator != "$lt")
        if high[0] is None or new[0] < high[0] or (new[0] == high[0] and not new[1]):
            high = new
    return Bounds(low[0], high[0], low[1], high[1])
