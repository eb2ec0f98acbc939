"""What the ledger costs above bare SQLite with the same settings. For information."""

from __future__ import annotations

import itertools
import time
from random import Random
from typing import TYPE_CHECKING

from bench.bench_invoke import VALUE, bare
from bench.measure import in_turns, scratch
from bench.rows import Row
from chaindock.ids import ChannelId, TxId
from chaindock.ledger.database import create
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import VALID, commit, judged, ledger_at

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from bench.measure import Side
    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.transaction import ParsedTransaction

KEYS, ROUNDS, BLOCKS = 10_000, 5, 25
_GET = "SELECT value FROM s WHERE ns=? AND key=?"
_RANGE = "SELECT key, value FROM s WHERE ns=? AND key>=? ORDER BY key LIMIT 101"


def mean_us(count: int, work: Callable[[int], object]) -> Side:
    """Return a side that is the mean of `count` calls."""

    async def side() -> float:
        began = time.perf_counter()
        for number in range(count):
            work(number)
        return (time.perf_counter() - began) / count * 1e6

    return side


async def filled(ledger: Ledger, db: sqlite3.Connection) -> None:
    """Put the same keys into both."""
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


async def reads(ledger: Ledger, path: Path) -> AsyncIterator[Row]:
    """Point reads and ranges."""
    db = bare(path / "bare-reads.db")
    await filled(ledger, db)
    names = [f"k{n * 7919 % KEYS:06}" for n in range(KEYS)]
    raw = [name.encode() for name in names]
    db.execute("BEGIN")
    with ledger.new_simulator(TxId("t")) as simulator:
        value, reference = await in_turns(
            ROUNDS,
            mean_us(5000, lambda n: simulator.get_state("cc", names[n])),
            mean_us(5000, lambda n: db.execute(_GET, ("cc", raw[n])).fetchone()),
        )
        yield Row("read of a key", value, "µs", reference, "SELECT")
        value, reference = await in_turns(
            ROUNDS,
            mean_us(100, lambda n: simulator.open_range("cc", names[n], "").take(101)),
            mean_us(100, lambda n: db.execute(_RANGE, ("cc", raw[n])).fetchall()),
        )
        yield Row("range of 101 keys", value, "µs", reference, "SELECT")
    db.close()


async def commits(ledger: Ledger, path: Path, size: int) -> Row:
    """Blocks of `size` transactions, each of one read and one write."""
    db = bare(path / f"bare-commits-{size}.db")
    db.execute("CREATE TABLE b (number INTEGER PRIMARY KEY, block BLOB)")
    numbers = itertools.count()

    def block() -> list[tuple[bytes, int]]:
        keys = [f"n{next(numbers)}" for _ in range(size)]
        sets = [rwset({key: None}, {key: VALUE}) for key in keys]
        return [(transaction(one).envelope, VALID) for one in sets]

    data = b"".join(envelope for envelope, _ in block())

    async def ours() -> float:
        blocks = [block() for _ in range(BLOCKS)]
        began = time.perf_counter()
        for one in blocks:
            await ledger.commit(judged(one))
        return (time.perf_counter() - began) / BLOCKS * 1e6

    insert = mean_us(
        BLOCKS, lambda _: db.execute("INSERT INTO b (block) VALUES (?)", (data,))
    )
    value, reference = await in_turns(ROUNDS, ours, insert)
    db.close()
    what = f"block of {size} transaction{'s' * (size > 1)}"
    return Row(what, value, "µs", reference, "INSERT of its bytes, flushed")


async def large_block(path: Path) -> Row:
    """A block of 1,000 transactions of 10 writes each, of random bytes."""
    random = Random(1)
    db = bare(path / "bare-rows.db")
    create(db, ChannelId("dev"))
    numbers, blocks = itertools.count(), itertools.count(1)

    def made() -> list[tuple[dict[str, bytes], ParsedTransaction]]:
        sets = [
            {f"n{next(numbers):07}": random.randbytes(len(VALUE)) for _ in range(10)}
            for _ in range(1000)
        ]
        envelopes = (transaction(rwset(writes=one)).envelope for one in sets)
        return list(zip(sets, judged((e, VALID) for e in envelopes), strict=True))

    async def ours() -> float:
        txs = [tx for _, tx in made()]
        began = time.perf_counter()
        await ledger.commit(txs)
        return (time.perf_counter() - began) * 1e3

    async def rows() -> float:
        txs, block = list(enumerate(made())), next(blocks)
        data = b"".join(tx.envelope for _, (_, tx) in txs)
        began = time.perf_counter()
        db.execute("BEGIN")
        db.execute("INSERT INTO blocks VALUES (?, ?, ?)", (block, bytes([block]), data))
        db.executemany(
            "INSERT INTO transactions VALUES (?, ?, ?, 0, x'')",
            [(block, at, tx.tx_id) for at, (_, tx) in txs],
        )
        db.executemany(
            "INSERT INTO versions (ns, key, block, tx, labelled, value) "
            "VALUES (1, ?, ?, ?, 0, ?)",
            [
                (key.encode(), block, at, value)
                for at, (writes, _) in txs
                for key, value in writes.items()
            ],
        )
        db.execute("COMMIT")
        return (time.perf_counter() - began) * 1e3

    async with ledger_at(path / "rows") as ledger:
        value, reference = await in_turns(ROUNDS, ours, rows)
    db.close()
    what = "block of 1,000 transactions of 10 writes"
    return Row(what, value, "ms", reference, "INSERT of the same rows, flushed", most=2)


async def large_values(path: Path) -> AsyncIterator[Row]:
    """Random values of 1 kB: what they take on disk, and what writing them takes."""
    size, count, step = 1024, 5_000, 100
    db = bare(path / "bare-values.db")
    db.execute("CREATE TABLE b (number INTEGER PRIMARY KEY, block BLOB)")
    random = Random(1)
    ours = reference = 0.0
    async with ledger_at(path / "values") as ledger:
        for _ in range(count // step):
            txs = judged(
                (
                    transaction(rwset(writes={key: random.randbytes(size)})).envelope,
                    VALID,
                )
                for key in (f"k{random.randrange(10**9)}" for _ in range(step))
            )
            data = b"".join(tx.envelope for tx in txs)
            began = time.perf_counter()
            await ledger.commit(txs)
            written = time.perf_counter()
            db.execute("INSERT INTO b (block) VALUES (?)", (data,))
            ours += written - began
            reference += time.perf_counter() - written
    db.close()
    blocks = count // step / 1000
    yield Row(
        "block of 100 values of 1 kB",
        ours / blocks,
        "ms",
        reference / blocks,
        "INSERT of its bytes, flushed",
    )
    yield Row(
        "ledger of values of 1 kB",
        (path / "values" / "ledger.db").stat().st_size / 1e6,
        "MB",
        size * count / 1e6,
        "the values, which are random",
        most=2,
    )


async def run() -> AsyncIterator[Row]:
    with scratch() as path:
        async with ledger_at(path) as ledger:
            async for row in reads(ledger, path):
                yield row
        for size in (1, 10, 100):
            async with ledger_at(path / str(size)) as ledger:
                yield await commits(ledger, path, size)
        yield await large_block(path)
        async for row in large_values(path):
            yield row
