"""What was acknowledged survives a loss of power: writes since then are torn.

A disk keeps what was flushed. Of what was written later each sector may be old or new,
and a file that grew may have any length between.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from chaindock.ledger.ledger import TxLocation
from support.faults.matrix import ROUNDS
from support.ledgers.envelopes import transaction
from support.ledgers.ledger import VALID, check_chain, judged, ledger_at
from support.ledgers.writer import increment

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.ids import TxId
    from chaindock.ledger.ledger import Ledger

    Files = tuple[bytes, bytes]
    """The database and its write-ahead log."""

SECTOR = 512
COMMITS = 300 if ROUNDS > 1 else 110
EACH = 2
"""Torn copies of each commit; from about the 80th on, commits reach the database."""
SEED = 4711


def files(folder: Path) -> Files:
    database = folder / "ledger.db"
    return database.read_bytes(), database.with_name("ledger.db-wal").read_bytes()


def torn(rng: random.Random, old: bytes, new: bytes) -> bytes:
    """Return a mixture of two contents of a file, sector by sector."""
    size = rng.randint(min(len(old), len(new)), len(new))
    mixed = bytearray(new[:size])
    for start in range(0, size, SECTOR):
        was = old[start : start + SECTOR].ljust(SECTOR, b"\0")
        if mixed[start : start + SECTOR] != was and rng.random() < 0.3:
            end = min(start + SECTOR, size)
            mixed[start:end] = was[: end - start]
    return bytes(mixed)


def lost_power(rng: random.Random, before: Files, after: Files) -> Files:
    """Return what a disk may hold when the power fails between two commits."""
    if before[0] == after[0]:
        return after[0], torn(rng, before[1], after[1])
    # The log is flushed before the database takes over what is in it.
    return torn(rng, before[0], after[0]), after[1]


async def commit(
    ledger: Ledger, rng: random.Random, acknowledged: dict[TxId, TxLocation]
) -> None:
    txs = [transaction(increment(ledger, rng)) for _ in range(rng.randint(1, 3))]
    block = await ledger.commit(judged([(tx.envelope, VALID) for tx in txs]))
    for index, (tx, code) in enumerate(zip(txs, block.codes, strict=True)):
        acknowledged[tx.tx_id] = TxLocation(block.number, index, code)


async def test_nothing_acknowledged_is_lost_when_the_power_fails(
    tmp_path: Path,
) -> None:
    rng = random.Random(SEED)
    acknowledged: dict[TxId, TxLocation] = {}
    heights, taken_over = set(), 0
    (tmp_path / "torn").mkdir()
    async with ledger_at(tmp_path) as ledger:
        before = files(tmp_path)
        for _ in range(COMMITS):
            flushed = dict(acknowledged)
            await commit(ledger, rng, acknowledged)
            after = files(tmp_path)
            taken_over += before[0] != after[0]
            for _ in range(EACH):
                found = lost_power(rng, before, after)
                heights.add(
                    ledger.height - await height_of(tmp_path / "torn", found, flushed)
                )
            before = after
    assert heights == {0, 1}
    assert taken_over > 2


async def height_of(folder: Path, found: Files, flushed: dict[TxId, TxLocation]) -> int:
    """Open a ledger of these files, which has all that was flushed; return its height."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in zip(("ledger.db", "ledger.db-wal"), found, strict=True):
        (folder / name).write_bytes(content)
    async with ledger_at(folder) as ledger:
        check_chain(ledger, flushed)
        return ledger.height
