"""Streams of blocks: every position, status and refusal."""

import asyncio
import dataclasses
import hashlib
import ssl
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2

from chaindock.identity import msp
from chaindock.identity.organization import Organization
from support.gateways.delivering import FOREVER, Place, Stream, seek, told
from support.ledgers.envelopes import rwset

WRITE = rwset(writes={"k": b"v"})
METHODS = ("Deliver", "DeliverFiltered", "DeliverWithPrivateData")
NO_WAIT = {"behavior": ab_pb2.SeekInfo.FAIL_IF_NOT_READY}


# --- positions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        ("oldest", 2, [0, 1, 2]),
        ("oldest", "newest", [0, 1, 2, 3, 4]),
        ("oldest", "oldest", [0]),
        (3, "oldest", [3]),
        ("newest", "newest", [4]),
        ("newest", 4, [4]),
        (2, "newest", [2, 3, 4]),
        (2, 2, [2]),
    ],
)
async def test_positions(place, method, start, stop, expected):
    stream = place.call(method).send(seek(place.user, start, stop))
    assert await stream.numbers() == [*expected, "SUCCESS"]


@pytest.mark.statement(49, of="client")
@pytest.mark.parametrize("method", METHODS)
async def test_newest_gives_the_last_block_and_then_new_ones(place, method):
    stream = place.call(method).send(seek(place.user, "newest", FOREVER))
    assert (await stream.next()).WhichOneof("Type") != "status"
    await place.commit()
    await place.commit()
    assert [told(await stream.next()) for _ in range(2)] == [5, 6]
    stream.leave()


async def test_next_commit_and_a_start_at_the_height_wait_for_the_next_block(place):
    streams = [
        place.call().send(seek(place.user, start, 5)) for start in ("next_commit", 5)
    ]
    await asyncio.sleep(0.01)
    assert [stream.waiting for stream in streams] == [0, 0]
    await place.commit()
    for stream in streams:
        assert await stream.numbers() == [5, "SUCCESS"]


@pytest.mark.statement(50, of="client")
@pytest.mark.parametrize("method", METHODS)
async def test_a_stream_takes_one_seek_after_the_other(place, method):
    stream = place.call(method)
    for number in (1, 3, 0):
        stream.send(seek(place.user, number, number))
        assert await stream.numbers() == [number, "SUCCESS"]
    await stream.end().ended()


async def test_without_patience_the_answer_ends_where_the_ledger_ends(place):
    stream = place.call().send(seek(place.user, 3, 9, **NO_WAIT))
    assert await stream.numbers() == [3, 4, "NOT_FOUND"]
    await stream.ended()


# --- what is refused


@pytest.mark.parametrize(
    ("start", "stop", "status"),
    [
        (None, 1, "BAD_REQUEST"),
        (1, None, "BAD_REQUEST"),
        (3, 2, "BAD_REQUEST"),
        ("next_commit", 2, "BAD_REQUEST"),
        (6, 9, "NOT_FOUND"),
        (2**64 - 1, 2**64 - 1, "NOT_FOUND"),
        ("", 3, "NOT_FOUND"),
    ],
)
async def test_a_range_that_is_none_ends_the_stream(place, start, stop, status):
    stream = place.call().send(seek(place.user, start, stop))
    assert await stream.numbers() == [status]
    await stream.ended()


