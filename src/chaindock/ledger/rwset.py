"""Read-write sets: what a simulation saw and wants to write, as Fabric's bytes.

Equal reads and writes give equal bytes, whatever their order was.
Source: docs/fabric/ledger.md#read-write-set
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from heapq import merge
from itertools import chain, islice
from typing import Any, TypeVar

from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.ids import SpaceName
from chaindock.ledger.budget import ENTRY_BYTES
from chaindock.ledger.encoding import LEAD, SHORT, Row, Version, part, version_field
from chaindock.ledger.encoding import field as encoded

T = TypeVar("T", str, bytes)
_SLICE = 20_000
_HASH_BYTES = 32
_IS_DELETE, _IS_PURGE = b"\x10\x01", b"\x20\x01"
MAX_DEGREE = 50
"""A range with more results than this is recorded as hashes."""


class ReadsSummary:
    """The results of a range: the reads themselves, or a Merkle summary of many.

    Reads are hashed in groups as they come, so memory stays bounded. Nodes of a level
    are combined into one node of the next as soon as there are more than `max_degree`,
    which is at least 2.
    """

    def __init__(self, max_degree: int = MAX_DEGREE) -> None:
        self.held = 0
        """Bytes that it takes in memory, about."""
        self._max_degree = max_degree
        self._pending: list[bytes] = []
        """Fields of `QueryReads`, serialised"""
        self._version = (-1, -1)
        self._encoded = b""
        self._levels: list[list[bytes]] = []

    def add(self, rows: Iterable[Row]) -> None:
        """Append results; values do not matter."""
        pending, lead, most = self._pending, LEAD[1], self._max_degree
        (last_block, last_position), version = self._version, self._encoded
        held = self.held
        for key, _, block, position in rows:
            if block != last_block or position != last_position:
                last_block, last_position = block, position
                version = version_field(block, position)  # neighbours often share it
            size = len(key)
            held += size + ENTRY_BYTES
            read = (lead[size] + key if size < SHORT else encoded(1, key)) + version
            size = len(read)
            pending.append(lead[size] + read if size < SHORT else encoded(1, read))
            if len(pending) > most:
                self._hash_pending()
                pending = self._pending
                held = 0  # the hashes are few: 50 for each level
        self._version, self._encoded = (last_block, last_position), version
        self.held = held

    def _hash_pending(self) -> None:
        node = sha256(b"".join(self._pending)).digest()
        self._pending = []
        for level in range(len(self._levels)):
            nodes = self._levels[level]
            nodes.append(node)
            if len(nodes) <= self._max_degree:
                return
            node, self._levels[level] = _combined(nodes), []
        self._levels.append([node])

    def write_to(self, info: Any) -> None:
        """Finish, and set the reads of a `RangeQueryInfo`; no results, no reads."""
        if not self._levels:
            if self._pending:
                info.raw_reads.ParseFromString(b"".join(self._pending))
            return
        if self._pending:
            self._hash_pending()
        # Move what is left below the top level up to it.
        for level, nodes in enumerate(self._levels[:-1]):
            if nodes:
                self._levels[level] = []
                self._levels[level + 1].append(_combined(nodes))
        if len(self._levels[-1]) > self._max_degree:
            self._levels.append([_combined(self._levels[-1])])
        summary = info.reads_merkle_hashes
        summary.max_degree = self._max_degree
        summary.max_level = len(self._levels)
        summary.max_level_hashes.extend(self._levels[-1])


def _combined(nodes: list[bytes]) -> bytes:
    return nodes[0] if len(nodes) == 1 else sha256(b"".join(nodes)).digest()


@dataclass(slots=True)
class RangeRecord:
    """What a simulation took from one range query."""

    ns: str
    start: str
    end: str
    exhausted: bool = False
    last: str | None = None
    reads: ReadsSummary = field(default_factory=ReadsSummary)

    @property
    def end_key(self) -> str:
        """The requested end if all was taken, else the last key taken."""
        return self.end if self.exhausted else self.last or ""

    @property
    def taken(self) -> bool:
        """Whether the query is recorded: one without taken results is not."""
        return self.exhausted or self.last is not None


@dataclass(slots=True)
class Record:
    """What a simulation did in the public state of a namespace, or in one collection."""

    reads: dict[str, Version | None] = field(default_factory=dict)
    """By key; None for a key that was absent."""
    writes: dict[str, bytes] = field(default_factory=dict)
    """By key; an empty value deletes."""
    metadata: dict[str, Mapping[str, bytes]] = field(default_factory=dict)
    """By key, all of its metadata after the write."""
    purged: set[str] = field(default_factory=set)
    """Keys of `writes` that are purged, not only deleted."""

    def __bool__(self) -> bool:
        return bool(self.reads or self.writes or self.metadata)

    def size(self, *, private: bool) -> int:
        """Return the size of keys and values in the transaction: hashes if private."""
        if private:
            size = _HASH_BYTES * (len(self.reads) + len(self.metadata))
            size += 2 * _HASH_BYTES * len(self.writes)
        else:
            size = sum(map(_encoded, chain(self.reads, self.metadata, self.writes)))
            size += sum(map(len, self.writes.values()))
        for entries in self.metadata.values():
            size += sum(map(_encoded, entries)) + sum(map(len, entries.values()))
        return size


def _encoded(text: str) -> int:
    """Return the bytes of `text` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def marshal(
    records: Mapping[SpaceName, Record],
    ranges: Iterable[RangeRecord],
    private: Mapping[SpaceName, bytes],
) -> bytes:
    """Return the serialised `TxReadWriteSet`.

    Args:
        records: a record without content is left out.
        ranges: in the order of execution. A range that repeats another one (same
            namespace, start, end key, exhaustion) is left out.
        private: what `private_sets` returned for the records.
    """
    distinct: dict[tuple[str, str, str, bool], RangeRecord] = {}
    for record in ranges:
        mark = (record.ns, record.start, record.end_key, record.exhausted)
        if record.taken:
            distinct.setdefault(mark, record)
    ranges_by_ns: dict[str, list[RangeRecord]] = defaultdict(list)
    for record in distinct.values():
        ranges_by_ns[record.ns].append(record)
    used = sorted(space for space, record in records.items() if record)
    result = []
    for ns in sorted({*(ns for ns, _ in used), *ranges_by_ns}):
        public = records.get((ns, "")) or Record()
        parts = [encoded(1, ns.encode())]
        parts.append(encoded(2, _public_set(public, ranges_by_ns.get(ns, ()))))
        for space in used:
            if space[0] == ns and space[1]:
                data = private.get(space, b"")
                hashed = encoded(1, space[1].encode())
                hashed += encoded(2, _hashed_set(records[space]))
                hashed += encoded(3, sha256(data).digest() if data else b"")
                parts.append(encoded(3, hashed))
        result.append(part(2, b"".join(parts)))
    return b"".join(result)


