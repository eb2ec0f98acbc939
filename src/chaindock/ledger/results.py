"""Query results that a simulation takes piece by piece.

No cursor stays open between two calls. A range is recorded as exhausted only when its
end was really seen.
Source: docs/fabric/ledger.md#read-write-set
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV

from chaindock.errors import LedgerClosed
from chaindock.ledger.snapshots import END_OF_HISTORY, after

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ledger.rwset import RangeRecord
    from chaindock.ledger.snapshots import Snapshot


STEP_BYTES: Final = 1024 * 1024
"""Where one call of `take` stops reading; its last result may be larger."""


class Results(ABC):
    """An open query.

    Args:
        snapshot: returns the simulation's snapshot, or raises LedgerClosed.
        limit: most results the query gives; it ends quietly there.
    """

    def __init__(self, snapshot: Callable[[], Snapshot], limit: int) -> None:
        self._snapshot = snapshot
        self._left = limit
        self._closed = False

    def take(self, n: int, max_bytes: int = STEP_BYTES) -> list[bytes]:
        """Return the next results, serialised; none when there are no more.

        Fewer than `n` does not mean that there are no more: see `exhausted`. Blocks for
        about 3 µs per result: ask for some hundred at a time, not all.

        Args:
            n: most results.
            max_bytes: no further result is read once those read have this size.

        Raises:
            LedgerClosed: after `close`, or when the simulation is done.
        """
        if self._closed:
            raise LedgerClosed("the query was closed")
        snapshot = self._snapshot()
        wanted = min(n, self._left)
        if wanted <= 0:
            return []
        results, ended = self._pull(snapshot, wanted, max_bytes)
        self._left = 0 if ended else self._left - len(results)
        return results

    @property
    def exhausted(self) -> bool:
        """Whether `take` is known to give nothing more."""
        return self._left <= 0

    @abstractmethod
    def _pull(
        self, snapshot: Snapshot, wanted: int, max_bytes: int
    ) -> tuple[list[bytes], bool]:
        """Return up to `wanted` results, and whether the end was seen."""

    @property
    def bookmark(self) -> str:
        """Where the next page begins; "" when there is none."""
        return ""

    def close(self) -> None:
        """End the query; what was taken stays recorded. Harmless when repeated."""
        self._closed = True


class RangeResults(Results):
    """Keys of a namespace as `queryresult.KV`, lowest first."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        limit: int,
        record: RangeRecord,
        *,
        paginated: bool,
    ) -> None:
        super().__init__(snapshot, limit)
        self.record = record
        self._paginated = paginated
        self._next = record.start.encode()
        self._stop = record.end.encode() or None

    def _pull(
        self, snapshot: Snapshot, wanted: int, max_bytes: int
    ) -> tuple[list[bytes], bool]:
        record = self.record
        ns, add = record.ns, record.reads.add
        results: list[bytes] = []
        rows, ended = snapshot.scan(ns, self._next, self._stop, wanted, max_bytes)
        for raw, value, block, position in rows:
            record.last = key = raw.decode()
            add(key, block, position)
            kv = KV(namespace=ns, key=key, value=value)
            results.append(kv.SerializeToString())
        if rows:
            self._next = after(rows[-1][0])
        record.exhausted = ended
        return results, ended

    @property
    def bookmark(self) -> str:
        """The key after the last one taken; "" at the end, and if not paginated."""
        if not self._paginated or self.record.exhausted:
            return ""
        rows, _ = self._snapshot().scan(self.record.ns, self._next, self._stop, 1, 1)
        return rows[0][0].decode() if rows else ""


class HistoryResults(Results):
    """Changes of one key as `queryresult.KeyModification`, newest first.

    Nothing is recorded: histories are not protected against change.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], limit: int, ns: str, key: bytes
    ) -> None:
        super().__init__(snapshot, limit)
        self._ns = ns
        self._key = key
        self._below = END_OF_HISTORY

    def _pull(
        self, snapshot: Snapshot, wanted: int, max_bytes: int
    ) -> tuple[list[bytes], bool]:
        rows, ended = snapshot.history(
            self._ns, self._key, self._below, wanted, max_bytes
        )
        if rows:
            self._below = rows[-1][1:]
        return [row[0] for row in rows], ended
