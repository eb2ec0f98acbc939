"""launch.md §9 W12, W50: the node dials."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fabric_protos.peer import chaincode_pb2

from chaindock.errors import LaunchTimeout, RegistrationRefused, StartFailed
from support.doubles.launch_fakes import STOPPED, FakeInstance, answer, never_registers
from support.doubles.launch_world import World, failure
from support.shims.peer import Kind, ShimServer
from support.shims.stream_node import CCID, OTHER

if TYPE_CHECKING:
    from chaindock.container.contracts import Exit


async def test_a_served_chaincode_is_dialled(world: World):
    instance = world.builder.prepare(CCID)
    async with ShimServer() as server:
        instance.server = server

        async def serves_here(_: FakeInstance) -> Exit:
            peer = await server.stream()
            await peer.register(CCID)
            return await answer(peer)

        instance._plays = serves_here
        await world.launch(CCID)
        assert await world.execute()
        await world.stop(CCID, 1)
        await server.closed()


async def test_a_served_chaincode_of_another_name_fails_at_once(world: World):
    """launch.md W50: not after the whole timeout."""
    instance = world.builder.prepare(CCID)
    async with ShimServer() as server:
        instance.server = server

        async def misnamed(_: FakeInstance) -> Exit:
            peer = await server.stream()
            await peer.send(Kind.REGISTER, chaincode_pb2.ChaincodeID(name=OTHER))
            await peer.left.wait()
            return STOPPED

        instance._plays = misnamed
        async with asyncio.timeout(3):
            error = await failure(world, RegistrationRefused)
        assert f"registers as '{OTHER}', expected '{CCID}'" in error.message
        assert not instance.running
        await server.closed()


async def test_a_served_chaincode_that_hangs_up(world: World):
    instance = world.builder.prepare(CCID)
    async with ShimServer() as server:
        instance.server = server

        async def hangs_up(_: FakeInstance) -> Exit:
            await (await server.stream()).leave()
            await asyncio.Event().wait()
            return STOPPED

        instance._plays = hangs_up
        error = await failure(world, StartFailed)
        assert f"connection to {CCID} failed: chaincode closed" in error.message


async def test_a_server_that_never_boots_is_given_up():
    async with World(connect_timeout_s=0.3) as world, ShimServer() as server:
        instance = world.builder.prepare(CCID, never_registers)
        instance.server = server
        error = await failure(world, LaunchTimeout)
        assert error.facts["phase"] == "connect"
        await server.closed()
