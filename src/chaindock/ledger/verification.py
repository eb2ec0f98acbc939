"""Check the stored blocks and the chain of their hashes, slice by slice.

The watermark is the last block that was found whole: the next start goes on behind it.
Everything here runs on the writer thread.
Source: docs/fabric/ledger.md#block
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaindock.ledger.blocks import check_block
from chaindock.ledger.database import corrupt, read_meta
from chaindock.ledger.packing import read_block

SLICE_BYTES: Final = 512 * 1024
"""Blocks that are checked at once: 2 ms, in which no block is committed."""
_BLOCKS: Final = (
    "SELECT number, hash, block FROM blocks WHERE number>=? ORDER BY number"
)
_HASH: Final = "SELECT hash FROM blocks WHERE number=?"
_READ: Final = "SELECT value FROM meta WHERE name='verified'"
_SAVE: Final = "REPLACE INTO meta VALUES ('verified', ?)"


@dataclass(frozen=True)
class Watermark:
    """Blocks below `number` are whole; `previous` is the hash of the last one, or b""."""

    number: int = 0
    previous: bytes = b""


def read_watermark(db: sqlite3.Connection) -> Watermark:
    """Return the saved watermark; the beginning if there is none that fits."""
    row = db.execute(_READ).fetchone()
    if row is None:
        return Watermark()
    number, _, previous = str(row[0]).partition(":")
    found = db.execute(_HASH, (int(number) - 1,)).fetchone()
    # A ledger that was reverted has other blocks, or fewer.
    if found is None or found[0].hex() != previous:
        return Watermark()
    return Watermark(int(number), found[0])


def save_watermark(db: sqlite3.Connection, mark: Watermark) -> None:
    """Save a watermark above the beginning."""
    if mark.number:
        db.execute(_SAVE, (f"{mark.number}:{mark.previous.hex()}",))


def verify(
    db: sqlite3.Connection, path: Path, mark: Watermark, most_bytes: int = SLICE_BYTES
) -> tuple[Watermark, bool]:
    """Check some blocks from the watermark on.

    Returns: the new watermark, and whether there are more blocks.

    Raises: LedgerCorrupt: names the block.
    """
    size = 0
    for number, block_hash, data in db.execute(_BLOCKS, (mark.number,)):
        if size > most_bytes:
            return mark, True
        if number != mark.number:
            raise corrupt(path, f"block {mark.number} is missing")
        block = read_block(db.execute, path, number, data)
        check_block(block, number, block_hash, mark.previous, path)
        mark = Watermark(number + 1, block_hash)
        size += len(block)
    return mark, False


def verify_all(db: sqlite3.Connection, path: Path) -> int:
    """Check all blocks, and that the state has their height; return it.

    Raises: LedgerCorrupt.
    """
    mark, more = Watermark(), True
    while more:
        mark, more = verify(db, path, mark)
    height = int(read_meta(db, path, "height"))
    if height != mark.number:
        raise corrupt(
            path, f"the state is at height {height}, there are {mark.number} blocks"
        )
    return height
