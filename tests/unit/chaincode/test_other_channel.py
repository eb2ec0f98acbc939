"""Chaincode that calls chaincode of another channel: it reads there, and nothing else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from fabric_protos.peer import chaincode_shim_pb2 as shim
from fabric_protos.peer import proposal_response_pb2

from chaindock.identity.organization import Organization
from support.shims.nested import cause, nested, send, spaces, spec

if TYPE_CHECKING:
    from pathlib import Path

    from support.shims.endorsing import EndorsingNode

Kind = shim.ChaincodeMessage
OTHER = "elsewhere"


@pytest.mark.statement(77, 83)
@pytest.mark.statement(18, of="client")
async def test_what_a_callee_writes_there_has_no_effect(endorsing: EndorsingNode):
    async with endorsing.beside(OTHER) as other:
        a, b = await endorsing.chaincode("a"), await other.chaincode("b")
        stored = asyncio.get_running_loop().create_task(
            other.caller.invoke("b", [b"f"], signer=other.org.user("User1"))
        )
        first = await b.receive()
        await b.ask(first, Kind.PUT_STATE, shim.PutState(key="k", value=b"there"))
        await b.complete(first)
        assert (await stored).code == 0
        height = other.ledger.height

        call = endorsing.propose("a", b"f")
        outer = await a.receive()
        await send(a, outer, f"b/{OTHER}", b"g", b"x")
        inner = await b.receive()
        assert (inner.txid, inner.channel_id) == (outer.txid, OTHER)
        assert inner.proposal == outer.proposal
        found = await b.ask(inner, Kind.GET_STATE, shim.GetState(key="k"))
        assert found.payload == b"there"
        put = shim.PutState(key="k", value=b"never")
        assert (await b.ask(inner, Kind.PUT_STATE, put)).type == Kind.RESPONSE
        await b.complete(inner, b"done", event="inner")
        answer = nested(await a.receive())
        assert answer.channel_id == OTHER
        said = proposal_response_pb2.Response.FromString(answer.payload)
        assert (said.status, said.payload) == (200, b"done")
        await a.complete(outer)
        outcome, endorsement = await call
        assert outcome.event is None
        assert spaces(endorsement).keys() == {"_lifecycle"}
        read = [one.key for one in spaces(endorsement)["_lifecycle"].reads]
        assert read == ["namespaces/fields/a/Sequence"]
        assert other.ledger.height == height
        with other.ledger.new_simulator(outer.txid) as simulator:
            assert simulator.get_state("b", "k") == b"there"


@pytest.mark.statement(82)
async def test_a_chaincode_may_call_itself_there(endorsing: EndorsingNode):
    async with endorsing.beside(OTHER) as other:
        a = await endorsing.chaincode("a")
        await other.define("a")
        call = endorsing.propose("a")
        outer = await a.receive()
        await send(a, outer, f"a/{OTHER}")
        inner = await a.receive()
        # And back: this transaction runs on the first channel already.
        exists = f"execute failed: error sending: txid: {outer.txid}(mychannel) exists"
        assert await cause(a, inner, spec("a/mychannel")) == exists
        await a.complete(inner, b"mine")
        said = proposal_response_pb2.Response.FromString(
            nested(await a.receive()).payload
        )
        assert said.payload == b"mine"
        await a.complete(outer)
        assert (await call)[0].response.status == 200


async def test_one_that_takes_one_call_at_a_time_is_told_so(endorsing: EndorsingNode):
    async with endorsing.beside(OTHER) as other:
        a = await endorsing.chaincode("a", concurrency=1)
        await other.define("a")
        call = endorsing.propose("a")
        outer = await a.receive()
        told = await cause(a, outer, spec(f"a/{OTHER}"))
        assert told.endswith("wait for the outcome of this one")
        await a.complete(outer)
        await call


@pytest.mark.statement(81)
async def test_what_is_not_there(endorsing: EndorsingNode):
    async with endorsing.beside(OTHER):
        a = await endorsing.chaincode("a")
        call = endorsing.propose("a")
        outer = await a.receive()
        assert await cause(a, outer, spec(f"a/{OTHER}")) == (
            f"execute failed: invalid invocation: [channel {OTHER}] failed to get "
            "chaincode container info for a: chaincode a not found"
        )
        unknown = "Failed to get policy manager for channel [none]"
        assert await cause(a, outer, spec("a/none")) == unknown
        asked = spec(f"_lifecycle/{OTHER}", b"QueryChaincodeDefinition", b"\x0a\x01a")
        answer = nested(await a.ask(outer, Kind.INVOKE_CHAINCODE, asked))
        said = proposal_response_pb2.Response.FromString(answer.payload)
        assert (said.status, answer.channel_id) == (404, OTHER)
        assert "namespace a is not defined" in said.message
        await a.complete(outer)
        await call


@pytest.mark.statement(85)
async def test_the_creator_has_to_be_a_writer_there(
    tmp_path: Path, endorsing: EndorsingNode
):
    strangers = Organization.open(tmp_path / "more", "Org2MSP", "org2.example.com")
    async with endorsing.beside(OTHER, strangers) as other:
        a = await endorsing.chaincode("a")
        await other.define("a")
        call = endorsing.propose("a")
        outer = await a.receive()
        unknown = f"Failed to get policy manager for channel [{OTHER}]"
        assert await cause(a, outer, spec(f"a/{OTHER}")) == unknown
        cast("Any", other.endorser.peers)[endorsing.org.mspid] = endorsing.org.peer
        assert await cause(a, outer, spec(f"a/{OTHER}")) == (
            "Failed evaluating policy on signed data during check policy on channel "
            f"[{OTHER}] with policy [/Channel/Application/Writers]: [implicit policy "
            "evaluation failed - 0 sub-policies were satisfied, but this policy "
            "requires 1 of the 'Writers' sub-policies to be satisfied]"
        )
        await a.complete(outer)
        await call


async def test_calls_there_do_not_use_up_the_memory_of_the_transaction(
    endorsing: EndorsingNode,
):
    async with endorsing.beside(OTHER) as other:
        b, a = await other.chaincode("b"), await endorsing.chaincode("a")
        call = endorsing.propose("a")
        outer = await a.receive()
        (running,) = endorsing.streams.handler.calls.unanswered
        before = running.budget.held
        for _ in range(3):
            await send(a, outer, f"b/{OTHER}")
            inner = await b.receive()
            put = shim.PutState(key="k", value=b"x" * 10_000)
            await b.ask(inner, Kind.PUT_STATE, put)
            assert running.budget.held > before + 10_000
            await b.complete(inner)
            nested(await a.receive())
            assert running.budget.held == before
        await a.complete(outer)
        await call
