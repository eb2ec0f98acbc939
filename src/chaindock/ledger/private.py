"""Private data on the way to a block: kept when endorsed, checked when committed.

What does not have the hash that the transaction holds is treated as missing. Everything
here runs on the writer thread.
Source: docs/fabric/ledger.md#private-data
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final

from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import collection_pb2
from fabric_protos.peer.lifecycle import db_pb2
from google.protobuf.message import DecodeError

from chaindock.ids import LIFECYCLE
from chaindock.ledger.transaction import ParsedTransaction
from chaindock.ledger.versions import Secrets, Versions
from chaindock.telemetry import get_logger

_log = get_logger("ledger")
RETAINED_BLOCKS: Final = 20_000
"""After so many blocks, private data whose transaction never came is removed."""
MOST_KEPT: Final = 16
"""Results of one proposal that are kept; beyond them the oldest is removed.

A block searches all of them, and a client can have a proposal endorsed again and again.
"""
# A key is a transaction id, "/" and the SHA-256 of `sets`; "0" comes after "/".
_OF_TX = "FROM transient WHERE tx_id>=?1 AND tx_id<?1||'0'"
_KEEP = "INSERT OR REPLACE INTO transient VALUES (?, ?, ?)"
_KEPT = f"SELECT sets {_OF_TX} ORDER BY rowid DESC"
_REMOVE = f"DELETE {_OF_TX}"
_REMOVE_OLDEST = (
    f"{_REMOVE} AND rowid NOT IN (SELECT rowid {_OF_TX} ORDER BY rowid DESC LIMIT ?2)"
)
_REMOVE_OLD = "DELETE FROM transient WHERE height<?"


def keep(db: sqlite3.Connection, tx_id: str, height: int, sets: bytes) -> None:
    """Keep a serialised `TxPvtReadWriteSet` until its transaction is committed.

    Of a proposal that was endorsed several times, each result may be submitted.
    """
    db.execute(_KEEP, (f"{tx_id}/{sha256(sets).hexdigest()}", height, sets))
    db.execute(_REMOVE_OLDEST, (tx_id, MOST_KEPT))


def remove_kept(
    db: sqlite3.Connection, txs: Iterable[ParsedTransaction], number: int
) -> None:
    """Remove what was kept for the transactions of block `number`, and what is too old."""
    private = [
        (tx.tx_id,) for tx in txs if any(space.private_hash for space in tx.spaces)
    ]
    db.executemany(_REMOVE, private)
    if number > RETAINED_BLOCKS:
        db.execute(_REMOVE_OLD, (number - RETAINED_BLOCKS,))


def read_kept(
    db: sqlite3.Connection, tx: ParsedTransaction, *, valid: bool
) -> dict[tuple[str, str], Secrets]:
    """Return the private data of a transaction, by namespace and collection.

    `valid`: whether it is missed if it never came.
    """
    expected = {
        (space.ns, space.collection): space.private_hash
        for space in tx.spaces
        if space.private_hash
    }
    if not expected:
        return {}
    found: dict[tuple[str, str], Secrets] = {}
    for (sets,) in db.execute(_KEPT, (tx.tx_id,)):
        found |= _fitting(sets, expected)
        if len(found) == len(expected):
            break
    for space in expected.keys() - found.keys() if valid else ():
        _log.warning(
            "private data is missing", txid=tx.tx_id, ns=space[0], collection=space[1]
        )
    return found


def _fitting(
    sets: bytes, expected: Mapping[tuple[str, str], bytes]
) -> dict[tuple[str, str], Secrets]:
    """Return the private data in `sets` that has the expected hashes."""
    found = {}
    for ns in rwset_pb2.TxPvtReadWriteSet.FromString(sets).ns_pvt_rwset:
        for collection in ns.collection_pvt_rwset:
            space = ns.namespace, collection.collection_name
            if sha256(collection.rwset).digest() == expected.get(space):
                writes = kv_rwset_pb2.KVRWSet.FromString(collection.rwset).writes
                keys = ((one.key.encode(), one.value) for one in writes)
                found[space] = {sha256(one[0]).digest(): one for one in keys}
    return found


def live_blocks(versions: Versions, ns: str, number: int) -> dict[str, int]:
    """Return the block-to-live of the collections of a namespace, where it is not 0.

    That of the definition as committed before block `number` holds.
    """
    package = read_collections(versions.value(LIFECYCLE, collections_key(ns), number))
    found = (one.static_collection_config for one in package.config)
    return {one.name: one.block_to_live for one in found if one.block_to_live}


def collections_key(ns: str) -> bytes:
    """Return the key at which `_lifecycle` has the collections of a namespace."""
    return f"namespaces/fields/{ns}/Collections".encode()


def read_collections(value: bytes | None) -> collection_pb2.CollectionConfigPackage:
    """Return the collections that a value of that key holds; none = it has no other."""
    try:
        return collection_pb2.CollectionConfigPackage.FromString(
            db_pb2.StateData.FromString(value or b"").Bytes
        )
    except DecodeError:
        return collection_pb2.CollectionConfigPackage()
