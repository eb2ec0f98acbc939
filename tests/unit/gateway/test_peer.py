"""Proposals to the peers of two organisations: who endorses, what is refused and how."""

from __future__ import annotations

import asyncio
import random
import time
from hashlib import sha256
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.peer import proposal_pb2
from fabric_protos.peer.query_pb2 import ChannelQueryResponse
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.errors import LaunchFailed
from chaindock.gateway.statuses import Refusal
from chaindock.values import MIB
from support.holds import cpu_of, watched
from support.ledgers.proposals import new_proposal
from support.peers import CHANNEL, answer, ask, call


async def refused(awaited: Any) -> tuple[str, str]:
    with pytest.raises(Refusal) as caught:
        await awaited
    return caught.value.code.name, caught.value.text


# --- chaincode of users


@pytest.mark.statement(34, of="client")
async def test_the_peer_that_is_asked_endorses_alone(world):
    await world.define()
    answer = await world.call("basic", "200", "k")
    assert (answer.version, answer.response.payload) == (1, b"said")
    assert answer.endorsement.endorser == world.org.peer.creator
    assert [one.name for one in answer.interest.chaincodes] == ["basic"]
    found = await call(world.second, world.user, CHANNEL, "basic", "200")
    assert found.response.message == "channel 'mychannel' not found"


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        ("399", {"version", "response", "payload", "endorsement", "interest"}),
        ("400", {"response"}),
        ("499", {"response"}),
        ("500", {"response", "payload", "interest"}),
    ],
)
async def test_what_an_answer_has_depends_on_the_status(world, status, fields):
    await world.define()
    answer = await world.call("basic", status, "k")
    assert {field.name for field, _ in answer.ListFields()} == fields
    assert answer.response.status == int(status)


async def test_a_launch_that_failed_is_told_in_a_response(world):
    await world.define()

    async def fail(ccid: Any, _invocation: Any, _mspid: str) -> Any:
        raise LaunchFailed("could not launch chaincode basic: no room", ccid=ccid)

    world.channel.endorser.executor.execute = fail
    signed = new_proposal(CHANNEL, "basic", [b"200"], world.user)
    header = common_pb2.Header.FromString(
        proposal_pb2.Proposal.FromString(signed.proposal_bytes).header
    )
    tx_id = common_pb2.ChannelHeader.FromString(header.channel_header).tx_id
    answer = await ask(world.peer, signed)
    assert (answer.response.status, answer.response.message, answer.payload) == (
        500,
        (
            f"error in simulation: failed to execute transaction {tx_id}: could not "
            "launch chaincode basic: no room"
        ),
        b"",
    )


@pytest.mark.parametrize("off_s", [-901, 901, 1e10, -(2**62)])
async def test_a_clock_that_is_wrong_is_refused(world, off_s):
    signed = new_proposal(CHANNEL, "qscc", [b"GetChainInfo", b"mychannel"], world.user)
    outer = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(outer.header)
    channel = common_pb2.ChannelHeader.FromString(header.channel_header)
    channel.timestamp.CopyFrom(Timestamp(seconds=int(time.time() + off_s)))
    header.channel_header = channel.SerializeToString()
    outer.header = header.SerializeToString()
    data = outer.SerializeToString()
    again = proposal_pb2.SignedProposal(
        proposal_bytes=data, signature=world.user.sign(data)
    )
    code, text = await refused(ask(world.peer, again))
    assert code == "UNKNOWN"
    assert text.startswith("request unauthorized due to incorrect timestamp ")
    assert text.endswith("peer.authentication.timewindow 15m0s")


async def test_two_peers_that_share_a_process_run_a_proposal_in_turn(world):
    await world.define()
    await world.let_second_join()
    ran, go_on, turn = [], asyncio.Event(), asyncio.Lock()

    async def slow(ccid: Any, invocation: Any, _mspid: str) -> Any:
        ran.append(invocation.tx_id)
        assert not turn.locked()  # a stream takes a transaction once at a time
        async with turn:
            await go_on.wait()
            return await answer(ccid, invocation)

    world.channel.endorser.executor.execute = slow
    signed = new_proposal(CHANNEL, "basic", [b"200", b"k"], world.user)
    forged = proposal_pb2.SignedProposal(
        proposal_bytes=signed.proposal_bytes + b"\x1a\x00", signature=signed.signature
    )
    leaves = asyncio.ensure_future(ask(world.peer, signed))
    both = [
        asyncio.ensure_future(ask(one, signed)) for one in (world.peer, world.second)
    ]
    await asyncio.sleep(0)
    # Other bytes get no answer that is not theirs.
    assert (await refused(ask(world.second, forged)))[1].endswith(
        "creator org [Org1MSP]"
    )
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    go_on.set()
    first, second = await asyncio.gather(*both)
    assert len(ran) == 3  # the first client left
    assert first.payload == second.payload
    for found, org in ((first, world.org), (second, world.other)):
        assert found.endorsement.endorser == org.peer.creator
        identity = org.msp.identify(org.peer.creator)
        identity.verify(found.payload + org.peer.creator, found.endorsement.signature)


