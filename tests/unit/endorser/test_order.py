"""Ordering without waiting for the block."""

import asyncio
import gc
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.peer.chaincode_pb2 import ChaincodeID
from fabric_protos.peer.proposal_pb2 import ChaincodeHeaderExtension

from chaindock.endorser.caller import assemble
from chaindock.endorser.checks import parse_proposal
from chaindock.endorser.cutting import MANUAL, OrdererOptions
from chaindock.endorser.orderer import MOST_URGENT
from chaindock.errors import InvalidInput, LedgerClosed, LedgerError
from chaindock.ids import ChannelId
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.transaction import parse_transaction
from chaindock.lifecycle.definitions import Definition
from support.eventually import eventually
from support.ledgers.proposals import new_proposal


@pytest.fixture
def options() -> Any:
    return OrdererOptions(mode=MANUAL, max_waiting=2)


async def transaction(node: Any, value: bytes = b"v") -> Any:
    signed = new_proposal("mychannel", "basic", (b"put", b"k", value), node.user)
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


async def limit_pages(node: Any, pages: int) -> None:
    """Let the file of the ledger have so many pages at most, as a full disk does."""

    def limit(db: Any, _: Any) -> None:
        db.execute(f"PRAGMA max_page_count={pages}")

    ledger = node.ledger
    await ledger._write(lambda: ledger._committer.run(limit))


async def test_a_full_disk_is_told_to_submitters_and_to_who_waits_for_the_commit(
    defined,
):
    await limit_pages(defined, 1)  # SQLite takes the pages that the file has
    envelope = await transaction(defined, b"v" * 1_000_000)
    done = await defined.orderer.order(envelope)
    tx_id = parse_transaction(envelope, ChannelId("mychannel")).tx_id
    waits = asyncio.ensure_future(defined.ledger.committed(tx_id))
    await asyncio.sleep(0)
    await defined.orderer.cut()
    for one in (done, waits):
        with pytest.raises(LedgerError, match="full") as caught:
            await one
        assert "free some space" in (caught.value.hint or "")
    await limit_pages(defined, 1_000_000)
    again = await defined.orderer.order(envelope)
    await defined.orderer.cut()
    assert (await again).code == 0


async def test_who_waits_for_the_commit_is_told_of_a_revert(defined):
    await defined.ledger.take_snapshot("here")
    envelope = await transaction(defined)
    await defined.orderer.order(envelope)
    tx_id = parse_transaction(envelope, ChannelId("mychannel")).tx_id
    waits = asyncio.ensure_future(defined.ledger.committed(tx_id))
    await asyncio.sleep(0)
    await defined.orderer.revert("here")
    with pytest.raises(LedgerError, match="reverted"):
        await waits


async def test_who_pretends_to_define_chaincode_does_not_fill_the_queue(defined):
    """What the header says lets an envelope overtake; the rest may say otherwise."""
    done = []
    for _ in range(5):
        envelope = common_pb2.Envelope.FromString(await transaction(defined))
        payload = common_pb2.Payload.FromString(envelope.payload)
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        header.extension = ChaincodeHeaderExtension(
            chaincode_id=ChaincodeID(name="_lifecycle")
        ).SerializeToString()
        payload.header.channel_header = header.SerializeToString()
        envelope.payload = payload.SerializeToString()
        envelope.signature = defined.user.sign(envelope.payload)
        async with asyncio.timeout(5):
            done.append(await defined.orderer.order(envelope.SerializeToString()))
    async with asyncio.timeout(5):
        assert all([(await one).code for one in done])
    assert defined.orderer.waiting == 0


async def test_definitions_wait_for_those_before_them(defined, monkeypatch):
    held, commit = asyncio.Event(), defined.ledger.commit

    async def slow(txs: Any) -> Any:
        await held.wait()
        return await commit(txs)

    definition = Definition(name="other", sequence=1, version="1.0")
    raw = definition.SerializeToString()
    args = (b"ApproveChaincodeDefinitionForMyOrg", raw)
    calls = [
        asyncio.ensure_future(
            defined.caller.invoke("_lifecycle", args, signer=defined.org.admin)
        )
        for _ in range(MOST_URGENT + 2)
    ]
    monkeypatch.setattr(defined.ledger, "commit", slow)
    await eventually(lambda: len(defined.orderer._urgent) == MOST_URGENT)
    await asyncio.sleep(0.05)
    assert len(defined.orderer._urgent) == MOST_URGENT
    held.set()
    async with asyncio.timeout(10):
        await asyncio.gather(*calls)
