"""A simulation keeps the state of its height, whatever is committed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.ids import TxId
from chaindock.ledger import snapshots
from support.ledgers.envelopes import rwset
from support.ledgers.ledger import commit, pairs, value

if TYPE_CHECKING:
    import pytest

    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.simulator import Simulator

T = TxId("t1")


async def test_a_snapshot_stays_while_blocks_are_committed(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"1", "b": b"1"}))
    before = ledger.new_simulator(T)
    half = before.open_range("cc", "", "")
    half.take(1)
    await commit(ledger, rwset(writes={"a": b"2", "b": None, "c": b"2"}))
    after = ledger.new_simulator(TxId("t2"))
    await commit(ledger, rwset(writes={"a": b"3"}))

    assert before.get_state("cc", "a") == b"1"
    assert before.get_state("cc", "b") == b"1"
    assert pairs(half) == [("b", b"1")]
    assert len(before.open_history("cc", "a").take(9)) == 1
    assert (after.get_state("cc", "a"), after.get_state("cc", "b")) == (b"2", None)
    assert value(ledger, "a") == b"3"
    before.done()
    after.done()


def open_files(ledger: Ledger) -> int:
    files = Path("/proc/self/fd").iterdir()
    names = [os.path.realpath(file) for file in files]
    return names.count(str(ledger._path))


async def test_simulations_of_any_height_cost_no_connection(ledger: Ledger) -> None:
    held: list[list[Simulator]] = []
    for number in range(5):
        held.append([ledger.new_simulator(T) for _ in range(50)])
        await commit(ledger, rwset(writes={"a": b"%d" % number}))
        assert {s.get_state("cc", "a") for s in held[0]} == {None}
    assert open_files(ledger) == 2  # one writes, one reads
    for number, simulators in enumerate(held[1:]):
        assert {s.get_state("cc", "a") for s in simulators} == {b"%d" % number}
        assert {len(s.open_history("cc", "a").take(9)) for s in simulators} == {
            number + 1
        }
        for simulator in simulators:
            simulator.done()
            simulator.done()


async def test_a_range_of_an_old_view_is_as_it_was(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much was written since, and however it is read."""
    keys = [f"k{n:03}" for n in range(60)]
    await commit(ledger, rwset(writes=dict.fromkeys(keys, b"1")))
    await commit(ledger, rwset(writes={"k005": None, "k006": b"2"}))
    before = {**dict.fromkeys(keys, b"1"), "k006": b"2"}
    del before["k005"]
    with ledger.new_simulator(T) as simulator:
        for number in range(3):
            changed = dict.fromkeys(keys[::2], b"%d" % number)
            await commit(ledger, rwset(writes={**changed, "new": b"1", "k007": None}))
        for most in (1000, 10):
            monkeypatch.setattr(snapshots, "MOST_CHANGED", most)
            assert dict(pairs(simulator.open_range("cc", "", ""), 7)) == before
            part = pairs(simulator.open_range("cc", "k004", "k008"), 1)
            assert part == [("k004", b"1"), ("k006", b"2"), ("k007", b"1")]
            assert pairs(simulator.open_range("cc", "z", "")) == []
            assert pairs(simulator.open_range("none", "", "")) == []
