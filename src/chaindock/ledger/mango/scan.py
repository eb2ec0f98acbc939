"""Run a query in slices: SQLite narrows by an index and orders, the selector decides.

No cursor stays open between two slices. A slice ends after some milliseconds, also when
nothing has matched; the next one begins behind the last document that was looked at.
"""

from __future__ import annotations

import base64
import json
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chaindock.ledger.budget import ENTRY_BYTES
from chaindock.ledger.mango.documents import column, loaded, members
from chaindock.ledger.mango.order import sort_key
from chaindock.ledger.mango.query import bad_bookmark
from chaindock.ledger.mango.selector import parse_path
from chaindock.ledger.mango.values import RESERVED, Missing, projection, text_of
from chaindock.ledger.mango.values import field as field_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

    from chaindock.ledger.mango.indexes import Plan
    from chaindock.ledger.mango.query import Query

SLICE_S: Final = 0.01
"""Where a slice ends; one document may take longer."""
INTERNAL_PAGE: Final = 1000
"""Results that the peer fetches from CouchDB at once; `skip` holds for each such page."""
NO_BOOKMARK: Final = "nil"
"""CouchDB's bookmark when nothing was found."""

Position = tuple[tuple[bytes, ...], bytes]
"""Sort keys of the columns of an index, and the key of the document."""


Row = tuple[bytes, "str | None"]
"""Key and value as the peer returns it; None = the value that the state has, which is no
JSON object."""


