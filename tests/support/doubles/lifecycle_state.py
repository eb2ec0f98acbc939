"""The state of `_lifecycle` as a simulation sees it, with what the simulation records.

Reads see what was committed; `commit` makes the writes the state of the next block.
"""

from hashlib import sha256
from typing import Any

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2


class Rows(list[bytes]):
    """Rows of a range."""

    def take(self, n: Any) -> Any:
        taken, self[:] = self[:n], self[n:]
        return taken

    def close(self) -> None:
        self.closed = True


class LifecycleState:
    """`public` and `private` hold (value, block); `private` is one collection."""

    def __init__(self, block: int = 0) -> None:
        self.block = block
        self.public: dict[Any, Any] = {}
        self.private: dict[Any, Any] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what was recorded."""
        self.reads: dict[Any, Any] = {}
        self.writes: dict[Any, Any] = {}
        self.hashed_reads: dict[Any, Any] = {}
        self.hashed_writes: dict[Any, Any] = {}

    def commit(self) -> None:
        """Make the writes committed in a block of their own."""
        self.block += 1
        for held, writes in (
            (self.public, self.writes),
            (self.private, self.hashed_writes),
        ):
            held.update({key: (value, self.block) for key, value in writes.items()})
        self.begin()

    def get_state(self, ns: Any, key: Any) -> Any:
        value, block = self.public.get((ns, key), (None, None))
        self.reads[ns, key] = block
        return value

    def put_state(self, ns: Any, key: Any, value: Any) -> None:
        self.writes[ns, key] = value

    def get_private(self, ns: Any, collection: Any, key: Any) -> Any:
        value, block = self.private.get((ns, collection, key), (None, None))
        self.hashed_reads[ns, collection, key] = block
        return value

    def get_private_hash(self, ns: Any, collection: Any, key: Any) -> Any:
        value = self.get_private(ns, collection, key)
        return None if value is None else sha256(value).digest()

    def put_private(self, ns: Any, collection: Any, key: Any, value: Any) -> None:
        self.hashed_writes[ns, collection, key] = value

    def open_range(self, ns: Any, start: Any, end: Any) -> Any:
        found = sorted(key for space, key in self.public if space == ns)
        rows = [KV(key=key) for key in found if start <= key < end]
        return Rows(row.SerializeToString() for row in rows)

    def open_private_range(self, ns: Any, collection: Any, start: Any, end: Any) -> Any:
        spaces = {key[:2] for key in self.private}
        found = sorted(
            key for *space, key in self.private if (ns, collection) in spaces
        )
        rows = [KV(key=key) for key in found if start <= key < end]
        return Rows(row.SerializeToString() for row in rows)

    def written(self) -> list[tuple[str, bytes]]:
        """Return collection ("" = public) and key, or its hash, of each write."""
        public = [("", key.encode()) for _, key in self.writes]
        return public + [
            (collection, sha256(key.encode()).digest())
            for _, collection, key in self.hashed_writes
        ]

    def recorded(self) -> Any:
        """Return reads, writes, hashed reads and hashed writes, as `recorded_in`."""
        return (
            self.reads,
            self.writes,
            {
                (ns, collection, sha256(key.encode()).digest()): block
                for (ns, collection, key), block in self.hashed_reads.items()
            },
            {
                (ns, collection, sha256(key.encode()).digest()): sha256(value).digest()
                for (ns, collection, key), value in self.hashed_writes.items()
            },
        )


def recorded_in(results: bytes) -> Any:
    """Return what a serialised TxReadWriteSet holds, but its ranges."""
    reads, writes, hashed_reads, hashed_writes = {}, {}, {}, {}

    def block(read: Any) -> Any:
        return read.version.block_num if read.HasField("version") else None

    for space in rwset_pb2.TxReadWriteSet.FromString(results).ns_rwset:
        ns = space.namespace
        kv = kv_rwset_pb2.KVRWSet.FromString(space.rwset)
        reads.update({(ns, read.key): block(read) for read in kv.reads})
        writes.update({(ns, write.key): write.value for write in kv.writes})
        for part in space.collection_hashed_rwset:
            name = part.collection_name
            hashed = kv_rwset_pb2.HashedRWSet.FromString(part.hashed_rwset)
            for read in hashed.hashed_reads:
                hashed_reads[ns, name, read.key_hash] = block(read)
            for write in hashed.hashed_writes:
                hashed_writes[ns, name, write.key_hash] = write.value_hash
    return reads, writes, hashed_reads, hashed_writes
