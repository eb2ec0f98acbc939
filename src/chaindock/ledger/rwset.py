"""Read-write sets: what a simulation saw and wants to write, as Fabric's bytes.

Equal reads and writes give equal bytes, whatever their order was.
Source: docs/fabric/ledger.md#read-write-set
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from hashlib import sha256
from heapq import merge
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.ledger.budget import ENTRY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from chaindock.ledger.blocks import ChangeKey
    from chaindock.ledger.snapshots import Version

T = TypeVar("T", str, "ChangeKey")
_SLICE = 5000
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
        self._pending = kv_rwset_pb2.QueryReads()
        self._levels: list[list[bytes]] = []

    def add(self, key: bytes, block: int, position: int) -> None:
        """Append one result; `key` is UTF-8."""
        read = self._pending.kv_reads.add(key=key)
        read.version.block_num = block
        read.version.tx_num = position
        self.held += len(key) + ENTRY_BYTES
        if len(self._pending.kv_reads) > self._max_degree:
            self._hash_pending()

    def _hash_pending(self) -> None:
        node = sha256(self._pending.SerializeToString()).digest()
        self._pending = kv_rwset_pb2.QueryReads()
        self.held = 0  # the hashes are few: 50 for each level
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
            if self._pending.kv_reads:
                info.raw_reads.CopyFrom(self._pending)
            return
        if self._pending.kv_reads:
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


def marshal(
    reads: Mapping[str, Mapping[str, Version | None]],
    writes: Mapping[str, Mapping[str, bytes]],
    ranges: Iterable[RangeRecord],
) -> bytes:
    """Return the serialised `TxReadWriteSet`.

    Args:
        reads: by namespace and key; None for a key that was absent.
        writes: by namespace and key; an empty value deletes.
        ranges: in the order of execution. A range that repeats another one (same
            namespace, start, end key, exhaustion) is left out.
    """
    distinct: dict[tuple[str, str, str, bool], RangeRecord] = {}
    for record in ranges:
        mark = (record.ns, record.start, record.end_key, record.exhausted)
        # A query without taken results is not recorded.
        if record.exhausted or record.last is not None:
            distinct.setdefault(mark, record)
    ranges_by_ns: dict[str, list[RangeRecord]] = defaultdict(list)
    for record in distinct.values():
        ranges_by_ns[record.ns].append(record)
    result = rwset_pb2.TxReadWriteSet(data_model=rwset_pb2.TxReadWriteSet.KV)
    for ns in sorted({*reads, *writes, *ranges_by_ns}):
        kv = kv_rwset_pb2.KVRWSet()
        ns_reads = reads.get(ns, {})
        for key in in_order(ns_reads):
            read = kv.reads.add(key=key)
            version = ns_reads[key]
            if version is not None:
                read.version.block_num, read.version.tx_num = version
        for record in ranges_by_ns[ns]:
            record.reads.write_to(
                kv.range_queries_info.add(
                    start_key=record.start,
                    end_key=record.end_key,
                    itr_exhausted=record.exhausted,
                )
            )
        ns_writes = writes.get(ns, {})
        for key in in_order(ns_writes):
            value = ns_writes[key]
            kv.writes.add(key=key, is_delete=not value, value=value)
        result.ns_rwset.add(namespace=ns, rwset=kv.SerializeToString())
    data: bytes = result.SerializeToString()
    return data


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
