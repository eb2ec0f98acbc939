"""A build is made once for equal inputs, alone in its environment, and leaves no mess."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import BuildEnvironment, NodeLabels
from chaindock.controllers.process import controller as module
from chaindock.controllers.process.builds import Builds
from chaindock.controllers.process.controller import ProcessController
from chaindock.errors import BuildFailed, ToolMissing, Unsupported
from chaindock.platforms.base import BuildPlan, Step, Tool
from support.doubles.backend import WatchedAttempt, built
from support.doubles.scripts import ScriptPlatform, hang, leave, say
from support.nodes.process_backend import ProcessBackend, options

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.controllers.process.builds import Build

NODE = NodeLabels(f"node-{os.getpid()}", "peer0", "dev")


class Steps(ScriptPlatform):
    """Runs shell lines as steps; counts how often it plans."""

    def __init__(self, *lines: str, tools: tuple[str, ...] = ("sh",)) -> None:
        self.lines, self.plans = lines, 0
        self.tools = tuple(Tool(name, "") for name in tools)

    def plan(self, tree: Path, import_path: str) -> BuildPlan:
        self.plans += 1
        plan = super().plan(tree, import_path)
        steps = [
            Step(
                "compile",
                ("{tool:sh}", "-c", line),
                "{input}/new/dir",
                {"STEP": "of {input}"},
            )
            for line in self.lines
        ]
        return BuildPlan(tuple(steps), plan.launch)


def controller(
    folder: Path,
    platform: ScriptPlatform,
    environment: BuildEnvironment | None = None,
    **changes: Any,
) -> ProcessController:
    return ProcessController(
        options(folder, **changes), NODE, environment, platforms=lambda _: platform
    )


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in (folder / "cache" / "builds").glob(".*")]


async def test_a_warm_build_neither_unpacks_nor_plans(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    platform = Steps("true")
    async with controller(tmp_path, platform) as builder:
        await built(builder, package)
    package.path.unlink()
    async with controller(tmp_path, platform) as builder:
        await built(builder, package)
    assert platform.plans == 1


async def test_another_toolchain_is_another_build(
    backend: ProcessBackend, tmp_path: Path
):
    tool = tmp_path / "compiler"
    path = f"{tmp_path}:/usr/bin:/bin"
    package = await backend.packages.make(hang())
    platform = Steps("echo built", tools=("sh", "compiler"))
    async with controller(tmp_path, platform, path=path) as builder:
        for version in ("one", "two"):
            tool.write_text(f"#!/bin/sh\necho {version}\n")
            tool.chmod(0o755)
            await built(builder, package)
            await built(builder, package)
    assert platform.plans == 2


async def test_another_planner_is_another_build(
    backend: ProcessBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = await backend.packages.make(hang())
    platform = Steps("true")
    async with controller(tmp_path, platform) as builder:
        await built(builder, package)
        monkeypatch.setattr(module, "planner_fingerprint", lambda _: "edited")
        await built(builder, package)
    assert platform.plans == 2


async def test_equal_code_under_two_labels_is_built_once(
    backend: ProcessBackend, tmp_path: Path
):
    pair = [
        await backend.packages.make(hang(), salt="same", label=n) for n in ("a", "b")
    ]
    counter = tmp_path / "counter"
    async with controller(tmp_path, Steps(f"echo x >> {counter}")) as builder:
        await asyncio.gather(*(built(builder, package) for package in pair))
    assert counter.read_text() == "x\n"


async def test_a_step_sees_only_what_it_is_given(
    backend: ProcessBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("GOFLAGS", "-mod=mod")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    package = await backend.packages.make(hang())
    attempt = WatchedAttempt(package)
    (tmp_path / "corp.pem").write_text("corp")
    environment = BuildEnvironment({"HTTPS_PROXY": "http://p:1"}, tmp_path / "corp.pem")
    async with controller(tmp_path, Steps("env"), environment) as builder:
        await built(builder, package, attempt)
    env = dict(line.split("=", 1) for line in attempt.of("build"))
    assert env["HTTPS_PROXY"] == "http://p:1"
    assert env["NODE_EXTRA_CA_CERTS"] == str(tmp_path / "corp.pem")
    assert env["STEP"].startswith("of /")
    shell = {"PWD", "OLDPWD", "SHLVL", "_"}
    ca = {k for k in env if "CA" in k or "CERT" in k} | {"npm_config_cafile"}
    assert set(env) - shell - ca == {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "STEP",
        "HTTPS_PROXY",
        "CHAINDOCK_NODE",
        "CHAINDOCK_RUN",
    }


async def test_caches_stay_between_builds(backend: ProcessBackend, tmp_path: Path):
    line = "echo x >> {cache:mods}/n; cat {cache:mods}/n"
    async with controller(tmp_path, Steps(line)) as builder:
        for expected in (["x"], ["x", "x"]):
            package = await backend.packages.make(hang())
            attempt = WatchedAttempt(package)
            await built(builder, package, attempt)
            assert attempt.of("build") == expected


async def test_a_missing_tool_is_named_and_nothing_is_left(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    async with controller(tmp_path, Steps("true", tools=("gopher9",))) as builder:
        with pytest.raises(ToolMissing, match="'gopher9'"):
            await built(builder, package)
    assert leftovers(tmp_path) == []


async def test_a_step_that_a_signal_ended_says_so(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    async with controller(tmp_path, Steps("kill -9 $$")) as builder:
        with pytest.raises(BuildFailed, match="ended by SIGKILL") as caught:
            await built(builder, package)
    assert (caught.value.exit_code, caught.value.signal) == (None, 9)
    assert caught.value.phase == "compile"


async def test_a_daemon_that_a_step_leaves_is_ended(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    line = "setsid sh -c 'sleep 60' & sleep 60 & echo left"
    async with controller(tmp_path, Steps(line)) as builder:
        await built(builder, package)
        backend_view = ProcessBackend(tmp_path)
        assert await backend_view.owned(NODE.node_id) == set()


async def test_what_a_build_made_unwritable_is_removed_too(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    line = "mkdir -p $HOME/a/b; chmod 0 $HOME/a"
    async with controller(tmp_path, Steps(line)) as builder:
        await built(builder, package)
    assert leftovers(tmp_path) == []


async def test_old_builds_of_a_label_are_removed(
    backend: ProcessBackend, tmp_path: Path
):
    async with controller(tmp_path, Steps("true"), keep_builds=2) as builder:
        packages = [await backend.packages.make(hang(), label="cc") for _ in range(4)]
        for package in packages:
            await built(builder, package)
    assert len(list((tmp_path / "cache" / "builds").glob("[!.]*"))) == 2


async def test_a_running_build_is_never_removed(
    backend: ProcessBackend, tmp_path: Path
):
    platform = ScriptPlatform()
    async with controller(tmp_path, platform, keep_builds=1) as builder:
        package = await backend.packages.make(hang(), label="cc")
        instance = await built(builder, package)
        await instance.start(backend.peer, Attempt(package.ccid))
        for _ in range(3):
            await built(builder, await backend.packages.make(leave(0), label="cc"))
        await instance.start(backend.peer, Attempt(package.ccid))
        await instance.stop(1)


async def test_a_build_that_is_cancelled_while_it_is_put_in_place_is_whole(
    backend: ProcessBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package, platform = await backend.packages.make(hang()), Steps("true")
    placing, go, place = asyncio.Event(), threading.Event(), Builds.place
    loop = asyncio.get_running_loop()

    def slow(self: Builds, scratch: Path, build: Build) -> Build:
        loop.call_soon_threadsafe(placing.set)
        go.wait(5)
        return place(self, scratch, build)

    monkeypatch.setattr(Builds, "place", slow)
    async with controller(tmp_path, platform) as builder:
        build = asyncio.ensure_future(built(builder, package))
        await placing.wait()
        build.cancel()
        loop.call_later(0.05, go.set)
        with pytest.raises(asyncio.CancelledError):
            await build
        assert leftovers(tmp_path) == []
        await built(builder, package)
    assert platform.plans == 1


async def test_builds_are_flushed_in_the_background(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(hang())
    async with controller(tmp_path, Steps("true")) as builder:
        await built(builder, package)
        sealing = {task for task in builder._tasks._tasks if "seal" in task.get_name()}
        await asyncio.gather(*sealing)
        assert list(tmp_path.glob("cache/builds/*/sealed"))


async def test_a_full_disk_fails_the_build_and_nothing_else(
    backend: ProcessBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    package = await backend.packages.make(hang())
    async with controller(tmp_path, Steps("true")) as builder:
        with monkeypatch.context() as patch:
            patch.setattr(Builds, "place", full)
            with pytest.raises(BuildFailed, match="No space left"):
                await built(builder, package)
        assert leftovers(tmp_path) == []
        await built(builder, package)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EMFILE, errno.ENOSPC])
async def test_old_builds_that_cannot_be_removed_fail_no_build(
    backend: ProcessBackend,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    package = await backend.packages.make(hang())
    monkeypatch.setattr(Builds, "prune", refused)
    async with controller(tmp_path, Steps("true")) as builder:
        await built(builder, package)


async def test_an_unknown_type_is_refused_with_the_reason(
    backend: ProcessBackend, tmp_path: Path
):
    package = await backend.packages.make(say("x"))
    async with ProcessController(options(tmp_path), NODE) as builder:
        with pytest.raises(Unsupported, match="'script' cannot be built"):
            await builder.build(package, Attempt(package.ccid))
