"""Ordering without waiting for the block."""

import asyncio
import gc
from typing import Any

import pytest

from chaindock.endorser.caller import assemble, new_proposal
from chaindock.endorser.checks import parse_proposal
from chaindock.endorser.cutting import MANUAL, OrdererOptions
from chaindock.errors import InvalidInput, LedgerClosed, LedgerError
from chaindock.ledger.ledger import TxLocation
from support.eventually import eventually


@pytest.fixture
def options() -> Any:
    return OrdererOptions(mode=MANUAL, max_waiting=2)


async def transaction(node: Any) -> Any:
    signed = new_proposal("mychannel", "basic", (b"put", b"k", b"v"), node.user)
    parsed = parse_proposal(signed)
    _, endorsed = await node.endorser.process(parsed, endorse=True)
    return assemble(parsed, endorsed, node.user)


async def test_order_returns_before_the_block_and_tells_when_it_is_there(defined):
    height = defined.ledger.height
    done = await defined.orderer.order(await transaction(defined))
    assert (done.done(), defined.ledger.height) == (False, height)
    await defined.orderer.cut()
    assert await done == TxLocation(height, 0, 0)


async def test_what_is_refused_is_refused_by_order_itself(defined):
    with pytest.raises(InvalidInput, match="Message was empty"):
        await defined.orderer.order(b"")


async def test_order_waits_for_room(defined):
    for _ in range(2):
        await defined.orderer.order(await transaction(defined))
    third = asyncio.ensure_future(defined.orderer.order(await transaction(defined)))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.shield(third)
    await defined.orderer.cut()
    async with asyncio.timeout(1):
        assert not (await third).done()


async def test_a_failure_that_nobody_waits_for_is_not_reported_as_a_defect(defined):
    said: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: said.append(what))
    await defined.ledger.take_snapshot("here")
    done = await defined.orderer.order(await transaction(defined))
    await defined.orderer.revert("here")
    with pytest.raises(LedgerError, match="reverted"):
        await done
    await defined.orderer.order(await transaction(defined))
    await defined.orderer.revert("here")
    del done
    gc.collect()
    await asyncio.sleep(0)
    assert said == []


async def test_what_was_accepted_is_committed_by_an_end_in_order(defined):
    done = await defined.orderer.order(await transaction(defined))
    await defined.orderer.__aexit__()
    assert (await done).code == 0
    with pytest.raises(LedgerClosed):
        await defined.orderer.order(b"late")
    await eventually(lambda: defined.orderer.waiting == 0)
