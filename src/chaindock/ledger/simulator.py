"""One transaction's view of the state, and the record of what the transaction did.

All reads come from one snapshot and never show the transaction's own writes. No cursor
stays open between two calls, and a range is recorded as exhausted only when its end was
really seen.
Source: docs/fabric/ledger.md#proposal, docs/fabric/ledger.md#read-write-set
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING, Final, Self

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV

from chaindock.errors import InvalidInput, LedgerClosed, LedgerError, ReadOnlyViolation
from chaindock.ledger.budget import ENTRY_BYTES, Budget
from chaindock.ledger.rwset import RangeRecord, marshal
from chaindock.ledger.snapshots import ABOVE_ALL, END_OF_HISTORY, after

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ids import TxId
    from chaindock.ledger.snapshots import Snapshot, Version

# Fabric's texts, its spelling included: clients and tests look for them.
_DONE = "this instance should not be used after calling Done()"
_ONCE = "this function should only be called once on a transaction simulator instance"
_NO_WRITES = (
    "unsuppored transaction. Transaction has already performed a paginated query. "
    "Writes are not allowed"
)
_NO_PAGES = (
    "unsuppored transaction. Paginated queries are supported only in a read-only "
    "transaction"
)
MAX_HELD_BYTES = 32 * 1024 * 1024
"""What reads and writes may take in memory outside of a call, which has its own budget."""
_RANGE_BYTES = 4 * ENTRY_BYTES
"""What a range query costs besides its bounds."""
STEP_BYTES: Final = 1024 * 1024
"""Where one call of `Results.take` stops reading; its last result may be larger."""


class Simulator:
    """Simulates one transaction. Made by `Ledger.new_simulator`.

    Use it from the event loop; a call takes a few microseconds. Keys and namespaces are
    text; a key that is no valid Unicode raises InvalidInput, one beyond what `budget` has
    left BudgetExceeded. Every method but `done` raises LedgerClosed after `done`, or when the
    ledger was closed.

    Attributes:
        budget: what the node may hold for the transaction: `MAX_HELD_BYTES`, or in a call
            that of the call (chaindock.memory.transaction), which replaces it.
        held: bytes that reads and writes take in memory until `done`.
    """

    def __init__(
        self, tx_id: TxId, snapshot: Snapshot, release: Callable[[Snapshot], None]
    ) -> None:
        self.tx_id = tx_id
        self.budget = Budget(MAX_HELD_BYTES, f"transaction {tx_id}")
        self.held = 0
        self._snapshot: Snapshot | None = snapshot
        self._release = release
        self._reads: dict[str, dict[str, Version | None]] = defaultdict(dict)
        self._writes: dict[str, dict[str, bytes]] = defaultdict(dict)
        self._ranges: list[RangeRecord] = []
        self._paginated = False
        self._taken = False

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return the committed value, None if the key is absent; records the read."""
        raw = _encode(key)
        snapshot = self.snapshot()
        reads = self._reads[ns]
        if key not in reads:
            self.hold(len(raw) + ENTRY_BYTES)
        row = snapshot.get(ns, raw)
        if row is None:
            reads[key] = None
            return None
        reads[key] = row[1:]
        return row[0]

    def put_state(self, ns: str, key: str, value: bytes) -> None:
        """Write; the last write of a key wins, an empty value deletes (also an absent key).

        Raises:
            ReadOnlyViolation: the transaction has made a paginated query.
            LedgerError: its results were taken already.
        """
        if self._paginated or self._taken or self._snapshot is None:
            self._refuse_write()
        raw = _encode(key)
        writes = self._writes[ns]
        former = writes.get(key)
        if former is None:
            self.hold(len(raw) + len(value) + ENTRY_BYTES)
        else:
            self.hold(len(value) - len(former))
        writes[key] = value

    def open_range(
        self, ns: str, start: str, end: str, *, page_size: int = 0, bookmark: str = ""
    ) -> RangeResults:
        """Query keys in `[start, end)`; what is taken is protected against phantoms.

        A start or end of "" is no limit. Above 0, `page_size` makes a page of at most so
        many results. The page begins at `bookmark` instead of `start`; a bookmark alone
        makes a page without a bound.

        Raises:
            ReadOnlyViolation: a page was asked for after a write.
        """
        self.snapshot()
        paginated = page_size > 0 or bool(bookmark)
        if paginated:
            if self._writes:
                raise ReadOnlyViolation(f"txid [{self.tx_id}]: {_NO_PAGES}")
            self._paginated = True
        record = RangeRecord(ns, bookmark or start, end)
        results = RangeResults(self, record, page_size, paginated=paginated)
        self._ranges.append(record)
        return results

    def open_history(self, ns: str, key: str) -> Results:
        """Query the committed changes of a key, newest first; nothing is recorded."""
        self.snapshot()
        raw = _encode(key)
        self.hold(len(raw))
        return HistoryResults(self, ns, raw)

    def results(self, max_bytes: int | None = None) -> bytes:
        """Return the serialised `TxReadWriteSet`; once, and then nothing is written.

        Takes about 2 µs for each key: may be called from any thread.

        Args:
            max_bytes: of all keys and written values.

        Raises:
            LedgerError: called a second time. InvalidInput: beyond `max_bytes`.
        """
        self.snapshot()
        if self._taken:
            raise LedgerError(_ONCE)
        self._taken = True
        if max_bytes is not None:
            keys = sum(len(key) for reads in self._reads.values() for key in reads)
            for writes in self._writes.values():
                keys += sum(len(key) + len(value) for key, value in writes.items())
            require_size(keys, max_bytes)
        return marshal(self._reads, self._writes, self._ranges)

    def done(self) -> None:
        """Give the snapshot back. Harmless when repeated."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self._release(snapshot)
        self.budget.give_back(self.held)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def hold(self, nbytes: int) -> None:
        """Take `nbytes` from the budget, or give them back when negative."""
        self.budget.take(nbytes)
        self.held += nbytes

    def snapshot(self) -> Snapshot:
        """Return the snapshot, for queries. Raises: LedgerClosed after `done`."""
        if self._snapshot is None:
            raise LedgerClosed(_DONE)
        return self._snapshot

    def _refuse_write(self) -> None:
        self.snapshot()
        if self._paginated:
            raise ReadOnlyViolation(f"txid [{self.tx_id}]: {_NO_WRITES}")
        raise LedgerError(
            f"txid [{self.tx_id}]: a write after the results were taken would be lost"
        )


def require_size(size: int, limit: int) -> None:
    """Refuse a transaction that is too large to be ordered. Raises: InvalidInput."""
    if size > limit:
        raise InvalidInput(
            f"message payload is {size} bytes and exceeds maximum allowed {limit} bytes"
        )


def _encode(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raw = key.encode(errors="surrogatepass").hex()
        raise InvalidInput(f"invalid key [{raw}], must be a UTF-8 string") from error


class Results(ABC):
    """An open query, whose results are taken piece by piece."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._closed = False
        self.exhausted = False
        """Whether `take` is known to give nothing more."""

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
        snapshot = self._simulator.snapshot()
        if n <= 0 or self.exhausted:
            return []
        return self._pull(snapshot, n, max_bytes)

    @abstractmethod
    def _pull(self, snapshot: Snapshot, wanted: int, max_bytes: int) -> list[bytes]:
        """Return up to `wanted` results; set `exhausted` when the end was seen."""

    def close(self) -> None:
        """End the query; what was taken stays recorded. Harmless when repeated."""
        self._closed = True


