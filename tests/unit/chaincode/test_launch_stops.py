"""A chaincode is stopped, also while it starts or is being stopped."""

from __future__ import annotations

import asyncio

import pytest

from chaindock.chaincode import running as run_module
from chaindock.container.attempt import Phase
from chaindock.container.contracts import Exit
from chaindock.errors import EngineTimeout, LaunchFailed, NodeStopping, StreamTerminated
from chaindock.lifecycle.states import LaunchState, Target
from support.doubles.launch_fakes import (
    STOPPED,
    FakeInstance,
    keeps_working,
    never_registers,
    registered,
)
from support.doubles.launch_world import World
from support.eventually import eventually
from support.shims.stream_node import CCID, OTHER


async def test_stop_lets_work_under_way_finish(world: World):
    instance = world.builder.prepare(CCID)
    gate = asyncio.Event()

    async def slowly(instance: FakeInstance) -> Exit:
        peer = await registered(instance)
        message = await peer.next()
        await gate.wait()
        await peer.complete(message, b"done")
        await peer.next()
        return STOPPED

    instance._plays = slowly
    await world.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    stop = asyncio.get_running_loop().create_task(world.stop(CCID, 5))
    await asyncio.sleep(0.02)
    assert world.registry.find_ready(CCID) is None
    assert instance.events == ["start"]
    gate.set()
    assert (await call).response.payload == b"done"
    await stop
    assert instance.events == ["start", "stop 5", "exit"]
    assert world.state() is LaunchState.DOWN


async def test_the_stream_ends_after_the_instance(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    handler = world.registry.find_ready(CCID)
    assert handler is not None

    async def look() -> None:
        assert not handler.ended.settled

    instance.stop_takes = look
    await world.stop(CCID, 1)
    assert handler.ended.settled


async def test_work_that_takes_longer_than_the_grace_is_cut_off(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    await world.stop(CCID, 0.1)
    with pytest.raises(StreamTerminated):
        await call
    assert not instance.running


async def test_stop_is_idempotent_and_harmless(world: World):
    await world.stop(CCID, 1)
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    await asyncio.gather(*(world.stop(CCID, 1) for _ in range(3)))
    await world.stop(CCID, 1)
    assert instance.events.count("stop 1") == 1


@pytest.mark.parametrize("stage", ["build", "start", "connect"])
async def test_stop_gives_up_a_launch(world: World, stage: str):
    instance = world.builder.prepare(CCID, never_registers)
    if stage == "build":
        world.builder.takes = asyncio.Event().wait
    if stage == "start":
        instance.start_takes = asyncio.Event().wait
    launch = asyncio.get_running_loop().create_task(world.launch(CCID))
    phase = Phase.COMPILE if stage == "build" else Phase(stage)

    def entered() -> bool:
        found = world.custodian.find(CCID)
        attempt = None if found is None else found.attempt
        return attempt is not None and attempt.phase is phase

    await eventually(entered)
    await world.stop(CCID, 1)
    with pytest.raises(LaunchFailed, match="was stopped while it started"):
        await launch
    assert not instance.running
    status = world.record()
    assert (status.state, status.error) == (LaunchState.DOWN, None)


async def test_a_stop_while_a_failed_launch_is_taken_down_leaves_nothing(world: World):
    instance = world.builder.prepare(CCID, never_registers)
    gate = asyncio.Event()
    instance.stop_takes = gate.wait
    launch = asyncio.get_running_loop().create_task(world.launch(CCID))
    await eventually(lambda: "start" in instance.events)
    stop = asyncio.get_running_loop().create_task(world.stop(CCID, 1))
    await eventually(lambda: "stop 1" in instance.events)
    await asyncio.sleep(0.02)
    assert not stop.done()
    gate.set()
    await stop
    with pytest.raises(LaunchFailed):
        await launch
    assert not instance.running


async def test_a_launch_during_a_stop_begins_after_it(world: World):
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    gate = asyncio.Event()
    instance.stop_takes = gate.wait
    stop = asyncio.get_running_loop().create_task(world.stop(CCID, 1))
    await world.until(LaunchState.STOPPING)
    launch = asyncio.get_running_loop().create_task(world.launch(CCID))
    await asyncio.sleep(0.02)
    assert instance.starts == 1
    gate.set()
    await stop
    await launch
    assert world.state() is LaunchState.RUNNING
    assert instance.events == ["start", "stop 1", "exit", "start"]


async def test_what_was_forgotten_is_built_again(world: World):
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    await world.stop(CCID, 1)
    await world.launch(CCID)
    assert (instance.starts, world.builder.builds) == (2, 1)
    await world.custodian.stop(CCID, Target.REMOVED)
    assert world.custodian.find(CCID) is None
    assert not instance.running
    await world.launch(CCID)
    assert world.builder.builds == 2


async def test_a_launch_that_waited_for_the_end_is_forgotten_too(world: World):
    """Else it would run on, and nobody would know it."""
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    gate = asyncio.Event()
    instance.stop_takes = gate.wait
    await instance.crash(Exit(1))
    await world.until(LaunchState.STOPPING)
    loop = asyncio.get_running_loop()
    launch = loop.create_task(world.launch(CCID))
    await asyncio.sleep(0)  # it waits for the end of the run
    forget = loop.create_task(world.custodian.stop(CCID, Target.REMOVED))
    await asyncio.sleep(0)
    gate.set()
    await forget
    with pytest.raises(LaunchFailed, match="was stopped while it started"):
        await launch
    assert world.custodian.find(CCID) is None
    assert not instance.running


async def test_an_engine_that_hangs_at_stop_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "_STOP_MARGIN_S", 0.1)
    monkeypatch.setattr(run_module, "_EXIT_WAIT_S", 0.1)
    monkeypatch.setattr(run_module, "FAILED_GRACE_S", 0.1)
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    instance.stop_takes = asyncio.Event().wait
    with pytest.raises(EngineTimeout, match=r"was not stopped within 0\.1 s"):
        await world.stop(CCID, 0)
    assert world.state() is LaunchState.DOWN
    assert world.registry.find(CCID) is None
    instance.stop_takes = None


async def test_a_stop_that_meets_a_defect_ends_the_stream_and_the_record(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    run = world.record().running
    assert run is not None
    assert run.handler is not None

    async def defect() -> None:
        raise OSError("no descriptor is free")

    instance.stop_takes = defect
    with pytest.raises(OSError, match="no descriptor"):
        await run.take_down()
    assert run.handler.ended.settled
    assert run.exit is not None
    instance.stop_takes = None


async def test_leaving_the_launcher_stops_everything():
    async with World() as world:
        ready = world.builder.prepare(CCID)
        starting = world.builder.prepare(OTHER, never_registers)
        await world.launch(CCID)
        launch = asyncio.get_running_loop().create_task(world.launch(OTHER))
        await asyncio.sleep(0.05)
        await world.custodian.aclose()
        assert not ready.running
        assert not starting.running
        await asyncio.gather(launch, return_exceptions=True)
        with pytest.raises(NodeStopping, match="the node is stopping"):
            await world.launch(CCID)


async def test_a_stream_that_is_lost_right_after_ready(world: World):
    async def gone(instance: FakeInstance) -> Exit:
        peer = await registered(instance)
        await peer.leave()
        return Exit(3)

    world.builder.prepare(CCID, gone)
    world.custodian.resume(CCID)
    with pytest.raises((LaunchFailed, StreamTerminated)):
        await world.execute()
