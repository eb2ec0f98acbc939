"""Silence ends a step of a build, noise does not; nothing of it goes on."""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Cause, NodeLabels
from chaindock.controllers.process.controller import ProcessController
from chaindock.errors import BuildFailed, BuildSilent, StartFailed
from chaindock.platforms.base import BuildPlan, Step
from support.doubles.backend import WatchedAttempt, built
from support.doubles.scripts import ScriptPlatform, fork, hang, ignore_term, leave
from support.nodes.process_backend import ProcessBackend, options

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    Fetching = Literal["dependencies", "compile"]

NODE = NodeLabels(f"node-{os.getpid()}", "peer0", "dev")
SILENCE_S = 1.5


class Lines(ScriptPlatform):
    """One shell line, as a step of a phase; `registry is down` is what can pass."""

    retryable_output = "registry is down"

    def __init__(self, line: str, phase: Fetching = "dependencies") -> None:
        self.line, self.phase = line, phase

    def plan(self, tree: Path, import_path: str) -> BuildPlan:
        plan = super().plan(tree, import_path)
        step = Step(self.phase, ("{tool:sh}", "-c", self.line), "{input}")
        return BuildPlan((step,), plan.launch)


def controller(folder: Path, platform: ScriptPlatform, **changes: Any) -> Any:
    return ProcessController(
        options(folder, **changes), NODE, platforms=lambda _: platform
    )


@pytest.mark.parametrize("phase", ["dependencies", "compile"])
async def test_a_silent_step_is_ended_with_its_phase_and_limit(
    backend: ProcessBackend, tmp_path: Path, phase: Fetching
):
    package = await backend.packages.make(leave(0))
    attempt = WatchedAttempt(package)
    line = "echo fetching; sleep 60 & sleep 60"
    async with controller(tmp_path, Lines(line, phase), silence_s=SILENCE_S) as builder:
        async with asyncio.timeout(10):
            with pytest.raises(BuildSilent) as caught:
                await built(builder, package, attempt)
        error = caught.value
        assert (error.phase, error.limit_s) == (phase, SILENCE_S)
        assert "printed nothing for 1.5 s" in error.message
        assert error.output == ["fetching"]
        # A network may come back; a compiler that hangs hangs again.
        assert error.retryable is (phase == "dependencies")
        assert await backend.owned(NODE.node_id) == set()


async def test_output_without_an_end_does_not_make_a_build_endless(
    backend: ProcessBackend, tmp_path: Path
):
    """The same bound as a build container has (docker.options.CompileOptions)."""
    package = await backend.packages.make(leave(0))
    line = "while :; do echo fetching; sleep 0.1; done"
    async with controller(tmp_path, Lines(line), silence_s=5, limit_s=1.5) as builder:
        async with asyncio.timeout(10):
            with pytest.raises(BuildFailed, match=r"took longer than 1\.5 s") as caught:
                await built(builder, package)
        assert caught.value.phase == "dependencies"
        assert caught.value.output[-1] == "fetching"
        assert await backend.owned(NODE.node_id) == set()


async def test_a_build_gives_way_to_what_runs(backend: ProcessBackend, tmp_path: Path):
    """Issue 4, 3: one that uses the processor for ever is no reason to wait for it."""
    package = await backend.packages.make(leave(0))
    attempt = Attempt(package.ccid)
    async with controller(tmp_path, Lines("nice; sh -c nice")) as builder:
        await built(builder, package, attempt)
    assert attempt.tail() == ["10", "10"]


async def test_a_slow_step_that_prints_goes_on(backend: ProcessBackend, tmp_path: Path):
    """Progress without an end of line counts, as a bar of npm or pip is drawn."""
    package = await backend.packages.make(leave(0))
    line = "for i in 1 2 3 4 5 6 7 8 9; do printf .; sleep 0.3; done"
    async with controller(tmp_path, Lines(line), silence_s=SILENCE_S) as builder:
        await built(builder, package)


@pytest.mark.parametrize(
    ("phase", "says", "retryable"),
    [
        ("dependencies", "the Registry is down", True),
        ("dependencies", "no such version", False),
        ("compile", "registry is down", False),
    ],
)
async def test_only_a_fetch_that_says_so_may_pass(
    backend: ProcessBackend,
    tmp_path: Path,
    phase: Fetching,
    says: str,
    *,
    retryable: bool,
):
    package = await backend.packages.make(leave(0))
    platform = Lines(f"echo {says!r} >&2; exit 1", phase)
    async with controller(tmp_path, platform) as builder:
        with pytest.raises(BuildFailed) as caught:
            await built(builder, package)
    assert caught.value.retryable is retryable
    assert (caught.value.cause, caught.value.exit_code) == ("exited", 1)