class RangeResults(Results):
    """Keys of a namespace as `queryresult.KV`, lowest first.

    What is taken is added to `record`. `page_size` 0 = all; if `paginated`, there is a
    bookmark.
    """

    def __init__(
        self,
        simulator: Simulator,
        record: RangeRecord,
        page_size: int,
        *,
        paginated: bool,
    ) -> None:
        super().__init__(simulator)
        self._record = record
        self._left = page_size if page_size > 0 else None
        self._paginated = paginated
        self._next = _encode(record.start)
        self._stop = _encode(record.end) or ABOVE_ALL
        self._held = 0
        self._count()

    def _count(self) -> None:
        """Count what the query keeps until the transaction ends."""
        held = _RANGE_BYTES + len(self._stop) + 2 * len(self._next)
        held += self._record.reads.held
        self._simulator.hold(held - self._held)
        self._held = held

    def _pull(self, snapshot: Snapshot, wanted: int, max_bytes: int) -> list[bytes]:
        record = self._record
        ns, add = record.ns, record.reads.add
        if self._left is not None:
            wanted = min(wanted, self._left)
        results: list[bytes] = []
        rows, ended = snapshot.scan(ns, self._next, self._stop, wanted, max_bytes)
        if rows:  # counted before the record keeps them; `_count` gives back the excess
            following = after(rows[-1][0])
            grows = sum(len(row[0]) + ENTRY_BYTES for row in rows)
            grows += 2 * (len(following) - len(self._next))
            self._simulator.hold(grows)
            self._held, self._next = self._held + grows, following
        for raw, value, block, position in rows:
            record.last = key = raw.decode()
            add(raw, block, position)
            kv = KV(namespace=ns, key=key, value=value)
            results.append(kv.SerializeToString())
        if self._left is not None:
            self._left -= len(rows)
        self._count()
        record.exhausted = ended
        self.exhausted = ended or self._left == 0
        return results

    @property
    def bookmark(self) -> str:
        """The key after the last one taken; "" at the end, and if not paginated."""
        record = self._record
        if not self._paginated or record.exhausted:
            return ""
        snapshot = self._simulator.snapshot()
        rows, _ = snapshot.scan(record.ns, self._next, self._stop, 1, 1)
        return rows[0][0].decode() if rows else ""


class HistoryResults(Results):
    """Changes of one key as `queryresult.KeyModification`, newest first.

    Nothing is recorded: histories are not protected against change.
    """

    def __init__(self, simulator: Simulator, ns: str, key: bytes) -> None:
        super().__init__(simulator)
        self._ns = ns
        self._key = key
        self._below = END_OF_HISTORY

    def _pull(self, snapshot: Snapshot, wanted: int, max_bytes: int) -> list[bytes]:
        rows, self.exhausted = snapshot.history(
            self._ns, self._key, self._below, wanted, max_bytes
        )
        if rows:
            self._below = rows[-1][2:]
        return [row[1] for row in rows]
