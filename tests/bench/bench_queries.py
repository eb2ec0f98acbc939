"""What an indexed rich query, and a range, cost above the same in bare SQLite."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from bench.bench_invoke import bare
from bench.bench_ledger import mean_us
from bench.measure import in_turns, scratch
from bench.rows import Row
from chaindock.ids import TxId
from support.ledgers.envelopes import rwset
from support.ledgers.ledger import commit, ledger_at

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable

    from bench.measure import Side
    from chaindock.ledger.ledger import Ledger

DOCUMENTS, FOUND, ROUNDS, CALLS, BATCH = 100_000, 100, 5, 100, 100
INDEX = {
    "META-INF/statedb/couchdb/indexes/owner.json": (
        b'{"index":{"fields":["owner"]},"ddoc":"d","name":"owner"}'
    )
}
FIND = "SELECT key, json FROM d WHERE json_extract(json, '$.owner')=?"
RANGE = "SELECT key, json FROM d ORDER BY key LIMIT ?"


def document(number: int, owners: int) -> bytes:
    return json.dumps(
        {
            "color": "blue",
            "docType": "asset",
            "owner": f"user{number % owners}",
            "size": number % 50,
        },
        separators=(",", ":"),
    ).encode()


async def filled(ledger: Ledger, db: sqlite3.Connection, documents: int) -> None:
    """Put the same documents into both; each owner has `FOUND` of them."""
    await ledger.put_indexes("cc", INDEX)
    db.execute("CREATE TABLE d (key BLOB PRIMARY KEY, json TEXT)")
    db.execute("CREATE INDEX owner ON d (json_extract(json, '$.owner'))")
    for first in range(0, documents, 5000):
        writes = {
            f"a{n:06}": document(n, documents // FOUND)
            for n in range(first, first + 5000)
        }
        await commit(ledger, rwset(writes=writes))
        rows = [(key.encode(), value.decode()) for key, value in writes.items()]
        db.execute("BEGIN")
        db.executemany("INSERT INTO d VALUES (?, ?)", rows)
        db.execute("COMMIT")


def queried(ledger: Ledger, owners: int) -> Callable[[int], object]:
    """Return a query as a chaincode makes it: results serialised and recorded."""

    def query(number: int) -> object:
        with ledger.new_simulator(TxId("t")) as simulator:
            wanted = {"selector": {"owner": f"user{number * 7 % owners}"}}
            results = simulator.open_query("cc", json.dumps(wanted))
            while not results.advance():
                pass
            found = results.take(FOUND + 1)
        if len(found) != FOUND:
            raise AssertionError(f"{len(found)} documents, expected {FOUND}")
        return found

    return query


def ranged(ledger: Ledger, keys: int) -> Side:
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


def selected(db: sqlite3.Connection, keys: int) -> Side:
    """Return the side of SQLite."""

    async def side() -> float:
        began = time.perf_counter()
        cursor = db.execute(RANGE, (keys,))
        while cursor.fetchmany(BATCH):
            pass
        return time.perf_counter() - began

    return side


async def compared(
    ledger: Ledger, db: sqlite3.Connection, documents: int, rounds: int
) -> AsyncIterator[Row]:
    """Fill both, and search them by an index."""
    await filled(ledger, db, documents)
    owners = documents // FOUND
    names = [f"user{number * 7 % owners}" for number in range(CALLS)]
    value, reference = await in_turns(
        rounds,
        mean_us(CALLS, queried(ledger, owners)),
        mean_us(CALLS, lambda n: db.execute(FIND, (names[n],)).fetchall()),
    )
    what = f"rich query of {FOUND} of {documents:,} documents by an index"
    yield Row(what, value, "µs", reference, "SELECT by json_extract", most=3)


async def walked(ledger: Ledger, db: sqlite3.Connection, keys: int, rounds: int) -> Row:
    """Read a range of both."""
    sides = ranged(ledger, keys), selected(db, keys)
    value, reference = await in_turns(rounds, *sides)
    what = f"range of {keys:,} documents in batches of {BATCH}"
    return Row(what, value * 1e3, "ms", reference * 1e3, "SELECT", most=3)


async def run() -> AsyncIterator[Row]:
    """Compare."""
    with scratch() as path:
        async with ledger_at(path / "ledger") as ledger:
            db = bare(path / "bare.db")
            async for row in compared(ledger, db, DOCUMENTS, ROUNDS):
                yield row
            yield await walked(ledger, db, DOCUMENTS, ROUNDS)
