"""The end of the chain, checked when a ledger is opened.

Owns:    what is remembered of the last block; the checks against damage.
Not:     a check of the whole chain: opening must stay quick.
Entry:   read_tip
Holds:   a ledger whose last block does not fit its data, its predecessor or the height
         of the state is not opened.
Source:  ledger-gateway.md §3.3
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2
from google.protobuf.message import DecodeError

from chaindock.ledger.blocks import SLOTS, data_hash, header_hash
from chaindock.ledger.database import corrupt, read_meta

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path


@dataclass(frozen=True)
class Tip:
    """The end of the chain."""

    height: int
    hash: bytes
    commit: bytes
    """commit hash; b"" at the genesis block"""
    last_config: int
    """number of the newest block with a config transaction"""


def read_tip(db: sqlite3.Connection, path: Path) -> Tip:
    """Return the end of the chain after checking the last block against its neighbours.

    Raises:
        LedgerCorrupt: names what does not fit.
    """
    height = int(read_meta(db, path, "height"))
    rows = db.execute(
        "SELECT number, hash, block FROM blocks ORDER BY number DESC LIMIT 2"
    ).fetchall()
    if not rows or rows[0][0] != height - 1:
        last = rows[0][0] if rows else "none"
        raise corrupt(
            path, f"the state is at height {height}, the last block is {last}"
        )
    number, stored_hash, data = rows[0]
    previous = rows[1][1] if len(rows) > 1 else b""
    try:
        block = common_pb2.Block.FromString(data)
        slots = block.metadata.metadata
        _check_block(block, number, stored_hash, previous, path)
        signatures = common_pb2.Metadata.FromString(slots[common_pb2.SIGNATURES])
        config = common_pb2.OrdererBlockMetadata.FromString(signatures.value)
        commit = common_pb2.Metadata.FromString(slots[common_pb2.COMMIT_HASH]).value
    except DecodeError as error:
        raise corrupt(path, f"block {number} cannot be decoded ({error})") from error
    return Tip(height, stored_hash, commit, config.last_config.index)


def _check_block(
    block: Any, number: int, stored_hash: bytes, previous: bytes, path: Path
) -> None:
    header, entries = block.header, block.data.data
    slots = block.metadata.metadata
    filter_ = slots[common_pb2.TRANSACTIONS_FILTER] if len(slots) == SLOTS else b""
    checks = (
        (header.number == number, f"has number {header.number}"),
        (header.previous_hash == previous, "does not follow its predecessor"),
        (header.data_hash == data_hash(entries), "has data that does not fit its hash"),
        (header_hash(header) == stored_hash, "does not have the hash it is indexed by"),
        (len(filter_) == len(entries), "has metadata that does not fit its data"),
    )
    for holds, problem in checks:
        if not holds:
            raise corrupt(path, f"block {number} {problem}")
