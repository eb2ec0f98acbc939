"""Calls through the gateway of a node with the peers of two organisations.

What one recorded peer answers is in test_recorded_gateway.py.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.msp.identities_pb2 import SerializedIdentity
from fabric_protos.peer import chaincode_event_pb2, chaincode_shim_pb2, policy_pb2
from fabric_protos.peer.collection_pb2 import CollectionConfigPackage
from fabric_protos.peer.proposal_response_pb2 import Response

from chaindock.endorser.caller import DefinitionWriter
from chaindock.errors import LaunchFailed
from chaindock.identity.policies import parse_policy
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Definition
from support.gateways.client import Ended, events_request, status_request
from support.gateways.node import Front, endorse_request, evaluate_request
from support.gateways.recorded import envelope_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from support.gateways.client import Client
    from support.peers import World

CHANNEL = "mychannel"
_CCID = Ccid("basic_1.0:" + "a" * 64)


class Contract:
    """Functions in place of a chaincode process."""

    def __init__(self) -> None:
        self.started, self.left = asyncio.Event(), asyncio.Event()

    async def execute(self, _ccid: Any, invocation: Any, _mspid: Any) -> Any:
        function, *args = (bytes(one).decode() for one in invocation.input.args)
        event = None
        if function == "hang":
            self.started.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        elif function == "fail":
            raise LaunchFailed("could not launch chaincode basic: no", ccid=_CCID)
        elif function == "put":
            invocation.simulator.put_state(invocation.namespace, args[0], b"v")
            event = chaincode_event_pb2.ChaincodeEvent(event_name=args[0])
        else:
            assert function == "hide"
            place = invocation.namespace, args[0]
            invocation.simulator.put_private(*place, "key", b"secret")
        invocation.simulator.budget.give_back()
        return chaincode_shim_pb2.ChaincodeMessage(
            type=chaincode_shim_pb2.ChaincodeMessage.COMPLETED,
            payload=Response(status=200, payload=b"done").SerializeToString(),
            chaincode_event=event,
        )


class Gateways:
    """The servers of both organisations; the second one may have joined."""

    def __init__(self, world: World, front: Front, second: Client) -> None:
        self.world, self.front, self.second = world, front, second
        self.first, self.user = front.client, world.user
        self.contract = Contract()
        world.channel.endorser.executor = cast(
            "Any",
            SimpleNamespace(execute=self.contract.execute, process_of=lambda _: ""),
        )

    async def define(
        self, policy: str, name: str = "basic", **collections: str
    ) -> None:
        """Define a chaincode with a policy, and collections with their members."""
        package = CollectionConfigPackage()
        for collection, members in collections.items():
            config = package.config.add().static_collection_config
            config.name, config.maximum_peer_count = collection, 1
            rule = parse_policy(members)
            config.member_orgs_policy.signature_policy.CopyFrom(rule)
        parameter = policy_pb2.ApplicationPolicy(signature_policy=parse_policy(policy))
        channel = self.world.channel
        admins = [self.world.admin]
        if len(channel.members.peers) > 1:
            admins.append(self.world.other.admin)
        writer = DefinitionWriter(channel.caller, channel.ledger, lambda: admins)
        definition = Definition(
            name=name,
            sequence=1,
            version="1.0",
            validation_parameter=parameter.SerializeToString(),
            collections=package,
        )
        await writer.commit(definition, _CCID)

    async def endorse(self, *args: bytes, name: str = "basic", **how: Any) -> Any:
        """Return the MSP ids of those that endorsed, or how the call ended."""
        request = endorse_request(self.user, name, *args, **how)
        found = await self.first.raw("Endorse", request.SerializeToString())
        if isinstance(found, Ended):
            return found
        _, endorsers = envelope_of(found)
        return [SerializedIdentity.FromString(one).mspid for one in endorsers]

    async def prepared(self, *args: bytes) -> tuple[str, Any]:
        """Return the id of a new transaction, and the request that submits it."""
        answer = await self.first.call(
            "Endorse", endorse_request(self.user, "basic", *args)
        )
        envelope = answer.prepared_transaction
        envelope.signature = self.user.sign(envelope.payload)
        payload = common_pb2.Payload.FromString(envelope.payload)
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        request = pb.SubmitRequest(channel_id=CHANNEL, prepared_transaction=envelope)
        return header.tx_id, request


@asynccontextmanager
async def gateways(world: World, **options: Any) -> AsyncIterator[Gateways]:
    async with Front(world.org, world.channels, **options) as front:
        await front.listener.serve(world.other)
        second = await front.connect(world.other)
        yield Gateways(world, front, second)


@pytest.fixture
async def one(world: World) -> AsyncIterator[Gateways]:
    """The second organisation is no member of the channel."""
    async with gateways(world) as found:
        await found.define("OR('Org1MSP.peer')")
        yield found


@pytest.fixture
async def two(world: World) -> AsyncIterator[Gateways]:
    await world.let_second_join()
    async with gateways(world) as found:
        yield found


# --- whose peer ---------------------------------------------------------------------


async def test_the_peer_of_the_own_organisation_comes_first(two: Gateways) -> None:
    await two.define("OR('Org1MSP.peer','Org2MSP.peer')")
    address = two.front.listener.connection("Org2MSP")["address"]
    request = evaluate_request(two.user, "basic", b"fail")
    ended = await two.second.call("Evaluate", request)
    assert [one[:2] for one in ended.details] == [(address, "Org2MSP")]
    ended = await two.first.call("Evaluate", request)
    assert [one[1] for one in ended.details] == ["Org1MSP"]
    request.target_organizations.append("Org2MSP")
    ended = await two.first.call("Evaluate", request)
    assert [one[:2] for one in ended.details] == [(address, "Org2MSP")]


async def test_a_gateway_whose_organisation_is_no_member_knows_no_such_channel(
    one: Gateways,
) -> None:
    second = one.second
    height = one.world.channel.ledger.height
    unknown = f"failed to get config for channel [{CHANNEL}]: could not get last"
    no_policies = Ended(
        "PERMISSION_DENIED", f"Failed to get policy manager for channel [{CHANNEL}]"
    )
    ended = await second.call(
        "Evaluate", evaluate_request(one.user, "basic", b"put", b"k")
    )
    assert (ended.code, ended.text[: len(unknown)]) == ("UNAVAILABLE", unknown)
    request = endorse_request(one.user, "basic", b"put", b"k")
    ended = await second.call("Endorse", request)
    assert ended.code == "FAILED_PRECONDITION"
    assert "No metadata was found for chaincode basic" in ended.text
    request.endorsing_organizations.append("Org1MSP")
    ended = await second.call("Endorse", request)
    text = "failed to find any endorsing peers for org(s): Org1MSP"
    assert ended == Ended("UNAVAILABLE", text)
    tx_id, submit = await one.prepared(b"put", b"k")
    ended = await second.call("Submit", submit)
    assert (ended.code, ended.text[: len(unknown)]) == ("FAILED_PRECONDITION", unknown)
    question = status_request(one.user, CHANNEL, tx_id)
    assert await second.call("CommitStatus", question) == no_policies
    events = events_request(one.user, CHANNEL, "basic")
    assert await anext(second.stream("ChaincodeEvents", events)) == no_policies
    assert one.world.channel.ledger.height == height


# --- who endorses -------------------------------------------------------------------


async def test_as_few_endorse_as_the_policy_needs(two: Gateways) -> None:
    await two.define("OR('Org1MSP.peer','Org2MSP.peer')")
    assert await two.endorse(b"put", b"k") == ["Org1MSP"]
    assert await two.endorse(b"put", b"k", orgs=("Org2MSP",)) == ["Org2MSP"]
    named = ("Org2MSP", "Org1MSP", "Org2MSP")
    assert await two.endorse(b"put", b"k", orgs=named) == ["Org2MSP", "Org1MSP"]


async def test_all_endorse_whom_the_policy_needs(two: Gateways) -> None:
    await two.define("AND('Org1MSP.peer','Org2MSP.peer')")
    assert await two.endorse(b"put", b"k") == ["Org1MSP", "Org2MSP"]


async def test_a_policy_that_nobody_satisfies_is_told_before_the_commit(
    one: Gateways,
) -> None:
    await one.define("AND('Org1MSP.peer','Org1MSP.admin')", "strict")
    request = endorse_request(one.user, "strict", b"put", b"k")
    ended = await one.first.call("Endorse", request)
    assert ended.code == "FAILED_PRECONDITION"
    assert "no peer combination can satisfy the endorsement policy" in ended.text


async def test_who_sees_transient_data_must_be_a_member_of_the_collections(
    two: Gateways,
) -> None:
    both = "AND('Org1MSP.peer','Org2MSP.peer')"
    mine, ours = "OR('Org1MSP.member')", "OR('Org1MSP.member','Org2MSP.member')"
    await two.define(both, mine=mine, ours=ours)
    secret: dict[str, Any] = {"transient": {"a": b"b"}}
    assert await two.endorse(b"hide", b"mine") == ["Org1MSP", "Org2MSP"]
    assert await two.endorse(b"hide", b"ours", **secret) == ["Org1MSP", "Org2MSP"]
    ended = await two.endorse(b"hide", b"mine", **secret)
    assert ended.code == "FAILED_PRECONDITION"
    assert ended.text == (
        "requires endorsement from organisation(s) that are not in the distribution "
        "policy of the private data collection(s): [mine]; retry specifying trusted "
        "endorsing organizations to protect transient data"
    )
    named = {"orgs": ("Org1MSP", "Org2MSP"), **secret}
    assert await two.endorse(b"hide", b"mine", **named) == ["Org1MSP", "Org2MSP"]


async def test_each_named_organisation_is_in_the_details(two: Gateways) -> None:
    await two.define("OR('Org1MSP.peer')")
    ended = await two.endorse(b"fail", orgs=("Org1MSP", "Org2MSP"))
    assert ended.code == "ABORTED"
    assert "failed to collect enough transaction endorsements" in ended.text
    assert [one[1] for one in ended.details] == ["Org1MSP", "Org2MSP"]
    assert all("could not launch chaincode" in one[2] for one in ended.details)


async def test_system_chaincode_is_evaluated_and_not_endorsed(one: Gateways) -> None:
    request: Any = evaluate_request(one.user, "qscc", b"GetChainInfo", b"mychannel")
    answer = await one.first.call("Evaluate", request)
    assert answer.result.status == 200
    assert answer.result.payload
    request = endorse_request(one.user, "qscc", b"GetChainInfo", b"mychannel")
    ended = await one.first.call("Endorse", request)
    assert "No metadata was found for chaincode qscc" in ended.text


async def test_definitions_are_approved_and_committed_by_those_whom_they_need(
    two: Gateways,
) -> None:
    await two.define("OR('Org1MSP.peer')")
    two.user = two.world.admin
    definition = Definition(name="new", sequence=1, version="1").SerializeToString()
    approve = b"ApproveChaincodeDefinitionForMyOrg", definition
    assert await two.endorse(*approve, name="_lifecycle") == ["Org1MSP"]
    secret = {"transient": {"a": b"b"}}
    assert await two.endorse(*approve, name="_lifecycle", **secret) == ["Org1MSP"]
    ended = await two.endorse(
        b"CommitChaincodeDefinition", definition, name="_lifecycle"
    )
    assert "chaincode definition not agreed to by this org" in ended.details[0][2]


# --- limits -------------------------------------------------------------------------


async def test_a_client_whose_clock_is_wrong_is_refused(one: Gateways) -> None:
    late = time.time_ns() - 3600 * 10**9
    request: Any = evaluate_request(one.user, "basic", b"put", b"k", now_ns=late)
    ended = await one.first.call("Evaluate", request)
    assert ended.code == "UNAVAILABLE"
    assert "incorrect timestamp" in ended.details[0][2]
    request = endorse_request(one.user, "basic", b"put", b"k", now_ns=late)
    ended = await one.first.call("Endorse", request)
    assert ended.code == "ABORTED"
    assert "incorrect timestamp" in ended.details[0][2]


@pytest.mark.parametrize("method", ["Evaluate", "Endorse"])
async def test_a_client_that_leaves_ends_the_call_of_the_chaincode(
    one: Gateways, method: str
) -> None:
    make: Any = evaluate_request if method == "Evaluate" else endorse_request
    call = one.first.call(method, make(one.user, "basic", b"hang"), 0.5)
    ended = await call
    assert ended.code == "DEADLINE_EXCEEDED"
    assert one.contract.started.is_set()
    async with asyncio.timeout(5):
        await one.contract.left.wait()


async def test_a_transaction_that_is_not_accepted_in_time(one: Gateways) -> None:
    _, request = await one.prepared(b"put", b"k")
    _, large = await one.prepared(b"put", b"l" * 2000)
    orderer = one.world.channel.orderer
    orderer._options = orderer._options.__class__(
        max_waiting_bytes=1, mode=("manual", 0.0)
    )
    async with gateways(one.world, broadcast_s=0.2) as other:
        assert not isinstance(await other.first.call("Submit", request), Ended)
        ended = await other.first.call("Submit", large)
    text = "submit timeout expired while broadcasting to ordering service"
    assert ended == Ended("DEADLINE_EXCEEDED", text)
    assert await orderer.cut() == 1


# --- commit and events --------------------------------------------------------------


async def test_a_status_is_answered_when_the_transaction_is_committed(
    one: Gateways,
) -> None:
    tx_id, request = await one.prepared(b"put", b"k")
    question = status_request(one.user, CHANNEL, tx_id)
    waits = [
        asyncio.ensure_future(one.first.call("CommitStatus", question))
        for _ in range(20)
    ]
    await asyncio.sleep(0.1)
    assert not any(wait.done() for wait in waits)
    assert await one.first.call("Submit", request) == pb.SubmitResponse()
    answers = await asyncio.gather(*waits)
    height = one.world.channel.ledger.height
    answer = pb.CommitStatusResponse(result=0, block_number=height - 1)
    assert answers == [answer] * 20
    assert await one.first.call("CommitStatus", question) == answer


async def test_events_come_as_blocks_are_committed(one: Gateways) -> None:
    request = events_request(one.user, CHANNEL, "basic")
    stream = one.first.stream("ChaincodeEvents", request)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.5)
    for key in (b"first", b"second"):
        tx_id, submit = await one.prepared(b"put", key)
        await one.first.call("Submit", submit)
        async with asyncio.timeout(5):
            found = await waiting
        assert isinstance(found, bytes)
        response = pb.ChaincodeEventsResponse.FromString(found)
        (event,) = response.events
        assert (event.tx_id, event.event_name) == (tx_id, key.decode())
        assert event.chaincode_id == "basic"
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
    waiting.cancel()


async def test_a_client_that_leaves_frees_its_place(world: World) -> None:
    async with gateways(world, gateway_calls=1) as one:
        request = events_request(one.user, CHANNEL, "basic")
        stream = one.first.stream("ChaincodeEvents", request, 1.5)
        question = status_request(one.user, CHANNEL, "00" * 32)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.5)
        refused = await one.first.call("CommitStatus", question)
        text = "too many requests for /gateway.Gateway, exceeding concurrency limit (1)"
        assert refused == Ended("UNKNOWN", text)
        ended = await reading
        assert isinstance(ended, Ended)
        assert ended.code == "DEADLINE_EXCEEDED"

        async def admitted() -> bool:
            found = await one.first.call("CommitStatus", question, 0.2)
            return bool(found.code == "DEADLINE_EXCEEDED")

        for _ in range(20):
            if await admitted():
                break
        else:
            pytest.fail("the place is not free")
