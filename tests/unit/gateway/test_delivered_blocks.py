"""What streams of blocks carry: as recorded, filtered, private; and to slow clients."""

import asyncio
import hashlib
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2
from fabric_protos.peer import events_pb2

from chaindock.endorser.channel import Channel
from chaindock.endorser.configuration import Configuration
from chaindock.gateway import deliver
from chaindock.gateway.blocks import Batch, BlockFeed, Feeds
from chaindock.gateway.forms import decode as decode_block
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.seat import Seat
from chaindock.identity.organization import Organization
from chaindock.ledger.delivered import PrivateSet
from chaindock.ledger.reader import LedgerReader
from chaindock.lifecycle.terms import parse_collections
from support.eventually import eventually
from support.gateways.delivering import CHANNEL, Stream, open_place, seek, told
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import MVCC
from support.ledgers.recorded import (
    blocks,
    commit_recorded,
    decode,
    delivered,
    ledger_of,
    recordings,
)

WRITE = rwset(writes={"k": b"v"})
METHODS = ("Deliver", "DeliverFiltered", "DeliverWithPrivateData")
NO_WAIT = {"behavior": ab_pb2.SeekInfo.FAIL_IF_NOT_READY}


# --- the recording


async def replayed(stack: AsyncExitStack, folder: Path, method: str) -> Stream:
    """Return a stream with the recorded request to a ledger with the recorded blocks."""
    ledger = await stack.enter_async_context(ledger_of(folder))
    for number in range(1, len(blocks())):
        await commit_recorded(ledger, number)
    members: Any = SimpleNamespace(
        configuration=Configuration.of(ledger), peers={"Org1MSP": None}
    )
    unused: Any = None
    channel = Channel(
        id=CHANNEL,
        ledger=ledger,
        reader=await stack.enter_async_context(LedgerReader(folder / "ledger.db")),
        members=members,
        endorser=unused,
        orderer=unused,
        caller=unused,
    )
    options = GatewayOptions(time_window_s=10.0**12)
    seat = Seat("Org1MSP", "")
    service = deliver.service({CHANNEL: channel}, Feeds(), options, seat)
    return Stream().start(service, method).send(decode(delivered()["request"]))


@pytest.mark.statement(45, of="client")
async def test_a_recorded_request_gets_the_recorded_answer(tmp_path: Path):
    """With its real signature, and to the block at which Fabric ended the stream."""
    recorded = delivered()
    async with AsyncExitStack() as stack:
        stream = await replayed(stack, tmp_path, "DeliverFiltered")
        for number in range(recorded["end"]["block"]):
            response = await stream.raw()
            if str(number) in recorded["filtered"]:
                assert response == decode(recorded["filtered"][str(number)])
        assert await stream.raw() == decode(recorded["end"]["bytes"])
        await stream.ended()


@pytest.mark.statement(29, of="client")
async def test_private_data_comes_with_its_block_as_recorded(tmp_path, monkeypatch):
    """The recorded client is no member of collection colC."""

    async def recorded_block(_: BlockFeed, number: int) -> Batch:
        return Batch([decode_block(blocks()[number])])

    # Blocks that the node makes have the signature of another orderer.
    monkeypatch.setattr(BlockFeed, "blocks", recorded_block)
    recorded = recordings()["private"] | delivered()["private_later"]
    compared = 0
    async with AsyncExitStack() as stack:
        stream = await replayed(stack, tmp_path, "DeliverWithPrivateData")
        for number in range(len(blocks())):
            response = await stream.raw()
            digest = delivered()["with_private"].get(str(number))
            assert digest in {None, hashlib.sha256(response).hexdigest()}
            found = events_pb2.DeliverResponse.FromString(response)
            held = found.block_and_private_data
            assert held.block.SerializeToString() == blocks()[number]
            expected = {
                int(position): decode(data)
                for position, data in recorded.get(str(number), {}).items()
            }
            if number >= 152 and number != 283:  # as in test_delivered
                sets = held.private_data_map.items()
                assert {at: one.SerializeToString() for at, one in sets} == expected
                compared += len(expected)
        assert await stream.numbers() == ["SUCCESS"]
    assert compared > 20


COLLECTIONS = b"""[
  {"name": "both", "policy": "OR('Org1MSP.member', 'Org2MSP.member')"},
  {"name": "first", "policy": "OR('Org1MSP.member')", "memberOnlyRead": true},
  {"name": "open", "policy": "OR('Org1MSP.member')"},
  {"name": "admins", "policy": "OR('Org1MSP.peer', 'Org2MSP.admin')", "memberOnlyRead": true}
]"""


