"""Snapshots of a ledger, and going back to them."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import pytest

from chaindock.errors import InvalidInput, LedgerClosed, NotFound
from chaindock.ids import TxId
from chaindock.ledger.ledger import Ledger
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import (
    codes,
    commit,
    history,
    judged,
    ledger_at,
    replay,
    state,
)


async def put(ledger: Ledger, **keys: bytes | None) -> Any:
    return await commit(ledger, rwset(writes=keys))


def everything(ledger: Ledger, keys: str = "abcdef") -> Any:
    """Return what a user can see of the ledger."""
    blocks = [ledger.get_block(number) for number in range(ledger.height)]
    pasts = {key: [one.value for one in history(ledger, key)] for key in keys}
    return blocks, state(ledger), pasts


async def test_everything_is_as_it_was(ledger):
    """Values, deletes, metadata, histories and blocks, after random transactions."""
    draw = random.Random(11)

    async def some() -> None:
        for _ in range(20):
            writes = {
                key: draw.choice([b"x%d" % draw.randrange(1000), None, b"y"])
                for key in draw.sample("abcdef", 3)
            }
            labels = {draw.choice("abcdef"): {"label": b"%d" % draw.randrange(9)}}
            await commit(ledger, rwset(writes=writes, metadata=labels))

    await some()
    before = everything(ledger)
    mark = await ledger.take_snapshot("base")
    assert mark.height == ledger.height == 21
    for _ in range(3):
        await some()
        assert everything(ledger) != before
        assert await ledger.revert("base") == mark
        assert everything(ledger) == before
    await some()
    replay(ledger)


async def test_a_ledger_goes_on_after_a_revert_and_a_restart(tmp_path: Path):
    async with ledger_at(tmp_path) as ledger:
        await put(ledger, k=b"1")
        await ledger.take_snapshot("one")
        await put(ledger, k=b"2")
        await ledger.take_snapshot("two")
        await ledger.revert("one")
        assert [mark.name for mark in await ledger.snapshots()] == ["one"]
    async with ledger_at(tmp_path) as ledger:
        assert (ledger.height, state(ledger)) == (2, {"k": b"1"})
        await put(ledger, k=b"3")
        await ledger.revert("one")
        assert state(ledger) == {"k": b"1"}
        assert codes(await put(ledger, k=b"4")) == [0]
        values, _ = replay(ledger)
        assert values == state(ledger) == {"k": b"4"}


async def test_a_transaction_that_is_gone_can_be_committed_again(ledger):
    await ledger.take_snapshot("base")
    tx = transaction(rwset(reads={"k": None}, writes={"k": b"1"}))
    for _ in range(2):
        assert codes(await ledger.commit(judged([(tx.envelope, 0)]))) == [0]
        assert codes(await ledger.commit(judged([(tx.envelope, 0)]))) == [9]
        await ledger.revert("base")
        assert ledger.find_transaction(tx.tx_id) is None


async def test_a_simulation_of_before_ends(ledger):
    await put(ledger, k=b"1")
    await ledger.take_snapshot("base")
    await put(ledger, k=b"2")
    reverts = ledger.reverts
    with ledger.new_simulator(TxId("t")) as simulator:
        assert simulator.get_state("cc", "k") == b"2"
        await ledger.revert("base")
        with pytest.raises(LedgerClosed, match="reverted while the simulation ran"):
            simulator.get_state("cc", "other")
    assert ledger.reverts == reverts + 1


async def test_no_simulation_begins_while_a_revert_runs(ledger):
    """The simulation would read what goes, with the number of reverts of afterwards."""
    await put(ledger, k=b"1")
    await ledger.take_snapshot("base")
    await put(ledger, k=b"2")
    for name, error in (("base", None), ("nothing", NotFound)):
        reverting = asyncio.ensure_future(ledger.revert(name))
        await asyncio.sleep(0)
        assert not reverting.done()
        with pytest.raises(LedgerClosed, match="is being reverted"):
            ledger.new_simulator(TxId("t"))
        if error:
            with pytest.raises(error):
                await reverting
        else:
            await reverting
        assert state(ledger) == {"k": b"1"}


async def test_a_definition_of_chaincode_stands_in_the_way(ledger):
    """What runs follows the definitions: a revert does not undo a deployment."""
    await ledger.take_snapshot("base")
    await commit(ledger, rwset(writes={"namespaces/x": b"1"}, ns="_lifecycle"))
    height = ledger.height
    with pytest.raises(
        InvalidInput, match="deployed in block 1, after snapshot 'base'"
    ):
        await ledger.revert("base")
    assert ledger.height == height
    await put(ledger, k=b"1")
    await ledger.take_snapshot("base")
    await put(ledger, k=b"2")
    await ledger.revert("base")
    assert state(ledger) == {"k": b"1"}


async def test_unknown_and_wrong_names(ledger):
    for act in (ledger.revert, ledger.drop_snapshot):
        with pytest.raises(NotFound, match="known: none"):
            await act("nothing")
    for name in ("", ".", "a b", "a/b", "é", "x" * 65):
        with pytest.raises(InvalidInput):
            await ledger.take_snapshot(name)
    await ledger.take_snapshot("a")
    await ledger.drop_snapshot("a")
    assert await ledger.snapshots() == []


async def test_ten_thousand_keys_go_back_about_as_fast_as_they_came(ledger):
    keys = {f"k{number:05}": b"v" * 100 for number in range(10_000)}
    await commit(ledger, rwset(writes=keys))
    await ledger.take_snapshot("base")
    began = time.perf_counter()
    await commit(ledger, rwset(writes=dict.fromkeys(keys, b"w" * 100)))
    committed = time.perf_counter()
    await ledger.revert("base")
    reverted = time.perf_counter()
    assert state(ledger) == keys
    assert reverted - committed < 5 * (committed - began)


async def test_who_is_told_of_a_block_can_read_it_while_a_revert_waits(ledger):
    """A definition that was not read then would never be followed."""
    await ledger.take_snapshot("base")
    seen = []

    def watch(*_: Any) -> None:
        with ledger.new_simulator(TxId("")) as simulator:
            seen.append(simulator.get_state("_lifecycle", "namespaces/x"))

    ledger.watchers.append(watch)
    block = commit(ledger, rwset(writes={"namespaces/x": b"1"}, ns="_lifecycle"))
    committing = asyncio.ensure_future(block)
    await asyncio.sleep(0)
    with pytest.raises(InvalidInput, match="deployed in block 1"):
        await ledger.revert("base")
    await committing
    assert seen == [b"1"]
