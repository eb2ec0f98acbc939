"""Requests and envelopes that were damaged at random: the right refusal, no change."""

import asyncio
import random
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2
from google.protobuf.message import DecodeError

from chaindock.endorser.checks import new_header
from support.gateways.delivering import CHANNEL, Stream, seek, told
from support.ledgers.envelopes import wrap

TRIES = 2000
METHODS = ("Deliver", "DeliverFiltered", "DeliverWithPrivateData")


def damaged(draw: random.Random, good: bytes) -> bytes:
    """Return `good` cut, with other bytes, or with some of it twice."""
    bad = bytearray(good)
    for _ in range(draw.randrange(1, 4)):
        at = draw.randrange(len(bad)) if bad else 0
        kind = draw.randrange(4)
        if kind == 0:
            bad = bad[:at]
        elif kind == 1 and bad:
            bad[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            bad[at:at] = draw.randbytes(draw.randrange(1, 9))
        else:
            bad[at:at] = bad[: draw.randrange(40)]
    return bytes(bad)


def signed(envelope: bytes, signer: Any) -> bytes:
    """Return an envelope whose signature fits again, if it still is one."""
    try:
        found = common_pb2.Envelope.FromString(envelope)
    except DecodeError:
        return envelope
    found.signature = signer.sign(found.payload)
    return bytes(found.SerializeToString())


async def outcome(stream: Stream) -> str:
    """Return the status that ends the answer; "waits" = more blocks are awaited."""
    try:
        async with asyncio.timeout(0.1):
            while isinstance(found := told(await stream.next()), int):
                pass
    except TimeoutError:
        return "waits"
    return found


@pytest.mark.parametrize("repaired", [False, True])
async def test_a_damaged_request_gets_a_status_and_the_next_client_is_served(
    place, repaired
):
    draw = random.Random(12)
    good = seek(place.user, 0, 1)
    found = set()
    for number in range(TRIES):
        bad = damaged(draw, good)
        stream = place.call(METHODS[number % 3])
        stream.send(signed(bad, place.user) if repaired else bad)
        found.add(await outcome(stream))
        stream.leave()
    refused = {"BAD_REQUEST", "FORBIDDEN", "NOT_FOUND"}
    assert (
        refused
        <= found
        <= refused | ({"SUCCESS", "waits"} if repaired else {"SUCCESS"})
    )
    assert await place.call().send(good).numbers() == [0, 1, "SUCCESS"]


@pytest.mark.parametrize("repaired", [False, True])
async def test_a_damaged_envelope_is_refused_unless_it_is_whole(place, repaired):
    draw = random.Random(13)
    nonce, header = new_header(
        common_pb2.ENDORSER_TRANSACTION, CHANNEL, place.user.creator
    )
    signature_header = common_pb2.SignatureHeader(
        creator=place.user.creator, nonce=nonce
    )
    good = signed(
        wrap(
            header.SerializeToString(),
            b"no transaction",
            signature_header.SerializeToString(),
        ),
        place.user,
    )
    found = set()
    for _ in range(TRIES):
        bad = damaged(draw, good)
        stream = Stream().start(place.orderer(), "Broadcast")
        stream.send(signed(bad, place.user) if repaired else bad)
        response = ab_pb2.BroadcastResponse.FromString(await stream.raw())
        found.add(response.status)
        # What is behind the signature, or in fields that nobody knows, harms nothing.
        if not repaired and response.status == common_pb2.SUCCESS:
            assert same(bad, good)
        stream.leave()
    assert {400, 403} <= found <= {200, 400, 403, 501}


def same(one: bytes, other: bytes) -> bool:
    first, second = (common_pb2.Envelope.FromString(data) for data in (one, other))
    return (first.payload, first.signature) == (second.payload, second.signature)
