"""Connections without a stream keep nobody from registering (docs/adr/0011)."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import Counter
from typing import TYPE_CHECKING
from unittest.mock import AsyncMock

import grpc.aio
import pytest

from chaindock.errors import LaunchTimeout
from chaindock.rpc import server as under_test
from chaindock.rpc.connection import Limits
from chaindock.rpc.server import Arrivals, Server, source_of
from support.doubles.launch_fakes import never_registers
from support.doubles.launch_world import World, failure
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.faults import crowd as program
from support.shims.stream_node import CCID, OTHER
from support.shims.tls_node import Guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = "127.0.0.1"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MAX_CONNECTIONS", 120)


@pytest.fixture
async def node(small: None, no_task_is_left: None) -> AsyncIterator[Guarded]:
    async with Guarded() as node:
        yield node


async def attack(node: Guarded, number: int, *user: str) -> asyncio.subprocess.Process:
    """Start a program that keeps idle connections; return when it has them."""
    host, _, port = (await node.listener.address_on(HERE)).partition(":")
    words = (program.__file__, host, port, str(number), "60", *user)
    attacker = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE
    )
    assert attacker.stdout is not None
    assert await attacker.stdout.readline() == b"full\n"
    return attacker


async def registers(node: Guarded, tries: int = 20) -> None:
    """Launch another chaincode; it dials again when it is turned away, as shims do."""
    expected, pair = node.launch(OTHER)
    for _ in range(tries):
        try:
            peer = await node.dials(pair)
            await peer.register(OTHER)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.1)
            continue
        async with asyncio.timeout(5):
            await expected.ready.wait()
        await peer.leave()
        return
    raise AssertionError(f"turned away {tries} times")


@pytest.mark.parametrize("user", ["me", "another user"])
async def test_a_contract_registers_while_others_keep_idle_connections(
    node: Guarded, user: str
):
    """Issue 10, 5."""
    if user != "me" and os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    peer, _ = await node.runs()
    attacker = await attack(node, 150, *(() if user == "me" else ("65534",)))
    try:
        await eventually(node.registry.arrivals.crowded)
        await registers(node)
        call = node.call(invocation("f"))
        await peer.complete(await peer.receive(), b"fine")
        assert (await call).response.payload == b"fine"
    finally:
        attacker.kill()
        await attacker.wait()


async def test_idle_connections_below_the_limit_stay(node: Guarded):
    host, _, port = (await node.listener.address_on(HERE)).partition(":")
    pairs = [await asyncio.open_connection(host, int(port)) for _ in range(80)]
    await asyncio.sleep(1.2)
    assert not any(reader.at_eof() for reader, _ in pairs)
    assert not node.registry.arrivals.crowded()
    for _, writer in pairs:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, HERE), (socket.AF_INET6, "::1")]
)
def test_the_user_of_a_connection_from_this_machine_is_known(family, host):
    with socket.socket(family) as listener, socket.socket(family) as dialler:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen()
        dialler.connect(listener.getsockname())
        accepted, address = listener.accept()
        with accepted:
            assert source_of(accepted, address) == f"local user {os.geteuid()}"


async def test_each_source_keeps_as_many_connections_as_the_others(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(under_test, "MAX_CONNECTIONS", 400)
    origins = iter(["flood"] * 396 + ["container"] * 2 + ["me"] * 2 + ["flood"])
    monkeypatch.setattr(under_test, "source_of", lambda *_: next(origins))
    server = Server(AsyncMock(), Limits(1, 1))
    port = server.listen(HERE, 0)
    pairs = [await asyncio.open_connection(HERE, port) for _ in range(401)]
    await eventually(server.arrivals.crowded)
    await eventually(lambda: len(server._guests) == 101)
    kept = Counter(guest.source for guest in server._guests.values())
    assert kept == {"flood": 97, "container": 2, "me": 2}
    for _, writer in pairs:
        writer.close()
    await server.aclose()


async def test_a_launch_that_fails_in_a_crowd_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
):
    """Issue 10, 5: it is tried again as long as the crowd lasts."""
    async with World(startup_timeout_s=0.3) as world:
        world.builder.prepare(CCID, never_registers)
        assert not (await failure(world, LaunchTimeout)).retryable
        monkeypatch.setattr(Arrivals, "crowded", lambda _: True)
        error = await failure(world, LaunchTimeout)
        assert error.retryable
        assert "other programs hold too many connections" in (error.hint or "")