class Ends(ScriptPlatform):
    """What runs is one shell line."""

    def __init__(self, line: str) -> None:
        self.line = line

    def plan(self, tree: Path, import_path: str) -> BuildPlan:
        plan = super().plan(tree, import_path)
        launch = replace(plan.launch, argv=("/bin/sh", "-c", self.line))
        return replace(plan, launch=launch)


@pytest.mark.parametrize(
    ("line", "cause", "code", "signal"),
    [
        ("exit 3", Cause.EXITED, 3, None),
        ("kill -9 $$", Cause.SIGNAL, None, 9),
        ("exec /no/such/program", Cause.NOT_FOUND, 127, None),
        ("exec /etc/passwd", Cause.NOT_EXECUTABLE, 126, None),
    ],
)
async def test_how_a_run_ended_is_judged(
    backend: ProcessBackend,
    tmp_path: Path,
    line: str,
    cause: Cause,
    code: int | None,
    signal: int | None,
):
    package = await backend.packages.make(hang())
    async with controller(tmp_path, Ends(line)) as builder:
        instance = await built(builder, package)
        await instance.start(backend.peer, Attempt(package.ccid))
        found = await instance.wait()
    assert (found.cause, found.code, found.signal) == (cause, code, signal)


@pytest.mark.parametrize(("act", "signal"), [(hang(), None), (ignore_term(), 9)])
async def test_a_run_that_was_stopped_says_so(
    backend: ProcessBackend, tmp_path: Path, act: Any, signal: int | None
):
    package = await backend.packages.make(act)
    async with controller(tmp_path, ScriptPlatform()) as builder:
        instance = await built(builder, package)
        await instance.start(backend.peer, Attempt(package.ccid))
        await asyncio.sleep(0.2)  # until its trap is set
        await instance.stop(0.3)
        found = await instance.wait()
    assert (found.cause, found.signal) == (Cause.STOPPED, signal)


async def test_what_is_uninstalled_leaves_no_build(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang(), fork())
    async with controller(tmp_path, ScriptPlatform()) as builder:
        await built(builder, package)
        for _ in range(2):
            await builder.discard(package.ccid)
            assert list((tmp_path / "cache" / "builds").iterdir()) == []
        await built(builder, package)  # again, from the beginning
    # Another life of the node knows it, too.
    async with controller(tmp_path, ScriptPlatform()) as builder:
        await builder.discard(package.ccid)
    assert list((tmp_path / "cache" / "builds").iterdir()) == []
    assert list((tmp_path / "cache" / "labels").iterdir()) == []


async def test_a_build_that_another_node_has_stays(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    cache = tmp_path / "cache"
    async with (
        controller(mine, ScriptPlatform(), cache_root=cache) as builder,
        controller(theirs, ScriptPlatform(), cache_root=cache) as other,
    ):
        await built(builder, package)
        await built(other, package)
        await builder.discard(package.ccid)
        assert len(list((cache / "builds").glob("[!.]*"))) == 1
        await other.discard(package.ccid)
        assert len(list((cache / "builds").glob("[!.]*"))) == 0


async def test_a_build_that_another_chaincode_has_stays(
    backend: ProcessBackend, tmp_path: Path
):
    pair = [
        await backend.packages.make(hang(), label=name, salt="same")
        for name in ("left", "right")
    ]
    async with controller(tmp_path, ScriptPlatform()) as builder:
        for package in pair:
            await built(builder, package)
        await builder.discard(pair[0].ccid)
        instance = await built(builder, pair[1])
        await instance.start(backend.peer, Attempt(pair[1].ccid))
        await instance.stop(1)
    assert len(list((tmp_path / "cache" / "builds").glob("[!.]*"))) == 1


async def test_a_build_lock_that_a_chaincode_keeps_for_itself_holds_up_nobody(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    async with controller(tmp_path, ScriptPlatform()) as builder:
        instance = await built(builder, package)
        (lock,) = (tmp_path / "cache" / "locks").iterdir()
        fd = os.open(lock, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            async with asyncio.timeout(2):
                with pytest.raises(StartFailed, match="is locked") as caught:
                    await instance.start(backend.peer, Attempt(package.ccid))
            assert caught.value.retryable
        finally:
            os.close(fd)
        await instance.start(backend.peer, Attempt(package.ccid))
        await instance.stop(1)
