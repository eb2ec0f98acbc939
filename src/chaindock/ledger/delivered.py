"""The private data of a block, put together again as a peer delivers it with the block.

What was purged or has expired is left out, and so is a collection of which the node lacks
a value.
Source: docs/fabric/deliver.md#private-data
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage

from chaindock.ids import LIFECYCLE
from chaindock.ledger.effects import collections_key, read_collections
from chaindock.ledger.snapshots import Reader, Snapshot
from chaindock.ledger.transaction import Space, parse_transaction
from chaindock.ledger.versions import PURGED

Held = dict[bytes, tuple[bytes | None, bytes | None, int]]
"""name, value and `labelled` of the row, by the SHA-256 of the name"""

# What is 3 has expired.
_ROWS = (
    "SELECT tx, ns, key, name, plain, labelled FROM private "
    "WHERE block=? AND labelled<3"
)


@dataclass(frozen=True, slots=True)
class PrivateSet:
    """What the transaction at `position` wrote in a collection."""

    position: int
    ns: str
    collection: str
    rwset: bytes
    """A serialised `KVRWSet`."""
    package: CollectionConfigPackage
    """The explicit collections of the namespace, as of the block before."""


def private_of(reader: Reader, number: int, block: bytes) -> list[PrivateSet]:
    """Return the private data of a block, sorted by transaction, namespace, collection."""
    rows: dict[int, dict[int, Held]] = defaultdict(lambda: defaultdict(dict))
    for position, ns, key, *held in reader.execute(_ROWS, (number,)):
        rows[position][ns][key] = tuple(held)
    if not rows:
        return []
    envelopes = common_pb2.Block.FromString(block).data.data
    before = Snapshot(reader, number)
    packages: dict[str, CollectionConfigPackage] = {}
    found = []
    for position in sorted(rows):
        for space in parse_transaction(envelopes[position], None).spaces:
            ns = reader.namespace(space.ns, space.collection)
            if ns is None or not (space.collection and space.private_hash):
                continue
            held = rows[position]  # below 0: of a transaction that is not valid
            rwset = _assemble(space, held[ns] or held[-ns])
            if rwset is None:
                continue
            if space.ns not in packages:
                row = before.get(LIFECYCLE, collections_key(space.ns))
                packages[space.ns] = read_collections(row and row[0])
            at = (position, space.ns, space.collection)
            found.append(PrivateSet(*at, rwset, packages[space.ns]))
    return found


def _assemble(space: Space, held: Held) -> bytes | None:
    """Return the `KVRWSet` of a collection; None = the node lacks a part of it."""
    rwset = kv_rwset_pb2.KVRWSet()
    writes = {}
    for key, value in dict(space.writes).items():
        if key in space.purged:
            continue
        name, plain, labelled = held.get(key, (None, None, 0))
        if name is not None:
            writes[name] = kv_rwset_pb2.KVWrite(
                key=name.decode(), is_delete=value is None, value=plain or b""
            )
        elif labelled != PURGED:
            return None
    rwset.writes.extend(writes[name] for name in sorted(writes))
    labels = (held.get(key, (None,))[0] for key, _ in space.metadata)
    for name in sorted(name for name in labels if name is not None):
        rwset.metadata_writes.add(key=name.decode())
    return bytes(rwset.SerializeToString())
