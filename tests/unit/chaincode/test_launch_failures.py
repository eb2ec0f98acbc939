"""launch.md §5.2, §9 W8-W10, W14, W20, W21: one outcome, and nothing is left."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode.failures import LOGGED_CHARS, log_facts
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Cause, Exit
from chaindock.container.output import OutputStore
from chaindock.errors import (
    BuildFailed,
    EngineUnavailable,
    ExitedEarly,
    ImageNotFound,
    LaunchTimeout,
    NotFound,
    RegisterTimeout,
    StartFailed,
)
from chaindock.lifecycle.states import LaunchState
from support.doubles.inline import Inline
from support.doubles.launch_fakes import (
    FakeInstance,
    dies_at_once,
    never_registers,
    serves,
)
from support.doubles.launch_world import World, failure
from support.shims.stream_node import CCID

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_failed_build_tells_everything(world: World):
    world.builder.errors.append(BuildFailed("go build ended with 1", step="go build"))
    error = await failure(world, BuildFailed)
    assert error.message.endswith("error building chaincode: go build ended with 1")
    assert error.facts["phase"] == "compile"
    assert error.facts["output"] == ["main.go:3: syntax error"]
    assert error.facts["step"] == "go build"
    assert [phase["phase"] for phase in error.facts["phases"]] == ["compile"]
    assert world.state() is LaunchState.DOWN, "the deployment was the first"
    told = world.record().error
    assert told is not None
    assert told.message == error.message


async def test_whether_it_can_pass_comes_from_the_first_error(world: World):
    world.builder.errors.append(BuildFailed("dial tcp: refused", retryable=True))
    error = await failure(world, BuildFailed)
    assert error.retryable
    assert (error.facts["stage"], error.facts["cause"]) == ("build", "not-started")
    world.builder.errors.append(BuildFailed("syntax error"))
    error = await failure(world, BuildFailed)
    assert not error.retryable
    world.builder.errors.append(EngineUnavailable("no engine", endpoint="x"))
    error = await failure(world, BuildFailed)
    assert error.retryable
    assert error.facts["cause"] == "engine-gone"


async def test_time_that_a_network_takes_does_not_count():
    """launch.md W10; needs.md row 2: silence ends it, not a clock."""
    async with World(build_timeout_s=0.3) as world:
        world.builder.prepare(CCID)
        world.builder.phases = [
            (Phase.PULL, 0.3), (Phase.DEPENDENCIES, 0.3), (Phase.COMPILE, 0.05)
        ]  # fmt: skip
        await world.launch(CCID)


async def test_time_before_and_after_the_network_counts_together():
    async with World(build_timeout_s=0.3) as world:
        world.builder.prepare(CCID)
        world.builder.phases = [
            (Phase.PACKAGE, 0.2), (Phase.DEPENDENCIES, 0.2), (Phase.COMPILE, 60)
        ]  # fmt: skip
        began = asyncio.get_running_loop().time()
        error = await failure(world, LaunchTimeout)
        assert 0.45 < asyncio.get_running_loop().time() - began < 5
        assert (error.facts["phase"], error.facts["stage"]) == ("compile", "build")
        assert not error.retryable


async def test_a_failed_build_is_tried_again(world: World):
    """launch.md W20."""
    world.builder.prepare(CCID)
    world.builder.errors.append(BuildFailed("registry is away"))
    await failure(world, BuildFailed)
    await world.launch(CCID)
    assert world.builder.builds == 2


async def test_every_waiter_gets_the_same_error(world: World):
    world.builder.prepare(CCID, dies_at_once)
    results = await asyncio.gather(
        *(world.launch(CCID) for _ in range(10)),
        *(world.execute() for _ in range(5)),
        return_exceptions=True,
    )
    assert all(type(one) is ExitedEarly for one in results)
    assert len({str(one) for one in results}) == 1
    assert len(set(map(id, results))) == 15, "each waiter has an error of its own"


async def test_an_early_exit_is_noticed_at_once(world: World):
    instance = world.builder.prepare(CCID, dies_at_once)
    async with asyncio.timeout(2):
        error = await failure(world, ExitedEarly)
    assert "chaincode registration failed: container exited with 2" in error.message
    assert error.facts["exit_code"] == 2
    assert error.facts["output"] == ["panic: no such thing"]
    assert error.facts["phase"] == "connect"
    assert (error.facts["registered"], error.facts["cause"]) == (False, "exited")
    assert (error.facts["stage"], error.retryable) == ("start", False)
    assert instance.events == ["start", "exit", "stop 1"]


async def test_an_end_before_the_program_began_is_retryable(world: World):
    """Finding 2 of issue 10: another contract can cause it, and it ends with that one."""

    async def begins_nothing(_: FakeInstance) -> Exit:
        return Exit(1, reason="its sandbox could not be made", cause=Cause.NOT_STARTED)

    world.builder.prepare(CCID, begins_nothing)
    error = await failure(world, ExitedEarly)
    assert error.retryable
    assert "exited with 1 (its sandbox could not be made)" in error.message


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (Exit(None, signal=9, oom=True), "ran out of memory"),
        (Exit(None, reason="engine went away"), "ended (engine went away)"),
        (Exit(126), "exited with 126 (its program is not executable)"),
        (Exit(127), "exited with 127 (its program was not found)"),
    ],
)
async def test_how_it_ended_is_told(world: World, end: Exit, text: str):
    async def dies(_: FakeInstance) -> Exit:
        return end

    world.builder.prepare(CCID, dies)
    error = await failure(world, ExitedEarly)
    assert error.message.endswith(f"container {text}")
    assert (error.facts["signal"], error.facts["oom"]) == (end.signal, end.oom)


async def test_who_never_registers_is_stopped():
    """launch.md W8, W9."""
    async with World(connect_timeout_s=0.2) as world:
        instance = world.builder.prepare(CCID, never_registers)
        error = await failure(world, LaunchTimeout)
        assert f"timeout expired while starting chaincode {CCID}" in error.message
        assert "phase connect did not end within 0.2 s" in error.message
        assert error.facts["output"] == ["waiting for something"]
        assert (error.facts["phase"], error.facts["limit_s"]) == ("connect", 0.2)
        assert "chaincode.startuptimeout" in (error.hint or "")
        assert not instance.running


async def test_a_build_that_hangs_is_given_up():
    async with World(build_timeout_s=0.1) as world:
        cancelled = asyncio.Event()

        async def hang() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        world.builder.takes = hang
        error = await failure(world, LaunchTimeout)
        assert error.facts["phase"] == "compile"
        assert cancelled.is_set()


async def test_the_time_of_a_build_does_not_count_as_start():
    """launch.md W10."""
    async with World(startup_timeout_s=0.2, connect_timeout_s=0.2) as world:
        world.builder.prepare(CCID)
        world.builder.takes = lambda: asyncio.sleep(0.4)
        await world.launch(CCID)


async def test_a_start_that_hangs_is_given_up():
    async with World(startup_timeout_s=0.1) as world:
        instance = world.builder.prepare(CCID)
        instance.start_takes = asyncio.Event().wait
        error = await failure(world, LaunchTimeout)
        assert error.facts["phase"] == "start"
        assert not instance.running


async def test_the_time_to_come_up_counts_until_it_is_ready():
    async with World(startup_timeout_s=0.3, connect_timeout_s=60) as world:
        instance = world.builder.prepare(CCID, never_registers)
        instance.start_takes = lambda: asyncio.sleep(0.1)
        error = await failure(world, LaunchTimeout)
        assert error.facts["phase"] == "connect"
        assert error.facts["limit_s"] < 0.25
        assert not instance.running


async def test_one_that_boots_slowly_may_use_the_time_to_come_up():
    """Fabric's chaincode.startuptimeout; the clock of the handshake comes after it."""
    async with World(connect_timeout_s=0, register_timeout_s=0.2) as world:

        async def boots(instance: FakeInstance) -> Exit:
            await asyncio.sleep(0.5)
            return await serves(instance)

        world.builder.prepare(CCID, boots)
        await world.launch(CCID)


