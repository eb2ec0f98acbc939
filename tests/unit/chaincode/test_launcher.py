"""launch.md §5, §9 W7-W10, W12-W15, W18-W21, W50, W67."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Self

import pytest
from fabric_protos.peer import chaincode_pb2

from chaindock.chaincode import run as run_module
from chaindock.chaincode import runtime as runtime_module
from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.options import CallOptions, LaunchOptions
from chaindock.chaincode.registry import HandlerRegistry, LaunchState
from chaindock.chaincode.runtime import ContainerRuntime
from chaindock.chaincode.server import ChaincodeListener
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.build_registry import BuildRegistry
from chaindock.container.contracts import Exit, PeerConnection
from chaindock.container.output import OutputStore
from chaindock.container.router import Router
from chaindock.errors import (
    BuildFailed,
    EngineUnavailable,
    ExitedEarly,
    ImageNotFound,
    LaunchFailed,
    LaunchTimeout,
    NotFound,
    RegistrationRefused,
    StartFailed,
    StreamTerminated,
)
from support.launch_fakes import (
    STOPPED,
    AnyPackage,
    FakeBuilder,
    FakeInstance,
    answer,
    dies_at_once,
    keeps_working,
    never_registers,
    registered,
    serves,
)
from support.memory_state import invocation
from support.shim_peer import Kind, ShimServer
from support.stream_node import CCID, OTHER

if TYPE_CHECKING:
    from pathlib import Path


class World:
    """A launcher with everything real but the builder."""

    def __init__(self, **options: Any) -> None:
        self.options = LaunchOptions(**{"register_timeout_s": 5.0, **options})
        self.builder = FakeBuilder()
        self.registry = HandlerRegistry()
        self.runtime = ContainerRuntime(
            AnyPackage(),
            BuildRegistry(),
            Router([self.builder], lambda _: None),
            self.options,
        )
        self.exits: list[tuple[str, Exit]] = []
        self._stack = AsyncExitStack()
        self.launcher: RuntimeLauncher
        self.support: ChaincodeSupport

    async def __aenter__(self) -> Self:
        listener = await self._stack.enter_async_context(
            ChaincodeListener(self.registry)
        )
        self.launcher = await self._stack.enter_async_context(
            RuntimeLauncher(
                self.registry,
                self.runtime,
                PeerConnection(listener, "Org1MSP"),
                options=self.options,
                on_exit=lambda ccid, end: self.exits.append((ccid, end)),
            )
        )
        self.support = ChaincodeSupport(
            self.registry, self.launcher, CallOptions(execute_timeout_s=5.0)
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def state(self) -> LaunchState:
        return self.launcher.status(CCID).state

    async def until(self, state: LaunchState) -> None:
        async with asyncio.timeout(5):
            while self.state() is not state:
                await asyncio.sleep(0.005)

    async def execute(self) -> bytes:
        outcome = await self.support.execute(CCID, invocation("f"))
        return outcome.response.payload

    def start_call(self) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(
            self.support.execute(CCID, invocation("f"))
        )


@pytest.fixture
async def world(no_task_is_left: None) -> Any:
    async with World() as world:
        yield world


async def failure(world: World, kind: type[LaunchFailed]) -> LaunchFailed:
    with pytest.raises(LaunchFailed) as caught:
        await world.launcher.launch(CCID)
    assert type(caught.value) is kind
    assert caught.value.message.startswith(f"could not launch chaincode {CCID}: ")
    assert caught.value.facts["ccid"] == CCID
    assert world.registry.find(CCID) is None
    return caught.value


# --- up -----------------------------------------------------------------------------


async def test_a_launched_chaincode_answers(world: World):
    instance = world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    assert len(await world.execute()) == 64
    status = world.launcher.status(CCID)
    assert status.state is LaunchState.READY
    assert status.facts == {"backend": "fake", "starts": "1"}
    assert (status.exit, status.error, status.open_calls) == (None, None, 0)
    assert status.attempt is instance.attempt
    assert [str(p.phase) for p in instance.attempt.phases] == [
        *("compile", "create", "start", "connect", "register", "ready")
    ]
    assert instance.attempt.phase is None


async def test_what_was_never_launched_is_absent(world: World):
    status = world.launcher.status(CCID)
    assert (status.state, status.since, status.attempt) == (
        LaunchState.ABSENT,
        None,
        None,
    )
    assert world.launcher.statuses() == []


async def test_second_launch_waits_for_the_first(world: World):
    instance = world.builder.prepare(CCID)
    await asyncio.gather(*(world.launcher.launch(CCID) for _ in range(20)))
    await world.launcher.launch(CCID)
    assert (instance.starts, world.builder.builds) == (1, 1)
    assert (world.launcher.counts.started, world.launcher.counts.ready) == (1, 1)


async def test_an_invocation_launches(world: World):
    instance = world.builder.prepare(CCID)
    results = await asyncio.gather(*(world.execute() for _ in range(10)))
    assert len(set(results)) == 10
    assert instance.starts == 1


async def test_the_first_caller_may_leave(world: World):
    gate = asyncio.Event()
    world.builder.prepare(CCID)
    world.builder.takes = gate.wait
    loop = asyncio.get_running_loop()
    first = loop.create_task(world.launcher.launch(CCID))
    second = loop.create_task(world.launcher.launch(CCID))
    await asyncio.sleep(0.01)
    first.cancel()
    gate.set()
    await second
    assert world.state() is LaunchState.READY


async def test_chaincodes_launch_side_by_side(world: World):
    world.builder.prepare(CCID, never_registers)
    world.builder.prepare(OTHER)
    stuck = asyncio.get_running_loop().create_task(world.launcher.launch(CCID))
    await world.launcher.launch(OTHER)
    assert not stuck.done()
    await world.launcher.stop(CCID, 0)
    await asyncio.gather(stuck, return_exceptions=True)


async def test_it_may_register_before_start_returns(world: World):
    instance = world.builder.prepare(CCID)

    async def early() -> None:
        instance.peers.append(await registered(instance))

    instance.start_takes = early

    async def answers(instance: FakeInstance) -> Exit:
        return await answer(instance.peers[0])

    instance._plays = answers
    await world.launcher.launch(CCID)
    assert await world.execute()


async def test_the_concurrency_of_the_instance_holds(world: World):
    world.builder.prepare(CCID, keeps_working, concurrency=1)
    await world.launcher.launch(CCID)
    calls = [world.start_call() for _ in range(3)]
    await asyncio.sleep(0.05)
    handler = world.registry.find_ready(CCID)
    assert handler is not None
    assert (handler.open_calls, handler._running) == (3, 1)
    await world.launcher.stop(CCID, 0)
    await asyncio.gather(*calls, return_exceptions=True)


async def test_an_attempt_that_is_not_needed_is_closed(world: World):
    world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    spare = Attempt(CCID)
    events: list[str] = []
    spare.watch(lambda event: events.append(event.kind))
    await world.launcher.launch(CCID, spare)
    assert events == ["note"]


# --- failures: one outcome, nothing left --------------------------------------------


async def test_a_failed_build_tells_everything(world: World):
    world.builder.errors.append(BuildFailed("go build ended with 1", step="go build"))
    error = await failure(world, BuildFailed)
    assert error.message.endswith("error building chaincode: go build ended with 1")
    assert error.facts["phase"] == "compile"
    assert error.facts["output"] == ["main.go:3: syntax error"]
    assert error.facts["step"] == "go build"
    assert [phase["phase"] for phase in error.facts["phases"]] == ["compile"]
    assert world.state() is LaunchState.FAILED
    assert world.launcher.status(CCID).error is error


async def test_a_failed_build_is_tried_again(world: World):
    """launch.md W20."""
    world.builder.prepare(CCID)
    world.builder.errors.append(BuildFailed("registry is away"))
    await failure(world, BuildFailed)
    await world.launcher.launch(CCID)
    assert world.builder.builds == 2


async def test_every_waiter_gets_the_same_error(world: World):
    world.builder.prepare(CCID, dies_at_once)
    results = await asyncio.gather(
        *(world.launcher.launch(CCID) for _ in range(10)),
        *(world.execute() for _ in range(5)),
        return_exceptions=True,
    )
    assert len(set(map(id, results))) == 1
    assert isinstance(results[0], ExitedEarly)
    counts = world.launcher.counts
    assert (counts.started, counts.failed, counts.timed_out) == (1, 1, 0)


async def test_an_early_exit_is_noticed_at_once(world: World):
    instance = world.builder.prepare(CCID, dies_at_once)
    async with asyncio.timeout(2):
        error = await failure(world, ExitedEarly)
    assert "chaincode registration failed: container exited with 2" in error.message
    assert error.facts["exit_code"] == 2
    assert error.facts["output"] == ["panic: no such thing"]
    assert error.facts["phase"] == "connect"
    assert instance.events == ["start", "exit", "stop 1"]
    assert world.launcher.status(CCID).exit == Exit(2)
    assert world.exits == []


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (Exit(None, signal=9, oom=True), "ended by signal 9 (out of memory)"),
        (Exit(None, reason="engine went away"), "ended (engine went away)"),
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
    async with World(register_timeout_s=0.2) as world:
        instance = world.builder.prepare(CCID, never_registers)
        error = await failure(world, LaunchTimeout)
        assert f"timeout expired while starting chaincode {CCID}" in error.message
        assert "phase connect was not over after 0.2 s" in error.message
        assert error.facts["output"] == ["waiting for something"]
        assert (error.facts["phase"], error.facts["limit_s"]) == ("connect", 0.2)
        assert not instance.running
        assert world.launcher.counts.timed_out == 1


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
    async with World(startup_timeout_s=0.2, register_timeout_s=0.2) as world:
        world.builder.prepare(CCID)
        world.builder.takes = lambda: asyncio.sleep(0.4)
        await world.launcher.launch(CCID)


async def test_a_start_that_hangs_is_given_up():
    async with World(startup_timeout_s=0.1) as world:
        instance = world.builder.prepare(CCID)
        instance.start_takes = asyncio.Event().wait
        error = await failure(world, LaunchTimeout)
        assert error.facts["phase"] == "start"
        assert not instance.running


async def test_a_failed_start(world: World):
    instance = world.builder.prepare(CCID)
    instance.errors.append(StartFailed("no such network", hint="make one"))
    error = await failure(world, StartFailed)
    assert error.message.endswith("error starting: no such network")
    assert (error.hint, error.facts["phase"]) == ("make one", "create")
    await world.launcher.launch(CCID)


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
    await world.launcher.launch(CCID)
    await world.launcher.stop(CCID, 0)
    instance.errors.append(ImageNotFound("image 'x' is gone", image="x"))
    attempt = Attempt(CCID)
    await world.launcher.launch(CCID, attempt)
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
    with pytest.raises(LaunchTimeout, match="goes on in phase compile") as caught:
        await world.launcher.launch(CCID, wait_s=0.05)
    assert caught.value.facts["limit_s"] == 0.05
    gate.set()
    await world.launcher.launch(CCID)
    assert world.builder.builds == 1


async def test_output_goes_to_the_log_until_the_end(world: World, tmp_path: Path):
    store = OutputStore(tmp_path)
    attempt = Attempt(CCID, store.open(CCID))
    world.builder.prepare(CCID, dies_at_once)
    with pytest.raises(ExitedEarly):
        await world.launcher.launch(CCID, attempt)
    assert attempt._log is None
    assert "panic: no such thing" in store.files(CCID)[0].read_text()


# --- the node dials -----------------------------------------------------------------


async def test_a_served_chaincode_is_dialled(world: World):
    instance = world.builder.prepare(CCID)
    async with ShimServer() as server:
        instance.server = server

        async def serves_here(_: FakeInstance) -> Exit:
            peer = await server.stream()
            await peer.register(CCID)
            return await answer(peer)

        instance._plays = serves_here
        await world.launcher.launch(CCID)
        assert await world.execute()
        await world.launcher.stop(CCID, 1)
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
    async with World(register_timeout_s=0.3) as world, ShimServer() as server:
        instance = world.builder.prepare(CCID, never_registers)
        instance.server = server
        error = await failure(world, LaunchTimeout)
        assert error.facts["phase"] == "connect"
        await server.closed()


# --- after READY --------------------------------------------------------------------


async def test_an_exit_is_noticed_and_told(world: World):
    """launch.md W7."""
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launcher.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    async with asyncio.timeout(2):
        await instance.crash(Exit(None, signal=9, oom=True))
        with pytest.raises(StreamTerminated):
            await call
    await world.until(LaunchState.ABSENT)
    end = Exit(None, signal=9, oom=True)
    assert world.exits == [(CCID, end)]
    assert world.launcher.status(CCID).exit == end


async def test_after_an_exit_the_next_invocation_launches(world: World):
    instance = world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    await instance.crash(Exit(1))
    await world.until(LaunchState.ABSENT)
    assert await world.execute()
    assert instance.starts == 2


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
    await world.execute()
    handler = world.registry.find(CCID)
    assert handler is not None
    await handler.ended.wait()
    assert await world.execute()
    assert instance.starts == 2
    assert instance.events[:3] == ["start", "stop 1", "exit"]
    assert [ccid for ccid, _ in world.exits] == [CCID]


# --- stop ---------------------------------------------------------------------------


async def test_stop_lets_work_under_way_finish(world: World):
    """launch.md W15."""
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
    await world.launcher.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    stop = asyncio.get_running_loop().create_task(world.launcher.stop(CCID, 5))
    await asyncio.sleep(0.02)
    assert world.registry.find_ready(CCID) is None
    assert instance.events == ["start"]
    gate.set()
    assert (await call).response.payload == b"done"
    await stop
    assert instance.events == ["start", "stop 5", "exit"]
    assert world.state() is LaunchState.ABSENT
    assert world.exits == []


async def test_the_stream_ends_after_the_instance(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launcher.launch(CCID)
    handler = world.registry.find_ready(CCID)
    assert handler is not None

    async def look() -> None:
        assert not handler.ended.settled

    instance.stop_takes = look
    await world.launcher.stop(CCID, 1)
    assert handler.ended.settled


async def test_work_that_takes_longer_than_the_grace_is_cut_off(world: World):
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launcher.launch(CCID)
    call = world.start_call()
    await asyncio.sleep(0.02)
    await world.launcher.stop(CCID, 0.1)
    with pytest.raises(StreamTerminated):
        await call
    assert not instance.running


async def test_stop_is_idempotent_and_harmless(world: World):
    await world.launcher.stop(CCID, 1)
    instance = world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    await asyncio.gather(*(world.launcher.stop(CCID, 1) for _ in range(3)))
    await world.launcher.stop(CCID, 1)
    assert instance.events.count("stop 1") == 1


@pytest.mark.parametrize("stage", ["build", "start", "connect"])
async def test_stop_gives_up_a_launch(world: World, stage: str):
    instance = world.builder.prepare(CCID, never_registers)
    if stage == "build":
        world.builder.takes = asyncio.Event().wait
    if stage == "start":
        instance.start_takes = asyncio.Event().wait
    launch = asyncio.get_running_loop().create_task(world.launcher.launch(CCID))
    phase = Phase.COMPILE if stage == "build" else Phase(stage)
    async with asyncio.timeout(5):
        while (attempt := world.launcher.status(CCID).attempt) is None or (
            attempt.phase is not phase
        ):
            await asyncio.sleep(0.005)
    await world.launcher.stop(CCID, 1)
    with pytest.raises(LaunchFailed, match="stopped while it was launching"):
        await launch
    assert not instance.running
    status = world.launcher.status(CCID)
    assert (status.state, status.error) == (LaunchState.ABSENT, None)


async def test_a_launch_during_a_stop_begins_after_it(world: World):
    instance = world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    gate = asyncio.Event()
    instance.stop_takes = gate.wait
    stop = asyncio.get_running_loop().create_task(world.launcher.stop(CCID, 1))
    await world.until(LaunchState.STOPPING)
    launch = asyncio.get_running_loop().create_task(world.launcher.launch(CCID))
    await asyncio.sleep(0.02)
    assert instance.starts == 1
    gate.set()
    await stop
    await launch
    assert world.state() is LaunchState.READY
    assert instance.events == ["start", "stop 1", "exit", "start"]


async def test_restart_and_forget(world: World):
    instance = world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    await world.launcher.restart(CCID, 1)
    assert (instance.starts, world.builder.builds) == (2, 1)
    await world.launcher.forget(CCID, 1)
    assert world.launcher.statuses() == []
    assert not instance.running
    await world.launcher.launch(CCID)
    assert world.builder.builds == 2


async def test_an_engine_that_hangs_at_stop_is_not_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    """launch.md W3."""
    monkeypatch.setattr(runtime_module, "_STOP_MARGIN_S", 0.1)
    monkeypatch.setattr(run_module, "_EXIT_WAIT_S", 0.1)
    monkeypatch.setattr(run_module, "_FAILED_GRACE_S", 0.1)
    instance = world.builder.prepare(CCID, keeps_working)
    await world.launcher.launch(CCID)
    instance.stop_takes = asyncio.Event().wait
    await world.launcher.stop(CCID, 0)
    assert world.state() is LaunchState.ABSENT
    assert world.registry.find(CCID) is None
    instance.stop_takes = None


async def test_leaving_the_launcher_stops_everything():
    """launch.md W16, W19."""
    async with World(stop_grace_s=1) as world:
        ready = world.builder.prepare(CCID)
        starting = world.builder.prepare(OTHER, never_registers)
        await world.launcher.launch(CCID)
        launch = asyncio.get_running_loop().create_task(world.launcher.launch(OTHER))
        await asyncio.sleep(0.05)
        await world.launcher.__aexit__(None, None, None)
        assert not ready.running
        assert not starting.running
        await asyncio.gather(launch, return_exceptions=True)
        with pytest.raises(LaunchFailed, match="node is stopping"):
            await world.launcher.launch(CCID)


async def test_a_stream_that_is_lost_right_after_ready(world: World):
    async def gone(instance: FakeInstance) -> Exit:
        peer = await registered(instance)
        await peer.leave()
        return Exit(3)

    world.builder.prepare(CCID, gone)
    with pytest.raises((LaunchFailed, StreamTerminated)):
        await world.execute()
