"""A ledger of a million documents: rich queries and ranges beside the same in bare SQLite.

It takes minutes to fill, so it runs only when it is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from bench.bench_invoke import bare
from bench.bench_ledger import mean_us
from bench.bench_queries import BATCH, FIND, FOUND, filled, queried, ranged, selected
from bench.measure import in_turns, scratch
from bench.rows import Row
from support.ledgers.ledger import ledger_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DOCUMENTS, ROUNDS, CALLS = 1_000_000, 3, 100


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
                    ROUNDS, ranged(ledger, keys), selected(db, keys)
                )
                what = f"range of {keys:,} documents in batches of {BATCH}"
                yield Row(what, value * 1e3, "ms", reference * 1e3, "SELECT", most=3)
            grown = psutil.Process().memory_info().rss - before
            what = "memory that these ranges leave or take"
            yield Row(what, grown / 1e6, "MB", before / 1e6, "before", limit=20)
