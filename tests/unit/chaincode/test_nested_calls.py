"""Chaincode that calls other chaincode of its channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import (
    chaincode_pb2,
    proposal_pb2,
    proposal_response_pb2,
)
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.errors import ChaincodeError, ExecuteTimeout
from chaindock.identity.organization import Organization
from support.shims.endorsing import CHANNEL, EndorsingNode, ccid_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.shims.peer import ShimPeer

Kind = shim.ChaincodeMessage


@pytest.fixture(scope="session")
def org(tmp_path_factory: pytest.TempPathFactory) -> Organization:
    folder = tmp_path_factory.mktemp("organizations")
    return Organization.open(folder, "Org1MSP", "org1.example.com")


@pytest.fixture
async def node(
    tmp_path: Path, org: Organization, no_task_is_left: None
) -> AsyncIterator[EndorsingNode]:
    async with EndorsingNode(tmp_path, org) as node:
        yield node


def spec(name: str, *args: bytes, **given: Any) -> bytes:
    """Return the payload of INVOKE_CHAINCODE."""
    wanted = chaincode_pb2.ChaincodeSpec(
        chaincode_id=chaincode_pb2.ChaincodeID(name=name),
        input=chaincode_pb2.ChaincodeInput(args=args, **given),
    )
    data: bytes = wanted.SerializeToString()
    return data


async def send(peer: ShimPeer, to: Any, name: str, *args: bytes, **given: Any) -> None:
    await peer.send(
        Kind.INVOKE_CHAINCODE,
        spec(name, *args, **given),
        txid=to.txid,
        channel=to.channel_id,
    )


async def cause(peer: ShimPeer, to: Any, payload: bytes) -> str:
    """Return the CAUSE of the ERROR that answers INVOKE_CHAINCODE."""
    reply = await peer.ask(to, Kind.INVOKE_CHAINCODE, payload)
    assert reply.type == Kind.ERROR, reply
    text: str = reply.payload.decode()
    prefix = f"INVOKE_CHAINCODE failed: transaction ID: {to.txid}: "
    assert text.startswith(prefix)
    return text.removeprefix(prefix)


def nested(reply: Any) -> Any:
    """Return the message in the answer of a call."""
    assert reply.type == Kind.RESPONSE, reply
    return Kind.FromString(reply.payload)


def spaces(endorsement: Any) -> dict[str, Any]:
    """Return the read-write sets by namespace."""
    payload = proposal_response_pb2.ProposalResponsePayload.FromString(
        endorsement.payload
    )
    action = proposal_pb2.ChaincodeAction.FromString(payload.extension)
    found = rwset_pb2.TxReadWriteSet.FromString(action.results)
    return {
        one.namespace: kv_rwset_pb2.KVRWSet.FromString(one.rwset)
        for one in found.ns_rwset
    }


async def test_a_callee_runs_in_the_transaction_of_its_caller(node: EndorsingNode):
    a, b = await node.chaincode("a"), await node.chaincode("b")
    call = node.propose("a", b"f", transient={"secret": b"s"})
    outer = await a.receive()
    await a.ask(outer, Kind.PUT_STATE, shim.PutState(key="own", value=b"1"))
    await send(a, outer, "b", b"g", b"x", decorations={"forged": b"!"})
    inner = await b.receive()
    assert (inner.txid, inner.channel_id) == (outer.txid, CHANNEL)
    assert inner.proposal == outer.proposal
    given = chaincode_pb2.ChaincodeInput(args=[b"g", b"x"])
    assert chaincode_pb2.ChaincodeInput.FromString(inner.payload) == given
    await b.ask(inner, Kind.PUT_STATE, shim.PutState(key="other", value=b"2"))
    await b.ask(inner, Kind.GET_STATE, shim.GetState(key="own"))
    await b.complete(inner, b"done", event="inner")
    answer = nested(await a.receive())
    assert answer.type == Kind.COMPLETED
    assert answer.chaincode_event.event_name == "inner"
    said = proposal_response_pb2.Response.FromString(answer.payload)
    assert (said.status, said.payload) == (200, b"done")
    await a.complete(outer)
    outcome, endorsement = await call
    assert outcome.event is None  # that of a callee does not count
    found = spaces(endorsement)
    assert [write.key for write in found["a"].writes] == ["own"]
    assert [write.key for write in found["b"].writes] == ["other"]
    assert [read.key for read in found["b"].reads] == ["own"]
    assert [read.key for read in found["_lifecycle"].reads] == [
        "namespaces/fields/a/Sequence",
        "namespaces/fields/b/Sequence",
    ]


async def test_every_answer_of_a_callee_is_a_response(node: EndorsingNode):
    a, b = await node.chaincode("a"), await node.chaincode("b")
    call = node.propose("a")
    outer = await a.receive()
    for status in (200, 399, 404, 500):
        await send(a, outer, "b:9/mychannel")
        await b.complete(await b.receive(), b"p", status)
        said = proposal_response_pb2.Response.FromString(
            nested(await a.receive()).payload
        )
        assert (said.status, said.payload) == (status, b"p")
    await send(a, outer, "b")
    inner = await b.receive()
    await b.send(Kind.ERROR, b"broken", txid=inner.txid, channel=inner.channel_id)
    answer = nested(await a.receive())
    assert (answer.type, answer.payload) == (Kind.ERROR, b"broken")
    await a.complete(outer)
    await call


async def test_what_cannot_be_called(node: EndorsingNode):
    a = await node.chaincode("a")
    await node.define("same", package="a")
    await node.define("down")
    await node.define("init", init_required=True)
    call = node.propose("a")
    outer = await a.receive()
    info = "execute failed: invalid invocation: [channel mychannel] failed to get "
    info += "chaincode container info for"
    exists = f"execute failed: error sending: txid: {outer.txid}(mychannel) exists"
    wanted = {
        spec("nocc"): f"{info} nocc: chaincode nocc not found",
        spec(""): f"{info} : chaincode  not found",
        spec("a"): exists,
        spec("same"): exists,
        spec("down"): "execute failed: could not launch chaincode "
        f"{ccid_of('down')}: it is not there",
        spec("init"): "execute failed: invalid invocation: chaincode 'init' has not "
        "been initialized for this version, must call as init first",
        spec("a", is_init=True): "execute failed: invalid invocation: chaincode 'a' "
        "does not require initialization but called as init",
        spec("a/other"): "Failed to get policy manager for channel [other]",
        spec("qscc/other"): "failed to find ledger for channel: other",
        b"": "panic during execution",
        chaincode_pb2.ChaincodeSpec(
            chaincode_id=chaincode_pb2.ChaincodeID(name="b")
        ).SerializeToString(): "panic during execution",
    }
    for payload, text in wanted.items():
        assert await cause(a, outer, payload) == text
    del node.approvals.known["down", 1]
    told = await cause(a, outer, spec("down"))
    assert told.endswith("definition for 'down' exists, but chaincode is not installed")
    await a.complete(outer)
    _, endorsement = await call
    found = spaces(endorsement)
    assert [read.key for read in found["lscc"].reads] == ["", "nocc"]


async def test_system_chaincode(node: EndorsingNode):
    a = await node.chaincode("a")
    call = node.propose("a")
    outer = await a.receive()
    texts = {
        "qscc": "Rejecting invoke of QSCC from another chaincode because of potential "
        "for deadlocks, original invocation for 'a'",
        "cscc": "Rejecting invoke of CSCC from another chaincode, original invocation "
        "for 'a'",
    }
    for name, text in texts.items():
        answer = nested(await a.ask(outer, Kind.INVOKE_CHAINCODE, spec(name, b"f")))
        assert (answer.txid, answer.channel_id) == (outer.txid, CHANNEL)
        said = proposal_response_pb2.Response.FromString(answer.payload)
        assert (said.status, said.message) == (500, text)
    asked = spec("_lifecycle", b"QueryChaincodeDefinition", b"\x0a\x01a")
    answer = nested(await a.ask(outer, Kind.INVOKE_CHAINCODE, asked))
    said = proposal_response_pb2.Response.FromString(answer.payload)
    assert said.status == 200
    await a.complete(outer)
    await call


async def test_a_callee_has_a_time_limit_of_its_own(
    tmp_path: Path, org: Organization, no_task_is_left: None
):
    async with EndorsingNode(tmp_path, org, timeout_s=1.0) as node:
        a, b = await node.chaincode("a"), await node.chaincode("b")
        call = node.propose("a")
        outer = await a.receive()
        await asyncio.sleep(0.6)
        await send(a, outer, "b")
        inner = await b.receive()
        with pytest.raises(ExecuteTimeout):
            await call
        # The caller is over: its request is answered, and the callee has no context.
        reply = await a.receive()
        assert reply.payload.endswith(b"no ledger context")
        reply = await b.ask(inner, Kind.GET_STATE, shim.GetState(key="k"))
        assert reply.payload.endswith(b"no ledger context")
        await b.complete(inner)
        await a.complete(outer)
        call = node.propose("b")
        await b.complete(await b.receive())
        await call


async def test_a_callee_that_is_too_slow_or_ends_is_told_to_its_caller(
    node: EndorsingNode,
):
    a, b = await node.chaincode("a"), await node.chaincode("b")
    call = node.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    await b.receive()
    await b.leave()
    told = (await a.receive()).payload.decode()
    assert ": execute failed: error sending: chaincode stream terminated" in told
    assert "failed to execute transaction" not in told
    await a.complete(outer)
    await call


async def test_a_caller_that_ends_leaves_its_callee(node: EndorsingNode):
    a, b = await node.chaincode("a"), await node.chaincode("b")
    call = node.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    inner = await b.receive()
    await a.leave()
    await asyncio.gather(call, return_exceptions=True)
    reply = await b.ask(inner, Kind.GET_STATE, shim.GetState(key="k"))
    assert reply.payload.endswith(b"no ledger context")
    await b.complete(inner)


async def test_chains_and_calls_beside_them(node: EndorsingNode):
    """A waits for B, which waits for C; other calls of all three go on."""
    peers = {name: await node.chaincode(name) for name in "abc"}
    a, b, c = peers.values()
    call = node.propose("a")
    first = await a.receive()
    await send(a, first, "b")
    second = await b.receive()
    await send(b, second, "c")
    third = await c.receive()
    assert (await cause(c, third, spec("a"))).endswith("exists")
    for name, peer in peers.items():
        beside = node.propose(name)
        await peer.complete(await peer.receive())
        await beside
    await c.complete(third, b"3")
    await b.complete(second, nested(await b.receive()).payload)
    assert b"3" in nested(await a.receive()).payload
    await a.complete(first)
    await call


async def test_requests_during_a_call_keep_their_order_and_are_bounded(
    node: EndorsingNode,
):
    a, b = await node.chaincode("a"), await node.chaincode("b")
    call = node.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    inner = await b.receive()
    get = shim.GetState(key="k")
    for _ in range(100):  # a shim sends one request at a time; this one does not
        await a.send(Kind.GET_STATE, get, txid=outer.txid, channel=CHANNEL)
    for _ in range(37):
        reply = await a.receive()
        assert reply.payload.endswith(b"too many requests at a time")
    # The stream is read all the same: another call gets through.
    beside = node.propose("a")
    await a.complete(await a.receive())
    await beside
    await b.complete(inner)
    assert nested(await a.receive()).type == Kind.COMPLETED
    for _ in range(63):
        assert (await a.receive()).type == Kind.RESPONSE
    await a.complete(outer)
    await call


async def test_chaincodes_that_wait_for_each_other_get_an_error(node: EndorsingNode):
    """Both take one call at a time, and each is called by the other's only call."""
    a = await node.chaincode("a", concurrency=1)
    b = await node.chaincode("b", concurrency=1)
    calls = [node.propose("a"), node.propose("b")]
    in_a, in_b = await a.receive(), await b.receive()
    await send(a, in_a, "b")
    await asyncio.sleep(0.05)
    told = await cause(b, in_b, spec("a"))
    assert told == (
        "execute failed: error sending: all calls that chaincode a takes at a time "
        "wait for the outcome of this one"
    )
    await b.complete(in_b)
    await b.complete(await b.receive())  # now it is its turn
    assert nested(await a.receive()).type == Kind.COMPLETED
    await a.complete(in_a)
    await asyncio.gather(*calls)