async def test_who_sees_which_collection_at_which_peer(place, tmp_path, monkeypatch):
    """A peer has the collections of its organisation, and tells them to who may read."""
    await place.channel.members.add("Org2", place.channel.orderer)
    second = place.channel.members.get("Org2MSP")
    package = parse_collections(COLLECTIONS)
    names = [one.static_collection_config.name for one in package.config]
    names += ["_implicit_org_Org2MSP", "undefined"]
    sets = [PrivateSet(0, "cc", name, b"", package) for name in names]

    async def private(_: BlockFeed, number: int) -> list[PrivateSet]:
        return sets if number == 2 else []

    monkeypatch.setattr(BlockFeed, "private", private)
    ours, theirs = place.user, second.user("User1")
    for mspid, who, expected in (
        ("Org1MSP", ours, ["both", "first", "open"]),
        ("Org1MSP", theirs, ["both", "open"]),
        ("Org1MSP", second.admin, ["both", "open", "admins"]),
        ("Org2MSP", ours, ["both", "_implicit_org_Org2MSP"]),
        ("Org2MSP", theirs, ["both", "_implicit_org_Org2MSP"]),
        ("Org2MSP", second.admin, ["both", "admins", "_implicit_org_Org2MSP"]),
    ):
        stream = Stream().start(place.peer(mspid), "DeliverWithPrivateData")
        stream.send(seek(who, 1, 2))
        plain, private_ = [(await stream.next()).block_and_private_data for _ in "12"]
        assert dict(plain.private_data_map) == {}
        (space,) = private_.private_data_map[0].ns_pvt_rwset
        found = [one.collection_name for one in space.collection_pvt_rwset]
        assert (space.namespace, found) == ("cc", expected), (mspid, who.mspid)


async def test_large_private_data_of_a_small_block_hold_up_nobody(place, monkeypatch):
    """They are copied several times for each subscriber."""
    package, loop = parse_collections(COLLECTIONS), threading.get_ident()
    sets = [PrivateSet(0, "cc", "open", bytes(100_000), package)]
    assembled, assemble = list[int](), deliver._assemble

    async def private(_: BlockFeed, number: int) -> list[PrivateSet]:
        return sets

    def noted(*how: Any) -> bytes:
        assembled.append(threading.get_ident())
        return assemble(*how)

    monkeypatch.setattr(BlockFeed, "private", private)
    monkeypatch.setattr(deliver, "_assemble", noted)
    stream = place.call("DeliverWithPrivateData").send(seek(place.user, 1, 1))
    found = (await stream.next()).block_and_private_data.private_data_map[0]
    (one,) = found.ns_pvt_rwset[0].collection_pvt_rwset
    assert (one.rwset, loop in assembled) == (bytes(100_000), False)


async def test_others_have_their_turn_while_blocks_are_passed_over(place):
    """As by a listener for events that none of them has; all are in memory."""
    for _ in range(20):
        await place.commit()
    feed, turns = place.feeds.of(place.channel), 0
    await anext(feed.follow(0))
    follower = feed.follow(0, 1)

    async def counted() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(counted())
    for _ in range(20):
        await anext(follower)
    counting.cancel()
    assert turns >= 20


async def test_who_reads_old_large_blocks_ends_no_pause_of_others(place, monkeypatch):
    monkeypatch.setattr("chaindock.gateway.blocks._CACHED_BYTES", 1)
    large = rwset(writes={"k": bytes(400_000)})
    made = [transaction(large, channel=CHANNEL).envelope for _ in range(2)]
    first, _ = [await place.commit_envelope(one, MVCC) for one in made]
    feed, now = place.feeds.of(place.channel), asyncio.get_running_loop().time
    newest = await place.commit()
    await anext(feed.follow(newest))
    waiting = asyncio.ensure_future(anext(feed.follow(newest + 1)))
    await asyncio.sleep(0)
    await anext(feed.follow(first, 1))
    until = feed._due = now() + 0.2
    await place.commit()
    await waiting
    assert now() >= until


# --- forms


async def test_blocks_are_those_of_the_ledger(place):
    stream = place.call().send(seek(place.user, 0, 4))
    for number in range(5):
        block = (await stream.next()).block
        assert block.SerializeToString() == place.ledger.get_block(number)


