"""Transactions from proposal to disk, beside bare inserts into SQLite, each flushed.

For information: a transaction is a call of the chaincode, three signatures made and
three checked, and two rows; an insert is an insert.
"""

from __future__ import annotations

import itertools
import sqlite3
import time
from random import Random
from typing import TYPE_CHECKING

from bench.bench_calls import many
from bench.calling_side import NAME, calling_side, verify
from bench.measure import Clock, in_turns, scratch
from bench.rows import Row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from bench.measure import Side

ROUNDS = 5
ENVELOPE = b"e" * 3000
VALUE = b"v" * 200


def bare(path: Path) -> sqlite3.Connection:
    """Return a database with the same settings as the ledger's."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


async def written(folder: Path, at_once: int) -> Row:
    """Random values of 1 kB, written by calls: what they take on disk."""
    size, count, random, numbers = 1024, 3000, Random(1), itertools.count()
    async with calling_side(folder) as side:

        async def invoke() -> None:
            arguments = [b"put", b"k%d" % next(numbers), random.randbytes(size)]
            answer = await side.caller.invoke(NAME, arguments, signer=side.client)
            assert answer.code == 0, answer

        await many(invoke, count, at_once)
    taken = (folder / "ledger.db").stat().st_size / 1e6
    what = f"ledger of values of 1 kB, {at_once} calls at once"
    against = "the values, which are random"
    return Row(what, taken, "MB", size * count / 1e6, against, most=2)


async def run() -> AsyncIterator[Row]:
    with scratch() as folder:
        db = bare(folder / "bare.db")
        db.execute("CREATE TABLE b (number INTEGER PRIMARY KEY, envelope BLOB)")
        async with calling_side(folder / "node") as side:
            numbers, client = itertools.count(), side.client
            cpu: list[float] = []

            async def invoke() -> None:
                arguments = [b"put", b"k%d" % next(numbers), VALUE]
                answer = await side.caller.invoke(NAME, arguments, signer=client)
                assert answer.code == 0, answer

            async def inserts() -> float:
                began = time.perf_counter()
                for _ in range(200):
                    db.execute("INSERT INTO b (envelope) VALUES (?)", (ENVELOPE,))
                return 200 / (time.perf_counter() - began)

            def invokes(count: int, at_once: int) -> Side:
                async def one() -> float:
                    clock = Clock()
                    await many(invoke, count, at_once)
                    cpu.append(clock.cpu_s / count * 1e6)
                    return count / clock.wall_s

                return one

            async def signatures() -> float:
                identity = side.caller.endorser.configuration.msps.identify(
                    client.creator
                )
                clock = Clock()
                for _ in range(300):
                    verify(identity, ENVELOPE, client.sign(ENVELOPE))
                return clock.cpu_s / 300 * 3e6

            for count, at_once in ((100, 1), (1000, 100)):
                cpu.clear()
                ours, theirs = await in_turns(ROUNDS, invokes(count, at_once), inserts)
                against = "inserts into SQLite, flushed"
                yield Row(f"invokes, {at_once} at once", ours, "/s", theirs, against)
            (floor,) = await in_turns(ROUNDS, signatures, pick=min)
            what = f"CPU of an invoke, {at_once} at once"
            yield Row(what, min(cpu), "µs", floor, "three signatures, three checks")
        db.close()
        for at_once in (1, 50):
            yield await written(folder / f"{at_once}", at_once)
