"""Random transactions against a ledger that is a plain dict."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from chaindock.ids import TxId
from support.ledgers.envelopes import transaction
from support.ledgers.ledger import (
    MVCC,
    PHANTOM,
    VALID,
    codes,
    history,
    judged,
    ledger_at,
    replay,
    state,
)

if TYPE_CHECKING:
    from chaindock.ledger.simulator import Simulator

KEYS = ["a", "b", "c", "d", "é", "\U0001f600"]
_key = st.sampled_from(KEYS)
_write = st.tuples(st.just("put"), _key, st.binary(max_size=2))
_delete = st.tuples(st.just("delete"), _key)
_get = st.tuples(st.just("get"), _key)
_range = st.tuples(
    st.just("range"),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["", "d", "\U0001f600"]),
    st.integers(1, 8),
)
_tx = st.lists(st.one_of(_range, _write, _delete, _get), max_size=3)
# A block is a list of transactions; each is simulated so many blocks before it commits.
_block = st.lists(st.tuples(_tx, st.integers(0, 2)), min_size=1, max_size=4)
_step = st.one_of(_block, _block, _block, st.just("reopen"))
_FILL = [([("put", key, b"0") for key in KEYS[::2]], 0)]

Value = tuple[bytes, tuple[int, int]]


@dataclass
class Model:
    """The state as a dict, and for each transaction a check written as plain Python."""

    values: dict[str, Value] = field(default_factory=dict)
    changes: dict[str, list[bytes]] = field(default_factory=dict)

    def decide(self, seen: Model, ops, touched: set[str]) -> int:
        for op in ops:
            if op[0] == "get":
                now, then = self.values.get(op[1]), seen.values.get(op[1])
                if op[1] in touched or version(now) != version(then):
                    return MVCC
        for op in ops:
            if op[0] == "range" and self.scan(seen, op) != seen.scan(seen, op):
                return PHANTOM
        return VALID

    def scan(self, seen: Model, op) -> list[tuple[str, tuple[int, int]]]:
        """What lies in the part of the range that the simulation looked at."""
        _, start, end, count = op
        keys = sorted(seen.values, key=str.encode)
        found = [k for k in keys if start <= k and (not end or k < end)]
        last = found[count - 1] if len(found) >= count else None

        def inside(key: str) -> bool:
            below = key <= last if last is not None else not end or key < end
            return start <= key and below

        return [(k, self.values[k][1]) for k in sorted(self.values) if inside(k)]

    def apply(self, ops, at: tuple[int, int]) -> set[str]:
        writes = {
            op[1]: (op[2] if op[0] == "put" else b"")
            for op in ops
            if op[0] in "put delete"
        }
        for key, value in writes.items():
            self.changes.setdefault(key, []).insert(0, value)
            if value:
                self.values[key] = (value, at)
            else:
                self.values.pop(key, None)
        return set(writes)

    def copy(self) -> Model:
        return Model(dict(self.values))


def version(value: Value | None) -> tuple[int, int] | None:
    return value and value[1]


def simulate(simulator: Simulator, ops) -> bytes:
    for op in ops:
        if op[0] == "put":
            simulator.put_state("cc", op[1], op[2])
        elif op[0] == "delete":
            simulator.put_state("cc", op[1], b"")
        elif op[0] == "get":
            simulator.get_state("cc", op[1])
        else:
            simulator.open_range("cc", op[1], op[2]).take(op[3])
    return simulator.results()


async def run(path: Path, steps) -> None:
    steps = [_FILL, *steps]
    model, past = Model(), [Model()]
    # What will be committed in later blocks, simulated now: (due, ops, seen, results).
    blocks = [step for step in steps if step != "reopen"]
    pending = {
        (number, position): ops_lag
        for number, block in enumerate(blocks)
        for position, ops_lag in enumerate(block)
    }
    results: dict[tuple[int, int], tuple[bytes, Model]] = {}
    number = 0
    ledger = await ledger_at(path).__aenter__()
    try:
        for step in steps:
            for due, (ops, lag) in pending.items():
                if due not in results and due[0] - lag <= number <= due[0]:
                    with ledger.new_simulator(TxId("t")) as simulator:
                        results[due] = simulate(simulator, ops), past[-1]
            if step == "reopen":
                await ledger.__aexit__()
                ledger = await ledger_at(path).__aenter__()
                continue
            touched: set[str] = set()
            expected, envelopes = [], []
            for position, (ops, _) in enumerate(step):
                rwset, seen = results[number, position]
                envelopes.append((transaction(rwset).envelope, VALID))
                expected.append(model.decide(seen, ops, touched))
                if expected[-1] == VALID:
                    touched |= model.apply(ops, (number + 1, position))
            assert codes(await ledger.commit(judged(envelopes))) == expected
            number += 1
            past.append(model.copy())
            now = {key: value for key, (value, _) in model.values.items()}
            assert state(ledger) == now
        for key in KEYS:
            found = [entry.value for entry in history(ledger, key)]
            assert found == model.changes.get(key, [])
        assert replay(ledger)[0] == state(ledger)
    finally:
        await ledger.__aexit__()


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(_step, min_size=2, max_size=6))
def test_the_ledger_agrees_with_a_plain_dict(steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder), steps))
