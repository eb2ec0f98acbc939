"""What a block does to the state, also to private data, and how the state is made anew.

Private data is kept when endorsed, and checked when committed: what does not have the hash
that the transaction holds is treated as missing. Everything here runs on the writer thread,
inside one transaction of the database.
Source: docs/fabric/ledger.md#mvcc, docs/fabric/ledger.md#private-data
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from fabric_protos.common.common_pb2 import TRANSACTIONS_FILTER
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import collection_pb2
from fabric_protos.peer import transaction_pb2 as codes
from fabric_protos.peer.lifecycle import db_pb2
from google.protobuf.message import DecodeError

from chaindock.ids import LIFECYCLE, ChannelId, SpaceName
from chaindock.ledger.blocks import Change, ChangeKey, check_block
from chaindock.ledger.database import corrupt, insert
from chaindock.ledger.packing import read_block, store_block
from chaindock.ledger.transaction import ParsedTransaction, packed_id, parse_transaction
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
_FORMER = "SELECT number, hash, block FROM former.blocks ORDER BY number"


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
) -> dict[SpaceName, Secrets]:
    """Return private data of a transaction by space; `valid`: it is missed if absent."""
    expected = {
        (space.ns, space.collection): space.private_hash
        for space in tx.spaces
        if space.private_hash
    }
    if not expected:
        return {}
    found: dict[SpaceName, Secrets] = {}
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
    sets: bytes, expected: Mapping[SpaceName, bytes]
) -> dict[SpaceName, Secrets]:
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


class Effects:
    """Writes the effects of block `number`, which has the transactions `txs`.

    `changes` is what the block has changed so far; `removed`: whether private data was
    purged or has expired.
    """

    def __init__(
        self, versions: Versions, number: int, txs: Sequence[ParsedTransaction]
    ) -> None:
        self.changes: dict[ChangeKey, Change] = {}
        self.removed = False
        self._versions = versions
        self._number = number
        self._live_blocks: dict[str, dict[str, int]] = {}
        versions.begin(number, (space for tx in txs for space in tx.spaces))

    def write(
        self,
        tx: ParsedTransaction,
        position: int,
        secrets: Mapping[SpaceName, Secrets],
        *,
        valid: bool = True,
    ) -> None:
        """Write what a transaction wrote; `secrets` is its private data, if known.

        Of one that is not valid that alone is kept: a peer delivers it with the block.
        """
        at = (self._number, position)
        for space in tx.spaces:
            if not (space.writes or space.metadata):
                continue
            held = secrets.get((space.ns, space.collection), {})
            if not (valid or held):
                continue
            if not space.collection:
                self._versions.write(space, at, self.changes)
                continue
            if space.ns not in self._live_blocks:
                found = live_blocks(self._versions, space.ns, self._number)
                self._live_blocks[space.ns] = found
            live = self._live_blocks[space.ns].get(space.collection, 0)
            changes = self.changes if valid else None
            self._versions.write_private(space, at, changes, held, live)
            self.removed = self.removed or (valid and bool(space.purged))

    def finish(self) -> None:
        """Write what is left, and remove the private data that is too old now."""
        self._versions.finish()
        self.removed = self._versions.expire(self._number) or self.removed


def index(
    db: sqlite3.Connection,
    number: int,
    txs: Sequence[ParsedTransaction],
    filter_: bytes,
) -> None:
    """Write where the transactions of a block are and what became of them."""
    rows = [
        (number, position, packed_id(tx.tx_id), code, tx.timestamp.SerializeToString())
        for position, (tx, code) in enumerate(zip(txs, filter_, strict=True))
    ]
    insert(db, "transactions", rows)


def rebuild(db: sqlite3.Connection, path: Path, channel: ChannelId) -> None:
    """Fill the empty tables with the blocks of the attached database `former`.

    Private data stands in no block: of that, only hashes come back.

    Raises: LedgerCorrupt: a block cannot be read or does not follow the one before.
    """
    versions = Versions(db)
    previous = b""
    stored = db.execute(_FORMER)
    for expected, (number, block_hash, data) in enumerate(stored):
        if number != expected:
            raise corrupt(path, f"block {expected} is missing")
        data = read_block(db.execute, path, number, data, "former")  # noqa: PLW2901
        block = check_block(data, number, block_hash, previous, path)
        filter_ = block.metadata.metadata[TRANSACTIONS_FILTER]
        txs = [parse_transaction(envelope, channel) for envelope in block.data.data]
        effects = Effects(versions, number, txs)
        for position, (tx, code) in enumerate(zip(txs, filter_, strict=True)):
            if code == codes.VALID:
                effects.write(tx, position, {})
        effects.finish()
        store_block(db, number, block_hash, data)
        index(db, number, txs, filter_)
        previous = block_hash
    if not previous:
        raise corrupt(path, "it has no block")
