"""A contract cannot make the node hold, or parse, more than the limits say."""

from __future__ import annotations

import asyncio
import gc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from fabric_protos.peer import chaincode_shim_pb2 as shim
from fabric_protos.peer.chaincode_event_pb2 import ChaincodeEvent
from fabric_protos.peer.proposal_response_pb2 import Response

from chaindock.chaincode.calls import Calls
from chaindock.chaincode.invocation import Call
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.wire import LARGE, head_of, parsed
from chaindock.errors import ChaincodeError, ExecuteTimeout, InvalidInput
from chaindock.telemetry import metrics
from support.doubles.memory_state import MemoryState, invocation
from support.eventually import eventually
from support.shims.session import Session
from support.shims.stream_node import CCID, StreamNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Kind = shim.ChaincodeMessage
KEY, VALUE = b"\x0a\x00", b"\x12\x00"
"""A first and a second field that are empty."""


@pytest.fixture
async def node(no_task_is_left: None) -> AsyncIterator[StreamNode]:
    async with StreamNode(transaction_bytes=500_000, contract_bytes=1_700_000) as node:
        yield node


async def test_a_large_message_is_answered_as_a_small_one(session: Session):
    put = shim.PutState(key="k", value=b"v" * 2 * LARGE)
    await session.ok(Kind.PUT_STATE, put)
    assert session.simulator.writes == {"k": put.value}
    await session.finish()


async def test_a_large_answer_of_a_call_arrives(node: StreamNode):
    peer = await node.ready()
    call = node.call(invocation("f"))
    await peer.complete(await peer.receive(), b"p" * 3 * LARGE)
    assert (await call).response.payload == b"p" * 3 * LARGE


async def test_a_large_event_arrives(no_task_is_left: None):
    async with StreamNode() as node:
        peer = await node.ready()
        call = node.call(invocation("f"))
        await peer.complete(await peer.receive(), b"p" * 2**21, event="e")
        event = (await call).event
        assert event is not None
        assert event.payload == b"e:" + b"p" * 2**21


async def test_an_answer_that_is_too_large_is_told_to_the_caller(node: StreamNode):
    peer = await node.ready()
    call = node.call(invocation("f", tx_id="t1"))
    await peer.complete(await peer.receive(), b"p" * 2_000_000)
    with pytest.raises(ChaincodeError, match="more than the limit of 1700000"):
        await call
    assert node.handler.calls.budget.held == 0


@pytest.mark.parametrize("size", [3 * LARGE, 2_000_000])
async def test_a_long_error_text_is_cut_and_ends_its_call_and_not_the_stream(
    node: StreamNode, size: int
):
    peer = await node.ready()
    call = node.call(invocation("f"))
    message = await peer.receive()
    ids = {"txid": message.txid, "channel": message.channel_id}
    await peer.send(Kind.ERROR, b"~" * size, **ids)
    told = rf"failure: ~{{65536}}… \({size} bytes in all\)$"
    with pytest.raises(ChaincodeError, match=told):
        await call
    call = node.call(invocation("g", tx_id="t2"))
    await peer.complete(await peer.receive(), b"fine")
    assert (await call).response.payload == b"fine"


@pytest.mark.parametrize("part", ["message", "event"])
async def test_a_long_text_in_an_answer_is_refused(part: str):
    long = "\x01" * 1_048_577
    async with StreamNode() as node:
        peer = await node.ready()
        call = node.call(invocation("f"))
        to = await peer.receive()
        response = Response(status=200, message=long if part == "message" else "")
        event = ChaincodeEvent(event_name=long if part == "event" else "e")
        ids = {"txid": to.txid, "channel": to.channel_id}
        await peer.send(Kind.COMPLETED, response, chaincode_event=event, **ids)
        with pytest.raises(ChaincodeError, match=r"field . has 1048577 bytes"):
            await call


async def test_a_large_answer_counts_until_its_caller_is_done_with_it(node: StreamNode):
    peer, budget = await node.ready(), node.handler.calls.budget
    call = node.call(invocation("f", tx_id="t1"))
    await peer.complete(await peer.receive(), b"p" * 1_000_000)
    answer = await call
    assert budget.held >= 1_000_000
    second = node.call(invocation("f", tx_id="t2"))
    await peer.complete(await peer.receive(), b"p" * 1_000_000)
    with pytest.raises(ChaincodeError, match=r"chaindock\.memory\.contract"):
        await second
    del answer, call
    assert budget.held == 0


async def test_a_message_that_was_refused_is_not_kept(session: Session):
    answers = session._node.handler.calls.answers
    message = Kind(type=Kind.PUT_STATE, txid="t1", channel_id="dev")
    message.payload = b"\xff" * 600_000
    _, error = await answers.parse(message.SerializeToString())
    assert error.__traceback__ is None
    await session.finish()


