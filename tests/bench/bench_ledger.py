"""How much the ledger costs above bare SQLite, as ratios measured in one run.

Run as `python tests/bench/bench_ledger.py`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaindock.ids import TxId
from support.envelopes import rwset, transaction
from support.ledgers import VALID, commit, ledger_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ledger import Ledger

KEYS = 10_000
READS = 20_000
BLOCKS = 200
VALUE = b"v" * 200


def bare(path: Path) -> sqlite3.Connection:
    """Return a database with the same settings as the ledger's."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


def microseconds(count: int, work: Callable[[int], object]) -> float:
    """Return the mean of `count` calls."""
    start = time.perf_counter()
    for number in range(count):
        work(number)
    return (time.perf_counter() - start) / count * 1e6


def show(name: str, ours: float, theirs: float | None = None) -> None:
    """Print one line."""
    ratio = f"   bare {theirs:9.1f} µs   ratio {ours / theirs:5.2f}" if theirs else ""
    print(f"{name:34} {ours:9.1f} µs{ratio}")


async def reads(ledger: Ledger, path: Path) -> None:
    """Point reads and ranges."""
    db = bare(path / "bare-reads.db")
    db.execute(
        "CREATE TABLE s (ns TEXT, key BLOB, value BLOB, PRIMARY KEY (ns, key)) "
        "WITHOUT ROWID"
    )
    for first in range(0, KEYS, 1000):
        keys = [f"k{n:06}" for n in range(first, first + 1000)]
        await commit(ledger, rwset(writes=dict.fromkeys(keys, VALUE)))
        db.executemany(
            "INSERT INTO s VALUES ('cc', ?, ?)", [(k.encode(), VALUE) for k in keys]
        )
    select = "SELECT value FROM s WHERE ns=? AND key=?"
    names = [f"k{n * 7919 % KEYS:06}" for n in range(READS)]
    raw = [name.encode() for name in names]
    db.execute("BEGIN")
    with ledger.new_simulator(TxId("t")) as simulator:
        theirs = microseconds(
            READS, lambda n: db.execute(select, ("cc", raw[n])).fetchone()
        )
        ours = microseconds(READS, lambda n: simulator.get_state("cc", names[n]))
        show("point read", ours, theirs)
        theirs = microseconds(
            200,
            lambda n: db.execute(
                "SELECT key, value FROM s WHERE ns=? AND key>=? ORDER BY key LIMIT 101",
                ("cc", raw[n]),
            ).fetchall(),
        )
        ours = microseconds(
            200, lambda n: simulator.open_range("cc", names[n], "").take(101)
        )
        show("range of 101", ours, theirs)
    db.close()

    def small(number: int) -> None:
        with ledger.new_simulator(TxId("t")) as simulator:
            simulator.get_state("cc", names[number])
            simulator.put_state("cc", names[number], VALUE)
            simulator.results()

    show("begin, get, put, results, done", microseconds(5000, small))
    with ledger.new_simulator(TxId("t")):
        show("the same beside another one", microseconds(5000, small))


async def commits(ledger: Ledger, path: Path, size: int) -> None:
    """Blocks of `size` transactions, each of one read and one write."""
    db = bare(path / f"bare-commits-{size}.db")
    db.execute("CREATE TABLE b (number INTEGER PRIMARY KEY, block BLOB)")
    blocks = [
        [
            (
                transaction(rwset({f"n{n}-{i}": None}, {f"n{n}-{i}": VALUE})).envelope,
                VALID,
            )
            for i in range(size)
        ]
        for n in range(BLOCKS)
    ]
    datas = [b"".join(envelope for envelope, _ in block) for block in blocks]
    theirs = microseconds(
        BLOCKS, lambda n: db.execute("INSERT INTO b (block) VALUES (?)", (datas[n],))
    )
    db.close()
    start = time.perf_counter()
    for block in blocks:
        committed = await ledger.commit(block)
        assert all(tx.code in {VALID, 11} for tx in committed.transactions)
    ours = (time.perf_counter() - start) / BLOCKS * 1e6
    show(f"block of {size} vs insert + fsync", ours, theirs)
    print(f"{'':34} {size / ours * 1e6:9.0f} transactions/s")


async def main() -> None:
    """Run everything in a temporary directory of the working directory's disk."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder)
        async with ledger_at(path) as ledger:
            await reads(ledger, path)
        for size in (1, 10, 100):
            async with ledger_at(path / str(size)) as ledger:
                await commits(ledger, path, size)


if __name__ == "__main__":
    asyncio.run(main())
