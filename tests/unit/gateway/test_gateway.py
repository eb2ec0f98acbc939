"""Calls through the gateway of a node with the peers of two organisations.

What one recorded peer answers is in test_recorded_gateway.py.
"""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from fabric_protos.gateway import gateway_pb2 as pb

from chaindock.errors import ExecuteTimeout, LaunchFailed
from chaindock.lifecycle.definitions import Definition
from chaindock.values import MIB
from support.gateways.client import Ended, events_request, status_request
from support.gateways.node import endorse_request, evaluate_request
from support.gateways.two import CHANNEL, Gateways, gateways

if TYPE_CHECKING:
    from support.peers import World


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


async def test_a_query_that_times_out_is_tried_at_one_more_peer(two: Gateways) -> None:
    """One process may hang; if two do, it is the contract. Clients may set no deadline."""
    await two.define("OR('Org1MSP.peer','Org2MSP.peer')")
    two.world.channel.members.peers["Org3MSP"] = two.world.other.peer
    hung = ["Org1MSP", "Org2MSP", "Org3MSP"]

    async def execute(ccid: Any, invocation: Any, mspid: str) -> Any:
        if mspid in hung:
            raise ExecuteTimeout(f"timeout at {mspid}", ccid=ccid)
        return await two.contract.execute(ccid, invocation, mspid)

    two.world.channel.endorser.executor = cast(
        "Any", SimpleNamespace(execute=execute, process_of=lambda mspid: mspid)
    )
    request = evaluate_request(two.user, "basic", b"put", b"k")
    ended = await two.first.call("Evaluate", request)
    assert ended.code == "ABORTED"
    assert [one[1] for one in ended.details] == ["Org1MSP", "Org2MSP"]
    hung.remove("Org2MSP")
    answer = await two.first.call("Evaluate", request)
    assert answer.result.payload == b"done"


async def test_calls_with_secrets_of_what_no_peer_has(one: Gateways) -> None:
    """The own organisation's peers alone may see transient data, unless others are named."""
    none = "no peers available to evaluate chaincode absent in channel mychannel"
    own = "no endorsers found in the gateway's organization; retry specifying {} "
    own += "organization(s) to protect transient data"
    secret = {"k": b"v"}
    for targets, transient, text in (
        ((), secret, f"{own.format('target')}: {none}"),
        (("Org1MSP",), secret, none),
        (("Org9MSP",), secret, none),
        ((), {}, none),
    ):
        query = evaluate_request(
            one.user, "absent", targets=targets, transient=transient
        )
        ended = await one.first.call("Evaluate", query)
        assert ended == Ended("FAILED_PRECONDITION", text)
    unplanned = Ended("FAILED_PRECONDITION", own.format("endorsing"))
    assert await one.endorse(name="absent", transient=secret) == unplanned
    assert await one.endorse(channel="no", transient=secret) == unplanned
    ended = await one.endorse(name="qscc", transient=secret)  # each peer has it
    assert "No metadata was found for chaincode qscc" in ended.text
    missing = "failed to find any endorsing peers for org(s): Org1MSP"
    how = {"transient": secret, "orgs": ["Org1MSP"]}
    assert await one.endorse(name="absent", **how) == Ended("UNAVAILABLE", missing)


async def test_peers_that_take_too_long_to_endorse(two: Gateways) -> None:
    """Longer than peer.gateway.endorsementTimeout, and less than chaincode may run."""
    await two.define("AND('Org1MSP.peer','Org2MSP.peer')")
    hung = "Org1MSP"
    late = "timeout expired while executing transaction"

    async def execute(ccid: Any, invocation: Any, mspid: str) -> Any:
        if mspid == hung:
            await asyncio.sleep(0.01)
            raise ExecuteTimeout(late, ccid=ccid)
        return await two.contract.execute(ccid, invocation, mspid)

    async with gateways(two.world, endorsement_s=0.01) as hasty:
        two.world.channel.endorser.executor = cast(
            "Any", SimpleNamespace(execute=execute, process_of=lambda mspid: mspid)
        )
        expired = "endorsement timeout expired while collecting {}"
        first = Ended("DEADLINE_EXCEEDED", expired.format("first endorsement"))
        others = Ended("DEADLINE_EXCEEDED", expired.format("endorsements"))
        assert await hasty.endorse(b"put", b"k") == first
        assert await hasty.endorse(b"put", b"k", orgs=["Org1MSP"]) == others
        assert await hasty.endorse(b"put", b"k", orgs=["Org1MSP", "Org2MSP"]) == others
        hung = "Org2MSP"
        assert await hasty.endorse(b"put", b"k") == others
        assert (await two.endorse(b"put", b"k")).code == "ABORTED"


