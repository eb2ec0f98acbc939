"""Random transactions against a ledger that is a plain dict."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    pairs,
    replay,
    state,
)

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.simulator import Simulator

KEYS = ["a", "b", "c", "d", "é", "\U0001f600"]
SPACES = ["", "col"]
_place = st.tuples(st.sampled_from(SPACES), st.sampled_from(KEYS))
_put = st.tuples(st.just("put"), _place, st.binary(max_size=2))
_purge = st.tuples(st.just("purge"), st.just("col"), st.sampled_from(KEYS))
_label = st.tuples(st.just("label"), _place, st.binary(max_size=1))
_get = st.tuples(st.just("get"), _place)
_range = st.tuples(
    st.just("range"),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["", "d", "\U0001f600"]),
    st.integers(1, 8),
)
_tx = st.lists(st.one_of(_range, _put, _put, _label, _get, _purge), max_size=3)
# A block is a list of transactions; each is simulated so many blocks before it commits.
_block = st.lists(st.tuples(_tx, st.integers(0, 2)), min_size=1, max_size=4)
_step = st.one_of(_block, _block, _block, st.just("reopen"))
_FILL = [([("put", ("", key), b"0") for key in KEYS[::2]], 0)]

Place = tuple[str, str]
"""collection ("" = public), key"""
Value = tuple[bytes, bytes | None, tuple[int, int]]
"""value, label, version"""


@dataclass
class Model:
    """The state as a dict, and for each transaction a check written as plain Python."""

    values: dict[Place, Value] = field(default_factory=dict)
    changes: dict[str, list[bytes]] = field(default_factory=dict)

    def decide(self, seen: Model, ops, touched: set[Place]) -> int:
        for space in SPACES:
            for op in ops:
                if op[0] == "get" and op[1][0] == space:
                    now, then = self.values.get(op[1]), seen.values.get(op[1])
                    if op[1] in touched or version(now) != version(then):
                        return MVCC
            for op in ops if not space else []:
                if op[0] == "range" and self.scan(seen, op) != seen.scan(seen, op):
                    return PHANTOM
        return VALID

    def scan(self, seen: Model, op) -> list[tuple[str, tuple[int, int]]]:
        """What lies in the part of the range that the simulation looked at."""
        _, start, end, count = op
        keys = sorted(seen.space(""), key=str.encode)
        found = [k for k in keys if start <= k and (not end or k < end)]
        last = found[count - 1] if len(found) >= count else None

        def inside(key: str) -> bool:
            below = key <= last if last is not None else not end or key < end
            return start <= key and below

        mine = self.space("")
        return [(k, self.values["", k][2]) for k in sorted(mine) if inside(k)]

    def space(self, collection: str) -> dict[str, bytes]:
        """The values of the namespace or the collection."""
        return {
            key: value[0]
            for (space, key), value in self.values.items()
            if space == collection
        }

    def apply(self, ops, at: tuple[int, int]) -> set[Place]:
        writes = {op[1]: op[2] for op in ops if op[0] == "put"}
        for op in ops:
            if op[0] == "purge":
                last = [
                    o for o in ops if o[0] in {"put", "purge"} and place(o) == op[1:]
                ]
                if last[-1][0] == "purge":
                    writes[op[1:]] = b""
        labels = {op[1]: op[2] for op in ops if op[0] == "label"}
        for spot, value in writes.items():
            if not spot[0]:
                self.changes.setdefault(spot[1], []).insert(0, value)
            former = self.values.pop(spot, None)
            if value:
                label = labels.get(spot, former and former[1])
                self.values[spot] = (value, label, at)
        touched = set(writes)
        for spot in labels.keys() - writes.keys():
            if spot in self.values:
                self.values[spot] = (self.values[spot][0], labels[spot], at)
                touched.add(spot)
        return touched

    def copy(self) -> Model:
        return Model(dict(self.values))

    def check(self, simulator: Simulator) -> None:
        """Compare with what a simulation of that height sees."""
        assert dict(pairs(simulator.open_range("cc", "", ""))) == self.space("")
        private = simulator.open_private_range("cc", "col", "", "")
        assert dict(pairs(private)) == self.space("col")
        for key in KEYS:
            value, label, _ = self.values.get(("col", key), (None, None, None))
            assert simulator.get_private("cc", "col", key) == value
            hashed = simulator.get_private_hash("cc", "col", key)
            assert hashed == (value and sha256(value).digest())
            found = simulator.get_metadata("cc", key, "col").get("name")
            assert found == label
            _, label, _ = self.values.get(("", key), (None, None, None))
            assert simulator.get_metadata("cc", key).get("name") == label


def place(op: Any) -> Place:
    spot: Place = op[1] if op[0] == "put" else op[1:]
    return spot


def version(value: Value | None) -> tuple[int, int] | None:
    return value and value[2]


def simulate(simulator: Simulator, ops) -> tuple[bytes, bytes]:
    for op in ops:
        if op[0] == "range":
            simulator.open_range("cc", op[1], op[2]).take(op[3])
            continue
        if op[0] == "purge":
            simulator.purge_private("cc", *op[1:])
            continue
        space, key = op[1]
        if op[0] == "label":
            simulator.put_metadata("cc", key, {"name": op[2]}, space)
        elif op[0] == "get" and space:
            simulator.get_private("cc", space, key)
        elif op[0] == "get":
            simulator.get_state("cc", key)
        elif space:
            simulator.put_private("cc", space, key, op[2])
        else:
            simulator.put_state("cc", key, op[2])
    return simulator.results(), simulator.private_results()


def check_history(ledger: Ledger, model: Model) -> None:
    for key in KEYS:
        found = [entry.value for entry in history(ledger, key)]
        assert found == model.changes.get(key, [])
    assert replay(ledger)[0] == state(ledger)


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
    results: dict[tuple[int, int], tuple[tuple[bytes, bytes], Model]] = {}
    number, purged = 0, False
    ledger = await ledger_at(path).__aenter__()
    held: list[tuple[Simulator, Model]] = []
    try:
        for step in steps:
            for due, (ops, lag) in pending.items():
                if due not in results and due[0] - lag <= number <= due[0]:
                    with ledger.new_simulator(TxId("t")) as simulator:
                        results[due] = simulate(simulator, ops), past[-1]
            if step == "reopen":
                await ledger.__aexit__()
                ledger = await ledger_at(path).__aenter__()
                held.clear()
                continue
            touched: set[Place] = set()
            expected: list[int] = []
            envelopes = []
            for position, (ops, _) in enumerate(step):
                (rwset, private), seen = results[number, position]
                tx = transaction(rwset)
                envelopes.append((tx.envelope, VALID))
                if private:
                    await ledger.keep_private(tx.tx_id, private)
                expected.append(model.decide(seen, ops, touched))
                if expected[-1] == VALID:
                    touched |= model.apply(ops, (number + 1, position))
                    purged = purged or any(op[0] == "purge" for op in ops)
            assert codes(await ledger.commit(judged(envelopes))) == expected
            number += 1
            past.append(model.copy())
            # What was purged cannot be seen by earlier simulations any more.
            held = [] if purged else held[-2:]
            held.append((ledger.new_simulator(TxId("t")), past[-1]))
            for simulator, then in held:
                then.check(simulator)
            purged = False
        check_history(ledger, model)
    finally:
        await ledger.__aexit__()


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_step, min_size=2, max_size=6))
def test_the_ledger_agrees_with_a_plain_dict(steps) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder), steps))
