"""A ledger of a million documents: rich queries and ranges beside the same in bare SQLite.

It takes minutes to fill, so it runs only when it is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from bench.bench_invoke import bare
from bench.bench_queries import compared, walked
from bench.measure import scratch
from bench.rows import Row
from support.ledgers.ledger import ledger_at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DOCUMENTS, ROUNDS = 1_000_000, 3


async def run() -> AsyncIterator[Row]:
    """Compare."""
    with scratch() as path:
        async with ledger_at(path / "ledger") as ledger:
            db = bare(path / "bare.db")
            async for row in compared(ledger, db, DOCUMENTS, ROUNDS):
                yield row
            before = psutil.Process().memory_info().rss
            for keys in (100_000, DOCUMENTS):
                yield await walked(ledger, db, keys, ROUNDS)
            grown = psutil.Process().memory_info().rss - before
            what = "memory that these ranges leave or take"
            yield Row(what, grown / 1e6, "MB", before / 1e6, "before", limit=20)