# --- without a channel


async def test_without_a_channel_the_signer_is_of_the_peers_organisation(world):
    answer = await call(world.second, world.other.admin, "", "cscc", "GetChannels")
    assert answer.response.status == 200
    assert not ChannelQueryResponse.FromString(answer.response.payload).channels
    assert await refused(call(world.second, world.user, "", "cscc", "GetChannels")) == (
        "UNKNOWN",
        (
            "error validating proposal: access denied: channel [] creator org unknown, "
            "creator is malformed"
        ),
    )


async def test_without_a_channel_only_system_chaincode_answers(world):
    for name in ("basic", "escc", "x" * 5000):
        answer = await world.call(name, "200", channel="")
        assert answer.response.message == (
            f"make sure the chaincode {name} has been successfully defined on channel  "
            "and try again: could not get channel config for channel ''"
        )
    answer = await world.call("qscc", "GetChainInfo", "mychannel", channel="")
    assert {field.name for field, _ in answer.ListFields()} == {"response"}


@pytest.mark.parametrize("channel", ["", CHANNEL])
async def test_the_former_lifecycle_names_the_commands_of_the_present_one(
    world, channel
):
    answer = await world.call(
        "lscc", "getchaincodes", channel=channel, signer=world.admin
    )
    assert answer.response.status == 500
    assert "use `peer lifecycle chaincode` instead" in answer.response.message


@pytest.mark.statement(77, of="client")
async def test_a_client_does_not_see_the_installed_packages(world):
    answer = await world.call("_lifecycle", "QueryInstalledChaincodes", "", channel="")
    assert answer.response.status == 500
    assert "The identity is not an admin under this MSP [Org1MSP]" in (
        answer.response.message
    )


async def test_a_large_package_does_not_hold_the_loop(world):
    args = [b"InstallChaincode", bytes(32 * MIB)]
    raw = new_proposal("", "_lifecycle", args, world.user).SerializeToString()
    with watched() as held:
        answer = await asyncio.ensure_future(world.peer.process_proposal(raw))
    assert b"is not an admin under this MSP [Org1MSP]" in answer
    assert held.cpu_s < cpu_of(lambda: sha256(raw)), held.what


# --- hostile bytes


async def test_no_bytes_do_more_than_be_refused(world):
    height = world.channel.ledger.height
    signed = new_proposal(CHANNEL, "cscc", [b"GetChannels"], world.user)
    good = signed.SerializeToString()
    chance = random.Random(7)
    requests = [b"", b"\xff" * 9, *(good[:size] for size in range(0, len(good), 7))]
    for _ in range(500):
        changed = bytearray(good)
        for _ in range(chance.choice((1, 1, 2, 8))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        requests.append(bytes(changed))
    told = set()
    for request in requests:
        try:
            await world.peer.process_proposal(request)
        except Refusal as refusal:
            told.add(refusal.code.name)
    assert told == {"UNKNOWN", "INTERNAL"}
    assert world.channel.ledger.height == height


@pytest.mark.parametrize("missing", ["header", "payload", "extension"])
async def test_a_part_that_is_missing_is_named(world, missing):
    signed = new_proposal(CHANNEL, "cscc", [b"GetChannels"], world.user)
    outer = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(outer.header)
    channel = common_pb2.ChannelHeader.FromString(header.channel_header)
    if missing == "extension":
        channel.ClearField("extension")
        header.channel_header = channel.SerializeToString()
        outer.header = header.SerializeToString()
    else:
        outer.ClearField(missing)
    data = outer.SerializeToString()
    again = proposal_pb2.SignedProposal(
        proposal_bytes=data, signature=world.user.sign(data)
    )
    expected = {
        "header": "request unauthorized due to incorrect timestamp 1970-01-01T00:00:00Z",
        "payload": "chaincode invocation spec did not contain chaincode spec",
        "extension": "ChaincodeHeaderExtension.ChaincodeId is nil",
    }
    code, text = await refused(ask(world.peer, again))
    assert code == "UNKNOWN"
    assert text.startswith(expected[missing])