def _public_set(record: Record, ranges: Iterable[RangeRecord]) -> bytes:
    infos = []
    for found in ranges:
        info = kv_rwset_pb2.RangeQueryInfo(
            start_key=found.start, end_key=found.end_key, itr_exhausted=found.exhausted
        )
        found.reads.write_to(info)
        infos.append(part(2, info.SerializeToString()))
    keys = _reads(record, str.encode), infos, _writes(record), _labels(record)
    return b"".join(chain(*keys))


def _hashed_set(record: Record) -> bytes:
    """Return the serialised `HashedRWSet`, in the order of the keys, not of their hashes."""
    writes = []
    for key in in_order(record.writes):
        value = record.writes[key]
        effect = encoded(3, sha256(value).digest()) if value else _IS_DELETE
        effect += _IS_PURGE if key in record.purged else b""
        writes.append(part(2, encoded(1, _hash(key)) + effect))
    return b"".join(chain(_reads(record, _hash), writes, _labels(record, 3, _hash)))


def _hash(key: str) -> bytes:
    return sha256(key.encode()).digest()


def _reads(record: Record, named: Callable[[str], bytes]) -> Iterator[bytes]:
    """Yield field 1 of a `KVRWSet` or `HashedRWSet` for each key that was read."""
    for key in in_order(record.reads):
        version = record.reads[key]
        seen = b"" if version is None else version_field(*version)
        yield part(1, encoded(1, named(key)) + seen)


def _writes(record: Record) -> Iterator[bytes]:
    """Yield field 3 of a `KVRWSet` for each key that is written."""
    for key in in_order(record.writes):
        value = record.writes[key]
        effect = encoded(3, value) if value else _IS_DELETE
        yield part(3, encoded(1, key.encode()) + effect)


def _labels(
    record: Record, number: int = 4, named: Callable[[str], bytes] = str.encode
) -> Iterator[bytes]:
    """Yield the metadata of keys, as field `number`."""
    for key in in_order(record.metadata):
        entries = record.metadata[key]
        held = (
            part(2, encoded(1, name.encode()) + encoded(2, entries[name]))
            for name in sorted(entries)
        )
        yield part(number, encoded(1, named(key)) + b"".join(held))


def private_sets(records: Mapping[SpaceName, Record]) -> dict[SpaceName, bytes]:
    """Return the serialised private `KVRWSet` of each collection that is written."""
    sets = {}
    for space in sorted(records):
        record = records[space]
        if not space[1] or not (record.writes or record.metadata):
            continue
        bare = Record(metadata={key: {} for key in record.metadata})  # else public
        sets[space] = b"".join(chain(_writes(record), _labels(bare)))
    return sets


def marshal_private(sets: Mapping[SpaceName, bytes]) -> bytes:
    """Return the serialised `TxPvtReadWriteSet` of `private_sets`; b"" for none."""
    result = rwset_pb2.TxPvtReadWriteSet(data_model=rwset_pb2.TxReadWriteSet.KV)
    added: Any = None
    for ns, collection in sorted(sets):
        if added is None or added.namespace != ns:
            added = result.ns_pvt_rwset.add(namespace=ns)
        added.collection_pvt_rwset.add(
            collection_name=collection, rwset=sets[ns, collection]
        )
    return bytes(result.SerializeToString())


def in_order(items: Iterable[T]) -> Iterable[T]:
    """Return `items` sorted; many are sorted in slices, and merged when they are taken.

    Sorting is one step of the interpreter, in which no other thread runs: a million keys
    would hold up the event loop for a second.
    """
    left = iter(items)
    slices = []
    while one := sorted(islice(left, _SLICE)):
        slices.append(one)
    return slices[0] if len(slices) == 1 else merge(*slices)