async def test_a_call_of_a_chaincode_comes_before_those_of_clients(node: EndorsingNode):
    a, b = await node.chaincode("a"), await node.chaincode("b", concurrency=1)
    running, waiting = node.propose("b", b"1"), node.propose("b", b"2")
    in_b = await b.receive()
    call = node.propose("a")
    outer = await a.receive()
    await send(a, outer, "b", b"nested")
    await asyncio.sleep(0.05)
    await b.complete(in_b)
    seen = []
    for _ in range(2):
        inner = await b.receive()
        seen.append(chaincode_pb2.ChaincodeInput.FromString(inner.payload).args[0])
        await b.complete(inner)
    assert seen == [b"nested", b"2"]
    await a.receive()
    await a.complete(outer)
    await asyncio.gather(call, running, waiting)


async def test_what_a_callee_takes_counts_for_the_transaction(
    tmp_path: Path, org: Organization, no_task_is_left: None
):
    async with EndorsingNode(tmp_path, org, transaction_bytes=300_000) as node:
        a, b = await node.chaincode("a"), await node.chaincode("b")
        call = node.propose("a")
        outer = await a.receive()
        put = shim.PutState(key="k", value=b"x" * 200_000)
        reply = await a.ask(outer, Kind.PUT_STATE, put)
        assert reply.type == Kind.RESPONSE
        await send(a, outer, "b")
        inner = await b.receive()
        reply = await b.ask(inner, Kind.PUT_STATE, put)
        assert b"chaindock.memory.transaction" in reply.payload
        await b.complete(inner)
        await a.receive()
        told = await cause(a, outer, spec("b", b"x" * 150_000))
        assert "chaindock.memory.transaction" in told
        await a.complete(outer)
        await call
        for name in "ab":
            handler = node.streams.registry.find_ready(ccid_of(name))
            assert handler is not None
            assert handler.calls.budget.held == 0


