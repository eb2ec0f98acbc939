"""A ledger of a million documents: rich queries and ranges beside the same in bare SQLite.

It takes minutes to fill, so it runs only when it is named.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

from bench.bench_invoke import bare
from bench.bench_ledger import mean_us
from bench.bench_queries import FIND, FOUND, filled, queried
from bench.measure import in_turns, scratch
from bench.rows import Row
from chaindock.ids import TxId
from support.ledgers.ledger import ledger_at

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator

    from bench.measure import Side
    from chaindock.ledger.ledger import Ledger

DOCUMENTS, BATCH, ROUNDS, CALLS = 1_000_000, 100, 3, 100
_RANGE = "SELECT key, json FROM d ORDER BY key LIMIT ?"


def ours(ledger: Ledger, keys: int) -> Side:
    """Return a side that reads a range in batches, as for a chaincode; in seconds."""

    async def side() -> float:
        began, found = time.perf_counter(), 0
        with ledger.new_simulator(TxId("t")) as simulator:
            rows = simulator.open_range(
                "cc", "a", f"a{keys:06}" if keys < 10**6 else "b"
            )
            while taken := rows.take(BATCH):
                found += len(taken)
        if found != keys:
            raise AssertionError(f"{found} keys, expected {keys}")
        return time.perf_counter() - began

    return side


def theirs(db: sqlite3.Connection, keys: int) -> Side:
    """Return the side of SQLite."""

    async def side() -> float:
        began = time.perf_counter()
        cursor = db.execute(_RANGE, (keys,))
        while cursor.fetchmany(BATCH):
            pass
        return time.perf_counter() - began

    return side


async def run() -> AsyncIterator[Row]:
    """Compare."""
    owners = DOCUMENTS // FOUND
    with scratch() as path:
        async with ledger_at(path / "ledger") as ledger:
            db = bare(path / "bare.db")
            await filled(ledger, db, DOCUMENTS)
            names = [f"user{number * 7 % owners}" for number in range(CALLS)]
            value, reference = await in_turns(
                ROUNDS,
                mean_us(CALLS, queried(ledger, owners)),
                mean_us(CALLS, lambda n: db.execute(FIND, (names[n],)).fetchall()),
            )
            what = f"rich query of {FOUND} of {DOCUMENTS:,} documents by an index"
            yield Row(what, value, "µs", reference, "SELECT by json_extract", most=3)
            before = psutil.Process().memory_info().rss
            for keys in (100_000, DOCUMENTS):
                value, reference = await in_turns(
                    ROUNDS, ours(ledger, keys), theirs(db, keys)
                )
                what = f"range of {keys:,} documents in batches of {BATCH}"
                yield Row(what, value * 1e3, "ms", reference * 1e3, "SELECT", most=3)
            grown = psutil.Process().memory_info().rss - before
            what = "memory that these ranges leave or take"
            yield Row(what, grown / 1e6, "MB", before / 1e6, "before", limit=20)
