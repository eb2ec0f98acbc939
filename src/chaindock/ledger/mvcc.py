"""Whether what a transaction read is unchanged when it commits.

Source: docs/fabric/ledger.md#mvcc
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.ledger.rwset import ReadsSummary
from chaindock.ledger.snapshots import after

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Container, Iterator

    from chaindock.ledger.blocks import ChangeKey
    from chaindock.ledger.transaction import Space

_VERSION = "SELECT block, tx FROM state WHERE ns=? AND key=?"
_VERSIONS = (
    "SELECT key, block, tx FROM state WHERE ns=? AND key>=? AND key<? "
    "ORDER BY key LIMIT ?"
)
_ABOVE_ALL = b"\xff"  # no UTF-8 text begins with it
_SLICE = 100
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
            if db.execute(_VERSION, (space.table, key)).fetchone() != version:
                return _MVCC_READ_CONFLICT
        for info in space.ranges:
            if _range_changed(db, space.table, info):
                return _PHANTOM_READ_CONFLICT
    return _VALID


def _range_changed(db: sqlite3.Connection, ns: str, info: Any) -> bool:
    stop = info.end_key.encode()
    if stop and not info.itr_exhausted:
        stop = after(stop)  # the last key that was taken belongs to the range
    rows = _versions(db, ns, info.start_key.encode(), stop or _ABOVE_ALL)
    if info.HasField("reads_merkle_hashes"):
        recorded = info.reads_merkle_hashes
        summary = ReadsSummary(recorded.max_degree)
        for key, block, position in rows:
            summary.add(key.decode(), block, position)
        now = kv_rwset_pb2.RangeQueryInfo()
        summary.write_to(now)
        return bool(now.reads_merkle_hashes != recorded)
    for read in info.raw_reads.kv_reads:
        row = next(rows, None)
        version = (read.version.block_num, read.version.tx_num)
        if row is None or row[0] != read.key.encode() or row[1:] != version:
            return True
    return next(rows, None) is not None


def _versions(
    db: sqlite3.Connection, ns: str, start: bytes, stop: bytes
) -> Iterator[tuple[bytes, int, int]]:
    """Yield (key, block, position) of all keys in `[start, stop)`, read in slices."""
    while True:
        rows = db.execute(_VERSIONS, (ns, start, stop, _SLICE)).fetchall()
        yield from rows
        if len(rows) < _SLICE:
            return
        start = after(rows[-1][0])
