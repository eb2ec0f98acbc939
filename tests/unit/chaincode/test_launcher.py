"""A chaincode comes up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.errors import ChaincodeRetired
from chaindock.lifecycle.states import LaunchState
from support.doubles.launch_fakes import (
    FakeInstance,
    answer,
    keeps_working,
    never_registers,
    registered,
)
from support.shims.stream_node import CCID, OTHER

if TYPE_CHECKING:
    from chaindock.container.contracts import Exit
    from support.doubles.launch_world import World


async def test_a_launched_chaincode_answers(world: World):
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    assert len(await world.execute()) == 64
    status = world.record()
    assert status.state is LaunchState.RUNNING
    assert status.running is not None
    assert status.running.facts == {"backend": "fake", "starts": "1"}
    assert (status.exit, status.error, list(status.running.unanswered)) == (
        None,
        None,
        [],
    )
    assert status.attempt is instance.attempt
    assert [str(p.phase) for p in instance.attempt.phases] == [
        *("compile", "create", "start", "connect", "register", "ready")
    ]
    assert instance.attempt.phase is None


async def test_second_launch_waits_for_the_first(world: World):
    instance = world.builder.prepare(CCID)
    await asyncio.gather(*(world.launch(CCID) for _ in range(20)))
    await world.launch(CCID)
    assert (instance.starts, world.builder.builds) == (1, 1)


async def test_calls_wait_for_the_launch(world: World):
    instance = world.builder.prepare(CCID)
    world.custodian.resume(CCID)
    results = await asyncio.gather(*(world.execute() for _ in range(10)))
    assert len(set(results)) == 10
    assert instance.starts == 1


async def test_a_call_to_what_is_not_to_run_launches_nothing(world: World):
    instance = world.builder.prepare(CCID)
    with pytest.raises(ChaincodeRetired, match="does not run on this node"):
        await world.execute()
    await world.launch(CCID)
    await world.stop(CCID, 1)
    with pytest.raises(ChaincodeRetired, match="a user stopped it, or another version"):
        await world.execute()
    assert instance.starts == 1


async def test_the_first_caller_may_leave(world: World):
    gate = asyncio.Event()
    world.builder.prepare(CCID)
    world.builder.takes = gate.wait
    loop = asyncio.get_running_loop()
    first = loop.create_task(world.launch(CCID))
    second = loop.create_task(world.launch(CCID))
    await asyncio.sleep(0.01)
    first.cancel()
    gate.set()
    await second
    assert world.state() is LaunchState.RUNNING


async def test_chaincodes_launch_side_by_side(world: World):
    world.builder.prepare(CCID, never_registers)
    world.builder.prepare(OTHER)
    stuck = asyncio.get_running_loop().create_task(world.launch(CCID))
    await world.launch(OTHER)
    assert not stuck.done()
    await world.stop(CCID, 0)
    await asyncio.gather(stuck, return_exceptions=True)


async def test_it_may_register_before_start_returns(world: World):
    instance = world.builder.prepare(CCID)

    async def early() -> None:
        instance.peers.append(await registered(instance))

    instance.start_takes = early

    async def answers(instance: FakeInstance) -> Exit:
        return await answer(instance.peers[0])

    instance._plays = answers
    await world.launch(CCID)
    assert await world.execute()


async def test_the_concurrency_of_the_instance_holds(world: World):
    world.builder.prepare(CCID, keeps_working, concurrency=1)
    await world.launch(CCID)
    calls = [world.start_call() for _ in range(3)]
    await asyncio.sleep(0.05)
    handler = world.registry.find_ready(CCID)
    assert handler is not None
    assert (handler.calls.count, handler.calls.limiter.running) == (3, 1)
    await world.stop(CCID, 0)
    await asyncio.gather(*calls, return_exceptions=True)


async def test_an_attempt_that_is_not_needed_is_closed(world: World):
    world.builder.prepare(CCID)
    await world.launch(CCID)
    spare = Attempt(CCID)
    events: list[str] = []
    spare.watch(lambda event: events.append(event.kind))
    await world.launch(CCID, spare)
    assert events == ["note"]