def _without(request: bytes, *path: str) -> bytes:
    """Return a request that lacks a field."""
    envelope = common_pb2.Envelope.FromString(request)
    payload = common_pb2.Payload.FromString(envelope.payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    if path == ("header",):
        payload.ClearField("header")
    elif path == ("timestamp",):
        header.ClearField("timestamp")
        payload.header.channel_header = header.SerializeToString()
    else:
        setattr(payload.header, path[0], b"\xff\xff")
    envelope.payload = payload.SerializeToString()
    return bytes(envelope.SerializeToString())


HARMS: dict[str, Any] = {
    "nothing": lambda _: b"",
    "no message": lambda _: b"\xff\xff\xff",
    "no payload": lambda _: common_pb2.Envelope(payload=b"\xff").SerializeToString(),
    "no header": lambda good: _without(good, "header"),
    "no time": lambda good: _without(good, "timestamp"),
    "no channel header": lambda good: _without(good, "channel_header"),
    "no signature header": lambda good: _without(good, "signature_header"),
    "too large": lambda good: good + b"\x1a\x80\x80\x10" + bytes(0x40000),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("method", METHODS)
async def test_what_cannot_be_read_is_a_bad_request(place, method, harm):
    stream = place.call(method).send(HARMS[harm](seek(place.user, 0, 0)))
    assert await stream.numbers() == ["BAD_REQUEST"]
    await stream.ended()


async def test_data_that_is_no_seek_is_a_bad_request(place):
    stream = place.call().send(seek(place.user, 0, data=b"\xff\xff"))
    assert await stream.numbers() == ["BAD_REQUEST"]


@pytest.mark.parametrize("late_s", [901.0, -901.0])
async def test_a_time_outside_the_window_is_a_bad_request(place, late_s):
    stream = place.call().send(seek(place.user, 0, 0, late_s=late_s))
    assert await stream.numbers() == ["BAD_REQUEST"]
    within = seek(place.user, 0, 0, late_s=late_s * 0.99)
    assert await place.call().send(within).numbers() == [0, "SUCCESS"]


async def test_an_unknown_channel_is_not_found(place):
    for name in ("nochannel", ""):
        request = seek(place.user, 0, 0, header={"channel_id": name})
        assert await place.call().send(request).numbers() == ["NOT_FOUND"]


async def test_a_peer_that_is_no_member_does_not_have_the_channel(place):
    stream = Stream().start(place.peer("Org2MSP"), "Deliver")
    assert await stream.send(seek(place.user, 0, 0)).numbers() == ["NOT_FOUND"]


@pytest.mark.parametrize("method", METHODS)
async def test_strangers_and_forgers_are_forbidden(place, method, tmp_path):
    foreign = Organization.open(tmp_path / "other", "Org1MSP", "org1.example.com")
    unknown = Organization.open(tmp_path / "third", "Org7MSP", "org7.example.com")
    for signer, key in (
        (foreign.user("User1"), None),
        (unknown.user("User1"), None),
        (place.user, place.org.admin),
    ):
        stream = place.call(method).send(seek(signer, 0, 0, key=key))
        assert await stream.numbers() == ["FORBIDDEN"]
        await stream.ended()


async def test_access_comes_before_the_range(place, tmp_path):
    foreign = Organization.open(tmp_path / "other", "Org1MSP", "org1.example.com")
    stream = place.call().send(seek(foreign.user("User1"), None, None))
    assert await stream.numbers() == ["FORBIDDEN"]


async def test_who_expires_meanwhile_gets_no_further_block(place, monkeypatch):
    stream = place.call().send(seek(place.user, 4))
    assert (await stream.next()).block.header.number == 4
    monkeypatch.setattr(msp.Identity, "expired", True)
    assert stream.waiting == 0
    await place.commit()
    assert await stream.numbers() == ["FORBIDDEN"]


def configure(place: Place, policy: str) -> None:
    """Configure the channel anew: another policy for blocks."""
    configuration = place.channel.members.configuration
    configuration.acls["event/Block"] = policy
    configuration.config.sequence += 1


async def test_access_is_checked_again_when_the_channel_was_configured(place):
    stream = place.call().send(seek(place.user, 4))
    filtered = place.call("DeliverFiltered").send(seek(place.user, 4))
    await stream.next()
    await filtered.next()
    configure(place, "/Channel/Application/Admins")
    await place.commit()
    assert await stream.numbers() == ["FORBIDDEN"]
    assert (await filtered.next()).filtered_block.number == 5
    admin = place.call().send(seek(place.org.admin, 5, 5))
    assert await admin.numbers() == [5, "SUCCESS"]
    filtered.leave()


class TestMutualTls:
    @pytest.fixture
    def certificate(self, place: Place) -> bytes:
        place.options = dataclasses.replace(place.options, client_auth=True)
        return ssl.PEM_cert_to_DER_cert(place.user.certificate_pem.decode())

    def digest(self, der: bytes) -> bytes:
        return hashlib.sha256(der).digest()

    async def test_a_request_must_name_the_certificate_of_its_connection(
        self, place, certificate
    ):
        right = self.digest(certificate)
        for claimed, shown, expected in (
            (right, certificate, [0, "SUCCESS"]),
            (b"", certificate, ["BAD_REQUEST"]),
            (bytes(32), certificate, ["BAD_REQUEST"]),
            (right, b"", ["BAD_REQUEST"]),
            (b"", b"", ["BAD_REQUEST"]),
        ):
            request = seek(place.user, 0, 0, header={"tls_cert_hash": claimed})
            stream = place.call(certificate=shown).send(request)
            assert await stream.numbers() == expected