async def test_events_are_listed_without_payload_whatever_became_of_them(place):
    await place.commit(event=("made", b"secret"), code=MVCC)
    stream = place.call("DeliverFiltered").send(seek(place.user, 5, 5))
    (tx,) = (await stream.next()).filtered_block.filtered_transactions
    (action,) = tx.transaction_actions.chaincode_actions
    event = action.chaincode_event
    assert (tx.tx_validation_code, event.event_name, event.payload) == (
        MVCC,
        "made",
        b"",
    )


async def test_an_event_that_cannot_be_read_ends_filtered_blocks_alone(place):
    one = transaction(WRITE, channel=CHANNEL, event=("made", b"x"))
    broken = one.envelope.replace(b"\x0a\x02cc\x12\x40", b"\x0a\x7fcc\x12\x40")
    assert broken != one.envelope
    await place.commit_envelope(broken, 5)
    filtered = place.call("DeliverFiltered").send(seek(place.user, 4))
    assert await filtered.numbers() == [4, "BAD_REQUEST"]
    await filtered.ended()
    assert await place.call().send(seek(place.user, 4, 5)).numbers() == [
        4,
        5,
        "SUCCESS",
    ]


async def test_headers_alone_but_for_configurations(place):
    content = {"content_type": ab_pb2.SeekInfo.HEADER_WITH_SIG}
    stream = place.call().send(seek(place.user, 0, 1, **content))
    whole, header = (await stream.next()).block, (await stream.next()).block
    assert whole.SerializeToString() == place.ledger.get_block(0)
    assert not header.HasField("data")
    assert len(header.metadata.metadata) == 5


async def test_the_orderer_delivers_blocks_without_codes(place):
    stream = Stream().start(place.orderer(), "Deliver")
    block = (await stream.send(seek(place.user, 2, 2)).next()).block
    own = common_pb2.Block.FromString(place.ledger.get_block(2))
    assert (block.header, block.data) == (own.header, own.data)
    filters = [one.metadata.metadata[2] for one in (own, block)]
    hashes = [len(one.metadata.metadata[4]) for one in (own, block)]
    assert (filters, hashes) == ([bytes([25]), b""], [34, 0])  # chaincode is undefined
    assert block.metadata.metadata[0] == own.metadata.metadata[0]
    assert await stream.numbers() == ["SUCCESS"]


async def test_a_stranger_gets_no_blocks_of_the_orderer_either(place, tmp_path):
    foreign = Organization.open(tmp_path / "other", "Org1MSP", "org1.example.com")
    stream = Stream().start(place.orderer(), "Deliver")
    stream.send(seek(foreign.user("User1"), 0, 0))
    assert await stream.numbers() == ["FORBIDDEN"]


# --- slow, vanished and reverted


async def test_slow_clients_hold_up_nobody_and_hold_one_block_each(place):
    slow = [place.call(room=1).send(seek(place.user, 1)) for _ in range(100)]
    fast = place.call().send(seek(place.user, 1))
    for number in range(1, 40):
        if number > 4:
            await place.commit()
        assert told(await fast.next()) == number
    assert {stream.waiting for stream in slow} == {1}
    assert told(await slow[0].next()) == 1
    for stream in (*slow, fast):
        stream.leave()
    await eventually(lambda: len(place.ledger._blocks) == 0)


async def test_slow_clients_hold_the_private_data_of_one_block(place, monkeypatch):
    """It may be much, however small the blocks."""
    read: list[int] = []

    async def private(_: BlockFeed, number: int) -> list[PrivateSet]:
        read.append(number)
        return []

    monkeypatch.setattr(BlockFeed, "private", private)
    slow = place.call("DeliverWithPrivateData", room=1).send(seek(place.user, 1, 4))
    await eventually(lambda: len(read) > 1)
    assert read == [1, 2]  # one has been sent
    assert await slow.numbers() == [1, 2, 3, 4, "SUCCESS"]


async def test_a_revert_ends_the_streams_that_were_past_it(place):
    await place.ledger.take_snapshot("here")
    await place.commit()
    past, behind = (place.call().send(seek(place.user, start)) for start in (5, 4))
    assert told(await past.next()) == 5
    assert told(await behind.next()) == 4
    await behind.next()
    await place.ledger.revert("here")
    for stream in (past, behind):
        assert await stream.numbers() == ["SERVICE_UNAVAILABLE"]
        await stream.ended()


async def test_a_ledger_that_closes_ends_its_streams(tmp_path, org):
    async with AsyncExitStack() as stack:
        place = await open_place(stack, tmp_path, org)
        stream = place.call().send(seek(place.user, 0))
        await stream.next()
    assert await stream.numbers() == ["SERVICE_UNAVAILABLE"]
