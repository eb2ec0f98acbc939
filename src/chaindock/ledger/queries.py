"""Open queries of a simulation, whose results are taken piece by piece.

No cursor stays open between two calls, and a range is recorded as exhausted only when its
end was really seen.
Source: docs/fabric/ledger.md#read-write-set, docs/fabric/ledger.md#private-data
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Final

from typing_extensions import override

from chaindock.errors import InvalidInput, LedgerClosed
from chaindock.ledger.budget import ENTRY_BYTES, text_bytes
from chaindock.ledger.encoding import LEAD, SHORT, field, lead, part
from chaindock.ledger.snapshots import ABOVE_ALL, after
from chaindock.ledger.transaction import unpacked_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ids import SpaceName
    from chaindock.ledger.encoding import Row, Version
    from chaindock.ledger.rwset import RangeRecord
    from chaindock.ledger.simulator import Simulator
    from chaindock.ledger.snapshots import Snapshot

_RANGE_BYTES = 4 * ENTRY_BYTES
"""What a range query costs besides its bounds."""
STEP_BYTES: Final = 1024 * 1024
"""Where one call of `Results.take` stops reading; its last result may be larger."""


def encode_key(key: str) -> bytes:
    """Return the key as it is stored. Raises: InvalidInput if it is no valid Unicode."""
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raw = key.encode(errors="surrogatepass").hex()
        raise InvalidInput(f"invalid key [{raw}], must be a UTF-8 string") from error


class Results(ABC):
    """An open query."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._closed = False
        self.exhausted = False
        """Whether `take` is known to give nothing more."""

    def take(self, n: int, max_bytes: int = STEP_BYTES) -> list[bytes]:
        """Return the next results, serialised; none when there are no more.

        Fewer than `n` does not mean that there are no more: see `exhausted`. Blocks for
        about 1 µs per result: ask for some hundred at a time, not all.

        Args:
            n: most results.
            max_bytes: no further result is read once those read have this size.

        Raises:
            LedgerClosed: after `close`, or when the simulation is done.
        """
        if self._closed:
            raise LedgerClosed("the query was closed")
        snapshot = self._simulator.snapshot()
        if n <= 0 or self.exhausted:
            return []
        return self._pull(snapshot, n, max_bytes)

    def advance(self) -> bool:
        """Work for some ms on what `take` returns; say whether `take` need not wait.

        Raises: what `take` raises.
        """
        return True

    @property
    def slow(self) -> Callable[[], None] | None:
        """What a thread is to do before the next `advance`, or that does it itself."""
        return None

    @abstractmethod
    def _pull(self, snapshot: Snapshot, wanted: int, max_bytes: int) -> list[bytes]:
        """Return up to `wanted` results; set `exhausted` when the end was seen."""

    def close(self) -> None:
        """End the query; what was taken stays recorded. Harmless when repeated."""
        self._closed = True


class KeyResults(Results):
    """Keys of a namespace or collection as `queryresult.KV`, lowest first.

    Args:
        bounds: first key, and the one behind the last; "" is no limit.
        limit: most results; 0 = all.
    """

    _paginated = False
    """Whether there is a bookmark, for which the key after the last result is needed."""

    def __init__(
        self,
        simulator: Simulator,
        space: SpaceName,
        bounds: tuple[str, str],
        limit: int,
    ) -> None:
        super().__init__(simulator)
        self._space = space
        self._next = encode_key(bounds[0])
        self._stop = encode_key(bounds[1]) or ABOVE_ALL
        self._left = limit if limit > 0 else None
        self._ended = False
        self._held = 0
        self._head = field(1, space[0].encode())
        """The field `namespace` of each `KV`"""
        self._count()

    def _count(self) -> None:
        """Count what the query keeps until the transaction ends."""
        held = self._kept()
        self._simulator.hold(held - self._held)
        self._held = held

    def _kept(self) -> int:
        return _RANGE_BYTES + len(self._stop) + len(self._next)

    @override
    def advance(self) -> bool:
        """Pass keys that the view does not have; see `Results.advance`."""
        snapshot = self._simulator.snapshot()
        if self._ended or (self._left == 0 and not self._paginated):
            return True
        place = snapshot.passed(self._space, self._next, self._stop)
        if place is not None:
            self._next = place
            self._count()
        return place is None

    def _pull(self, snapshot: Snapshot, wanted: int, max_bytes: int) -> list[bytes]:
        if self._left is not None:
            wanted = min(wanted, self._left)
        rows: list[Row] = []
        place: bytes | None = self._next
        while (
            not rows and place is not None
        ):  # more than once if `advance` was not used
            bounds = self._space, place, self._stop
            rows, place = snapshot.walk(*bounds, wanted, max_bytes)
        self._ended = place is None
        if self._left is not None:
            self._left -= len(rows)
        self.exhausted = self._ended or self._left == 0
        self._took(rows, place or after(rows[-1][0]) if rows else self._next)
        head, keys, values = self._head, LEAD[2], LEAD[3]
        return [
            head + keys[len(key)] + key + values[len(value)] + value
            if len(key) < SHORT > len(value)
            else b"".join((head, field(2, key), lead(3, len(value)), value))
            for key, value, _, _ in rows
        ]

    def _took(self, _rows: list[Row], following: bytes) -> None:
        """Go on at `following`."""
        self._next = following
        self._count()


