"""A program that commits until it is killed: prints each transaction id once durable.

Run as `python writer.py DIRECTORY SEED`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.ids import TxId
from support.ledgers.envelopes import transaction
from support.ledgers.ledger import VALID, judged, ledger_at

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger


def increment(ledger: Ledger, rng: random.Random) -> bytes:
    """Simulate a transaction that counts up one key and sometimes deletes another."""
    with ledger.new_simulator(TxId("t")) as simulator:
        key = f"k{rng.randrange(20):02}"
        old = simulator.get_state("cc", key) or b"0"
        padding = b" " * rng.choice([0, 0, 5000, 60_000])
        simulator.put_state("cc", key, b"%d" % (int(old) + 1) + padding)
        if rng.random() < 0.2:
            simulator.put_state("cc", f"k{rng.randrange(20):02}", b"")
        if rng.random() < 0.2:
            simulator.open_range("cc", "k05", "k15").take(100)
        return simulator.results()


async def main(folder: Path, rng: random.Random) -> None:
    """Commit blocks of one to five transactions for ever."""
    async with ledger_at(folder) as ledger:
        print("ready", flush=True)
        while True:
            txs = [
                transaction(increment(ledger, rng)) for _ in range(rng.randint(1, 5))
            ]
            block = await ledger.commit(judged([(tx.envelope, VALID) for tx in txs]))
            for index, (tx, code) in enumerate(zip(txs, block.codes, strict=True)):
                print(block.number, index, code, tx.tx_id, flush=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), random.Random(int(sys.argv[2]))))
