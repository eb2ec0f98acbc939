"""Streams that take few calls at a time, and calls that are never answered."""

from __future__ import annotations

import asyncio
import time

import pytest
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.chaincode import client
from chaindock.errors import ExecuteTimeout, StreamTerminated, TransactionExists
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.stream_node import CCID, StreamNode

Kind = shim.ChaincodeMessage


async def test_the_python_shim_gets_one_at_a_time(node: StreamNode):
    peer = await node.ready(timestamp=Timestamp(seconds=1))
    calls = [node.call(invocation(str(number))) for number in range(3)]
    for number in range(3):
        message = await peer.receive()
        args = chaincode_pb2.ChaincodeInput.FromString(message.payload).args
        assert args[0] == b"%d" % number
        assert sum(call.done() for call in calls) == number
        await peer.complete(message, args[0])
        await calls[number]


async def test_the_instance_limits_the_stream(node: StreamNode):
    peer = await node.ready(concurrency=2)
    calls = [node.call(invocation("f")) for _ in range(5)]
    running = [await peer.receive(), await peer.receive()]
    for _ in range(3):
        await peer.complete(running.pop(0))
        running.append(await peer.receive())
    for message in running:
        await peer.complete(message)
    await asyncio.gather(*calls)


async def test_the_clock_starts_when_it_is_sent(node: StreamNode):
    peer = await node.ready(concurrency=1)
    slow = node.call(invocation("slow"), 5.0)
    message = await peer.receive()
    waiting = node.call(invocation("waiting"), 0.2)
    await asyncio.sleep(0.3)
    assert not waiting.done()
    await peer.complete(message)
    await slow
    await peer.complete(await peer.receive())
    assert (await waiting).response.status == 200


async def test_a_wait_for_a_turn_is_bounded_and_leaves_nothing():
    async with StreamNode(overrun_s=0.2) as node:
        peer = await node.ready(concurrency=1)
        slow = node.call(invocation("slow"), 5.0)
        message = await peer.receive()
        with pytest.raises(ExecuteTimeout, match="still at earlier calls") as caught:
            await node.call(invocation("waiting"), 0.05)
        assert caught.value.retryable
        left = node.call(invocation("left"), 5.0)
        await asyncio.sleep(0.01)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        handler = node.registry.find_ready(CCID)
        assert handler is not None
        assert (handler.calls.count, len(handler.calls.limiter.waiting)) == (1, 0)
        await peer.complete(message)
        assert (await slow).response.status == 200


async def test_after_a_timeout_the_turn_is_taken_until_the_shim_is_done(
    node: StreamNode,
):
    """The Python shim still works on it: the next one would run beside it."""
    peer = await node.ready(concurrency=1)
    stuck = node.call(invocation("stuck"), 0.05)
    message = await peer.receive()
    with pytest.raises(ExecuteTimeout):
        await stuck
    waiting = node.call(invocation("waiting"), 0.1)
    arrives = asyncio.ensure_future(peer.receive())
    done, _ = await asyncio.wait([arrives], timeout=0.3)
    assert not done
    await peer.complete(message, b"late")
    await peer.complete(await arrives, b"next")
    assert (await waiting).response.payload == b"next"


@pytest.mark.statement(37)
async def test_what_a_timed_out_invocation_still_asks_gets_an_error(node: StreamNode):
    peer = await node.ready(concurrency=1)
    stuck = node.call(invocation("stuck", tx_id="t1"), 0.05)
    message = await peer.receive()
    with pytest.raises(ExecuteTimeout):
        await stuck
    await peer.send(Kind.GET_STATE, shim.GetState(key="k"), txid="t1", channel="dev")
    reply = await peer.receive()
    assert reply.type == Kind.ERROR
    with pytest.raises(TransactionExists):  # the answer would be taken for its own
        await node.call(invocation("too early", tx_id="t1"))
    await peer.complete(message)
    await eventually(lambda: not node.handler.calls.unanswered)
    again = node.call(invocation("again", tx_id="t1"))
    await peer.complete(await peer.receive(), b"again")
    assert (await again).response.payload == b"again"


async def test_who_leaves_keeps_the_turn_taken_too(node: StreamNode):
    peer = await node.ready(concurrency=1)
    leaves = node.call(invocation("leaves"))
    message = await peer.receive()
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    waiting = node.call(invocation("waiting"))
    arrives = asyncio.ensure_future(peer.receive())
    done, _ = await asyncio.wait([arrives], timeout=0.1)
    assert not done
    await peer.complete(message)
    await peer.complete(await arrives)
    await waiting


async def test_a_call_that_is_never_answered_ends_a_stream_with_limited_concurrency():
    async with StreamNode(overrun_s=0.2) as node:
        peer = await node.ready(concurrency=1)
        stuck = node.call(invocation("stuck", tx_id="stuck"), 0.05)
        await peer.receive()
        with pytest.raises(ExecuteTimeout):
            await stuck
        waiting = node.call(invocation("waiting"))
        with pytest.raises(StreamTerminated, match="stream terminated") as caught:
            await waiting
        assert caught.value.sent is False
        reason = "the call of transaction stuck was not answered for 0.25 s"
        assert caught.value.reason == reason


async def test_a_call_that_is_never_answered_ends_every_stream():
    """Also where others run beside it: no shim can be told to give up a call."""
    async with StreamNode(overrun_s=0.2) as node:
        peer = await node.ready()
        stuck = node.call(invocation("stuck", tx_id="stuck"), 0.05)
        await peer.receive()
        beside = node.call(invocation("beside"))
        await peer.receive()
        with pytest.raises(ExecuteTimeout) as caught:
            await stuck
        assert "basic did not answer in 0.05 s" in (caught.value.hint or "")
        end = await node.handler.ended.wait()
        assert end.overrun_s == pytest.approx(0.25)
        assert end.reason == "the call of transaction stuck was not answered for 0.25 s"
        with pytest.raises(StreamTerminated):
            await beside
        assert node.handler.calls.unanswered == []
        assert node.registry.find_ready(CCID) is None


