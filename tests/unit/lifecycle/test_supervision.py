"""Back-off, crash loops, what is tried again and what calls get meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chaindock.errors import (
    BuildFailed,
    EngineError,
    ExitedEarly,
    LaunchFailed,
    LaunchTimeout,
    NodeError,
    StartFailed,
)
from chaindock.ids import Ccid
from chaindock.lifecycle.custodian import Custodian, CustodianOptions
from chaindock.lifecycle.supervision import Care, Standing
from support.eventually import eventually

A, B = Ccid("a:" + "1" * 64), Ccid("b:" + "2" * 64)
DIED = LaunchFailed("chaincode was up and exited with 3", stage="run", exit_code=3)
BROKEN = BuildFailed("go build ended with 1", stage="build", retryable=False)
OFFLINE = BuildFailed("dial tcp: no route", stage="build", retryable=True)
FAST: dict[str, Any] = {"retry_first_s": 0.01, "retry_cap_s": 0.02, "retries": 2}


class Runtime:
    """Launches end as the test says; by default all is well."""

    def __init__(self) -> None:
        self.errors: dict[Ccid, Exception] = {}
        self.launches: list[Ccid] = []
        self.gate: asyncio.Event | None = None

    async def launch(self, ccid: Ccid, attempt: Any = None) -> None:
        self.launches.append(ccid)
        if self.gate is not None:
            await self.gate.wait()
        if ccid in self.errors:
            raise self.errors[ccid]

    async def stop(self, ccid: Ccid, grace_s: float, drain_s: Any = None) -> None:
        return None

    forget = stop


class World:
    def __init__(self, **options: Any) -> None:
        self.runtime = Runtime()
        self.custodian = Custodian(
            self.runtime,
            lambda _: True,
            CustodianOptions(**{**FAST, **options}),
            name_of=lambda ccid: ccid.partition(":")[0],
        )

    def care(self, ccid: Ccid = A) -> Care:
        return self.custodian.standing(ccid).care


@pytest.fixture
async def world() -> Any:
    world = World()
    async with world.custodian:
        yield world


async def test_a_build_that_cannot_succeed_is_not_tried_again(world: World):
    world.runtime.errors[A] = BROKEN
    world.custodian.restore([A])
    await eventually(lambda: world.care() is Care.FAILED)
    await asyncio.sleep(0.1)
    assert world.runtime.launches == [A]
    assert world.custodian.left_alone() == [A]
    assert world.custodian.pending() == []


@pytest.mark.parametrize("cause", ["engine", "clock"])
async def test_a_build_that_engine_or_clock_ended_is_tried_as_often_as_a_run(
    world: World, cause: str
):
    error: LaunchFailed = BuildFailed("no bridge", stage="build")
    error.__cause__ = EngineError("could not find bridge", status=500)
    if cause == "clock":
        error = LaunchTimeout("took longer than 8 s", stage="build", limit_s=8)
    world.runtime.errors[A] = error
    world.custodian.restore([A])
    await eventually(lambda: world.care() is Care.CRASH_LOOP)
    assert len(world.runtime.launches) == 1 + FAST["retries"]


async def test_a_build_that_the_network_failed_is_tried_until_it_succeeds(world: World):
    world.runtime.errors[A] = OFFLINE
    world.custodian.restore([A])
    await eventually(lambda: len(world.runtime.launches) > 2 * FAST["retries"])
    assert world.care() is Care.BACK_OFF
    assert world.custodian.pending() == [A]
    world.runtime.errors.clear()
    await eventually(lambda: world.custodian.pending() == [])
    assert world.custodian.standing(A) == Standing()


async def test_a_crash_loop_stops_and_says_so(world: World):
    await world.custodian.launch(A)
    for _ in range(FAST["retries"]):
        count = len(world.runtime.launches)
        world.custodian.lost(A, DIED)
        assert world.care() is Care.BACK_OFF
        assert world.custodian.standing(A).next_try is not None
        await eventually(lambda: len(world.runtime.launches) > count)  # noqa: B023
        await eventually(lambda: world.care() is Care.NONE)
    world.custodian.lost(A, DIED)
    standing = world.custodian.standing(A)
    assert (standing.care, standing.failures) == (Care.CRASH_LOOP, 3)
    assert (standing.error, standing.next_try) == (DIED, None)
    await asyncio.sleep(0.1)
    assert len(world.runtime.launches) == 1 + FAST["retries"]


async def test_a_run_that_was_stable_begins_the_count_anew():
    world = World(stable_s=0.0)
    async with world.custodian:
        await world.custodian.launch(A)
        for _ in range(3 * FAST["retries"]):
            count = len(world.runtime.launches)
            world.custodian.lost(A, DIED)
            await eventually(lambda: len(world.runtime.launches) > count)  # noqa: B023
            await eventually(lambda: world.care() is Care.NONE)
        assert world.custodian.left_alone() == []


async def test_a_call_waits_for_the_next_try():
    world = World(retry_first_s=0.1, retry_cap_s=0.1)
    async with world.custodian:
        await world.custodian.launch(A)
        world.custodian.lost(A, DIED)
        async with asyncio.timeout(5):
            await world.custodian.bring_up(A)
        assert world.runtime.launches == [A, A]


async def test_a_call_that_waited_gets_the_error_of_that_try(world: World):
    await world.custodian.launch(A)
    world.runtime.errors[A] = ExitedEarly("it exited with 2", stage="start")
    world.custodian.lost(A, DIED)
    with pytest.raises(ExitedEarly, match="exited with 2"):
        await world.custodian.bring_up(A)


async def loop_of_crashes(world: World) -> None:
    world.runtime.errors[A] = ExitedEarly(
        "it exited with 2", stage="start", exit_code=2, output=["panic"]
    )
    world.custodian.restore([A])
    await eventually(lambda: world.care() is Care.CRASH_LOOP)


async def test_a_call_in_a_crash_loop_fails_at_once_with_the_reason():
    world = World(retry_cap_s=60.0)
    async with world.custodian:
        await loop_of_crashes(world)
        count = len(world.runtime.launches)
        with pytest.raises(ExitedEarly, match="left alone after 3 failures") as caught:
            await world.custodian.bring_up(A)
        assert (caught.value.exit_code, caught.value.output) == (2, ["panic"])
        assert "exited with 2" in caught.value.message
        assert "chaindock start a" in (caught.value.hint or "")
        assert len(world.runtime.launches) == count


async def test_after_a_pause_one_call_may_try_and_mend_it():
    world = World(retry_cap_s=0.1)
    async with world.custodian:
        await loop_of_crashes(world)
        await asyncio.sleep(0.15)
        world.runtime.errors.clear()
        world.runtime.gate = asyncio.Event()
        count = len(world.runtime.launches)
        first = asyncio.ensure_future(world.custodian.bring_up(A))
        await eventually(lambda: len(world.runtime.launches) > count)
        with pytest.raises(LaunchFailed, match="left alone"):
            await world.custodian.bring_up(A)
        world.runtime.gate.set()
        await first
        assert world.care() is Care.NONE


async def test_start_begins_anew():
    world = World(retry_cap_s=60.0)
    async with world.custodian:
        await loop_of_crashes(world)
        world.runtime.errors.clear()
        await world.custodian.launch(A)
        assert world.custodian.standing(A) == Standing()


async def test_what_is_to_come_up_is_waited_for_until_it_did_once(world: World):
    world.runtime.gate = asyncio.Event()
    world.custodian.restore([A, B])
    assert world.custodian.pending() == [A, B]
    world.runtime.gate.set()
    await eventually(lambda: not world.custodian.pending())
    world.custodian.lost(A, DIED)
    assert world.custodian.pending() == []


async def test_what_is_stopped_is_not_pending_and_has_no_history(world: World):
    world.runtime.errors[A] = OFFLINE
    world.custodian.restore([A])
    await eventually(lambda: world.care() is Care.BACK_OFF)
    await world.custodian.stop(A)
    assert world.custodian.pending() == []
    assert world.custodian.standing(A) == Standing()
    count = len(world.runtime.launches)
    await asyncio.sleep(0.1)
    assert len(world.runtime.launches) == count


async def test_who_waits_for_a_try_is_told_when_it_is_stopped():
    world = World(retry_first_s=60.0, retry_cap_s=60.0)
    async with world.custodian:
        await world.custodian.launch(A)
        world.custodian.lost(A, DIED)
        call = asyncio.ensure_future(world.custodian.bring_up(A))
        await asyncio.sleep(0)
        await world.custodian.stop(A)
        with pytest.raises(StartFailed, match="was stopped"):
            await call


async def test_who_waits_for_a_try_is_told_when_the_node_goes_down():
    world = World(retry_first_s=60.0, retry_cap_s=60.0)
    async with world.custodian:
        await world.custodian.launch(A)
        world.custodian.lost(A, DIED)
        call = asyncio.ensure_future(world.custodian.bring_up(A))
        await asyncio.sleep(0)
    with pytest.raises(NodeError, match="going down"):
        await call


async def test_a_call_while_the_node_goes_down_is_told(world: World):
    await world.custodian.aclose()
    with pytest.raises(NodeError):
        await world.custodian.bring_up(A)
