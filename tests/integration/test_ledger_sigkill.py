"""What was acknowledged survives a kill at any instant."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

from chaindock.ids import TxId
from chaindock.ledger.ledger import TxLocation
from support.faults.matrix import ROUNDS
from support.ledgers.ledger import check_chain, ledger_at

TESTS = Path(__file__).parents[1]
WRITER = TESTS / "support" / "ledgers" / "writer.py"
KILLS = 20 if ROUNDS > 1 else 8
SEED = 20_241
Acknowledged = dict[TxId, TxLocation]


async def test_nothing_acknowledged_is_lost_when_the_writer_is_killed(
    tmp_path: Path,
) -> None:
    rng = random.Random(SEED)
    acknowledged: Acknowledged = {}
    for number in range(KILLS):
        # Some rounds end while the ledger is still being opened, or made.
        early = number % 5 == 0
        acknowledged |= await killed_writer(tmp_path, rng, early=early)
        # In the others the next writer has to recover what the last one left.
        if number % 2:
            async with ledger_at(tmp_path) as ledger:
                check_chain(ledger, acknowledged)
    assert len(acknowledged) > KILLS
    async with ledger_at(tmp_path) as ledger:
        check_chain(ledger, acknowledged)


async def killed_writer(
    folder: Path, rng: random.Random, *, early: bool
) -> Acknowledged:
    """Run the writer, kill it, return what it had acknowledged."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(WRITER),
        str(folder),
        str(rng.randrange(1 << 30)),
        stdout=asyncio.subprocess.PIPE,
        env={"PYTHONPATH": str(TESTS)},
    )
    assert process.stdout is not None
    try:
        if early:
            await asyncio.sleep(rng.uniform(0.2, 0.6))
        else:
            assert await process.stdout.readline() == b"ready\n"
            await asyncio.sleep(rng.uniform(0, 0.3))
    finally:
        process.kill()
    output = await process.stdout.read()
    assert await process.wait() < 0  # it was the kill that ended it
    acknowledged: Acknowledged = {}
    for line in output.splitlines(keepends=True):
        if line.endswith(b"\n") and line != b"ready\n":
            block, index, code, tx_id = line.decode().split()
            acknowledged[TxId(tx_id)] = TxLocation(int(block), int(index), int(code))
    return acknowledged