async def test_an_error_after_a_slow_start_of_chaincode_is_no_time_out(
    two: Gateways,
) -> None:
    """The time for which chaincode may run begins when it has been launched."""
    await two.define("AND('Org1MSP.peer','Org2MSP.peer')")
    broken = "Org1MSP"

    async def execute(ccid: Any, invocation: Any, mspid: str) -> Any:
        await asyncio.sleep(0.02)
        if mspid == broken:
            raise LaunchFailed("could not launch chaincode basic: exited", ccid=ccid)
        return await two.contract.execute(ccid, invocation, mspid)

    async with gateways(two.world, endorsement_s=0.01) as hasty:
        two.world.channel.endorser.executor = cast(
            "Any", SimpleNamespace(execute=execute, process_of=lambda mspid: mspid)
        )
        ended = await hasty.endorse(b"put", b"k")
        assert (ended.code, len(ended.details)) == ("ABORTED", 1)
        broken = "Org2MSP"
        ended = await hasty.endorse(b"put", b"k")
        assert ended.code == "ABORTED"
        assert ended.details[0][2].endswith("could not launch chaincode basic: exited")


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


async def test_others_must_say_what_the_own_peer_says(two: Gateways) -> None:
    """Also where the policy does not need the own one, which is asked first."""
    await two.define("OR('Org2MSP.peer')")
    assert await two.endorse(b"put", b"k") == ["Org2MSP"]

    async def execute(ccid: Any, invocation: Any, mspid: str) -> Any:
        invocation.simulator.put_state(invocation.namespace, "who", mspid.encode())
        return await two.contract.execute(ccid, invocation, mspid)

    two.world.channel.endorser.executor = cast(
        "Any", SimpleNamespace(execute=execute, process_of=lambda mspid: mspid)
    )
    ended = await two.endorse(b"put", b"k")
    assert (ended.code, ended.text[:29]) == ("ABORTED", "failed to collect enough tran")
    differs = ("Org2MSP", "ProposalResponsePayloads do not match")
    assert [one[1:] for one in ended.details] == [differs]
    assert await two.endorse(b"put", b"k", orgs=("Org2MSP",)) == ["Org2MSP"]


async def test_a_policy_that_nobody_satisfies_is_told_before_the_commit(
    one: Gateways,
) -> None:
    await one.define("AND('Org1MSP.peer','Org1MSP.admin')", "strict")
    request = endorse_request(one.user, "strict", b"put", b"k")
    ended = await one.first.call("Endorse", request)
    assert ended.code == "FAILED_PRECONDITION"
    assert "no peer combination can satisfy the endorsement policy" in ended.text


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
    # The peer of another organisation approves for its own admins alone.
    both = ("Org1MSP", "Org2MSP")
    ended = await two.endorse(*approve, name="_lifecycle", orgs=both)
    assert (ended.code, [one[1] for one in ended.details]) == ("ABORTED", ["Org2MSP"])
    assert "Failed to authorize invocation due to failed ACL" in ended.details[0][2]
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


@pytest.mark.parametrize("method", ["Evaluate", "Endorse"])
async def test_the_bytes_of_a_request_go_when_it_has_been_read(
    one: Gateways, method: str
) -> None:
    request_of = {"Evaluate": evaluate_request, "Endorse": endorse_request}[method]
    request = request_of(one.user, "basic", b"hang", bytes(8 * MIB))
    message = request.SerializeToString()
    tracemalloc.start()
    try:
        waiting = asyncio.ensure_future(one.first.raw(method, message))
        await one.contract.started.wait()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    waiting.cancel()
    # The argument of the contract, and the payload of the proposal.
    assert held < 17 * MIB
