"""A simulation keeps the state of its height, whatever is committed meanwhile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV

from chaindock.ids import LIFECYCLE, TxId
from chaindock.ledger import snapshots
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import VALID, commit, judged, pairs, value

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.queries import Results
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


async def test_a_view_keeps_the_definitions_of_its_height(ledger: Ledger) -> None:
    """What definitions hold is read once, until a block changes one."""

    async def put(value: bytes | None) -> Simulator:
        await commit(ledger, rwset(writes={"a": value, "b": b"same"}, ns=LIFECYCLE))
        await commit(ledger, rwset(writes={"other": b"x"}))
        return ledger.new_simulator(T)

    found = [ledger.new_simulator(T)]
    assert found[0].get_state(LIFECYCLE, "a") is None
    for value_ in (b"1", b"2", None, b"4"):
        found.append(await put(value_))
        _ = [one.get_state(LIFECYCLE, "a") for one in found[::2]]
    for simulators in (found, reversed(found)):
        values = {one: one.get_state(LIFECYCLE, "a") for one in simulators}
        assert [values[one] for one in found] == [None, b"1", b"2", None, b"4"]


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


async def test_a_range_goes_on_as_it_was_when_blocks_come_between_its_batches(
    ledger: Ledger,
) -> None:
    """First blocks with new keys alone, then one that changes and deletes keys."""
    keys = [f"k{n:03}" for n in range(40)]
    await commit(ledger, rwset(writes=dict.fromkeys(keys, b"1")))
    with ledger.new_simulator(T) as undisturbed:
        assert len(undisturbed.open_range("cc", "", "").take(99)) == len(keys)
        expected = undisturbed.results()
    with ledger.new_simulator(T) as simulator:
        rows = simulator.open_range("cc", "", "")
        await commit(ledger, rwset(writes={"a": b"new", "k005x": b"new"}))
        found = rows.take(10)
        await commit(ledger, rwset(writes={"k000": b"2", "k015": b"2", "k016": None}))
        while taken := rows.take(10):
            found += taken
        assert [KV.FromString(row).key for row in found] == keys
        assert {KV.FromString(row).value for row in found} == {b"1"}
        assert simulator.results() == expected


def stepwise(rows: Results) -> tuple[list[str], int]:
    """Return the keys of a range, and how often `advance` found none of them."""
    keys: list[str] = []
    waited = 0
    while True:
        while not rows.advance():
            waited += 1
        found = rows.take(4)
        keys += [KV.FromString(row).key for row in found]
        if not found or rows.exhausted:
            return keys, waited


@pytest.mark.parametrize("most", [1000, 10])
@pytest.mark.parametrize("private", [False, True])
async def test_keys_that_a_view_lacks_are_passed_in_steps(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, most: int, *, private: bool
) -> None:
    """Deleted keys, and those of later blocks, however many there are."""

    async def write(keys: list[str], value: bytes) -> None:
        if not private:
            await commit(ledger, rwset(writes=dict.fromkeys(keys, value or None)))
            return
        with ledger.new_simulator(T) as simulator:
            for key in keys:
                simulator.put_private("cc", "col", key, value)
            tx = transaction(simulator.results())
            await ledger.keep_private(tx.tx_id, simulator.private_results())
        await ledger.commit(judged([(tx.envelope, VALID)]))

    monkeypatch.setattr(snapshots, "MOST_CHANGED", most)
    monkeypatch.setattr(snapshots, "MOST_WALKED", 10)
    gone = [f"g{n:03}" for n in range(60)]
    kept = ["a", *(f"k{n:03}" for n in range(10)), "z"]
    later = [f"{first}later{n:03}" for n in range(60) for first in "bz"]
    await write([*gone, *kept], b"1")
    await write(gone, b"")
    with ledger.new_simulator(T) as simulator:
        for number in range(2):
            await write([*gone, *kept, *later], b"%d" % number)
        for start, end in (("", ""), ("b", ""), ("a", "h"), ("g", "h"), ("k", "l")):
            if private:
                rows: Results = simulator.open_private_range("cc", "col", start, end)
            else:
                rows = simulator.open_range("cc", start, end)
            keys, waited = stepwise(rows)
            assert keys == [k for k in kept if start <= k < (end or "~")]
            assert (waited > 4) == (start != "k")
        assert pairs(simulator.open_range("cc", "", ""), 5) == (
            [] if private else [(key, b"1") for key in kept]
        )


async def test_a_page_is_marked_behind_many_later_keys(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MOST_WALKED", 10)
    await commit(ledger, rwset(writes={"a": b"1", "z": b"1"}))
    with ledger.new_simulator(T) as simulator:
        later = {f"b{n:03}": b"2" for n in range(60)}
        await commit(ledger, rwset(writes=later))
        rows = simulator.open_range("cc", "", "", page_size=1, bookmark="")
        assert stepwise(rows)[0] == ["a"]
        waited = 0
        while not rows.advance():
            waited += 1
        assert waited > 4
        assert rows.bookmark == "z"
