"""What the valid transactions of a block do to the state, and how it is made anew.

Everything here runs on the writer thread, inside one transaction of the database.
Source: docs/fabric/ledger.md#mvcc, docs/fabric/ledger.md#private-data
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from fabric_protos.common.common_pb2 import TRANSACTIONS_FILTER
from fabric_protos.peer import transaction_pb2 as codes

from chaindock.ids import ChannelId
from chaindock.ledger.blocks import Change, ChangeKey, check_block
from chaindock.ledger.database import corrupt, insert
from chaindock.ledger.packing import read_block, store_block
from chaindock.ledger.private import live_blocks
from chaindock.ledger.transaction import ParsedTransaction, packed_id, parse_transaction
from chaindock.ledger.versions import Secrets, Versions

_FORMER = "SELECT number, hash, block FROM former.blocks ORDER BY number"


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
        secrets: Mapping[tuple[str, str], Secrets],
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
