"""One transaction's view of the state, and the record of what the transaction did.

All reads see the state as it was when the simulation began and never show the
transaction's own writes.
Source: docs/fabric/ledger.md#proposal, docs/fabric/ledger.md#read-write-set,
docs/fabric/ledger.md#private-data
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import Final, Self

from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.errors import InvalidInput, LedgerClosed, LedgerError, ReadOnlyViolation
from chaindock.ids import SpaceName, TxId
from chaindock.ledger.budget import ENTRY_BYTES, Budget, text_bytes
from chaindock.ledger.couchdb import require_storable
from chaindock.ledger.encoding import Version
from chaindock.ledger.mango.query import Query, parse_query
from chaindock.ledger.mango.results import QueryResults
from chaindock.ledger.queries import (
    HistoryResults,
    KeyResults,
    RangeResults,
    Results,
    encode_key,
)
from chaindock.ledger.rwset import (
    RangeRecord,
    Record,
    marshal,
    marshal_private,
    private_sets,
)
from chaindock.ledger.snapshots import Snapshot

# Fabric's texts, its spelling included: clients and tests look for them.
_DONE = "this instance should not be used after calling Done()"
_ONCE = "this function should only be called once on a transaction simulator instance"
_NO_WRITES = "unsuppored transaction. Transaction has already performed {}. Writes are not allowed"
_READ_ONLY = "unsuppored transaction. {} supported only in a read-only transaction"
_A_PAGE = "a paginated query"
_PRIVATE_QUERIES = "queries on pvt data"
MOST_KEY_BYTES: Final = 8192
"""Of a key that is written. Each look-up of a key near a longer one would read that whole."""
MAX_HELD_BYTES = 32 * 1024 * 1024
"""What reads and writes may take in memory outside of a call, which has its own budget."""


class Simulator:
    """Simulates one transaction. Made by `Ledger.new_simulator`.

    Use it from the event loop; a call takes a few microseconds. Keys and namespaces are
    text; a key that is no valid Unicode raises InvalidInput, one beyond what `budget` has
    left BudgetExceeded. Every method but `done` raises LedgerClosed after `done`, or when the
    ledger was closed.

    A write raises ReadOnlyViolation if the transaction has made a paginated or private
    query, and LedgerError if its results were taken already. Whether a collection exists
    and who may use it is decided by the caller.

    Attributes:
        budget: what the node may hold for the transaction: `MAX_HELD_BYTES`, or in a call
            that of the call (chaindock.memory.transaction), which replaces it.
        held: bytes that reads and writes take in memory until `done`.
        private_reads: namespaces and collections of which a value was read by its key.
        strict: refuse what a peer with CouchDB refuses (chaindock.ledger.strictFabric).
    """

    def __init__(self, tx_id: TxId, snapshot: Snapshot, *, strict: bool = True) -> None:
        self.tx_id = tx_id
        self.strict = strict
        self.budget = Budget(MAX_HELD_BYTES, f"transaction {tx_id}")
        self.held = 0
        self.private_reads: set[SpaceName] = set()
        self._snapshot: Snapshot | None = snapshot
        self._records: dict[SpaceName, Record] = defaultdict(Record)
        self._ranges: list[RangeRecord] = []
        self._queried = ""
        """The query that forbids writes, if one was made."""
        self._written = False
        self._taken = self._sealed = False
        self._private: dict[SpaceName, bytes] | None = None

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return the committed value, None if the key is absent; records the read."""
        raw = self._key(key)
        row = self.snapshot().get(ns, raw)
        self.saw((ns, ""), key, row and row[1:])
        return row and row[0]

    def get_metadata(self, ns: str, key: str, collection: str = "") -> dict[str, bytes]:
        """Return the committed metadata by name, records a read of the key (or key hash)."""
        raw = encode_key(key) if collection else self._key(key)
        row = self.snapshot().get_metadata(ns, collection, _stored(raw, collection))
        self.saw((ns, collection), key, row and row[1:])
        if row is None or row[0] is None:
            return {}
        found = kv_rwset_pb2.KVMetadataWrite.FromString(row[0]).entries
        return {entry.name: entry.value for entry in found}

    def get_private(
        self,
        ns: str,
        collection: str,
        key: str,
        *,
        compare: bool = True,
        stored: bool = True,
    ) -> bytes | None:
        """Return the committed private value, None if absent; records the hash's read.

        `stored`: False = the peer that simulates has no value of this collection.

        Raises: LedgerError: with `compare`, value and hash are not of one version, so
        that the peer does not have the value that the hash belongs to.
        """
        raw = self._key(key)
        self.private_reads.add((ns, collection))
        value, found, public = self.snapshot().get_private(
            ns, collection, _stored(raw, collection)
        )
        if not stored:
            value = found = None
        if compare and found != public:
            raise LedgerError(
                "private data matching public hash version is not available. Public "
                f"hash version = {_shown(public)}, Private data version = {_shown(found)}"
            )
        self.saw((ns, collection), key, found)
        return value

    def get_private_hash(self, ns: str, collection: str, key: str) -> bytes | None:
        """Return the SHA-256 of the committed private value; records its read."""
        raw = encode_key(key)
        row = self.snapshot().get_hash(ns, collection, _stored(raw, collection))
        self.saw((ns, collection), key, row and row[1:])
        return row and row[0]

    def saw(self, space: SpaceName, key: str, version: Version | None) -> None:
        """Record the read of a key of a namespace or collection."""
        reads = self._records[space].reads
        if key not in reads:
            self.hold(text_bytes(key) + ENTRY_BYTES)
        reads[key] = version

    def saw_all(self, ns: str, versions: Mapping[str, Version]) -> None:
        """Record the reads of public keys that exist."""
        reads = self._records[ns, ""].reads
        new = [key for key in versions if key not in reads]
        self.hold(sum(map(text_bytes, new)) + len(new) * ENTRY_BYTES)
        reads.update(versions)

    def put_state(self, ns: str, key: str, value: bytes) -> None:
        """Write; the last write of a key wins, an empty value deletes (also an absent key)."""
        self._put(ns, "", key, value)

    def put_private(self, ns: str, collection: str, key: str, value: bytes) -> None:
        """Write to a collection, as `put_state`."""
        self._put(ns, collection, key, value)
        self._records[ns, collection].purged.discard(key)

    def purge_private(self, ns: str, collection: str, key: str) -> None:
        """Delete a private value with all its earlier versions."""
        self._put(ns, collection, key, b"")
        self._records[ns, collection].purged.add(key)

    def _put(self, ns: str, collection: str, key: str, value: bytes) -> None:
        self._begin_write(key, value)
        writes = self._records[ns, collection].writes
        new = 0 if key in writes else text_bytes(key) + ENTRY_BYTES
        self.hold(new + len(value) - len(writes.get(key, b"")))
        writes[key] = value

    def put_metadata(
        self, ns: str, key: str, entries: Mapping[str, bytes], collection: str = ""
    ) -> None:
        """Replace all metadata of a key by `entries`; none = remove it.

        At commit, metadata of a key that is then absent is ignored.
        """
        self._begin_write(key)
        metadata = self._records[ns, collection].metadata
        new = 0 if key in metadata else text_bytes(key) + ENTRY_BYTES
        self.hold(new + _size(entries) - _size(metadata.get(key, {})))
        metadata[key] = dict(entries)

    def _key(self, key: str, value: bytes = b"") -> bytes:
        if self.strict:
            require_storable(key, value)
        return encode_key(key)

    def _begin_write(self, key: str, value: bytes = b"") -> None:
        if self._queried or self._sealed or self._snapshot is None:
            self._refuse_write()
        self._written = True  # even if what follows fails, as in Fabric
        size = len(self._key(key, value))
        if size > MOST_KEY_BYTES:
            raise InvalidInput(
                f"a key of {size} bytes cannot be written: the limit is "
                f"{MOST_KEY_BYTES} bytes"
            )

    def _refuse_write(self) -> None:
        self.snapshot()
        if self._queried:
            text = _NO_WRITES.format(self._queried)
            raise ReadOnlyViolation(f"txid [{self.tx_id}]: {text}")
        raise LedgerError(
            f"txid [{self.tx_id}]: a write after the results were taken would be lost"
        )

    def _require_read_only(self, query: str, text: str) -> None:
        if self._written:
            raise ReadOnlyViolation(f"txid [{self.tx_id}]: {_READ_ONLY.format(text)}")
        self._queried = self._queried or query

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
            self._require_read_only(_A_PAGE, "Paginated queries are")
        record = RangeRecord(ns, bookmark or start, end)
        results = RangeResults(self, record, page_size, paginated=paginated)
        self._ranges.append(record)
        return results

    def open_private_range(
        self, ns: str, collection: str, start: str, end: str, *, limit: int = 0
    ) -> Results:
        """Query private keys in `[start, end)`, at most `limit` (0 = all).

        Nothing is recorded. Raises: ReadOnlyViolation: the transaction has written.
        """
        self.snapshot()
        self._require_read_only(_PRIVATE_QUERIES, "Queries on pvt data is")
        return KeyResults(self, (ns, collection), (start, end), limit)

    def open_query(
        self,
        ns: str,
        query: str,
        *,
        collection: str = "",
        page_size: int = 0,
        bookmark: str = "",
        parse: Callable[[str, str], Query] = parse_query,
    ) -> QueryResults:
        """Query JSON documents as CouchDB does; see docs/fabric/rich-queries.md.

        Public results are recorded as reads of their keys, private ones are not. A page
        is as in `open_range`; its bookmark is the query's own.

        Raises:
            InvalidInput: CouchDB refuses the query, with its text. ReadOnlyViolation: a
            page or a collection was asked for after a write.
        """
        self.snapshot()
        if collection:
            self._require_read_only(_PRIVATE_QUERIES, "Queries on pvt data is")
        elif page_size > 0 or bookmark:
            self._require_read_only(_A_PAGE, "Paginated queries are")
        return QueryResults(
            self,
            (ns, collection),
            query,
            page_size=page_size,
            bookmark=bookmark,
            strict=self.strict,
            parse=parse,
        )

    def open_history(self, ns: str, key: str) -> Results:
        """Query the committed changes of a key, newest first; nothing is recorded."""
        self.snapshot()
        raw = encode_key(key)
        self.hold(len(raw))
        return HistoryResults(self, ns, raw)

    def results(self, max_bytes: int | None = None) -> bytes:
        """Return the serialised `TxReadWriteSet`; once, and then nothing is written.

        Takes about 2 µs for each key: may be called from any thread.

        Args:
            max_bytes: of all keys (in UTF-8) and written values; of private ones, of their
                hashes.

        Raises:
            LedgerError: called a second time. InvalidInput: beyond `max_bytes`.
        """
        self.snapshot()
        if self._taken:
            raise LedgerError(_ONCE)
        self._taken = self._sealed = True
        if max_bytes is not None:
            sizes = (
                record.size(private=bool(collection))
                for (_, collection), record in self._records.items()
            )
            require_size(sum(sizes), max_bytes)
        return marshal(self._records, self._ranges, self._private_sets())

    def private_results(self) -> bytes:
        """Return the serialised `TxPvtReadWriteSet`, b"" if nothing private was written.

        Nothing can be written after it. May be called from any thread.
        """
        self.snapshot()
        return marshal_private(self._private_sets())

    def _private_sets(self) -> dict[SpaceName, bytes]:
        if self._private is None:
            self._sealed = True
            self._private = private_sets(self._records)
        return self._private

    def written(self) -> Iterator[tuple[str, str, Iterator[bytes]]]:
        """Yield namespace, collection and keys (key hashes) of what is written.

        A key comes twice if both value and metadata are written.
        """
        for (ns, collection), record in self._records.items():
            if record.writes or record.metadata:
                raw = map(encode_key, chain(record.writes, record.metadata))
                yield ns, collection, map(partial(_stored, collection=collection), raw)

    def namespaces(self) -> set[str]:
        """Return the namespaces of which the results will tell something."""
        used = {ns for (ns, _), record in self._records.items() if record}
        return used | {one.ns for one in self._ranges if one.taken}

    def done(self) -> None:
        """End the simulation, and release what it has recorded. Harmless when repeated.

        A call that its chaincode never answers keeps the simulator itself.
        """
        self._snapshot = None
        # New ones: a thread may still be in `results`, whose caller has left.
        self._records, self._ranges, self._private = defaultdict(Record), [], None
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


def _stored(raw: bytes, collection: str) -> bytes:
    return sha256(raw).digest() if collection else raw


def _size(entries: Mapping[str, bytes]) -> int:
    return sum(text_bytes(name) + len(value) for name, value in entries.items())


def _shown(version: Version | None) -> str:
    """Return a version as Fabric shows it."""
    if version is None:
        return "<nil>"
    return f"{{BlockNum: {version[0]}, TxNum: {version[1]}}}"


def require_size(size: int, limit: int) -> None:
    """Refuse a transaction that is too large to be ordered. Raises: InvalidInput."""
    if size > limit:
        raise InvalidInput(
            f"message payload is {size} bytes and exceeds maximum allowed {limit} bytes"
        )