async def test_a_message_larger_than_the_budget_is_refused_unparsed(session: Session):
    told = await session.error(Kind.PUT_STATE, b"\xff" * 600_000)
    assert "transaction t1 (chaindock.memory.transaction) would hold" in told
    assert session.invoked.refusals == [told]
    await session.finish()


async def test_rows_read_ahead_count_until_their_query_ends(session: Session):
    session.state.keys |= {f"k{number}": b"x" * 400_000 for number in range(3)}
    reply = await session.ok(Kind.GET_STATE_BY_RANGE, shim.GetStateByRange())
    name = shim.QueryResponse.FromString(reply).id
    budget = session._node.handler.calls.budget
    assert budget.held >= 400_000
    told = await session.error(Kind.GET_STATE_BY_RANGE, shim.GetStateByRange())
    assert "would hold" in told
    await session.ok(Kind.QUERY_STATE_CLOSE, shim.QueryStateClose(id=name))
    await eventually(lambda: budget.held == 0)
    await session.ok(Kind.GET_STATE_BY_RANGE, shim.GetStateByRange())
    await session.finish()
    assert budget.held == 0


async def test_a_reply_that_the_stream_has_no_room_for_is_told_as_every_refusal():
    async with StreamNode(transaction_bytes=500_000, contract_bytes=500_000) as node:
        session = await Session(node, await node.ready()).start()
        session.state.keys["large"] = b"x" * 400_000
        budget = node.handler.calls.budget
        budget.take(200_000)
        refused = metrics.SHIM_REQUESTS_COMPLETED.labels(
            "GET_STATE", "dev", node.handler.ccid, "false"
        )._value
        before = refused.get()
        told = await session.error(Kind.GET_STATE, shim.GetState(key="large"))
        assert "chaindock.memory.contract" in told
        assert session.invoked.refusals == [told]
        assert refused.get() == before + 1
        assert budget.held == 200_000
        budget.give_back(200_000)
        await session.ok(Kind.GET_STATE, shim.GetState(key="large"))
        await session.finish()
        assert budget.held == 0


async def test_requests_that_wait_behind_long_ones_are_bounded_for_all_calls_together():
    calls = Calls(StreamOptions(), lambda *_: None)
    workers = []
    for tx_id in ("t1", "t2"):
        call = Call(invocation("f", tx_id=tx_id), 5.0, calls.budget, calls.running)
        call.sent = True
        call.worker = asyncio.get_running_loop().create_task(asyncio.sleep(60))
        calls._calls[call.key] = call
        workers.append(call.worker)
    first, second = (
        Kind(type=Kind.GET_STATE, txid=tx_id, channel_id="dev", payload=b"x" * 600_000)
        for tx_id in ("t1", "t2")
    )
    assert calls.answers.take_request(first) is None
    assert (
        calls.answers.take_request(second) is workers[1]
    )  # the stream is not read until then
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)


def test_the_metric_of_what_a_stream_holds_does_not_keep_the_stream():
    calls = Calls(StreamOptions(), lambda *_: None)
    calls.ccid = str(CCID)
    nothing: Any = None
    calls.begin(nothing, nothing)
    calls.budget.take(1000)
    labels = {"chaincode": calls.ccid}
    held = partial(metrics.REGISTRY.get_sample_value, "chaindock_held_bytes", labels)
    assert held() == 1000
    calls.close("the stream has ended")
    assert held() == 0
    kept = weakref.ref(calls)
    del calls
    gc.collect()
    assert kept() is None


async def test_a_stream_that_waits_keeps_no_large_message(
    session: Session, node: StreamNode
):
    session.state.keys["large"] = b"x" * 300_000
    await session.ok(Kind.GET_STATE, shim.GetState(key="large"))
    await session.finish()
    assert node.handler._outbox.writing is None


async def test_calls_of_a_contract_share_its_budget(node: StreamNode):
    peer = await node.ready()
    large = {f"k{number}": b"x" * 300_000 for number in range(10)}
    calls, replies = [], []
    for tx_id in ("t1", "t2", "t3"):
        state = MemoryState(large)
        calls.append(node.call(invocation("f", tx_id=tx_id, state=state)))
        message = await peer.receive()
        replies.append(
            await peer.ask(message, Kind.GET_STATE_BY_RANGE, shim.GetStateByRange())
        )
    assert [reply.type for reply in replies] == [Kind.RESPONSE] * 2 + [Kind.ERROR]
    assert b"chaindock.memory.contract" in replies[2].payload
    await peer.leave()
    await asyncio.gather(*calls, return_exceptions=True)
    assert node.handler.calls.budget.held == 0


async def test_a_long_channel_is_not_echoed(session: Session):
    await session.peer.send(
        Kind.GET_STATE, shim.GetState(key="k"), txid="t" * 60_000, channel="c" * 100_000
    )
    reply = await session.peer.receive()
    assert reply.payload.endswith(b"no ledger context")
    assert reply.ByteSize() < 1500
    await session.finish()


