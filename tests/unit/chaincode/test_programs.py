"""Programs that a user starts by hand register and serve (chaincode.mode: dev)."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import grpc
import pytest
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode import server
from chaindock.chaincode.invocation import outcome_of
from chaindock.chaincode.options import ListenOptions
from chaindock.errors import StartFailed
from chaindock.identity.ca import TlsAuthority, TlsPair
from chaindock.ids import Ccid
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.credentials import client
from support.shims.peer import ShimPeer
from support.shims.stream_node import StreamNode
from support.shims.tls_node import Guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Kind = shim.ChaincodeMessage
PROGRAM = Ccid("parcels:1.0")
ANY_PORT = ListenOptions(bind=("127.0.0.1", 0))


@pytest.fixture(params=["in plain", "with TLS"])
async def node(
    request: pytest.FixtureRequest, no_task_is_left: None
) -> AsyncIterator[StreamNode]:
    authority = TlsAuthority() if request.param == "with TLS" else None
    async with StreamNode(authority=authority, listen=ANY_PORT, mode="dev") as node:
        yield node


async def started(node: StreamNode) -> ShimPeer:
    """Return a program that was started with what the node tells its user."""
    address, tls = await node.listener.listen_for_programs()
    if tls is None:
        return await ShimPeer.dial(address)
    pair = TlsPair(tls.key_pem, tls.cert_pem)
    return await ShimPeer.dial(address, client(tls.root_pem, pair))


async def serves(node: StreamNode, peer: ShimPeer, name: Ccid = PROGRAM) -> None:
    """Check that calls of `name` get to the program and back."""
    await eventually(lambda: node.registry.find_ready(name))
    handler = node.registry.find_ready(name)
    assert handler is not None
    asked = invocation("f")
    call = asyncio.ensure_future(handler.calls.execute(asked, 5.0))
    await peer.complete(await peer.receive(), b"by hand")
    assert outcome_of(await call, asked).response.payload == b"by hand"


async def test_a_program_registers_under_a_name_and_serves(node: StreamNode):
    async with await started(node) as peer:
        await peer.register(PROGRAM)
        await serves(node, peer)


async def test_a_program_can_be_started_again(node: StreamNode):
    """With an edit, as often as the user likes, and with the same files."""
    for _ in range(3):
        async with await started(node) as peer:
            await peer.register(PROGRAM)
            await serves(node, peer)
        await eventually(lambda: node.registry.find(PROGRAM) is None)


async def test_two_programs_serve_side_by_side(node: StreamNode):
    other = Ccid("orders:1.0")
    async with await started(node) as one, await started(node) as two:
        await one.register(PROGRAM)
        await two.register(other)
        await serves(node, one)
        await serves(node, two, other)


async def test_listening_is_asked_for_twice_and_happens_once(node: StreamNode):
    first, _ = await node.listener.listen_for_programs()
    assert (await node.listener.listen_for_programs())[0] == first
    assert node.listener.addresses == [first]


async def test_fabrics_address_is_the_default(
    monkeypatch: pytest.MonkeyPatch, no_task_is_left: None
):
    assert server.PROGRAMS == ("127.0.0.1", 7052)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(server, "PROGRAMS", ("127.0.0.1", port))
    async with StreamNode(mode="dev") as node:
        address, _ = await node.listener.listen_for_programs()
        assert address == f"127.0.0.1:{port}"
        launched = await node.listener.address_on("127.0.0.1")
        assert launched != address


async def test_an_address_that_is_taken_is_told(no_task_is_left: None):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = ListenOptions(bind=taken.getsockname())
        async with StreamNode(listen=listen, mode="dev") as node:
            with pytest.raises(StartFailed, match="cannot listen for chaincode on"):
                await node.listener.listen_for_programs()


async def test_a_program_cannot_take_the_place_of_a_launched_chaincode(
    no_task_is_left: None,
):
    async with Guarded(listen=ANY_PORT, mode="dev") as node:
        expected, pair = node.launch()
        async with await started(node) as peer:
            await peer.send(
                Kind.REGISTER, chaincode_pb2.ChaincodeID(name=expected.ccid)
            )
            code, text = await peer.refusal()
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "not found in registry" in text
        await node.still_starts(expected, pair)


async def test_without_development_mode_no_program_registers(no_task_is_left: None):
    async with Guarded(listen=ANY_PORT) as node:
        async with await started(node) as peer:
            await peer.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=PROGRAM))
            code, _ = await peer.refusal()
        assert code is grpc.StatusCode.PERMISSION_DENIED
