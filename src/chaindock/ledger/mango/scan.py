"""Run a query in slices: an index narrows and orders, the selector decides.

A slice ends after some milliseconds, also when nothing has matched, and leaves no cursor
open; the next one begins behind the last document that was looked at. Without an index
the values of the state are looked at in the order of their keys.
"""

from __future__ import annotations

import base64
import heapq
import json
import sqlite3
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from chaindock.errors import InvalidInput
from chaindock.ledger.budget import ENTRY_BYTES
from chaindock.ledger.mango.apart import LARGE, apart
from chaindock.ledger.mango.conditions import Slow
from chaindock.ledger.mango.documents import column, loaded, members
from chaindock.ledger.mango.indexes import Plan
from chaindock.ledger.mango.judge import Judge, Match, Value, judged
from chaindock.ledger.mango.order import can_collate
from chaindock.ledger.mango.query import Query, position_of
from chaindock.ledger.mango.selector import LONG
from chaindock.ledger.mango.superseded import Position, Row, Superseded, View

Entries = sqlite3.Cursor | Generator[tuple[Any, ...], None, None]
"""Rows of an index: key, text or value, block, position, perhaps sort keys of the columns."""
Found = tuple[bytes, Match | None, int, int]
"""A key that was looked at, what is found of it, block and position of its value."""

SLICE_S: Final = 0.002
"""Where a slice ends; one document may take longer. A call of another client may wait for
several of them, one at each of its steps on the event loop."""
INTERNAL_PAGE: Final = 1000
"""Results that the peer fetches from CouchDB at once."""
NO_BOOKMARK: Final = "nil"
"""CouchDB's bookmark when nothing was found."""