async def test_one_that_registers_and_gets_no_further_is_given_up():
    async with World(connect_timeout_s=60, register_timeout_s=0.2) as world:

        async def connects(instance: FakeInstance) -> Exit:
            instance.attempt.enter(Phase.REGISTER)
            return await never_registers(instance)

        world.builder.prepare(CCID, connects)
        error = await failure(world, RegisterTimeout)
        assert "phase register did not end within 0.2 s" in error.message
        assert "chaindock.launch.registerTimeout" in (error.hint or "")


async def test_a_failed_start(world: World):
    instance = world.builder.prepare(CCID)
    instance.errors.append(StartFailed("no such network", hint="make one"))
    error = await failure(world, StartFailed)
    assert error.message.endswith("error starting: no such network")
    assert (error.hint, error.facts["phase"]) == ("make one", "create")
    await world.launch(CCID)


async def test_an_engine_that_is_away(world: World):
    instance = world.builder.prepare(CCID)
    instance.errors.append(EngineUnavailable("no engine", endpoint="unix:///x"))
    error = await failure(world, StartFailed)
    assert error.facts["endpoint"] == "unix:///x"
    assert isinstance(error.__cause__, EngineUnavailable)


async def test_a_package_that_is_missing(world: World):
    world.builder.errors.append(NotFound("package is not installed"))
    error = await failure(world, BuildFailed)
    assert isinstance(error.__cause__, NotFound)


