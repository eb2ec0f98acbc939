"""Listening and dialling."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import grpc
import pytest
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode.client import serve_dialled
from chaindock.chaincode.handler import Handler
from chaindock.chaincode.options import ListenOptions
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener
from chaindock.errors import StartFailed
from chaindock.rpc.status import Status
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.need import need_ipv6
from support.shims.peer import ShimServer
from support.shims.stream_node import CCID, StreamNode

Kind = shim.ChaincodeMessage


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_a_host_is_bound_once(listening: StreamNode):
    listener = listening.listener
    first, second = await asyncio.gather(
        listener.address_on("127.0.0.1"), listener.address_on("127.0.0.1")
    )
    assert first == second == await listener.address_on("127.0.0.1")
    assert first.startswith("127.0.0.1:")


async def test_several_hosts_serve_the_same_registry(listening: StreamNode):
    first = await listening.listener.address_on("127.0.0.1")
    second = await listening.listener.address_on("127.0.0.2")
    assert first != second


async def test_ipv6_addresses_have_brackets(listening: StreamNode):
    need_ipv6()
    address = await listening.listener.address_on("::1")
    assert address.startswith("[::1]:")
    assert await listening.listener.address_on("::1") == address


async def test_a_taken_port_is_refused(listening: StreamNode):
    address = await listening.listener.address_on("127.0.0.1")
    port = int(address.rpartition(":")[2])
    async with ChaincodeListener(
        HandlerRegistry(), listen=ListenOptions(bind=("", port))
    ) as second:
        with pytest.raises(StartFailed, match=f"cannot listen.*127.0.0.1:{port}"):
            await second.address_on("127.0.0.1")


async def test_the_configured_port_is_used():
    port = free_port()
    async with ChaincodeListener(
        HandlerRegistry(), listen=ListenOptions(bind=("", port))
    ) as listener:
        assert await listener.address_on("127.0.0.1") == f"127.0.0.1:{port}"
        assert await listener.address_on("127.0.0.2") == f"127.0.0.2:{port}"
        assert len(listener.addresses) == 2


async def test_a_bound_address_is_what_chaincode_dials():
    async with ChaincodeListener(
        HandlerRegistry(), listen=ListenOptions(bind=("127.0.0.3", 0))
    ) as listener:
        address = await listener.address_on("127.0.0.1")
        assert address.startswith("127.0.0.3:")
        assert listener.addresses == [address]


async def test_bound_to_all_addresses_chaincode_dials_the_one_it_reaches():
    async with ChaincodeListener(
        HandlerRegistry(), listen=ListenOptions(bind=("0.0.0.0", 0))
    ) as listener:
        one = await listener.address_on("127.0.0.1")
        two = await listener.address_on("127.0.0.2")
        assert (one.partition(":")[0], two.partition(":")[0]) == (
            "127.0.0.1",
            "127.0.0.2",
        )
        assert one.partition(":")[2] == two.partition(":")[2]
        assert len(listener.addresses) == 1


@pytest.mark.parametrize("port", [0, 17052])
async def test_the_advertised_address_is_what_chaincode_dials(port: int):
    listen = ListenOptions(bind=("127.0.0.1", 0), advertise=("peer.example.com", port))
    async with ChaincodeListener(HandlerRegistry(), listen=listen) as listener:
        address = await listener.address_on("127.0.0.1")
        bound = listener.addresses[0].partition(":")[2]
        assert address == f"peer.example.com:{port or bound}"


async def test_nothing_else_is_served(listening: StreamNode):
    address = await listening.listener.address_on("127.0.0.1")
    async with grpc.aio.insecure_channel(address) as channel:
        nothing: Any = channel.unary_unary("/protos.Other/Method")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await nothing(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_leaving_the_listener_ends_streams():
    async with StreamNode() as node:
        peer = await node.ready()
        call = node.call(invocation("f"))
        await peer.receive()
        await node.listener.__aexit__(None, None, None)
        with pytest.raises(Exception, match="chaincode stream terminated"):
            await call
        assert node.registry.find(CCID) is None


async def test_dialling_waits_for_a_server_that_boots():
    async with StreamNode("is dialled") as node:
        port = free_port()
        expected = node.expect()
        handler = Handler(node.registry, node.options, dialled=expected)
        began = time.process_time()
        dial = node.tasks.start(
            serve_dialled(f"127.0.0.1:{port}", handler, node.options), "dial"
        )
        await asyncio.sleep(0.5)
        assert time.process_time() - began < 0.25
        async with ShimServer(port) as server:
            peer = await server.stream()
            await peer.register(CCID)
            assert await expected.ready.wait() is handler
            await peer.leave()
            assert (await dial).code is Status.OK


async def test_a_server_that_accepts_and_drops_is_dialled_again():
    """A published container port accepts before the chaincode listens."""
    dropped = 0

    async def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dropped
        dropped += 1
        writer.close()

    async with StreamNode("is dialled") as node:
        expected = node.expect()
        forwarder = await asyncio.start_server(drop, "127.0.0.1", 0)
        port = forwarder.sockets[0].getsockname()[1]
        handler = Handler(node.registry, node.options, dialled=expected)
        _ = node.tasks.start(
            serve_dialled(f"127.0.0.1:{port}", handler, node.options), "dial"
        )
        await eventually(lambda: dropped >= 4)  # a look and a call, twice
        forwarder.close()
        await forwarder.wait_closed()
        async with ShimServer(port) as server:
            await (await server.stream()).register(CCID)
            await expected.ready.wait()


async def test_a_server_of_something_else_fails_at_once(listening: StreamNode):
    address = await listening.listener.address_on("127.0.0.1")
    expected = listening.expect()
    handler = Handler(listening.registry, listening.options, dialled=expected)
    end = await serve_dialled(address, handler, listening.options)
    assert end.code is Status.UNIMPLEMENTED
    assert "UNIMPLEMENTED" in end.reason


@pytest.mark.statement(23)
async def test_ending_a_dialled_stream_cancels_the_call():
    """Some shims never answer a half-close."""
    async with StreamNode("is dialled") as node:
        expected = node.expect()
        server = await node.server()
        handler = Handler(node.registry, node.options, dialled=expected)
        dial = node.tasks.start(
            serve_dialled(server.address, handler, node.options), "dial"
        )
        peer = await server.stream()
        await peer.register(CCID)
        await expected.ready.wait()
        assert server.open == 1
        handler.end(Status.UNAVAILABLE, "enough")
        assert (await dial).reason == "enough"
        await server.closed()


async def test_a_dial_that_is_cancelled_leaves_nothing():
    async with StreamNode("is dialled") as node:
        server = await node.server()
        handler = Handler(node.registry, node.options, dialled=node.expect())
        dial = node.tasks.start(
            serve_dialled(server.address, handler, node.options), "dial"
        )
        await server.stream()
        dial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dial
        await server.closed()
