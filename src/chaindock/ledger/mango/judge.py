"""Whether a query finds a document, where that belongs, and what is shown of it.

Source: docs/fabric/rich-queries.md#selectors, docs/fabric/rich-queries.md#values
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any, NamedTuple

from chaindock.ledger.mango.apart import LARGE
from chaindock.ledger.mango.conditions import Slow
from chaindock.ledger.mango.documents import loaded
from chaindock.ledger.mango.indexes import Plan
from chaindock.ledger.mango.order import can_collate, sort_key
from chaindock.ledger.mango.query import Query, is_quick, parse_anew
from chaindock.ledger.mango.selector import ID, parse_partial, parse_path
from chaindock.ledger.mango.superseded import Position
from chaindock.ledger.mango.values import (
    RESERVED,
    Missing,
    document_of,
    field,
    parse_document,
    projection,
    text_of,
)

Value = bytes | str | None
"""What is written in the state; or the text of a document from an index, None: no JSON."""


class Match(NamedTuple):
    """What a query finds: where it belongs, None = where its index has it; and its value."""

    place: Position | None
    shown: Value


class Judge:
    """Judges documents for a query that was planned."""

    def __init__(self, query: Query, plan: Plan) -> None:
        self._query, self._indexed = query, plan.index is not None
        self._paths = tuple(map(parse_path, plan.columns))
        self._partial = plan.partial

    def match(
        self, key: bytes, value: Value, *, shown: bool, quick: bool
    ) -> Match | None:
        """Return what the query finds, None = the document does not match.

        `shown`: what is shown is wanted, too.

        Raises: InvalidInput. Slow: it takes more than some ms, and is to be `quick`.
        """
        if quick and value and not (len(value) <= LARGE and can_collate(value)):
            raise Slow
        written = isinstance(value, bytes)
        if isinstance(value, bytes) and not self._indexed:
            parsed = parse_document(value)
            document = {**(parsed or {}), ID: key.decode()}
        else:
            # The text of an index: its order is that of numbers and texts as CouchDB has them.
            value = document_of(value) if isinstance(value, bytes) else value
            parsed = document = loaded(key, value)
        if not self._query.selector.matches(document, quick=quick):
            return None
        place = self._placed(key, document, quick=quick) if written else None
        if written and place is None:
            return None
        if not shown:
            return Match(place, None)
        if self._query.fields is not None:
            wanted = projection(document, self._query.fields)
            value = text_of({n: wanted[n] for n in wanted if n not in RESERVED})
        elif not self._indexed and parsed is not None:
            value = text_of(parsed)
        return Match(place, value)

    def _placed(
        self, key: bytes, document: dict[str, Any], *, quick: bool
    ) -> Position | None:
        if quick and not is_quick(self._partial):
            raise Slow
        chosen = parse_partial(self._partial or "{}").selects(document, quick=quick)
        return self.place(key, document) if chosen else None

    def place(self, key: bytes, document: dict[str, Any]) -> Position | None:
        """Return where a document belongs; None = not in the index."""
        columns: list[bytes] = []
        for path in self._paths:
            found = field(document, path)
            if isinstance(found, Missing):
                return None
            columns.append(sort_key(found))
        return tuple(columns), key


def judged(
    text: str, bookmark: str, plan: Plan, key: bytes, value: Value
) -> Match | None:
    """Return what a query of this text finds, however long it takes; as `Judge.match`."""
    judge = _judge(text, bookmark, plan, threading.get_ident())
    return judge.match(key, value, shown=True, quick=False)


@lru_cache(8)
def _judge(text: str, bookmark: str, plan: Plan, _thread: int) -> Judge:
    # Without processes, threads judge while the event loop does: each has its Work.
    return Judge(parse_anew(text, bookmark), plan)
