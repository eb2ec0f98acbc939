"""An open rich query of a simulation.

Source: docs/fabric/rich-queries.md#request
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from chaindock.ledger.budget import ENTRY_BYTES
from chaindock.ledger.encoding import LEAD, SHORT, field, lead
from chaindock.ledger.mango.indexes import plan
from chaindock.ledger.mango.query import Query, parse_query
from chaindock.ledger.mango.scan import Scan
from chaindock.ledger.mango.superseded import View
from chaindock.ledger.queries import STEP_BYTES, Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ledger.mango.superseded import Row
    from chaindock.ledger.simulator import Simulator
    from chaindock.ledger.snapshots import Snapshot

AHEAD_ROWS = 101
"""Results that `advance` finds before it says so: a batch, and one to know of a next."""


class QueryResults(Results):
    """Documents that match a query as `queryresult.KV`, in its order.

    Public ones are recorded as reads of their keys when they are taken, private ones
    are not. The query text is parsed here. Raises: InvalidInput, with the text of peer
    or CouchDB.

    `space` is a namespace, and a collection or ""; `page_size` bounds the results, 0 =
    all. `strict`: a sort that no index serves is refused, the limit of the text is not
    used, and what is to be skipped is skipped in each internal page.
    """

    def __init__(
        self,
        simulator: Simulator,
        space: tuple[str, str],
        text: str,
        *,
        page_size: int,
        bookmark: str,
        strict: bool,
        parse: Callable[[str, str], Query] = parse_query,
    ) -> None:
        super().__init__(simulator)
        query = parse(text, bookmark)
        self._space = space
        self._view = View(simulator.snapshot(), space, STEP_BYTES)
        self._left = page_size if page_size > 0 else None
        indexes, filled = self._view.indexes()
        chosen = plan(query, indexes, strict=strict, filled=filled)
        self._scan = Scan(query, chosen, simulator.hold, skips_often=strict)
        if not strict and query.limit is not None:
            self._left = min(query.limit, self._left or query.limit)
        self._found: list[Row] = []
        self._held = 0
        simulator.hold(len(text) + 4 * ENTRY_BYTES)

    @override
    def advance(self) -> bool:
        self._simulator.snapshot()
        wanted = AHEAD_ROWS - len(self._found)
        if self._left is not None:
            wanted = min(wanted, self._left - len(self._found))
        if wanted <= 0:
            return True
        rows = self._scan.step(self._view, wanted, STEP_BYTES)
        self._hold(sum(map(_held, rows)))
        self._found += rows
        if full := len(rows) == wanted or self._held >= STEP_BYTES:
            self._scan.rest()  # until the next batch is wanted
        return full or self._scan.exhausted

    @property
    @override
    def slow(self) -> Callable[[], None] | None:
        return self._scan.slow

    def _hold(self, nbytes: int) -> None:
        self._simulator.hold(nbytes)
        self._held += nbytes

    @override
    def _pull(self, snapshot: Snapshot, wanted: int, max_bytes: int) -> list[bytes]:
        while not self._found and not self.advance():
            pass  # only if the caller did not wait for `advance`
        results: list[bytes] = []
        ns, collection = self._space
        size = taken = 0
        seen: dict[str, tuple[int, int]] = {}
        head, keys, values = field(1, ns.encode()), LEAD[2], LEAD[3]  # of a `KV`
        for row in self._found[:wanted]:
            raw, value, block, position = row
            seen[raw.decode()] = block, position
            if value is None:
                value = self._view.get(raw)[0]  # no JSON object
            data = value.encode() if isinstance(value, str) else value
            results.append(
                head + keys[len(raw)] + raw + values[len(data)] + data
                if len(raw) < SHORT > len(data)
                else b"".join((head, field(2, raw), lead(3, len(data)), data))
            )
            taken += 1
            size += len(raw) + len(data)
            if size >= max_bytes:
                break
        if not collection:
            self._simulator.saw_all(ns, seen)
        gone, self._found = self._found[:taken], self._found[taken:]
        self._hold(-sum(map(_held, gone)) if self._found else -self._held)
        if self._left is not None:
            self._left -= taken
        self.exhausted = not self._found and (self._scan.exhausted or self._left == 0)
        return results

    @property
    def bookmark(self) -> str:
        """CouchDB's: where the next page begins, behind the last result; never ""."""
        return self._scan.bookmark


def _held(row: Row) -> int:
    return ENTRY_BYTES + len(row[0]) + len(row[1] or "")