async def test_a_call_whose_caller_has_left_has_to_be_answered_too():
    async with StreamNode(overrun_s=0.1) as node:
        peer = await node.ready()
        leaves = node.call(invocation("leaves"), 0.1)
        await peer.receive()
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        assert node.handler.calls.count == 0
        assert (await node.handler.ended.wait()).overrun_s == pytest.approx(0.2)


async def test_a_late_answer_keeps_the_stream():
    async with StreamNode(overrun_s=0.1) as node:
        peer = await node.ready()
        stuck = node.call(invocation("stuck"), 0.05)
        message = await peer.receive()
        with pytest.raises(ExecuteTimeout):
            await stuck
        await peer.complete(message)
        await asyncio.sleep(0.2)
        call = node.call(invocation("next"))
        await peer.complete(await peer.receive(), b"next")
        assert (await call).response.payload == b"next"


async def test_calls_that_were_not_answered_are_listed(node: StreamNode):
    peer = await node.ready(concurrency=2)
    assert node.handler.calls.unanswered == []
    began = time.time()
    stuck = node.call(invocation("stuck", b"argument", tx_id="t1"), 0.05)
    beside = node.call(invocation("beside", tx_id="t2"))
    waits = node.call(invocation("waits", tx_id="t3"))
    messages = [await peer.receive(), await peer.receive()]
    with pytest.raises(ExecuteTimeout):
        await stuck
    listed = node.handler.calls.unanswered
    assert [
        (one.invocation.tx_id, one.invocation.function, one.sent, one.over)
        for one in listed
    ] == [
        ("t1", "stuck", True, True),
        ("t2", "beside", True, False),
        ("t3", "waits", False, False),
    ]
    assert all(began - 1 < one.since <= time.time() for one in listed)
    for message in messages:
        await peer.complete(message)
    await peer.complete(await peer.receive())
    await asyncio.gather(beside, waits)
    assert node.handler.calls.unanswered == []


async def test_calls_that_are_never_answered_do_not_pile_up():
    """Neither as calls nor for marking output."""
    async with StreamNode(overrun_s=1.0) as node:
        peer = await node.ready()
        calls = [node.call(invocation("f"), 0.05) for _ in range(300)]
        messages = [await peer.receive() for _ in calls]
        await asyncio.gather(*calls, return_exceptions=True)
        for message in messages[:100]:
            await peer.complete(message)
        await node.handler.ended.wait()
        assert node.handler.calls.unanswered == []
        assert len(node.handler.calls.correlator._open) == 0


async def test_who_waits_can_leave(node: StreamNode):
    peer = await node.ready(concurrency=1)
    first = node.call(invocation("first"))
    message = await peer.receive()
    leaves, stays = node.call(invocation("leaves")), node.call(invocation("stays"))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    await peer.complete(message)
    await first
    message = await peer.receive()
    args = chaincode_pb2.ChaincodeInput.FromString(message.payload).args
    assert args[0] == b"stays"
    await peer.complete(message)
    await stays


async def test_what_waits_for_its_turn_has_no_context_yet(node: StreamNode):
    peer = await node.ready(concurrency=1)
    first = node.call(invocation("first", tx_id="t1"))
    message = await peer.receive()
    second = node.call(invocation("second", tx_id="t2"))
    await asyncio.sleep(0)
    await peer.send(Kind.GET_STATE, shim.GetState(key="k"), txid="t2", channel="dev")
    reply = await peer.receive()
    assert reply.payload == b"GET_STATE failed: transaction ID: t2: no ledger context"
    await peer.send(Kind.COMPLETED, txid="t2", channel="dev")
    with pytest.raises(TransactionExists):
        await node.call(invocation("again", tx_id="t2"))
    await peer.complete(message)
    await first
    await peer.complete(await peer.receive(), b"really")
    assert (await second).response.payload == b"really"


async def test_a_lost_stream_fails_who_waits_for_a_turn(node: StreamNode):
    peer = await node.ready(concurrency=1)
    calls = [node.call(invocation("f")) for _ in range(3)]
    await peer.receive()
    await peer.leave()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, StreamTerminated) for result in results)
    assert [result.sent for result in results] == [True, False, False]  # type: ignore[union-attr]  # see above


async def test_a_python_shim_that_serves_rests_until_all_it_wrote_is_gone():
    async with StreamNode("is dialled") as node:
        peer = await node.ready(timestamp=Timestamp(seconds=1))
        connection = node.far_end.no_method
        for _ in range(3):
            connection.asked.clear()
            connection.may_refuse.clear()
            first, second = node.call(invocation("f")), node.call(invocation("f"))
            await peer.complete(await peer.receive())
            await first
            await connection.asked.wait()
            arrives = asyncio.ensure_future(peer.receive())
            done, _ = await asyncio.wait([arrives], timeout=0.05)
            assert not done
            connection.may_refuse.set()
            await peer.complete(await arrives)
            await second


async def test_a_rest_without_an_end_ends_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "_LONGEST_REST_S", 0.05)
    async with StreamNode("is dialled") as node:
        peer = await node.ready(timestamp=Timestamp(seconds=1))
        node.far_end.no_method.may_refuse.clear()
        for _ in range(3):
            call = node.call(invocation("f"))
            await peer.complete(await peer.receive())
            await call


async def test_other_shims_get_the_next_one_at_once(node: StreamNode):
    await node.ready(concurrency=1)
    assert node.handler.calls.limiter.rest is None
