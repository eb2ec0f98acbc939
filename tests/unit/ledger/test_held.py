"""What the node holds in memory for a simulation, and how long it holds up others."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import BudgetExceeded, InvalidInput
from chaindock.ids import TxId
from chaindock.ledger import simulator as simulator_module
from chaindock.ledger.budget import ENTRY_BYTES, Budget
from chaindock.ledger.rwset import in_order
from support.ledgers.envelopes import rwset
from support.ledgers.ledger import commit, only_rwset

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger

T = TxId("t1")


async def test_what_is_read_and_written_counts_in_bytes_with_a_cost_per_entry(
    ledger: Ledger,
) -> None:
    with ledger.new_simulator(T) as simulator:
        budget = simulator.budget
        simulator.get_state("cc", "\U0001f600")
        simulator.get_state("cc", "\U0001f600")  # one entry, however often
        assert budget.held == 8 + ENTRY_BYTES  # Python's own copy, and the UTF-8
        simulator.put_state("cc", "k", b"12345")
        simulator.put_state("cc", "k", b"123")
        simulator.put_state("cc", "k", b"1234")
        assert budget.held == 8 + 1 + 4 + 2 * ENTRY_BYTES
        before = budget.held
        simulator.open_range("cc", "a" * 1000, "b" * 1000)
        assert budget.held >= before + 2000 + ENTRY_BYTES
        assert simulator.held == budget.held
        # A call that has ended gives back what it took; the simulation goes on.
        simulator.budget = Budget(10_000, "call")
        simulator.put_state("cc", "l", b"1")
        assert simulator.budget.held == 2 + ENTRY_BYTES
        simulator.budget.give_back()
        assert simulator.held > budget.held
    assert simulator.budget.held == 0


@pytest.mark.parametrize("text", ["a" * 999 + "\U0001f600", "\u20ac" * 1000])
async def test_text_beyond_ascii_counts_as_python_holds_it(
    ledger: Ledger, text: str
) -> None:
    with ledger.new_simulator(T) as simulator:
        for act in (
            lambda: simulator.get_state("cc", text),
            lambda: simulator.put_state("cc", text, b"1"),
            lambda: simulator.put_metadata("cc", "k", {text: b"1"}),
            lambda: simulator.put_private("cc", "col", text, b"1"),
            lambda: simulator.open_range("cc", text, ""),
        ):
            before = simulator.held
            act()
            assert simulator.held - before >= 4 * len(text)


async def test_the_limit_of_a_transaction_counts_bytes_of_utf_8(ledger: Ledger) -> None:
    with ledger.new_simulator(T) as simulator:
        simulator.get_state("cc", "\U0001f600" * 10)
        simulator.put_state("cc", "\u20ac" * 10, b"12345")
        with pytest.raises(InvalidInput, match="75 bytes and exceeds"):
            simulator.results(74)


async def test_metadata_and_private_data_count_too(ledger: Ledger) -> None:
    with ledger.new_simulator(T) as simulator:
        simulator.put_metadata("cc", "k", {"name": b"123"})
        simulator.put_metadata("cc", "k", {"name": b"1"})
        assert simulator.held == 1 + 4 + 1 + ENTRY_BYTES
        simulator.put_private("cc", "col", "kk", b"12")
        simulator.purge_private("cc", "col", "kk")
        assert simulator.held == 6 + 2 + 2 * ENTRY_BYTES
        simulator.get_private_hash("cc", "col", "kkk")
        assert simulator.held == 8 + 3 + 3 * ENTRY_BYTES
        simulator.budget = Budget(10, "call")
        for act in (
            lambda: simulator.put_private("cc", "col", "q", b""),
            lambda: simulator.put_metadata("cc", "q", {}, "col"),
            lambda: simulator.get_metadata("cc", "q", "col"),
        ):
            with pytest.raises(BudgetExceeded):
                act()
        assert b"q" not in simulator.private_results()


@pytest.mark.parametrize("kind", ["read", "write", "range"])
async def test_beyond_the_limit_nothing_more_is_kept(
    ledger: Ledger, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulator_module, "MAX_HELD_BYTES", 100_000)
    with ledger.new_simulator(T) as simulator:

        def use(key: str) -> None:
            if kind == "read":
                simulator.get_state("cc", key)
            elif kind == "write":
                simulator.put_state("cc", key, b"v")
            else:
                simulator.open_range("cc", key, "")

        def use_many() -> None:
            for number in range(1000):
                use(f"k{number}")

        with pytest.raises(BudgetExceeded, match="transaction t1"):
            use_many()
        with pytest.raises(BudgetExceeded):
            use("k" * 8000)
        assert simulator.budget.held <= 100_000
        assert len(simulator.results()) < 100_000


async def test_a_long_range_holds_a_summary_only(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={f"k{i:04}": b"1" for i in range(2000)}))
    with ledger.new_simulator(T) as simulator:
        results = simulator.open_range("cc", "", "")
        most = 0
        while results.take(100):
            most = max(most, simulator.budget.held)
        assert 0 < most < 60 * ENTRY_BYTES


async def test_the_keys_at_which_queries_stand_count(ledger: Ledger) -> None:
    """A query keeps its place as long as the transaction lasts, closed or not."""
    keys = [f"{n:02}" + "k" * 10_000 for n in range(60)]
    await commit(ledger, rwset(writes=dict.fromkeys(keys, b"1")))
    with ledger.new_simulator(T) as simulator:
        for number in range(1, 6):
            results = simulator.open_range("cc", "", "")
            results.take(51)
            results.close()
            assert simulator.held > number * 10_000
        before = simulator.held
        simulator.open_history("cc", keys[0]).close()
        assert simulator.held > before + 10_000


async def test_of_a_batch_that_the_budget_refuses_nothing_is_kept(
    ledger: Ledger,
) -> None:
    keys = [f"{n}" + "k" * 10_000 for n in range(5)]
    await commit(ledger, rwset(writes=dict.fromkeys(keys, b"1")))
    with ledger.new_simulator(T) as simulator:
        simulator.budget = Budget(35_000, "call")
        for _ in range(3):
            results = simulator.open_range("cc", "", "")
            held = simulator.held
            with pytest.raises(BudgetExceeded):
                results.take(100)
            assert simulator.held == simulator.budget.held == held
            assert all(record.reads.held == 0 for record in simulator._ranges)
        assert len(simulator.open_range("cc", "", "").take(1)) == 1
        assert only_rwset(simulator.results()).range_queries_info[0].end_key == keys[0]


async def test_many_keys_are_put_in_order_by_slices(ledger: Ledger) -> None:
    keys = [f"k{number}" for number in range(25_000)]
    random.shuffle(keys)
    with ledger.new_simulator(T) as simulator:
        for key in keys:
            simulator.put_state("cc", key, b"v")
        found = only_rwset(simulator.results())
    assert [write.key for write in found.writes] == sorted(keys)
    assert list(in_order(iter(keys))) == sorted(keys)


async def test_a_key_that_would_slow_all_look_ups_near_it_is_not_written(
    ledger: Ledger,
) -> None:
    """The database reads a long key whole, whatever key it compares with it."""
    with ledger.new_simulator(T) as simulator:
        simulator.put_state("cc", "k" * 8192, b"v")
        long = "é" + "k" * 8191
        refused = pytest.raises(InvalidInput, match="a key of 8193 bytes cannot be wri")
        with refused:
            simulator.put_state("cc", long, b"v")
        with refused:
            simulator.put_private("cc", "col", long, b"v")
        with refused:
            simulator.put_metadata("cc", long, {})
