"""Waiting for blocks and transactions of a ledger."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from chaindock.errors import LedgerClosed, LedgerError
from chaindock.ids import TxId
from chaindock.ledger.ledger import Ledger
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import MVCC, VALID, judged, ledger_at

WRITE = rwset(writes={"k": b"v"})


async def commit(ledger: Ledger, *envelopes: Any, code: int = VALID) -> Any:
    """Commit one block; an envelope is as `transaction` gives it."""
    return await ledger.commit(judged([(one.envelope, code) for one in envelopes]))


def begun(*waits: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(wait) for wait in waits]


async def in_time(wait: Any) -> Any:
    async with asyncio.timeout(1):
        return await wait


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_waits_for_a_height_goes_on_as_soon_as_the_ledger_is_higher(ledger):
    await ledger.wait_above(0)  # the genesis block is there
    one, two = begun(ledger.wait_above(1), ledger.wait_above(2))
    await commit(ledger, transaction(WRITE))
    await in_time(one)
    assert not two.done()
    await commit(ledger, transaction(WRITE))
    await in_time(two)


async def test_a_transaction_is_found_before_and_after_its_block(ledger):
    valid, invalid = transaction(WRITE), transaction(WRITE)
    waits = begun(*(ledger.committed(TxId(one.tx_id)) for one in (valid, invalid)))
    await settled()
    block = await ledger.commit(
        judged([(valid.envelope, VALID), (invalid.envelope, MVCC)])
    )
    places = await in_time(asyncio.gather(*waits))
    found = [(place.block, place.index, place.code) for place in places]
    assert found == [(block.number, 0, VALID), (block.number, 1, MVCC)]
    for one, place in zip((valid, invalid), places, strict=True):
        assert await ledger.committed(TxId(one.tx_id)) == place


async def test_of_an_id_that_occurs_twice_in_a_block_the_first_is_told(ledger):
    one = transaction(WRITE)
    (wait,) = begun(ledger.committed(TxId(one.tx_id)))
    await settled()
    block = await commit(ledger, one, one)
    assert list(block.codes) == [0, 9]
    place = await in_time(wait)
    assert (place.index, place.code) == (0, VALID)


@pytest.mark.statement(22, of="client")
async def test_whoever_learns_of_a_transaction_sees_what_it_wrote(ledger):
    """The block is on disk before simulations see it."""
    one = transaction(WRITE)
    done = asyncio.ensure_future(commit(ledger, one))
    place = None
    while place is None or place.block >= ledger.height:
        place = ledger.find_transaction(TxId(one.tx_id))
        told = asyncio.ensure_future(ledger.committed(TxId(one.tx_id)))
        await asyncio.sleep(0)
        assert not told.done() or ledger.height == 2
        told.cancel()
    await done


async def test_waiters_that_are_cancelled_are_forgotten(ledger):
    waits = begun(*(ledger.committed(TxId(f"{n}")) for n in range(10)))
    waits += begun(*(ledger.wait_above(9) for n in range(10)))
    await settled()
    assert (len(ledger.awaited), len(ledger._blocks)) == (10, 1)
    for wait in waits:
        wait.cancel()
    await settled()
    assert (len(ledger.awaited), len(ledger._blocks)) == (0, 0)


async def test_five_thousand_waiters_of_other_transactions_cost_a_commit_nothing(
    ledger,
):
    async def seconds() -> float:
        began = time.process_time()
        for _ in range(20):
            await commit(ledger, transaction(WRITE))
        return time.process_time() - began

    alone = await seconds()
    waits = begun(*(ledger.committed(TxId(f"{n:064}")) for n in range(5000)))
    await settled()
    with_waiters = await seconds()
    for wait in waits:
        wait.cancel()
    assert with_waiters < 2 * alone + 0.1


async def test_a_revert_tells_those_whose_blocks_are_gone_and_loses_no_other(ledger):
    await commit(ledger, transaction(WRITE))
    await ledger.take_snapshot("here")
    later = transaction(WRITE)
    kept, tx = begun(ledger.wait_above(2), ledger.committed(TxId(later.tx_id)))
    await settled()
    await ledger.revert("here")
    await settled()
    assert not kept.done()
    await commit(ledger, transaction(WRITE))
    await in_time(kept)
    (gone,) = begun(ledger.wait_above(3))
    await settled()
    await ledger.revert("here")
    with pytest.raises(LedgerError, match="reverted to height 2"):
        await in_time(gone)
    assert not tx.done()
    await commit(ledger, later)
    assert (await in_time(tx)).block == 2


async def test_a_ledger_that_closes_tells_everybody_who_waits(tmp_path: Path):
    async with ledger_at(tmp_path) as ledger:
        waits = begun(ledger.wait_above(5), ledger.committed(TxId("a" * 64)))
        await settled()
    for wait in waits:
        with pytest.raises(LedgerClosed):
            await wait
    for late in (
        ledger.wait_above(5),
        ledger.wait_above(0),
        ledger.committed(TxId("")),
    ):
        with pytest.raises(LedgerClosed):
            await late
