"""Envelopes for the orderer: what is answered, in which order, and what ends a stream."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2

from chaindock.endorser.checks import new_header
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import MANUAL, OrdererOptions
from chaindock.endorser.orderer import Orderer
from chaindock.errors import LedgerError
from chaindock.gateway import broadcast as broadcasts
from chaindock.gateway.broadcast import Broadcast
from chaindock.identity import msp
from chaindock.identity.organization import Organization
from support import config_updates
from support.gateways.delivering import CHANNEL, Place, Stream
from support.ledgers.envelopes import wrap
from support.ledgers.recorded import blocks, commit_recorded, decode, ledger_of, refused

DIRECT = "message is of type that cannot be processed directly"


def envelope(
    signer: Any,
    kind: int = common_pb2.ENDORSER_TRANSACTION,
    channel: str = CHANNEL,
    size: int = 10,
    key: Any = None,
) -> bytes:
    """Return a signed envelope; its data is no transaction, which orderers ignore."""
    nonce, header = new_header(kind, channel, signer.creator)
    signature_header = common_pb2.SignatureHeader(creator=signer.creator, nonce=nonce)
    unsigned = common_pb2.Envelope.FromString(
        wrap(
            header.SerializeToString(),
            bytes(size),
            signature_header.SerializeToString(),
        )
    )
    unsigned.signature = (key or signer).sign(unsigned.payload)
    return bytes(unsigned.SerializeToString())


def changed(place: Place, change: Any) -> bytes:
    """Return the update of a configuration that the admin has signed."""
    config = Configuration.of(place.ledger).config
    return config_updates.envelope(
        config_updates.update(config, change, CHANNEL), place.org.admin
    )


def call(place: Place) -> Stream:
    return Stream().start(place.orderer(), "Broadcast")


async def answer(stream: Stream) -> tuple[int, str]:
    found = ab_pb2.BroadcastResponse.FromString(await stream.raw())
    return found.status, found.info


async def test_recorded_envelopes_get_the_recorded_answers(tmp_path: Path):
    """Tampered and duplicate ones: orderers look at the creator and the channel alone."""
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(ledger_of(tmp_path))
        for number in range(1, 308):
            await commit_recorded(ledger, number)
        orderer = Orderer(ledger, Configuration.of(ledger))
        await stack.enter_async_context(orderer)
        channel: Any = type("", (), {"orderer": orderer})
        broadcast = Broadcast({CHANNEL: channel})
        accepted = 0
        for number in range(308, 333):
            for one in common_pb2.Block.FromString(blocks()[number]).data.data:
                assert await broadcast.answer(one) == (200, ""), number
                accepted += 1
        assert accepted > 25
        for recorded in refused():
            expected = recorded["broadcast"]
            found = await broadcast.answer(decode(recorded["envelope"]))
            assert found == (expected["status"], expected["info"]), recorded["name"]


async def test_accepted_envelopes_are_answered_one_after_the_other(place):
    stream = call(place)
    for _ in range(20):
        stream.send(envelope(place.user))
    stream.end()
    assert [await answer(stream) for _ in range(20)] == [(200, "")] * 20
    await stream.ended()
    async with asyncio.timeout(5):
        while place.ledger.height < 6:
            await place.ledger.wait_above(place.ledger.height)


REFUSED: dict[str, tuple[Any, int, str]] = {
    "nothing": (lambda _: b"", 400, "Message was empty"),
    "no message": (lambda _: b"\xff\xff", 400, "could not determine channel ID: "),
    "no payload": (
        lambda _: common_pb2.Envelope(signature=b"x").SerializeToString(),
        400,
        "could not determine channel ID: ",
    ),
    "no channel header": (
        lambda _: wrap(b"", b"x"),
        400,
        "could not determine channel",
    ),
    "another channel": (
        lambda p: envelope(p.user, channel="other"),
        400,
        "channel does not exist",
    ),
    "configuration": (lambda p: envelope(p.user, common_pb2.CONFIG), 400, DIRECT),
    "of the system channel": (
        lambda p: envelope(p.user, common_pb2.ORDERER_TRANSACTION),
        400,
        DIRECT,
    ),
    "update without content": (
        lambda p: envelope(p.org.admin, common_pb2.CONFIG_UPDATE),
        400,
        "error applying config update to existing channel 'mychannel': ",
    ),
    "update of a stranger": (
        lambda p: envelope(p.org.peer, common_pb2.CONFIG_UPDATE),
        403,
        "config update for existing channel did not pass initial checks: ",
    ),
    "update that this node does not follow": (
        lambda p: changed(p, lambda group: group.groups.pop("Orderer")),
        501,
        "add and remove organisations, but not change one otherwise",
    ),
    "update that makes a channel": (
        lambda p: envelope(p.org.admin, common_pb2.CONFIG_UPDATE, channel="other"),
        501,
        "a channel is made by `chaindock channel create NAME`",
    ),
    "forged": (
        lambda p: envelope(p.user, key=p.org.admin),
        403,
        "'Writers' sub-policies to be satisfied: permission denied",
    ),
    "of a peer": (lambda p: envelope(p.org.peer), 403, ": permission denied"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_refusal_says_why_ends_the_stream_and_changes_nothing(place, name):
    make, status, info = REFUSED[name]
    stream = call(place).send(make(place)).send(envelope(place.user))
    found = await answer(stream)
    assert (found[0], info in found[1]) == (status, True), found
    await stream.ended()
    assert (stream.waiting, place.ledger.height) == (0, 5)


@pytest.mark.statement(42, of="client")
async def test_a_message_above_the_absolute_size_is_a_bad_request(place):
    limit = place.channel.orderer.max_bytes
    for size in (limit, limit + 5_000_000):
        status, info = await answer(call(place).send(envelope(place.user, size=size)))
        assert (status, f"exceeds maximum allowed {limit} bytes" in info) == (400, True)
    whole = len(common_pb2.Envelope.FromString(envelope(place.user)).payload) + 72
    exact = envelope(place.user, size=limit - whole - 100)
    assert await answer(call(place).send(exact)) == (200, "")


@pytest.mark.statement(43, of="client")
async def test_a_signature_with_a_flipped_bit_is_forbidden(place):
    good = common_pb2.Envelope.FromString(envelope(place.user))
    good.signature = good.signature[:-1] + bytes([good.signature[-1] ^ 1])
    status, info = await answer(call(place).send(good.SerializeToString()))
    assert (status, info.endswith("permission denied")) == (403, True)


async def test_an_expired_certificate_is_a_bad_request(place, monkeypatch):
    monkeypatch.setattr(msp.Identity, "expired", True)
    found = await answer(call(place).send(envelope(place.user)))
    assert found == (400, "broadcast client identity expired")


async def test_a_stranger_is_forbidden(place, tmp_path):
    foreign = Organization.open(tmp_path / "other", "Org1MSP", "org1.example.com")
    found = await answer(call(place).send(envelope(foreign.user("User1"))))
    assert found[0] == 403


async def test_a_node_that_stops_is_unavailable(place):
    await place.channel.orderer.__aexit__()
    status, info = await answer(call(place).send(envelope(place.user)))
    assert (status, "nothing was submitted" in info) == (503, True)


async def test_what_a_revert_refuses_may_be_sent_again(place, monkeypatch):
    async def order(_: bytes) -> Any:
        raise LedgerError("the ledger was reverted meanwhile")

    monkeypatch.setattr(place.channel.orderer, "order", order)
    assert (await answer(call(place).send(envelope(place.user))))[0] == 503


class TestFullQueue:
    async def test_a_client_waits_for_room_and_no_other_stream_is_ended(self, place):
        full = Orderer(
            place.ledger,
            place.channel.members.configuration,
            OrdererOptions(mode=MANUAL, max_waiting=2),
        )
        place.channel.orderer = full
        async with full:
            stream = call(place)
            for _ in range(3):
                stream.send(envelope(place.user))
            assert [await answer(stream) for _ in range(2)] == [(200, "")] * 2
            await asyncio.sleep(0.02)
            assert stream.waiting == 0
            gone = call(place).send(envelope(place.user))
            await asyncio.sleep(0.01)
            gone.leave()
            await full.cut()
            assert await answer(stream) == (200, "")
            assert full.waiting == 1

    async def test_what_waits_is_bounded_in_bytes(self, place, monkeypatch):
        monkeypatch.setattr(broadcasts, "_HELD_BYTES", 2000)
        place.channel.orderer = full = Orderer(
            place.ledger,
            place.channel.members.configuration,
            OrdererOptions(mode=MANUAL, max_waiting=1),
        )
        async with full:
            service = place.orderer()
            streams = [Stream().start(service, "Broadcast") for _ in range(3)]
            for stream in streams:
                stream.send(envelope(place.user, size=900))
            assert await answer(streams[0]) == (200, "")
            status, info = await answer(streams[2])
            assert (status, "too many envelopes" in info) == (503, True)
            await full.cut()
            assert await answer(streams[1]) == (200, "")
