"""Which programs may register, and what the node answers."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.errors import RegistrationRefused
from chaindock.ids import Ccid
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.peer import PATIENCE_S, ShimPeer
from support.shims.stream_node import CCID, OTHER, StreamNode

Kind = shim.ChaincodeMessage
ENDING = "error handling message, ending stream:"


@pytest.mark.statement(2)
async def test_register_is_answered_by_registered_and_ready(node: StreamNode):
    peer = await node.open(node.expect())
    await peer.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=CCID))
    registered, ready = await peer.receive(), await peer.receive()
    assert registered == Kind(type=Kind.REGISTERED)
    assert (ready.type, ready.txid, ready.channel_id) == (Kind.READY, "", "")


@pytest.mark.statement(3)
async def test_ready_announces_what_is_configured(node: StreamNode):
    ready = await (await node.open(node.expect())).register(CCID)
    assert ready.payload == bytes.fromhex("080110e807180120e807")


@pytest.mark.statement(3)
async def test_ready_is_empty_when_nothing_is_on():
    node = StreamNode(
        use_write_batch=False,
        max_size_write_batch=0,
        use_get_multiple_keys=False,
        max_size_get_multiple_keys=0,
    )
    async with node:
        ready = await (await node.open(node.expect())).register(CCID)
        assert ready.payload == b""


@pytest.mark.statement(1)
async def test_the_node_never_writes_first(node: StreamNode):
    peer = await node.open(node.expect())
    assert await peer.silent()


@pytest.mark.statement(5)
async def test_undecodable_register_gets_no_answer_and_the_stream_lives(
    node: StreamNode,
):
    peer = await node.open(node.expect())
    await peer.send(Kind.REGISTER, b"\xff\xff")
    await peer.register(CCID)


@pytest.mark.statement(12)
async def test_keepalive_is_ignored_in_every_state(node: StreamNode):
    expected = node.expect()
    peer = await node.open(expected)
    await peer.send(Kind.KEEPALIVE)
    await peer.register(CCID)
    await peer.send(Kind.KEEPALIVE, b"x", txid="t")
    node.handler = await expected.ready.wait()
    call = node.call(invocation("f"))
    await peer.complete(await peer.receive())
    assert (await call).response.status == 200


@pytest.mark.statement(13)
async def test_no_keepalive_is_sent(node: StreamNode):
    peer = await node.ready()
    assert await peer.silent(0.3)


async def refused(peer: ShimPeer, name: str) -> tuple[grpc.StatusCode, str]:
    await peer.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=name))
    return await peer.refusal()


@pytest.mark.statement(6)
async def test_an_empty_name_is_refused_with_the_reason(listening: StreamNode):
    expected = listening.expect()
    code, text = await refused(await listening.dial(), "")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == "error in handling register chaincode, chaincodeID name is empty"
    assert not expected.ready.settled


@pytest.mark.statement(7)
async def test_what_nobody_launched_is_refused_with_the_reason(listening: StreamNode):
    code, text = await refused(await listening.dial(), CCID)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert f"will not accept external chaincode connection {CCID}" in text


async def test_a_huge_name_is_not_repeated_to_anybody():
    async with StreamNode("is dialled") as node:
        expected = node.expect()
        peer = await node.open(expected)
        name = chaincode_pb2.ChaincodeID(name="x" * 60_000)
        await peer.send(Kind.REGISTER, name)
        with pytest.raises(RegistrationRefused) as caught:
            await expected.ready.wait()
        assert len(str(caught.value.as_dict())) < 2000


async def test_development_mode_takes_what_nobody_launched():
    async with StreamNode(mode="dev") as node:
        await (await node.dial()).register("basic:1.0")
        await eventually(lambda: node.registry.find_ready(Ccid("basic:1.0")))


@pytest.mark.statement(8)
async def test_a_refused_duplicate_harms_nobody(listening: StreamNode):
    healthy = await listening.ready()
    listening.expect()
    duplicate = await listening.dial()
    code, text = await refused(duplicate, CCID)
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert text == f"duplicate chaincodeID: {CCID}"
    assert listening.registry.find_ready(CCID) is listening.handler
    call = listening.call(invocation("f"))
    await healthy.complete(await healthy.receive(), b"fine")
    assert (await call).response.payload == b"fine"


async def test_a_duplicate_does_not_settle_the_launch(listening: StreamNode):
    await listening.ready()
    expected = listening.expect()
    await refused(await listening.dial(), CCID)
    assert not expected.ready.settled


async def test_a_dialled_chaincode_must_have_the_right_name():
    """The launch learns it at once."""
    async with StreamNode("is dialled") as node:
        expected = node.expect()
        node.expect(OTHER)
        peer = await node.open(expected)
        await peer.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=OTHER))
        with pytest.raises(RegistrationRefused, match=f"{OTHER}.*expected.*{CCID}"):
            await expected.ready.wait()
        assert node.registry.find(OTHER) is None


async def test_who_is_dialled_must_not_dial(listening: StreamNode):
    expected = listening.expect(dialled=True)
    _, text = await refused(await listening.dial(), CCID)
    assert text == f"chaincode {CCID} is dialled by the node and must not dial it"
    assert not expected.ready.settled


@pytest.mark.statement(9)
async def test_a_request_before_register_ends_the_stream(listening: StreamNode):
    peer = await listening.dial()
    await peer.send(Kind.GET_STATE, shim.GetState(key="k"), txid="t1", channel="dev")
    code, text = await peer.refusal()
    assert code is grpc.StatusCode.UNKNOWN
    assert text == (
        f"{ENDING} [t1] Fabric side handler cannot handle message (GET_STATE) while in "
        "created state"
    )


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Kind.REGISTER, "REGISTER"), (Kind.READY, "READY"), (12, "12"), (9999, "9999")],
)
@pytest.mark.statement(10, 11)
async def test_an_unexpected_type_ends_the_stream(
    listening: StreamNode, kind: int, name: str
):
    peer = await listening.ready()
    await peer.send(kind, txid="t1")
    code, text = await peer.refusal()
    assert code is grpc.StatusCode.UNKNOWN
    assert text == (
        f"{ENDING} [t1] Fabric side handler cannot handle message ({name}) while in "
        "ready state"
    )
    assert listening.registry.find(CCID) is None


async def test_a_stream_that_never_registers_ends():
    async with StreamNode(silence_s=0.1) as node:
        code, text = await (await node.dial()).refusal()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert text == "no REGISTER within 0.1 s"


async def test_an_undecodable_message_ends_only_its_stream(listening: StreamNode):
    await listening.ready()
    address = await listening.listener.address_on("127.0.0.1")
    async with grpc.aio.insecure_channel(address) as channel:
        register: Any = channel.stream_stream("/protos.ChaincodeSupport/Register")
        call = register()
        await call.write(b"\xff\xff\xff")
        async with asyncio.timeout(PATIENCE_S):
            assert await call.code() is grpc.StatusCode.UNKNOWN
    assert listening.registry.find_ready(CCID) is listening.handler


async def test_phases_of_the_attempt_are_entered(node: StreamNode):
    expected = node.expect()
    peer = await node.open(expected)
    await peer.register(CCID)
    await expected.ready.wait()
    expected.attempt.over()
    assert [str(p.phase) for p in expected.attempt.phases] == ["register", "ready"]
