"""Chaincode that calls other chaincode of its channel."""

from __future__ import annotations

import pytest
from fabric_protos.peer import chaincode_pb2, proposal_response_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.errors import ChaincodeError
from support.shims.endorsing import CHANNEL, EndorsingNode, ccid_of
from support.shims.nested import cause, nested, send, spaces, spec

Kind = shim.ChaincodeMessage


@pytest.mark.statement(76, 83, 84)
@pytest.mark.statement(17, of="client")
@pytest.mark.parametrize("size", [1, 200_000])
async def test_a_callee_runs_in_the_transaction_of_its_caller(
    endorsing: EndorsingNode, size: int
):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    call = endorsing.propose("a", b"f", transient={"secret": b"s"})
    outer = await a.receive()
    await a.ask(outer, Kind.PUT_STATE, shim.PutState(key="own", value=b"1"))
    await send(a, outer, "b", b"g", bytes(size), decorations={"forged": b"!"})
    inner = await b.receive()
    assert (inner.txid, inner.channel_id) == (outer.txid, CHANNEL)
    assert inner.proposal == outer.proposal
    given = chaincode_pb2.ChaincodeInput(args=[b"g", bytes(size)])
    assert chaincode_pb2.ChaincodeInput.FromString(inner.payload) == given
    await b.ask(inner, Kind.PUT_STATE, shim.PutState(key="other", value=b"2"))
    await b.ask(inner, Kind.GET_STATE, shim.GetState(key="own"))
    await b.complete(inner, b"d" * size, event="inner")
    answer = nested(await a.receive())
    assert answer.type == Kind.COMPLETED
    assert answer.chaincode_event.event_name == "inner"
    said = proposal_response_pb2.Response.FromString(answer.payload)
    assert (said.status, said.payload) == (200, b"d" * size)
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


@pytest.mark.statement(78, 79, 80)
async def test_every_answer_of_a_callee_is_a_response(endorsing: EndorsingNode):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    call = endorsing.propose("a")
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


@pytest.mark.statement(81, 82, 86)
async def test_what_cannot_be_called(endorsing: EndorsingNode):
    a = await endorsing.chaincode("a")
    await endorsing.define("same", package="a")
    await endorsing.define("down")
    await endorsing.define("init", init_required=True)
    call = endorsing.propose("a")
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
        # What the Python shim sends: the arguments alone.
        chaincode_pb2.ChaincodeInput(args=[b"f"]).SerializeToString(): (
            "panic during execution"
        ),
        chaincode_pb2.ChaincodeSpec(
            chaincode_id=chaincode_pb2.ChaincodeID(name="b")
        ).SerializeToString(): "panic during execution",
    }
    for payload, text in wanted.items():
        assert await cause(a, outer, payload) == text
    del endorsing.approvals.known["down", 1]
    told = await cause(a, outer, spec("down"))
    assert told.endswith("definition for 'down' exists, but chaincode is not installed")
    await a.complete(outer)
    _, endorsement = await call
    found = spaces(endorsement)
    assert [read.key for read in found["lscc"].reads] == ["", "nocc"]


async def test_system_chaincode(endorsing: EndorsingNode):
    a = await endorsing.chaincode("a")
    call = endorsing.propose("a")
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


async def test_an_error_of_a_callee_is_not_the_error_of_the_caller(
    endorsing: EndorsingNode,
):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    call = endorsing.propose("a")
    outer = await a.receive()
    await send(a, outer, "b")
    inner = await b.receive()
    await b.send(Kind.COMPLETED, b"\xff", txid=inner.txid, channel=CHANNEL)
    assert nested(await a.receive()).payload == b"\xff"
    await a.send(Kind.ERROR, b"mine", txid=outer.txid, channel=CHANNEL)
    with pytest.raises(ChaincodeError, match="transaction returned with failure: mine"):
        await call
