"""Whether what a transaction read is unchanged when it commits.

Source: docs/fabric/ledger.md#mvcc
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.ledger.rwset import ReadsSummary
from chaindock.ledger.snapshots import after, read_version, walk_state

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Container

    from chaindock.ledger.blocks import ChangeKey
    from chaindock.ledger.transaction import Space

_VALID: int = codes.VALID
_MVCC_READ_CONFLICT: int = codes.MVCC_READ_CONFLICT
_PHANTOM_READ_CONFLICT: int = codes.PHANTOM_READ_CONFLICT


def conflict(
    db: sqlite3.Connection, spaces: list[Space], changed: Container[ChangeKey]
) -> int:
    """Return VALID, MVCC_READ_CONFLICT or PHANTOM_READ_CONFLICT; the first one found.

    Args:
        db: the connection that holds the block's open transaction, and so sees what
            earlier valid transactions of the block wrote.
        spaces: what the transaction read, in the order of checking.
        changed: what earlier transactions of the block wrote, deleted or re-labelled.
    """
    for space in spaces:
        for key, version in space.reads:
            if (space.ns, space.collection, key) in changed:
                return _MVCC_READ_CONFLICT
            if read_version(db, space.table, key) != version:
                return _MVCC_READ_CONFLICT
        for info in space.ranges:
            if _range_changed(db, space.table, info):
                return _PHANTOM_READ_CONFLICT
    return _VALID


def _range_changed(db: sqlite3.Connection, ns: str, info: Any) -> bool:
    stop = info.end_key.encode() or None
    if stop is not None and not info.itr_exhausted:
        stop = after(stop)  # the last key that was taken belongs to the range
    rows = walk_state(db, ns, info.start_key.encode(), stop)
    if info.HasField("reads_merkle_hashes"):
        recorded = info.reads_merkle_hashes
        summary = ReadsSummary(recorded.max_degree)
        for key, _value, block, position in rows:
            summary.add(key.decode(), block, position)
        now = kv_rwset_pb2.RangeQueryInfo()
        summary.write_to(now)
        return bool(now.reads_merkle_hashes != recorded)
    for read in info.raw_reads.kv_reads:
        row = next(rows, None)
        version = (read.version.block_num, read.version.tx_num)
        if row is None or row[0] != read.key.encode() or row[2:] != version:
            return True
    return next(rows, None) is not None