@dataclass
class Scan:
    """A running query.

    Attributes:
        source: SQL of a table with `ns`, `key` and `json`.
        exhausted: there are no more results.
        examined: documents that were looked at.
    """

    query: Query
    plan: Plan
    ns: int
    source: str = "documents"
    hold: Callable[[int], None] = lambda _nbytes: None
    exhausted: bool = False
    examined: int = 0
    _seen: Position | None = None
    _given: Position | None = None
    _found: int = 0
    _skipping: int = 0
    _sorted: list[Position] = field(default_factory=list)
    _collected: bool = False
    _last: Position | None = None

    def __post_init__(self) -> None:
        self._skipping = self.query.skip
        if self.query.bookmark:
            self._seen = self._given = _position(self.query.bookmark, self._width)

    @property
    def _width(self) -> int:
        index = self.plan.index
        return len(self.plan.sorting if index is None else index.columns)

    @property
    def bookmark(self) -> str:
        """Where the next page begins, behind the last result."""
        if self._given is None:
            return NO_BOOKMARK
        if not self._found:
            return self.query.bookmark
        columns, key = self._given
        text = json.dumps([*(each.hex() for each in columns), key.hex()])
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def step(self, db: sqlite3.Connection, wanted: int, max_bytes: int) -> list[Row]:
        """Return some of the next results, at most `wanted`; perhaps none yet.

        Takes about SLICE_S, and reads no further once values have `max_bytes`.
        """
        if self.exhausted or wanted <= 0:
            return []
        if self.plan.sorting and not self._collected:
            self._collect(db)
            return []
        rows: list[Row] = []
        size, until = 0, time.monotonic() + SLICE_S
        cursor = self._sorted_rows(db) if self.plan.sorting else self._rows(db)
        matches, exact = self.query.selector.matches, self.plan.exact
        last: Row | None = None
        # Below 1 µs a row if the index decides alone: mind what is added.
        for row in cursor:
            self.examined += 1
            if (exact or matches(loaded(*row))) and self._is_wanted():
                last = row
                rows.append(row if self.query.fields is None else self._projected(row))
                size += len(row[0]) + len(row[1] or "")
            if len(rows) >= wanted or size >= max_bytes or time.monotonic() > until:
                self._seen = self._place(*row)
                break
        else:
            self.exhausted = True
        if last is not None:
            self._given = self._place(*last)
        return rows

    def _is_wanted(self) -> bool:
        """Count a match; return whether it is beyond those to be skipped."""
        if self._skipping:
            self._skipping -= 1
            return False
        self._found += 1
        if self._found % INTERNAL_PAGE == 0:
            self._skipping = self.query.skip
        return True

    def _projected(self, row: Row) -> Row:
        wanted = projection(loaded(*row), self.query.fields or ())
        for name in RESERVED:
            wanted.pop(name, None)
        return row[0], text_of(wanted)

    def _place(self, key: bytes, text: str | None) -> Position:
        """Return the sort keys of the columns that a document is found by, and its key."""
        index, document = self.plan.index, loaded(key, text)
        names = self.plan.sorting if index is None else index.columns
        columns = (field_of(document, parse_path(name)) for name in names)
        return tuple(map(sort_key, columns)), key

    def _rows(self, db: sqlite3.Connection) -> sqlite3.Cursor:
        """Return key and text of the documents behind the last one, in order."""
        index, columns, terms = self.plan.index, [], [f"ns={self.ns:d}"]
        source, values = self.source, []
        if index is not None:
            columns = [column(name) for name in index.columns]
            terms = [members(self.ns, index)]
            source = f"documents INDEXED BY mango_{index.number:d}"
        for bounds in self.plan.bounds:
            if bounds.fixed:
                terms.append(f"{columns.pop(0)}=?")
                values.append(bounds.low)
                continue
            if bounds.low is not None:
                terms.append(f"{columns[0]}{'>=' if bounds.with_low else '>'}?")
                values.append(bounds.low)
            if bounds.high is not None:
                terms.append(f"{columns[0]}{'<=' if bounds.with_high else '<'}?")
                values.append(bounds.high)
            break
        order, behind = ("DESC", "<") if self.query.descending else ("ASC", ">")
        columns.append("key")
        if self._seen is not None:
            last = [*self._seen[0], self._seen[1]][-len(columns) :]
            # SQLite searches by the first column, and compares rows only to filter.
            terms.append(f"{columns[0]}{behind}=?")
            terms.append(f"({','.join(columns)}){behind}({','.join('?' * len(last))})")
            values += [last[0], *last]
        ordered = ", ".join(f"{each} {order}" for each in columns)
        # Numbers, hex and names of ours only; all else is bound.
        return db.execute(
            f"SELECT key, json FROM {source} WHERE {' AND '.join(terms)} "  # noqa: S608
            f"ORDER BY {ordered}",
            values,
        )

    # --- a sort without an index

    def _collect(self, db: sqlite3.Connection) -> None:
        """Look at some more documents, and keep where those that match belong."""
        until = time.monotonic() + SLICE_S
        bookmark, self._seen = self._seen, self._last
        for key, text in self._rows(db):
            self.examined += 1
            document = loaded(key, text)
            self._last = ((), key)
            if self._sortable(document) and self.query.selector.matches(document):
                place = self._place(key, text)
                self.hold(sum(map(len, place[0])) + len(key) + ENTRY_BYTES)
                self._sorted.append(place)
            if time.monotonic() > until:
                break
        else:
            self._sorted.sort(reverse=self.query.descending)
            self._collected = True
        self._seen = bookmark

    def _sortable(self, document: dict[str, Any]) -> bool:
        found = (field_of(document, parse_path(name)) for name in self.plan.sorting)
        return not any(isinstance(each, Missing) for each in found)

    def _sorted_rows(
        self, db: sqlite3.Connection
    ) -> Iterator[tuple[bytes, str | None]]:
        at = 0
        if self._seen is not None:
            at = (
                bisect_right(self._sorted, self._seen)
                if not self.query.descending
                else (len(self._sorted) - bisect_left(self._sorted[::-1], self._seen))
            )
        for _, key in self._sorted[at:]:
            sql = f"SELECT json FROM {self.source} WHERE ns={self.ns:d} AND key=?"  # noqa: S608
            yield key, db.execute(sql, (key,)).fetchone()[0]


def _position(bookmark: str, width: int) -> Position:
    """Return what a bookmark stands for. Raises: InvalidInput, as CouchDB."""
    try:
        raw = base64.b64decode(
            bookmark + "=" * (-len(bookmark) % 4), b"-_", validate=True
        )
        parts = [bytes.fromhex(each) for each in json.loads(raw)]
    except (ValueError, TypeError, RecursionError):
        raise bad_bookmark(bookmark) from None
    if len(parts) != width + 1:
        raise bad_bookmark(bookmark)
    return tuple(parts[:-1]), parts[-1]
