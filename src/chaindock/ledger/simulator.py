"""One transaction's view of the state, and the record of what the transaction did.

All reads come from one snapshot and never show the transaction's own writes.
Source: docs/fabric/ledger.md#proposal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from chaindock.errors import InvalidInput, LedgerClosed, LedgerError, ReadOnlyViolation
from chaindock.ledger.results import HistoryResults, RangeResults
from chaindock.ledger.rwset import RangeRecord, marshal

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ids import TxId
    from chaindock.ledger.results import Results
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


MAX_READS = 1_000_000
MAX_RANGES = 20_000
"""Of one transaction: what it read is kept until it ends."""


class Simulator:
    """Simulates one transaction. Made by `Ledger.new_simulator`.

    Use it from the event loop; a call takes a few microseconds. Keys and namespaces are
    text; a key that is no valid Unicode raises InvalidInput. Every method but `done`
    raises LedgerClosed after `done`, or when the ledger was closed.
    """

    __slots__ = (
        "_limit",
        "_paginated",
        "_ranges",
        "_reads",
        "_release",
        "_snapshot",
        "_taken",
        "_writes",
        "tx_id",
    )

    def __init__(
        self,
        tx_id: TxId,
        snapshot: Snapshot,
        release: Callable[[Snapshot], None],
        total_query_limit: int,
    ) -> None:
        self.tx_id = tx_id
        self._snapshot: Snapshot | None = snapshot
        self._release = release
        self._limit = total_query_limit
        self._reads: dict[str, dict[str, Version | None]] = {}
        self._writes: dict[str, dict[str, bytes]] = {}
        self._ranges: list[RangeRecord] = []
        self._paginated = False
        self._taken = False

    @property
    def height(self) -> int:
        """How many blocks the snapshot shows."""
        return self._open().height

    @property
    def keys(self) -> int:
        """How many reads and writes of single keys were recorded."""
        reads = sum(len(keys) for keys in self._reads.values())
        return reads + sum(len(keys) for keys in self._writes.values())

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return the committed value, None if the key is absent; records the read.

        Raises: InvalidInput after `MAX_READS` keys of a namespace.
        """
        row = self._open().get(ns, _encode(key))
        reads = self._reads.get(ns)
        if reads is None:
            reads = self._reads[ns] = {}
        elif len(reads) >= MAX_READS and key not in reads:
            raise InvalidInput(f"transaction reads more than {MAX_READS} keys")
        if row is None:
            reads[key] = None
            return None
        reads[key] = row[1:]
        return row[0]

    def put_state(self, ns: str, key: str, value: bytes) -> None:
        """Write; the last write of a key wins, an empty value deletes.

        Raises:
            ReadOnlyViolation: the transaction has made a paginated query.
            LedgerError: its results were taken already.
        """
        if self._paginated or self._taken or self._snapshot is None:
            self._refuse_write()
        _encode(key)
        writes = self._writes.get(ns)
        if writes is None:
            writes = self._writes[ns] = {}
        writes[key] = value

    def delete_state(self, ns: str, key: str) -> None:
        """Delete; deleting an absent key is recorded too. Raises as `put_state`."""
        self.put_state(ns, key, b"")

    def open_range(
        self, ns: str, start: str, end: str, *, page_size: int = 0, bookmark: str = ""
    ) -> Results:
        """Query keys in `[start, end)`; what is taken is protected against phantoms.

        Args:
            ns: name of the chaincode.
            start: "" = from the first key.
            end: "" = to the last key.
            page_size: above 0, a page of at most so many results.
            bookmark: where the page begins, instead of `start`; alone it makes a page
                that only the total limit bounds.

        Raises:
            ReadOnlyViolation: a page was asked for after a write.
        """
        self._open()
        paginated = page_size > 0 or bool(bookmark)
        if paginated:
            if self._writes:
                raise ReadOnlyViolation(f"txid [{self.tx_id}]: {_NO_PAGES}")
            self._paginated = True
        if len(self._ranges) >= MAX_RANGES:
            raise InvalidInput(
                f"transaction makes more than {MAX_RANGES} range queries"
            )
        record = RangeRecord(ns, bookmark or start, end)
        limit = min(page_size, self._limit) if page_size > 0 else self._limit
        results = RangeResults(self._open, limit, record, paginated=paginated)
        self._ranges.append(record)
        return results

    def open_history(self, ns: str, key: str) -> Results:
        """Query the committed changes of a key, newest first; nothing is recorded."""
        self._open()
        return HistoryResults(self._open, self._limit, ns, _encode(key))

    def results(self) -> bytes:
        """Return the serialised `TxReadWriteSet`; once, and then nothing is written.

        Raises:
            LedgerError: called a second time.
        """
        self._open()
        if self._taken:
            raise LedgerError(_ONCE)
        self._taken = True
        return marshal(self._reads, self._writes, self._ranges)

    def done(self) -> None:
        """Give the snapshot back. Harmless when repeated."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is not None:
            self._release(snapshot)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.done()

    def _open(self) -> Snapshot:
        if self._snapshot is None:
            raise LedgerClosed(_DONE)
        return self._snapshot

    def _refuse_write(self) -> None:
        self._open()
        if self._paginated:
            raise ReadOnlyViolation(f"txid [{self.tx_id}]: {_NO_WRITES}")
        raise LedgerError(
            f"txid [{self.tx_id}]: a write after the results were taken would be lost"
        )


def _encode(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError as error:
        raw = key.encode(errors="surrogatepass").hex()
        raise InvalidInput(f"invalid key [{raw}], must be a UTF-8 string") from error
