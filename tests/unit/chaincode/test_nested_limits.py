"""Limits of calls between chaincodes: time, memory, turns, and who ends first."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.errors import ChaincodeRetired, ExecuteTimeout
from support.shims.endorsing import CHANNEL, EndorsingNode, ccid_of
from support.shims.nested import cause, nested, send, spaces, spec

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.identity.organization import Organization

Kind = shim.ChaincodeMessage


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
    endorsing: EndorsingNode,
):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    call = endorsing.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    await b.receive()
    await b.leave()
    told = (await a.receive()).payload.decode()
    assert ": execute failed: error sending: chaincode stream terminated" in told
    assert "failed to execute transaction" not in told
    await a.complete(outer)
    await call


async def test_a_caller_that_ends_leaves_its_callee(endorsing: EndorsingNode):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    call = endorsing.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    inner = await b.receive()
    await a.leave()
    await asyncio.gather(call, return_exceptions=True)
    reply = await b.ask(inner, Kind.GET_STATE, shim.GetState(key="k"))
    assert reply.payload.endswith(b"no ledger context")
    await b.complete(inner)


async def test_an_answer_before_that_of_the_callee_ends_the_callee(
    endorsing: EndorsingNode,
):
    """As user code that forgets an `await`: what comes later changes nothing."""
    a = await endorsing.chaincode("a")
    b = await endorsing.chaincode("b", concurrency=1)
    call = endorsing.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    inner = await b.receive()
    waiting = endorsing.propose("a")
    second = await a.receive()
    await send(a, second, "b")
    await asyncio.sleep(0.05)
    put = shim.PutState(key="k", value=b"v")
    assert (await b.ask(inner, Kind.PUT_STATE, put)).type == Kind.RESPONSE
    await a.complete(outer)
    await a.complete(second)
    _, endorsement = await call
    await waiting
    reply = await b.ask(inner, Kind.PUT_STATE, shim.PutState(key="late", value=b"v"))
    assert reply.payload.endswith(b"no ledger context")
    assert [one.key for one in spaces(endorsement)["b"].writes] == ["k"]
    await b.complete(inner)
    beside = endorsing.propose("b", b"beside")  # the call that had no turn is forgotten
    message = await b.receive()
    assert chaincode_pb2.ChaincodeInput.FromString(message.payload).args == [b"beside"]
    await b.complete(message)
    await beside


async def test_chains_and_calls_beside_them(endorsing: EndorsingNode):
    """A waits for B, which waits for C; other calls of all three go on."""
    peers = {name: await endorsing.chaincode(name) for name in "abc"}
    a, b, c = peers.values()
    call = endorsing.propose("a")
    first = await a.receive()
    await send(a, first, "b")
    second = await b.receive()
    await send(b, second, "c")
    third = await c.receive()
    assert (await cause(c, third, spec("a"))).endswith("exists")
    for name, peer in peers.items():
        beside = endorsing.propose(name)
        await peer.complete(await peer.receive())
        await beside
    await c.complete(third, b"3")
    await b.complete(second, nested(await b.receive()).payload)
    assert b"3" in nested(await a.receive()).payload
    await a.complete(first)
    await call


async def test_requests_during_a_call_keep_their_order_and_are_bounded(
    endorsing: EndorsingNode,
):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    call = endorsing.propose("a")
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
    beside = endorsing.propose("a")
    await a.complete(await a.receive())
    await beside
    await b.complete(inner)
    assert nested(await a.receive()).type == Kind.COMPLETED
    for _ in range(63):
        assert (await a.receive()).type == Kind.RESPONSE
    await a.complete(outer)
    await call


async def test_chaincodes_that_wait_for_each_other_get_an_error(
    endorsing: EndorsingNode,
):
    """Both take one call at a time, and each is called by the other's only call."""
    a = await endorsing.chaincode("a", concurrency=1)
    b = await endorsing.chaincode("b", concurrency=1)
    calls = [endorsing.propose("a"), endorsing.propose("b")]
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


async def test_a_call_of_a_chaincode_comes_before_those_of_clients(
    endorsing: EndorsingNode,
):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b", concurrency=1)
    running, waiting = endorsing.propose("b", b"1"), endorsing.propose("b", b"2")
    in_b = await b.receive()
    call = endorsing.propose("a")
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


async def test_a_large_call_arrives(endorsing: EndorsingNode):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    call = endorsing.propose("a")
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


async def test_a_callee_that_was_upgraded_meanwhile_answers_in_its_new_version(
    endorsing: EndorsingNode, monkeypatch: pytest.MonkeyPatch
):
    a = await endorsing.chaincode("a")
    await endorsing.define("b")
    former = endorsing.approvals.known["b", 1]

    async def replaced(ccid: Any, seconds: float) -> None:
        endorsing.approvals.known["b", 1] = replace(former, ccid=ccid_of("new"))
        raise ChaincodeRetired(f"chaincode {ccid} is not to run", ccid=ccid)

    monkeypatch.setattr(endorsing.endorser.executor, "_ready", replaced)
    new = await endorsing.streams.ready(ccid_of("new"))
    call = endorsing.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    await new.complete(await new.receive(), b"new")
    assert b"new" in nested(await a.receive()).payload
    await a.complete(outer)
    await call
