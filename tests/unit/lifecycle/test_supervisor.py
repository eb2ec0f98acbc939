"""Back-off, crash loops, what is launched again, and what calls get meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import (
    BuildFailed,
    ChaincodeRetired,
    EngineError,
    ExitedEarly,
    LaunchFailed,
    LaunchTimeout,
    NodeStopping,
    StartFailed,
)
from chaindock.ids import Ccid
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.states import (
    CustodianOptions,
    LaunchState,
    RestartPolicy,
    Target,
)
from support.doubles.machine import Machine
from support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

A, B = Ccid("a:" + "1" * 64), Ccid("b:" + "2" * 64)
BROKEN = BuildFailed("go build ended with 1", stage="build", retryable=False)
OFFLINE = BuildFailed("dial tcp: no route", stage="build", retryable=True)
FAST: dict[str, Any] = {"retry_first_s": 0.01, "retry_cap_s": 0.02, "retries": 2}


class World:
    def __init__(self, **options: Any) -> None:
        self.machine = Machine()
        self.custodian = Custodian(
            self.machine,
            CustodianOptions(**{**FAST, **options}),
            name_of=lambda ccid: ccid.partition(":")[0],
        )

    def state(self, ccid: Ccid = A) -> LaunchState | None:
        found = self.custodian.find(ccid)
        return None if found is None else found.state

    def launches(self) -> int:
        return self.machine.count("launch", A)

    async def until(self, state: LaunchState) -> None:
        await eventually(lambda: self.state() is state)

    async def die(self) -> None:
        """Let the run end by itself, and wait until that was noticed."""
        run = self.machine.runs[A]
        run.die()
        await eventually(lambda: self.machine.runs.get(A) is not run)

    def ready(self) -> Any:
        return self.custodian.ready(A, 5)

    @property
    def failures(self) -> int:
        found = self.custodian.find(A)
        assert found is not None
        return found.policy.failures


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.custodian:
        yield world


# ---- failed launches


async def test_a_build_that_cannot_succeed_is_not_tried_again(world: World):
    world.machine.errors[A] = BROKEN
    world.custodian.restore([A])
    await world.until(LaunchState.FAILED)
    await asyncio.sleep(0.1)
    assert world.launches() == 1
    assert [one.ccid for one in world.custodian.gave_up()] == [A]
    assert world.custodian.pending() == []


@pytest.mark.parametrize("cause", ["engine", "clock"])
async def test_a_build_that_engine_or_clock_ended_is_tried_as_often_as_a_run(
    world: World, cause: str
):
    error: LaunchFailed = BuildFailed("no bridge", stage="build")
    error.__cause__ = EngineError("could not find bridge", status=500)
    if cause == "clock":
        error = LaunchTimeout("took longer than 8 s", stage="build", limit_s=8)
    world.machine.errors[A] = error
    world.custodian.restore([A])
    await world.until(LaunchState.CRASH_LOOP)
    assert world.launches() == 1 + FAST["retries"]


async def test_a_build_that_the_network_failed_is_tried_until_it_succeeds(world: World):
    world.machine.errors[A] = OFFLINE
    world.custodian.restore([A])
    await eventually(lambda: world.launches() > 2 * FAST["retries"])
    assert [one.ccid for one in world.custodian.pending()] == [A]
    world.machine.errors.clear()
    await eventually(lambda: world.custodian.pending() == [])
    found = world.custodian.find(A)
    assert found is not None
    assert (found.state, found.error, found.next_try) == (
        LaunchState.RUNNING,
        None,
        None,
    )


async def test_restored_chaincodes_come_up_side_by_side(world: World):
    world.machine.errors[A] = LaunchTimeout("registry is down")
    world.custodian.restore([A, B])
    await world.machine.until("launch", A, 2)
    await world.machine.until("up", B)
    del world.machine.errors[A]
    await world.machine.until("up", A)


async def test_an_explicit_launch_begins_the_count_anew(world: World):
    world.machine.errors[A] = LaunchTimeout("always")
    world.custodian.restore([A])
    await world.until(LaunchState.CRASH_LOOP)
    del world.machine.errors[A]
    await world.custodian.launch(A)
    assert (world.state(), world.failures) == (LaunchState.RUNNING, 0)


# ---- runs that end by themselves


async def test_a_crash_loop_stops_and_says_so(world: World):
    await world.custodian.launch(A)
    for number in range(FAST["retries"]):
        await world.die()
        await world.machine.until("up", A, number + 2)
        await world.until(LaunchState.RUNNING)
    world.machine.runs[A].die()
    await world.until(LaunchState.CRASH_LOOP)
    found = world.custodian.find(A)
    assert found is not None
    assert found.error is not None
    assert "was up and exited with 3" in found.error.message
    assert (found.policy.failures, found.next_try) == (3, None)
    await asyncio.sleep(0.1)
    assert world.launches() == 1 + FAST["retries"]


async def test_a_run_that_was_stable_begins_the_count_anew():
    world = World(stable_s=0.0)
    async with world.custodian:
        await world.custodian.launch(A)
        for number in range(3 * FAST["retries"]):
            await world.die()
            await world.machine.until("up", A, number + 2)
            await world.until(LaunchState.RUNNING)
        assert world.custodian.gave_up() == []


async def test_a_run_that_dies_in_a_call_is_launched_again_at_once_and_not_counted():
    world = World(retry_first_s=60.0, retry_cap_s=60.0)
    async with world.custodian:
        await world.custodian.launch(A)
        for number in range(6):
            world.machine.runs[A].die(in_a_call=True)
            async with asyncio.timeout(1):
                await world.machine.until("up", A, number + 2)
                await world.until(LaunchState.RUNNING)
        assert world.failures == 0
        await world.ready()


async def test_stopping_ends_the_retries(world: World):
    await world.custodian.launch(A)
    await world.die()
    await world.custodian.stop(A)
    count = world.launches()
    await asyncio.sleep(0.05)
    assert world.launches() == count
    found = world.custodian.find(A)
    assert found is not None
    assert (found.state, found.error, found.next_try) == (LaunchState.DOWN, None, None)


# ---- calls


async def test_a_call_waits_for_the_next_launch():
    world = World(retry_first_s=0.1, retry_cap_s=0.1)
    async with world.custodian:
        await world.custodian.launch(A)
        await world.die()
        async with asyncio.timeout(5):
            await world.ready()
        assert world.launches() == 2


async def test_a_call_that_waited_gets_the_error_of_that_launch(world: World):
    await world.custodian.launch(A)
    world.machine.errors[A] = ExitedEarly("it exited with 2", stage="start")
    await world.die()
    with pytest.raises(ExitedEarly, match="exited with 2"):
        await world.ready()


async def loop_of_crashes(world: World) -> None:
    world.machine.errors[A] = ExitedEarly(
        "it exited with 2", stage="start", exit_code=2, output=["panic"]
    )
    world.custodian.restore([A])
    await world.until(LaunchState.CRASH_LOOP)


async def test_a_call_in_a_crash_loop_fails_at_once_with_the_reason():
    world = World(retry_cap_s=60.0)
    async with world.custodian:
        await loop_of_crashes(world)
        count = world.launches()
        with pytest.raises(ExitedEarly, match=r"gave up .* after 3 failures") as caught:
            await world.ready()
        assert (caught.value.exit_code, caught.value.output) == (2, ["panic"])
        assert "exited with 2" in caught.value.message
        assert "chaindock start a" in (caught.value.hint or "")
        assert world.launches() == count


async def test_after_a_pause_one_call_may_launch_and_bring_it_back():
    world = World(retry_cap_s=0.1)
    async with world.custodian:
        await loop_of_crashes(world)
        await asyncio.sleep(0.15)
        world.machine.errors.clear()
        gate = world.machine.hold(A)
        first = asyncio.ensure_future(world.ready())
        await world.until(LaunchState.STARTING)
        second = asyncio.ensure_future(world.ready())
        gate.set()
        await asyncio.gather(first, second)
        assert world.state() is LaunchState.RUNNING


async def test_a_call_to_a_stopped_chaincode_starts_nothing(world: World):
    """Else a call that waited past a drain would start a replaced version."""
    with pytest.raises(ChaincodeRetired):
        await world.ready()
    await world.custodian.launch(A)
    await world.custodian.stop(A)
    with pytest.raises(ChaincodeRetired):
        await world.ready()
    await world.custodian.stop(A, Target.REMOVED)
    with pytest.raises(ChaincodeRetired):
        await world.ready()
    assert world.launches() == 1


async def test_a_call_that_waits_is_told_of_a_stop():
    world = World(retry_first_s=60.0, retry_cap_s=60.0)
    async with world.custodian:
        await world.custodian.launch(A)
        await world.die()
        call = asyncio.ensure_future(world.ready())
        await asyncio.sleep(0)
        await world.custodian.stop(A)
        with pytest.raises(StartFailed, match="was stopped"):
            await call


async def test_a_call_that_waits_is_told_that_the_node_goes_down():
    world = World(retry_first_s=60.0, retry_cap_s=60.0)
    async with world.custodian:
        await world.custodian.launch(A)
        await world.die()
        call = asyncio.ensure_future(world.ready())
        await asyncio.sleep(0)
    with pytest.raises(NodeStopping, match="the node is stopping"):
        await call


async def test_a_call_waits_no_longer_than_it_may(world: World):
    world.machine.hold(A)
    world.custodian.resume(A)
    await world.until(LaunchState.STARTING)
    with pytest.raises(LaunchTimeout, match=r"not ready after 0.05 s of waiting; its"):
        await world.custodian.ready(A, 0.05)


# ---- the start of a node


async def test_what_is_restored_is_pending_until_it_was_up_once(world: World):
    gates = [world.machine.hold(ccid) for ccid in (A, B)]
    world.custodian.restore([A, B])
    assert [one.ccid for one in world.custodian.pending()] == [A, B]
    for gate in gates:
        gate.set()
    await eventually(lambda: not world.custodian.pending())
    await world.die()
    assert world.custodian.pending() == []


async def test_what_is_stopped_is_not_pending(world: World):
    world.machine.errors[A] = OFFLINE
    world.custodian.restore([A])
    await world.until(LaunchState.BACK_OFF)
    await world.custodian.stop(A)
    assert world.custodian.pending() == []


async def test_a_program_that_a_user_starts_is_waited_for_without_limit():
    """Development mode: nothing is launched, and a call says what to start."""
    machine = Machine()
    async with Custodian(machine, by_hand=lambda _: True) as custodian:
        custodian.resume(A)
        found = custodian.find(A)
        assert found is not None
        await eventually(lambda: found.state is LaunchState.WAITING)
        with pytest.raises(StartFailed, match="no program has registered") as caught:
            await custodian.ready(A, 5)
        assert f"CORE_CHAINCODE_ID_NAME={A}" in (caught.value.hint or "")
        await custodian.stop(A)
        assert found.state is LaunchState.DOWN
    assert machine.log == []


async def test_pauses_stay_bounded_however_often_a_launch_fails():
    policy = RestartPolicy(CustodianOptions(retry_first_s=1.0, retry_cap_s=60.0))
    pauses = [policy.failed(OFFLINE)[1] for _ in range(2000)]
    assert max(pauses) <= 60.0 * 1.2


async def test_a_program_of_a_user_does_not_keep_the_node_from_being_ready():
    async with Custodian(Machine(), by_hand=lambda _: True) as custodian:
        custodian.restore([A])
        assert custodian.pending() == []
