"""A chaincode that was up ends by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode import running as run_module
from chaindock.container.contracts import Cause, Exit
from chaindock.errors import EngineUnavailable, StreamTerminated
from chaindock.ids import at_peer
from chaindock.lifecycle.states import LaunchState
from support.doubles.launch_fakes import (
    STOPPED,
    FakeInstance,
    keeps_working,
    registered,
    serves,
)
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.stream_node import CCID

if TYPE_CHECKING:
    from support.doubles.launch_world import World


async def panics_in_a_call(instance: FakeInstance) -> Exit:
    peer = await registered(instance)
    await peer.next()
    return Exit(2)


# --- after READY --------------------------------------------------------------------


async def test_an_exit_is_noticed_and_told(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    async with asyncio.timeout(2):
        await instance.crash(Exit(None, signal=9, oom=True))
        with pytest.raises(StreamTerminated) as caught:
            await call
    lost = caught.value
    assert (lost.cause, lost.signal, lost.oom) == ("oom", 9, True)
    assert (lost.registered, lost.exit_code) == (True, None)
    assert "ran out of memory" in lost.message
    await eventually(lambda: instance.starts == 2)
    assert world.record().exit == Exit(None, signal=9, oom=True)


async def test_a_call_is_told_at_whose_peer_its_chaincode_ended(world: World):
    world.builder.prepare(CCID)
    await world.launch(CCID)
    world.support.process_of = lambda mspid: mspid
    other = at_peer(CCID, "Org2MSP")
    instance = world.builder.prepare(other, keeps_working)
    executing = world.support.execute(CCID, invocation("f"), "Org2MSP")
    call = asyncio.ensure_future(executing)
    await eventually(lambda: world.registry.find_ready(other) is not None)
    await asyncio.sleep(0.02)
    await instance.crash(Exit(3))
    with pytest.raises(StreamTerminated) as caught:
        await call
    assert caught.value.message.endswith("@Org2MSP exited with 3")
    assert "@Org2MSP --previous" in (caught.value.hint or "")


async def test_a_call_that_dies_with_its_chaincode_gets_its_last_words(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    instance.attempt.output("panic: index out of range", "stderr")
    await instance.crash(Exit(3))
    with pytest.raises(StreamTerminated) as caught:
        await call
    lost = caught.value
    # Fabric's own text, and how it ended.
    said = "error sending: chaincode stream terminated: chaincode "
    assert lost.message.endswith(f"{said}basic exited with 3")
    assert (lost.cause, lost.exit_code, lost.registered) == ("exited", 3, True)
    assert lost.output == ["panic: index out of range"]


async def test_a_call_whose_stream_ends_first_still_learns_how_it_ended(world: World):
    async def drops_then_dies(instance: FakeInstance) -> Exit:
        peer = await registered(instance)
        await peer.next()
        await peer.leave()
        await asyncio.sleep(0.1)
        return Exit(7)

    world.builder.prepare(CCID, drops_then_dies)
    world.custodian.resume(CCID)
    with pytest.raises(StreamTerminated) as caught:
        await world.execute()
    assert caught.value.exit_code == 7


async def test_what_the_chaincode_never_got_goes_to_the_next_run(world: World):
    instance = world.builder.prepare(CCID, keeps_working, concurrency=1)
    await world.launch(CCID)
    sent, waits = world.start_call(), world.start_call()
    await asyncio.sleep(0.05)
    instance._plays = serves
    await instance.crash(Exit(1))
    with pytest.raises(StreamTerminated):
        await sent
    assert (await waits).response.payload
    assert instance.starts == 2


async def test_an_engine_that_went_away_is_the_cause(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)

    async def gone() -> None:
        raise EngineUnavailable("lost the connection to the engine", endpoint="x")

    instance.stop_takes = gone
    await instance.peers[0].leave()
    with pytest.raises(StreamTerminated) as caught:
        await call
    assert caught.value.cause == "engine-gone"
    instance.stop_takes = None
    end = world.record().exit
    assert end is not None
    assert end.cause is Cause.ENGINE_GONE


async def test_calls_may_finish_before_the_grace_begins(world: World):
    """A drain of its own leaves the chaincode the whole grace."""
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    await world.stop(CCID, 7, drain_s=0.1)
    with pytest.raises(StreamTerminated):
        await call
    assert "stop 7" in instance.events


async def test_a_second_stop_can_hurry_the_first(world: World):
    world.builder.prepare(CCID, keeps_working)
    await world.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    loop = asyncio.get_running_loop()
    patient = loop.create_task(world.stop(CCID, 1, drain_s=60))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(5):
        await world.stop(CCID, 1, drain_s=0.05)
        await patient
    with pytest.raises(StreamTerminated):
        await call


async def test_after_an_exit_the_next_invocation_launches(world: World):
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    await instance.crash(Exit(1))
    await eventually(lambda: world.registry.find_ready(CCID) is None)
    assert await world.execute()
    assert instance.starts == 2


async def test_without_a_call_it_is_launched_again_too(world: World):
    """A death between READY and the switch of the definition is noticed as any other."""
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    await instance.crash(Exit(3))
    await eventually(lambda: instance.starts == 2)
    await world.until(LaunchState.RUNNING)
    assert world.record().policy.failures == 1


async def test_calls_that_kill_it_do_not_count_as_failed_launches(world: World):
    """After six panics in calls the seventh, good call is served at once."""
    instance = world.builder.prepare(CCID, panics_in_a_call)
    await world.launch(CCID)
    for _ in range(6):
        with pytest.raises(StreamTerminated) as caught:
            await world.execute()
        assert caught.value.message.endswith("exited with 2")
    instance._plays = serves
    async with asyncio.timeout(1):
        assert await world.execute()
    assert world.record().policy.failures == 0
    assert world.custodian.gave_up() == []


@pytest.mark.statement(22)
async def test_after_a_lost_stream_the_next_invocation_launches(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """Checklist 22; the process that runs on without a stream is ended."""
    monkeypatch.setattr(run_module, "_EXIT_WAIT_S", 0.1)
    instance = world.builder.prepare(CCID)

    async def drops_its_stream(instance: FakeInstance) -> Exit:
        peer = await registered(instance)
        instance._plays = serves
        message = await peer.next()
        await peer.complete(message)
        await peer.leave()
        await asyncio.Event().wait()
        return STOPPED

    instance._plays = drops_its_stream
    world.custodian.resume(CCID)
    await world.execute()
    handler = world.registry.find(CCID)
    assert handler is not None
    await handler.ended.wait()
    assert await world.execute()
    assert instance.starts == 2
    assert instance.events[:3] == ["start", "stop 1", "exit"]
