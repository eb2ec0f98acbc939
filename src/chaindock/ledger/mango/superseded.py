"""What a query sees: an older view, with the documents superseded since, in order.

They are looked at once for a query, in slices; what a later block supersedes is added.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from contextlib import closing, suppress
from heapq import merge
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from chaindock.ledger.contents import resolved
from chaindock.ledger.mango.conditions import Slow
from chaindock.ledger.mango.documents import INDEXES, indexes_from
from chaindock.ledger.snapshots import ABOVE_ALL

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Generator, Iterator

    from chaindock.ids import SpaceName
    from chaindock.ledger.snapshots import Snapshot

Row = tuple[bytes, "bytes | str | None", int, int]
"""Key, value as the peer returns it (None: it has to be read), block and position."""
Position = tuple[tuple[bytes, ...], bytes]
"""Sort keys of the columns that rows are ordered by, and the key of the document."""
_WALK_ROWS: Final = 100
# Rows of other namespaces are returned, too: SQLite would pass over them in one go.
_ROWS: Final = resolved(
    "SELECT superseded, id, ns=?3 AND block<?4 AND value IS NOT NULL, key, "
    "CASE WHEN ns=?3 AND block<?4 AND value IS NOT NULL THEN VALUE END "
    "FROM versions INDEXED BY versions_superseded WHERE superseded"
)
_FURTHER: Final = f"{_ROWS}=?1 AND id>?2 UNION ALL {_ROWS}>?1 ORDER BY 1, 2"
_IS_BEHIND: Final = (
    "SELECT 1 FROM versions INDEXED BY versions_superseded WHERE superseded=?1 AND id>?2 "
    "UNION ALL SELECT 1 FROM versions INDEXED BY versions_superseded "
    "WHERE superseded>?1 LIMIT 1"
)
_first: Final = itemgetter(0)
_ROW: Final = resolved("SELECT key, VALUE, block, tx FROM versions WHERE id=?")


class View:
    """The state of a namespace or collection after `height` blocks."""

    def __init__(self, snapshot: Snapshot, space: SpaceName, step_bytes: int) -> None:
        self._snapshot, self._space, self._step_bytes = snapshot, space, step_bytes
        self.height = snapshot.height
        # No number: nothing was ever written, and no row has the number 0.
        self.ns = snapshot.reader.namespace(*space) or 0

    def indexes(self) -> tuple[list[Any], bool]:
        """Return the indexes, and whether they have all documents."""
        rows = self.execute(INDEXES, [self.ns]).fetchall()
        return indexes_from(rows), bool(rows and rows[0][-1])

    def execute(self, sql: str, values: list[Any]) -> sqlite3.Cursor:
        """Run a SELECT on the database of the state."""
        return self._snapshot.reader.execute(sql, tuple(values))

    def walk(self, start: bytes) -> Iterator[tuple[bytes, bytes | None, int, int]]:
        """Yield key, value, block and position of the keys from `start` on.

        None for a value: there is nothing up to this key, with which a walk may go on.
        """
        place: bytes | None = start
        while place is not None:
            rows, place = self._snapshot.walk(
                self._space, place, ABOVE_ALL, _WALK_ROWS, self._step_bytes
            )
            yield from rows
            if not rows and place is not None:
                yield place, None, 0, 0  # or the step might pass over a million keys

    def get(self, key: bytes) -> tuple[bytes, int, int]:
        """Return value, block and position of a key that exists."""
        ns, collection = self._space
        if not collection and (row := self._snapshot.get(ns, key)) is not None:
            return row
        _, value, block, tx = next(self.walk(key))
        return value or b"", block, tx


class Superseded:
    """What blocks have superseded of the documents that a query of `view` finds.

    `place` returns where a key with its value belongs; None if it does not match.
    """

    def __init__(
        self, view: View, place: Callable[[bytes, bytes], Position | None]
    ) -> None:
        self._view, self._place = view, place
        self._last = (view.height, -1)
        self._slices: list[list[tuple[Position, int]]] = []

    def collect(self, until: float) -> bool:
        """Look at further rows. Returns: whether there are no more of them."""
        places: list[tuple[Position, int]] = []
        view, ended = self._view, False
        values = [*self._last, view.ns, view.height]
        with suppress(Slow), closing(view.execute(_FURTHER, values)) as cursor:
            for block, number, is_visible, key, value in cursor:
                if is_visible:
                    place = self._place(key, value)
                    if place is not None:
                        places.append((place, number))
                self._last = block, number
                if time.monotonic() > until:
                    break
            else:
                ended = True
        if places:
            self._slices.append(sorted(places))
        return ended

    def is_behind(self) -> bool:
        """Return whether there are rows that `collect` has not looked at."""
        found = self._view.execute(_IS_BEHIND, list(self._last))
        return found.fetchone() is not None

    def rows(
        self, cursor: sqlite3.Cursor, seen: Position | None, *, descending: bool
    ) -> Generator[tuple[Any, ...], None, None]:
        """Return the rows behind `seen`, and those of `cursor`, which this closes.

        Each has key, text or (of an older document) value, block and position, and the sort
        keys of its columns.
        """
        found = [_behind(each, seen, descending=descending) for each in self._slices]
        with closing(cursor):
            newest = (((row[4:], row[0]), row) for row in cursor)
            # Of two in one place the older comes first: a step may end at either, and the
            # next one begins behind that place. The view shows the older.
            for place, row in merge(*found, newest, key=_first, reverse=descending):
                if isinstance(row, int):
                    older = self._view.execute(_ROW, [row]).fetchone()
                    yield *older, *place[0]
                else:
                    yield row


def _behind(
    places: list[tuple[Position, int]], seen: Position | None, *, descending: bool
) -> Iterator[tuple[Position, Any]]:
    if descending:
        end = len(places) if seen is None else bisect_left(places, seen, key=_first)
        return (places[at] for at in range(end - 1, -1, -1))
    start = 0 if seen is None else bisect_right(places, seen, key=_first)
    return (places[at] for at in range(start, len(places)))