async def test_a_large_call_arrives(node: EndorsingNode):
    a, b = await node.chaincode("a"), await node.chaincode("b")
    call = node.propose("a")
    outer = await a.receive()
    await send(a, outer, "b", b"x" * 5_000_000, *[b""] * 30_000)
    inner = await b.receive()
    args = chaincode_pb2.ChaincodeInput.FromString(inner.payload).args
    assert (len(args[0]), len(args)) == (5_000_000, 30_001)
    await b.complete(inner, b"y" * 5_000_000)
    assert len(nested(await a.receive()).payload) > 5_000_000
    told = await cause(a, outer, spec("b", *[b""] * 40_000))
    assert told == "more than 32768 arguments in one message"
    await a.complete(outer)
    await call


async def test_an_error_of_a_callee_is_not_the_error_of_the_caller(node: EndorsingNode):
    a, b = await node.chaincode("a"), await node.chaincode("b")
    call = node.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    inner = await b.receive()
    await b.send(Kind.COMPLETED, b"\xff", txid=inner.txid, channel=CHANNEL)
    assert nested(await a.receive()).payload == b"\xff"
    await a.send(Kind.ERROR, b"mine", txid=outer.txid, channel=CHANNEL)
    with pytest.raises(ChaincodeError, match="transaction returned with failure: mine"):
        await call
