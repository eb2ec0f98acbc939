"""Which transactions of a block are valid: policies, then reads against the state.

Everything here runs on the writer thread, inside the transaction of a block.
Source: docs/fabric/ledger.md#order-of-checks, docs/fabric/ledger.md#mvcc
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.ledger.blocks import ChangeKey
from chaindock.ledger.rwset import ReadsSummary
from chaindock.ledger.snapshots import after
from chaindock.ledger.transaction import ParsedTransaction, Space
from chaindock.ledger.versions import Versions


class CommittedState:
    """The state before the block that is being validated."""

    def __init__(self, versions: Versions, number: int) -> None:
        self._versions = versions
        self._number = number
        self._labelled: dict[tuple[str, str], bool] = {}

    def labelled(self, ns: str, collection: str) -> bool:
        """Whether any key of a namespace or collection may have metadata."""
        space = ns, collection
        if space not in self._labelled:
            self._labelled[space] = self._versions.labelled(*space)
        return self._labelled[space]

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return a public value."""
        return self._versions.value(ns, key.encode(), self._number)

    def metadata(self, ns: str, collection: str, key: bytes) -> bytes | None:
        """Return the serialised `KVMetadataWrite`, without key, of a key or key hash.

        None = it has no metadata, or does not exist. A `collection` of "" is public.
        """
        row = self._versions.latest(ns, collection, key)
        return row and row[3]


class Validator(Protocol):
    """Checks transactions by what is committed, above all policies.

    Both methods are called on the writer thread, before anything of the block is written.
    """

    def begin(self, number: int) -> None:
        """Begin block `number`; it may be one that was begun before and failed."""

    def check(self, tx: ParsedTransaction, state: CommittedState) -> int:
        """Return a TxValidationCode; NOT_VALIDATED = nothing is wrong.

        Called in the order of the block, for each transaction that had no fault so far.
        """


def conflict(
    versions: Versions, spaces: list[Space], changed: Container[ChangeKey]
) -> int:
    """Return VALID, MVCC_READ_CONFLICT or PHANTOM_READ_CONFLICT: the first found.

    What earlier valid transactions of the block wrote is in `versions` already;
    `changed` also has what they deleted or re-labelled.
    """
    for space in spaces:
        ns, collection = space.ns, space.collection
        for key, version in space.reads:
            if (ns, collection, key) in changed:
                return int(codes.MVCC_READ_CONFLICT)
            if versions.version(ns, collection, key) != version:
                return int(codes.MVCC_READ_CONFLICT)
        for info in space.ranges:
            if _range_changed(versions, ns, info):
                return int(codes.PHANTOM_READ_CONFLICT)
    return int(codes.VALID)


def _range_changed(versions: Versions, ns: str, info: Any) -> bool:
    stop = info.end_key.encode()
    if stop and not info.itr_exhausted:
        stop = after(stop)  # the last key that was taken belongs to the range
    rows = versions.range(ns, info.start_key.encode(), stop)
    if info.HasField("reads_merkle_hashes"):
        recorded = info.reads_merkle_hashes
        summary = ReadsSummary(recorded.max_degree)
        summary.add((key, b"", block, tx) for key, block, tx in rows)
        now = kv_rwset_pb2.RangeQueryInfo()
        summary.write_to(now)
        return bool(now.reads_merkle_hashes != recorded)
    for read in info.raw_reads.kv_reads:
        row = next(rows, None)
        version = (read.version.block_num, read.version.tx_num)
        if row is None or row[0] != read.key.encode() or row[1:] != version:
            return True
    return next(rows, None) is not None