class RangeResults(KeyResults):
    """Public keys; those that are taken are added to `record`. `paginated`: in one page."""

    def __init__(
        self,
        simulator: Simulator,
        record: RangeRecord,
        page_size: int,
        *,
        paginated: bool,
    ) -> None:
        self._record, self._paginated = record, paginated
        bounds = record.start, record.end
        super().__init__(simulator, (record.ns, ""), bounds, page_size)

    @override
    def _kept(self) -> int:
        record = self._record
        texts = (record.start, record.end, record.last or "")
        return super()._kept() + record.reads.held + sum(map(text_bytes, texts))

    @override
    def _took(self, rows: list[Row], following: bytes) -> None:
        record = self._record
        if rows:  # counted before the record keeps them; `_count` gives back the excess
            grows = len(rows) * ENTRY_BYTES + sum([len(row[0]) for row in rows])
            grows += 2 * (len(following) - len(self._next))
            self._simulator.hold(grows)
            self._held += grows
            record.last = rows[-1][0].decode()
        record.reads.add(rows)
        record.exhausted = self._ended
        super()._took(rows, following)

    @property
    def bookmark(self) -> str:
        """The key after the last one taken; "" at the end, and if not paginated."""
        if not self._paginated or self._ended:
            return ""
        snapshot = self._simulator.snapshot()
        rows, _ = snapshot.scan(self._space, self._next, self._stop, 1, 1)
        return rows[0][0].decode() if rows else ""


class HistoryResults(Results):
    """Changes of a key as `queryresult.KeyModification`, newest first; not recorded."""

    def __init__(self, simulator: Simulator, ns: str, key: bytes) -> None:
        super().__init__(simulator)
        self._ns = ns
        self._key = key
        self._below = (simulator.snapshot().height, 0)

    @override
    def advance(self) -> bool:
        """Pass changes of metadata alone; see `Results.advance`."""
        at = self._ns, self._key, self._below
        rows, place = self._simulator.snapshot().history(*at, 1, 1, values=False)
        if rows or place is None:
            return True
        self._below = place
        return False

    def _pull(self, snapshot: Snapshot, wanted: int, max_bytes: int) -> list[bytes]:
        rows: list[Any] = []
        place: Version | None = self._below
        while not rows and place is not None:  # as for keys
            at = self._ns, self._key, place
            rows, place = snapshot.history(*at, wanted, max_bytes)
        self._below, self.exhausted = place or self._below, place is None
        return [
            modification(tx_id, value, timestamp, deleted)
            for tx_id, value, _, _, timestamp, deleted in rows
        ]


def modification(
    tx_id: bytes | str, value: bytes, timestamp: bytes, deleted: int
) -> bytes:
    """Return a `KeyModification`, an entry of a history, from what is stored."""
    tx = field(1, unpacked_id(tx_id).encode())
    # The timestamp is always present: the Node shim fails without it.
    rest = part(3, timestamp) + (b"\x20\x01" if deleted else b"")
    return b"".join((tx, lead(2, len(value)), value, rest))