async def test_a_defect_of_a_builder_does_not_hang(world: World):
    world.builder.errors.append(ZeroDivisionError("oops"))
    error = await failure(world, BuildFailed)
    assert "ZeroDivisionError: oops" in error.message


async def test_an_image_that_is_gone_is_built_again(world: World):
    """launch.md W21."""
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    await world.stop(CCID, 0)
    instance.errors.append(ImageNotFound("image 'x' is gone", image="x"))
    attempt = Attempt(CCID)
    await world.launch(CCID, attempt)
    assert world.builder.builds == 2
    assert attempt.reused == ["image 'x' is gone: building it again"]


async def test_an_image_that_stays_away_fails(world: World):
    instance = world.builder.prepare(CCID)
    instance.errors += [ImageNotFound("gone"), ImageNotFound("gone")]
    error = await failure(world, StartFailed)
    assert isinstance(error.__cause__, ImageNotFound)
    assert world.builder.builds == 2


async def test_a_waiter_has_its_own_bound(world: World):
    """launch.md W14."""
    gate = asyncio.Event()
    world.builder.prepare(CCID)
    world.builder.takes = gate.wait
    world.custodian.resume(CCID)
    with pytest.raises(LaunchTimeout, match="its launch is in phase compile") as caught:
        await world.custodian.ready(CCID, 0.05)
    assert caught.value.facts["limit_s"] == 0.05
    gate.set()
    await world.launch(CCID)
    assert world.builder.builds == 1


async def test_output_goes_to_the_log_until_the_end(world: World, tmp_path: Path):
    store = OutputStore(tmp_path, writer=Inline())
    attempt = Attempt(CCID, store.open(CCID))
    world.builder.prepare(CCID, dies_at_once)
    with pytest.raises(ExitedEarly):
        await world.launch(CCID, attempt)
    assert attempt._log is None
    assert "panic: no such thing" in store.files(CCID)[0].read_text()


def test_a_log_line_holds_little_of_what_a_chaincode_wrote():
    facts = {"output": [*("x" * 8000 for _ in range(50)), "the end"], "oom": True}
    told = log_facts(facts)
    assert len(told["output"]) < LOGGED_CHARS + 10
    assert told["output"].startswith("[cut] ")
    assert told["output"].endswith("x\nthe end")
    assert told["oom"] is True
    assert log_facts({"output": ["a", "b"]}) == {"output": "a\nb"}