LONG_KEY = b"\x0a\x80\x80\x80\x01" + b"k" * 2**21
LONG_NAME = b"\x12\x85\x80\x80\x01\x12\x80\x80\x80\x01" + b"k" * 2**21
ARGUMENTS = b"\x1a\x80\x80\x04" + b"\x0a\x00" * 32_768
BROKEN: list[tuple[int, bytes, str]] = [
    (Kind.WRITE_BATCH_STATE, KEY * 32_769, "more than 32768 records"),
    (Kind.GET_STATE_MULTIPLE, KEY * 32_770, "more than 32769 keys"),
    (Kind.GET_STATE_MULTIPLE, LONG_KEY, "field 1 has 2097152"),
    (Kind.PUT_STATE, VALUE * 17, "more than 16 fields"),
    (Kind.COMPLETED, VALUE * 17, "more than 16 fields"),
    (Kind.WRITE_BATCH_STATE, b"\x0a\x22" + KEY * 17, "more than 16 fields"),
    (Kind.PUT_STATE, LONG_KEY, "field 1 has 2097152"),
    (Kind.INVOKE_CHAINCODE, LONG_NAME, "field 2 has 2097152"),
    (Kind.INVOKE_CHAINCODE, b"\x12\x22" + VALUE * 17, "more than 16 fields"),
    (Kind.INVOKE_CHAINCODE, ARGUMENTS + ARGUMENTS, "more than 0 arguments"),
    (Kind.PUT_STATE, b"\x12\x05abc", "cannot parse invalid wire-format"),
    (Kind.PUT_STATE, b"\x12" + b"\xff" * 11, "cannot parse invalid wire-format"),
    (Kind.PUT_STATE, b"\x0b", "cannot parse invalid wire-format"),
]


@pytest.mark.parametrize(("kind", "payload", "told"), BROKEN)
def test_what_a_payload_holds_is_bounded_before_it_is_parsed(
    kind: int, payload: bytes, told: str
):
    view = memoryview(payload)
    with pytest.raises(InvalidInput, match=told):
        parsed(kind, view, StreamOptions(), None, view)


def test_a_message_of_many_fields_is_refused():
    with pytest.raises(InvalidInput, match="more than 16 fields"):
        head_of(b"\x22\x00" * 17)


def test_a_type_that_is_no_number_of_32_bits_is_unknown():
    assert head_of(b"\x08\xff\xff\xff\xff\xff\x01")[0].type == -1


def test_the_head_of_a_message_is_read_without_its_payload():
    raw = Kind(
        type=Kind.PUT_STATE, txid="t1", channel_id="dev", payload=b"p"
    ).SerializeToString()
    head, payload = head_of(raw)
    assert head == Kind(type=Kind.PUT_STATE, txid="t1", channel_id="dev")
    assert bytes(payload) == b"p"


@pytest.mark.parametrize("kind", [Kind.REGISTER, Kind.KEEPALIVE, Kind.COMPLETED])
async def test_a_large_message_before_ready_ends_the_stream(kind: int):
    async with StreamNode() as node:
        peer = await node.dial()
        await peer.send(kind, b"\xff" * (LARGE + 1))
        code, text = await peer.refusal()
        assert code is grpc.StatusCode.UNKNOWN
        assert text.endswith("vs. 65536)")


@pytest.mark.parametrize("kind", [Kind.COMPLETED, Kind.ERROR, Kind.KEEPALIVE])
async def test_a_large_message_that_nobody_waits_for_is_not_parsed(
    node: StreamNode, kind: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("chaindock.chaincode.answers.parsed", pytest.fail)
    peer = await node.ready()
    await peer.send(kind, b"p" * 2 * LARGE, txid="unknown", channel="dev")
    call = node.call(invocation("f"))
    await peer.complete(await peer.receive(), b"fine")
    assert (await call).response.payload == b"fine"


async def test_a_large_answer_after_the_time_limit_lets_the_next_call_run():
    async with StreamNode() as node:
        peer = await node.ready(concurrency=1)
        call = node.call(invocation("f", tx_id="t1"), timeout_s=0.05)
        message = await peer.receive()
        with pytest.raises(ExecuteTimeout):
            await call
        await peer.complete(message, b"p" * 2 * LARGE)
        call = node.call(invocation("g", tx_id="t2"))
        await peer.complete(await peer.receive(), b"fine")
        assert (await call).response.payload == b"fine"


async def test_a_call_that_timed_out_keeps_no_frames_of_its_callers(node: StreamNode):
    await node.ready()
    with pytest.raises(ExecuteTimeout):
        await node.call(invocation("f"), timeout_s=0.05)
    (call,) = node.handler.calls.unanswered
    told = call.final.result()
    assert isinstance(told, ExecuteTimeout)
    assert told.__traceback__ is None