@dataclass
class Scan:
    """A running query.

    Attributes:
        hold: is told how many bytes more the query keeps.
        exhausted: there are no more results.
        slow: work that a thread is to do before the next step.
        skips_often: `skip` holds for each page that the peer fetches from CouchDB.
    """

    query: Query
    plan: Plan
    hold: Callable[[int], None] = lambda _nbytes: None
    exhausted: bool = False
    slow: Callable[[], None] | None = None
    skips_often: bool = True
    _seen: Position | None = None
    _given: Position | None = None
    _found: int = 0
    _skipping: int = 0
    _sorted: list[list[Position]] = field(default_factory=list)
    _ordered: Iterator[Position] | None = None
    _next: bytes = b""
    _superseded: Superseded | None = None
    _judged: tuple[tuple[bytes, Value], Match | InvalidInput | None] | None = None
    """A key and its value, and what `slow` has found of them."""
    _waiting: int = 0
    """What is held for `slow` and `_judged`."""
    _all_columns: bool = False
    """Whether rows of an index are read with its columns."""
    _chosen_next: Position | None = None

    def __post_init__(self) -> None:
        query = self.query
        self._skipping = query.skip
        self._judge = Judge(query, self.plan)
        plain = self.plan.exact and not query.skip and query.fields is None
        self._all_columns = not plain
        if query.bookmark:
            width = len(self.plan.columns)
            self._seen = self._given = position_of(query.bookmark, width)
            if not self._sorts:
                self._next = self._seen[1] + b"\0"

    @property
    def _sorts(self) -> bool:
        """Whether all documents are collected and sorted before the first result."""
        plan = self.plan
        return plan.index is None and bool(plan.columns or self.query.descending)

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

    def step(self, view: View, wanted: int, max_bytes: int) -> list[Row]:
        """Return some of the next results, at most `wanted`; perhaps none yet.

        Takes about SLICE_S, and reads no further once values have `max_bytes`.
        """
        if self.slow is not None:
            self.slow()
        if self.exhausted or wanted <= 0:
            return []
        if self._sorts and self._ordered is None:
            self._collect(view)
            return []
        if self.plan.index is None:
            return self._look(view, wanted, max_bytes)
        entries = self._entries(view)
        if entries is None:
            return []
        with closing(entries):
            if not self._all_columns:
                return self._fetch(entries, wanted, max_bytes)
            return self._find(entries, view.height, wanted, max_bytes)

    def _match(self, key: bytes, value: Value, *, shown: bool = True) -> Match | None:
        """Raises: InvalidInput. Slow: the step ends, and the next one begins here."""
        if self._judged is not None and self._judged[0] == (key, value):
            found = self._judged[1]
            self.rest()
            if isinstance(found, InvalidInput):
                raise found
            return found
        try:
            return self._judge.match(key, value, shown=shown, quick=True)
        except Slow:
            self.rest()
            self.hold(waiting := len(value or ""))
            self.slow, self._waiting = partial(self._ask, key, value), waiting
            raise

    def rest(self) -> None:
        """Keep nothing of a document that waits: the next step looks at it again."""
        self.hold(-self._waiting)
        self.slow, self._judged, self._waiting = None, None, 0

    def _ask(self, key: bytes, value: Value) -> None:
        query = self.query
        found: Match | InvalidInput | None
        try:
            found = apart(judged, query.text, query.bookmark, self.plan, key, value)
        except InvalidInput as error:
            found = error
        self._judged, self.slow = ((key, value), found), None

    def _is_wanted(self) -> bool:
        """Count a match; return whether it is beyond those to be skipped."""
        if self._skipping:
            self._skipping -= 1
            return False
        self._found += 1
        if self.skips_often and self._found % INTERNAL_PAGE == 0:
            self._skipping = self.query.skip
        return True

    # --- by an index

    def _fetch(self, entries: Entries, wanted: int, max_bytes: int) -> list[Row]:
        """Return results that the index alone decides; half a microsecond each.

        The place of the last one is read from its text; `_find` goes on where that is not
        quick.
        """
        rows: list[tuple[bytes, str | None, int, int]] = []
        total = 0
        for row in entries:
            size = len(row[1] or "")
            if size > LARGE:
                self._all_columns = True
                break
            rows.append(row)
            total += size
            if len(rows) == wanted or total >= max_bytes:
                break
        else:
            self.exhausted = True
        if rows and not can_collate(rows[-1][1] or ""):
            self._all_columns, self.exhausted = True, False
            return []
        if rows:
            key, text = rows[-1][:2]
            self._seen = self._given = self._judge.place(key, loaded(key, text))
        self._found += len(rows)
        return list[Row](rows)

    def _find(
        self, entries: Entries, height: int, wanted: int, max_bytes: int
    ) -> list[Row]:
        rows: list[Row] = []
        size, until = 0, time.monotonic() + SLICE_S
        may_match = self.query.selector.may_match
        for key, value, block, tx, *columns in entries:
            match = None
            if block < height and may_match(_raw(value)):
                try:
                    match = self._match(key, value)
                except Slow:
                    break
            self._seen = tuple(columns), key
            if match is not None and self._is_wanted():
                self._given = self._seen
                rows.append((key, match.shown, block, tx))
                size += len(key) + len(value or "")
            if len(rows) >= wanted or size >= max_bytes or time.monotonic() > until:
                break
        else:
            self.exhausted = True
        return rows

    def _entries(self, view: View) -> Entries | None:
        """Return the rows behind the last one, in order; None = `step` comes back.

        Those of an older view have rows of newer blocks among them: SQLite would pass over
        all of them at once.
        """
        cursor = self._newest(view)
        # Asked when the search has begun: a block in between is seen by both, or by this.
        if not view.execute(_IS_OLD, [view.height]).fetchone():
            return cursor
        cursor.close()
        if self._superseded is None:
            self._superseded = Superseded(view, self._older)
        # Fewer slices: each step looks for its place in all of them.
        if not self._superseded.collect(time.monotonic() + 5 * SLICE_S):
            return None
        self._all_columns = True
        cursor = self._newest(view)
        if self._superseded.is_behind():  # by a block that came in between
            cursor.close()
            return None
        return self._superseded.rows(
            cursor, self._seen, descending=self.query.descending
        )

    def _newest(self, view: View) -> sqlite3.Cursor:
        """Return the rows of the index behind the last one, in order; as `Entries`."""
        index = self.plan.index
        if index is None:
            raise ValueError("the plan has no index")
        columns = [column(name) for name in index.columns]
        shown = ", ".join(
            ["key, json, block, tx", *(columns if self._all_columns else ())]
        )
        terms, fixed = [members(view.ns, index)], list[Any]()
        limits = list[tuple[str, Any]]()
        for bounds in self.plan.bounds:
            if bounds.fixed:
                terms.append(f"{columns.pop(0)}=?")
                fixed.append(bounds.low)
                continue
            # Behind the last row there is a closer bound, and SQLite uses only one.
            seen, down = self._seen is not None, self.query.descending
            if bounds.low is not None and not (seen and not down):
                limits.append((">=" if bounds.with_low else ">", bounds.low))
            if bounds.high is not None and not (seen and down):
                limits.append(("<=" if bounds.with_high else "<", bounds.high))
            break
        order, behind = ("DESC", "<") if self.query.descending else ("ASC", ">")
        columns.append("key")
        last = [*self._seen[0], self._seen[1]][-len(columns) :] if self._seen else []
        selects, values = list[str](), list[Any]()
        # Rows that begin as the last one, then others: SQLite would pass over all that begin
        # alike, if it compared whole rows, or began at a limit.
        for at in reversed(range(len(columns) if last else 1)):
            where = [*terms, *(f"{name}=?" for name in columns[:at])]
            where += [f"{columns[at]}{behind}?"] * bool(last)
            where += [f"{'?' if at else columns[0]}{sign}?" for sign, _ in limits]
            values += [*fixed, *last[: at + 1]]
            for _, limit in limits:
                values += [last[0], limit] if at else [limit]
            # The text has only what this module makes: names of columns, numbers, signs.
            # Whatever comes from a query or a document is bound.
            source = f"documents INDEXED BY mango_{index.number:d}"
            ordered = ", ".join(f"{each} {order}" for each in columns[at:])
            selects.append(
                f"SELECT {shown} FROM {source} WHERE {' AND '.join(where)} "  # noqa: S608
                f"ORDER BY {ordered}"
            )
        if len(selects) == 1:
            return view.execute(selects[0], values)
        # The limit keeps the order of each.
        sql = " UNION ALL ".join(f"SELECT * FROM ({each} LIMIT -1)" for each in selects)  # noqa: S608
        return view.execute(sql, values)

    def _older(self, key: bytes, value: Value) -> Position | None:
        """Return `_kept` of a document. Raises: Slow."""
        return self._kept(self._match(key, value, shown=False))

    def _kept(self, match: Match | None) -> Position | None:
        """Return where a match belongs, and hold that; None = not behind `_seen`."""
        seen = self._seen
        if match is None or (place := match.place) is None:
            return None
        if seen and (place >= seen if self.query.descending else place <= seen):
            return None
        self.hold(sum(map(len, place[0])) + len(place[1]) + ENTRY_BYTES)
        return place

    # --- by the state

    def _matched(self, view: View, *, shown: bool) -> Iterator[Found]:
        """Return what is found of each next key. Raises: Slow."""
        may_match = self.query.selector.may_match
        for key, value, block, tx in view.walk(self._next):
            match = None
            if value is not None and may_match(value):
                self._next = key
                match = self._match(key, value, shown=shown)
            self._next = key if value is None else key + b"\0"
            yield key, match, block, tx

    def _look(self, view: View, wanted: int, max_bytes: int) -> list[Row]:
        rows: list[Row] = []
        size, until = 0, time.monotonic() + SLICE_S
        found = self._chosen(view) if self._sorts else self._matched(view, shown=True)
        with suppress(Slow):
            for key, match, block, tx in found:
                if match is not None and self._is_wanted():
                    rows.append((key, match.shown, block, tx))
                    self._given = match.place
                    size += len(key) + len(match.shown or "")
                if len(rows) >= wanted or size >= max_bytes or time.monotonic() > until:
                    return rows
            self.exhausted = True
        return rows

    # --- a sort without an index

    def _collect(self, view: View) -> None:
        """Look at some more documents, and keep where those that match belong."""
        until, down = time.monotonic() + SLICE_S, self.query.descending
        places: list[Position] = []
        self._sorted.append(places)
        ended = False
        with suppress(Slow):
            for _, match, _, _ in self._matched(view, shown=False):
                if place := self._kept(match):
                    places.append(place)
                if time.monotonic() > until:
                    break
            else:
                ended = True
        places.sort(reverse=down)
        if ended:  # a merge does its work with each row, not at once
            self._ordered = heapq.merge(*self._sorted, reverse=down)

    def _chosen(self, view: View) -> Iterator[Found]:
        """Return the rest of what was collected. Raises: Slow."""
        ordered = self._ordered or iter(())
        while place := self._chosen_next or next(ordered, None):
            self._chosen_next, (_, key) = place, place
            value, block, tx = view.get(key)
            match = self._match(key, value)
            self._chosen_next = None
            yield key, match, block, tx


def _raw(value: Value) -> bytes:
    """Return what `may_match` has to see of a value."""
    return value if isinstance(value, bytes) else (value or "")[: LONG + 1].encode()


_IS_OLD: Final = (
    "SELECT 1 FROM (SELECT block FROM versions ORDER BY id DESC LIMIT 1) WHERE block>=?"
)
