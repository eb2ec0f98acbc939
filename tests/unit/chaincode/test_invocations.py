"""What a call sends, and what the caller gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from fabric_protos.peer import chaincode_pb2, proposal_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode.wire import LARGE
from chaindock.errors import (
    ChaincodeError,
    ExecuteFailed,
    ExecuteTimeout,
    StreamTerminated,
    TransactionExists,
)
from support.doubles.memory_state import MemoryState, invocation, simulator_of
from support.shims.stream_node import CCID, StreamNode

if TYPE_CHECKING:
    from support.shims.peer import ShimPeer

Kind = shim.ChaincodeMessage


@pytest.mark.statement(24)
@pytest.mark.parametrize("last", ["x", "x" * LARGE])
async def test_the_message_carries_everything_byte_exact(node: StreamNode, last: str):
    peer = await node.ready()
    signed = proposal_pb2.SignedProposal()
    # A field that nobody knows must arrive too.
    signed.ParseFromString(b"\x0a\x03abc\x12\x03sig\x7a\x02zz")
    invoked = invocation(b"\x00f", b"", last, signed_proposal=signed)
    invoked.input.decorations["d"] = b"deco"
    call = node.call(invoked)
    message = await peer.receive()
    assert message.type == Kind.TRANSACTION
    assert (message.txid, message.channel_id) == (invoked.tx_id, "dev")
    assert message.proposal.SerializeToString() == signed.SerializeToString()
    assert not message.HasField("timestamp")
    assert not message.HasField("chaincode_event")
    sent = chaincode_pb2.ChaincodeInput.FromString(message.payload)
    assert list(sent.args) == [b"\x00f", b"", last.encode()]
    assert dict(sent.decorations) == {"d": b"deco"}
    await peer.complete(message)
    await call


@pytest.mark.statement(24)
async def test_init_is_sent_as_init(node: StreamNode):
    peer = await node.ready()
    invoked = invocation("f", is_init=True)
    invoked.input.is_init = True
    call = node.call(invoked)
    message = await peer.receive()
    assert message.type == Kind.INIT
    assert chaincode_pb2.ChaincodeInput.FromString(message.payload).is_init
    await peer.complete(message)
    await call


@pytest.mark.statement(28)
async def test_a_hundred_invocations_on_one_stream_get_their_own_results(
    node: StreamNode,
):
    peer = await node.ready()
    calls = [node.call(invocation(str(number))) for number in range(100)]
    started = [await peer.receive() for _ in range(100)]
    for message in reversed(started):
        args = chaincode_pb2.ChaincodeInput.FromString(message.payload).args
        await peer.complete(message, args[0])
    results = [outcome.response.payload for outcome in await asyncio.gather(*calls)]
    assert results == [b"%d" % number for number in range(100)]


@pytest.mark.statement(29)
async def test_a_running_transaction_is_not_started_again(node: StreamNode):
    peer = await node.ready()
    first = node.call(invocation("f", tx_id="t1"))
    message = await peer.receive()
    with pytest.raises(TransactionExists, match=r"txid: t1\(dev\) exists"):
        await node.call(invocation("f", tx_id="t1"))
    await peer.complete(message)
    await first
    again = node.call(invocation("f", tx_id="t1"))
    await peer.complete(await peer.receive())
    await again


@pytest.mark.statement(30)
async def test_one_transaction_id_runs_on_two_channels(node: StreamNode):
    peer = await node.ready()
    calls = [
        node.call(invocation("f", tx_id="t1", channel=name)) for name in ("one", "two")
    ]
    for message in [await peer.receive(), await peer.receive()]:
        await peer.complete(message, message.channel_id.encode())
    results = [outcome.response.payload for outcome in await asyncio.gather(*calls)]
    assert results == [b"one", b"two"]


@pytest.mark.statement(31)
async def test_a_final_message_of_nothing_is_ignored(node: StreamNode):
    peer = await node.ready()
    await peer.send(Kind.COMPLETED, txid="nobody", channel="dev")
    await peer.send(Kind.ERROR, b"complaint", txid="nobody")
    await assert_alive(node, peer)


async def assert_alive(node: StreamNode, peer: ShimPeer) -> None:
    call = node.call(invocation("alive"))
    await peer.complete(await peer.receive(), b"yes")
    assert (await call).response.payload == b"yes"


@pytest.mark.statement(32)
async def test_error_from_the_chaincode(node: StreamNode):
    peer = await node.ready()
    call = node.call(invocation("f"))
    message = await peer.receive()
    await peer.send(
        Kind.ERROR, b"bad \xff day", txid=message.txid, channel=message.channel_id
    )
    with pytest.raises(ChaincodeError) as caught:
        await call
    assert caught.value.message == "transaction returned with failure: bad \ufffd day"


async def test_error_without_channel_matches_nothing(node: StreamNode):
    peer = await node.ready()
    call = node.call(invocation("f"))
    message = await peer.receive()
    await peer.send(Kind.ERROR, b"complaint", txid=message.txid)
    await peer.complete(message)
    assert (await call).response.status == 200


@pytest.mark.statement(33)
async def test_an_undecodable_response(node: StreamNode):
    peer = await node.ready()
    call = node.call(invocation("f", tx_id="t1"))
    message = await peer.receive()
    await peer.send(
        Kind.COMPLETED, b"\xff", txid=message.txid, channel=message.channel_id
    )
    with pytest.raises(
        ChaincodeError, match="failed to unmarshal response for transaction t1: "
    ):
        await call


@pytest.mark.parametrize("status", [0, 200, 399, 400, 499, 500])
@pytest.mark.statement(35)
async def test_every_status_arrives_and_errors_drop_the_event(
    node: StreamNode, status: int
):
    peer = await node.ready()
    invoked = invocation("f")
    call = node.call(invoked)
    await peer.complete(await peer.receive(), b"p", status, event="sold")
    outcome = await call
    assert (outcome.response.status, outcome.response.payload) == (status, b"p")
    if status >= 400:
        assert outcome.event is None
        return
    assert outcome.event is not None
    assert outcome.event.event_name == "sold"
    assert outcome.event.payload == b"e:p"
    assert outcome.event.chaincode_id == "basic"
    assert outcome.event.tx_id == invoked.tx_id


@pytest.mark.statement(36)
async def test_a_timeout_leaves_the_stream_alone(node: StreamNode):
    peer = await node.ready()
    call = node.call(invocation("f", tx_id="t1"), 0.05)
    message = await peer.receive()
    with pytest.raises(ExecuteTimeout) as caught:
        await call
    assert caught.value.message == (
        "failed to execute transaction t1: error sending: timeout expired while "
        "executing transaction"
    )
    assert "without an answer after 30.05 s the node restarts" in (
        caught.value.hint or ""
    )
    # The chaincode still asks, and finishes: an error, and nothing.
    reply = await peer.ask(message, Kind.GET_STATE, shim.GetState(key="k"))
    assert reply.type == Kind.ERROR
    assert reply.payload == b"GET_STATE failed: transaction ID: t1: no ledger context"
    await peer.complete(message)
    await assert_alive(node, peer)


@pytest.mark.statement(38)
async def test_a_write_after_the_end_changes_nothing(node: StreamNode):
    peer = await node.ready()
    invoked = invocation("f", tx_id="t1")
    call = node.call(invoked)
    message = await peer.receive()
    await peer.complete(message)
    reply = await peer.ask(message, Kind.PUT_STATE, shim.PutState(key="k", value=b"v"))
    assert reply.payload == b"PUT_STATE failed: transaction ID: t1: no ledger context"
    await call
    assert simulator_of(invoked).writes == {}


@pytest.mark.statement(21)
async def test_a_lost_stream_fails_all_invocations_at_once(node: StreamNode):
    peer = await node.ready()
    calls = [node.call(invocation("f", tx_id=f"t{number}")) for number in range(3)]
    for _ in calls:
        await peer.receive()
    await peer.leave()
    async with asyncio.timeout(2):
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, StreamTerminated) for result in results)
    assert str(results[0]) == (
        "failed to execute transaction t0: error sending: chaincode stream terminated"
    )
    assert node.registry.find(CCID) is None
    with pytest.raises(StreamTerminated):
        await node.call(invocation("f"))


async def test_half_close_ends_the_stream(listening: StreamNode):
    peer = await listening.ready()
    call = listening.call(invocation("f"))
    await peer.receive()
    await peer.half_close()
    with pytest.raises(StreamTerminated):
        await call


async def test_a_caller_that_leaves_takes_its_context_along(node: StreamNode):
    peer = await node.ready()
    call = node.call(invocation("f"))
    message = await peer.receive()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert node.handler.calls.count == 0
    reply = await peer.ask(message, Kind.GET_STATE, shim.GetState(key="k"))
    assert reply.type == Kind.ERROR
    await assert_alive(node, peer)


async def test_a_caller_that_leaves_at_once_breaks_no_write(node: StreamNode):
    """A write that was begun is finished, or grpc.aio would end the stream."""
    peer = await node.ready()
    for number in range(50):
        call = node.call(invocation("f", b"x" * 100_000))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    call = node.call(invocation("last"))
    while True:
        message = await peer.receive()
        args = chaincode_pb2.ChaincodeInput.FromString(message.payload).args
        if args[0] == b"last":
            break
    await peer.complete(message)
    await call


async def test_a_message_that_is_too_large_fails_alone():
    async with StreamNode(max_message_bytes=1024 * 1024) as node:
        peer = await node.ready()
        with pytest.raises(ExecuteFailed, match="larger than the limit"):
            await node.call(invocation("f", b"x" * 1024 * 1024))
        await assert_alive(node, peer)


async def test_large_arguments_and_results_pass(node: StreamNode):
    peer = await node.ready()
    large = b"x" * 30_000_000
    call = node.call(invocation("f", large))
    message = await peer.receive()
    assert chaincode_pb2.ChaincodeInput.FromString(message.payload).args[1] == large
    await peer.complete(message, large)
    assert (await call).response.payload == large


@pytest.mark.statement(20)
async def test_writers_of_one_stream_take_turns(node: StreamNode):
    """Replies and new calls at the same time."""
    peer = await node.ready()
    state = MemoryState({"k": b"v" * 10_000})
    calls = [node.call(invocation("f", state=state)) for _ in range(50)]
    running = [await peer.receive() for _ in calls]
    for message in running:
        await peer.send(
            Kind.GET_STATE,
            shim.GetState(key="k"),
            txid=message.txid,
            channel=message.channel_id,
        )
    calls += [node.call(invocation("f", state=state)) for _ in range(50)]
    answered = 0
    for _ in range(100):
        message = await peer.receive()
        answered += message.type == Kind.RESPONSE
        running += [message] if message.type == Kind.TRANSACTION else []
    assert answered == 50
    for message in running:
        await peer.complete(message)
    await asyncio.gather(*calls)
