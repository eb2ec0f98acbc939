"""Build a package by running the steps of its plan, or reuse an equal build.

Owns:    the order of a build; the identity of a build.
Not:     where builds lie (builds.py), how a step is started (child.py).
Entry:   Workshop.make
Holds:   equal inputs are built once; a failed or cancelled build leaves no process and
         no directory; nothing of the node's environment reaches a step unasked.
Source:  launch.md §9 W20, W21, W24-W28, W43, W45-W49; needs.md rows 2, 5, 12, 35

A warm start must neither unpack nor plan, yet the identity of a build covers its plan.
So there are two hashes: the *source* (code digest, type, import path, and the text of
the planner's own modules) is known beforehand, and the index leads from it to the *key*
(plan, toolchain). The plan is a function of the source, so the index is right as long
as the toolchain is the same, which is checked each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import platform as machine
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaindock.aio import finish
from chaindock.container.attempt import Phase
from chaindock.container.environment import CONTENT_VARIABLES
from chaindock.container.plan import build_deadline, run_plan
from chaindock.controllers.process.builds import Build, Entry
from chaindock.controllers.process.child import Program
from chaindock.controllers.process.environment import (
    base_environment,
    ca_environment,
)
from chaindock.controllers.process.owned import Owned
from chaindock.controllers.process.removal import remove_tree
from chaindock.errors import BuildFailed, StartFailed, is_retryable
from chaindock.platforms.fingerprint import planner_fingerprint
from chaindock.platforms.placeholders import Places

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from chaindock.aio import Tasks
    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import BuildEnvironment, Exit
    from chaindock.container.plan import StepCommand, StepOutput
    from chaindock.controllers.process.builds import Builds
    from chaindock.controllers.process.child import Spawner
    from chaindock.controllers.process.options import ProcessOptions
    from chaindock.controllers.process.toolbox import Toolbox
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage
    from chaindock.platforms.base import BuildPlan, Platform

LAYOUT = 1
"""Changes when what lies in a build directory changes."""


class Workshop:
    """Makes builds.

    Args:
        environment: what steps need to reach registries.
        tasks: finishes clean-up that its cause no longer waits for.
    """

    def __init__(
        self,
        options: ProcessOptions,
        environment: BuildEnvironment,
        builds: Builds,
        spawner: Spawner,
        toolbox: Toolbox,
        tasks: Tasks,
    ) -> None:
        self._options, self._environment = options, environment
        self._builds, self._spawner, self._toolbox = builds, spawner, toolbox
        self._tasks = tasks
        self._owned = Owned(options.cache_root / "owners", str(options.root))
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._queued: Counter[str] = Counter()

    async def make(
        self, platform: Platform, package: StoredPackage, attempt: Attempt
    ) -> Build:
        """Return the build of `package`, made now or before.

        Raises: BuildFailed, PackageInvalid, SourceInvalid, ToolMissing, ConfigInvalid.
        Cancelled: nothing half-made is left.
        """
        attempt.enter(Phase.PACKAGE)
        source = self._source_of(platform, package)
        self._owned.put(package.ccid, package.label, source)
        async with self._turn(source):
            build = await self._recall(platform, package, source)
            if build is None:
                return await self._make_new(platform, package, source, attempt)
        attempt.note(f"build {build.key[:12]} reused")
        return build

    # --- identity -----------------------------------------------------------------------

    def _source_of(self, platform: Platform, package: StoredPackage) -> str:
        content = [self._environment.variables.get(name) for name in CONTENT_VARIABLES]
        return _digest(
            [
                LAYOUT,
                package.code_digest,
                package.package_type,
                package.import_path,
                platform.name,
                planner_fingerprint(type(platform)),
                content,
            ]
        )

    async def _toolchain(self, platform: Platform, tools: tuple[str, ...]) -> str:
        versions = await self._toolbox.versions(tools, platform.name)
        paths = [self._toolbox.find(name, platform.name) for name in tools]
        return json.dumps([platform.toolchain(versions), paths, machine.machine()])

    async def _recall(
        self, platform: Platform, package: StoredPackage, source: str
    ) -> Build | None:
        entry = self._builds.look_up(package.label, source)
        if entry is None:
            return None
        if await self._toolchain(platform, entry.tools) != entry.toolchain:
            return None
        return self._builds.find(entry.key)

    # --- making -------------------------------------------------------------------------

    async def _make_new(
        self, platform: Platform, package: StoredPackage, source: str, attempt: Attempt
    ) -> Build:
        try:
            async with self._scratch() as scratch:
                return await self._make(platform, package, source, scratch, attempt)
        except (OSError, StartFailed) as error:  # disk full, no more processes
            raise BuildFailed(
                f"build of chaincode {attempt.ccid!r} cannot go on: {error}",
                hint="make room for it: disk, processes, open files",
                retryable=_is_retryable(error),
                **attempt.facts(),
            ) from error

    async def _make(
        self,
        platform: Platform,
        package: StoredPackage,
        source: str,
        scratch: Path,
        attempt: Attempt,
    ) -> Build:
        await package.unpack(scratch / "input")
        plan = await asyncio.to_thread(
            platform.plan, scratch / "input", package.import_path
        )
        toolchain = await self._toolchain(platform, plan.tools)
        key = _digest([source, toolchain, asdict(plan)])
        entry = Entry(key, plan.tools, toolchain)
        with self._builds.claim(key):
            build = self._builds.find(key)
            if build is None:
                await self._run_steps(platform, plan, scratch, attempt)
                build = Build(
                    key, scratch / "output", plan.launch, platform.name, plan.tools
                )
                # Once it is listed somebody will remove it, and it appears whole.
                self._builds.remember(package.label, source, entry)
                build = await finish(
                    asyncio.to_thread(self._builds.place, scratch, build)
                )
                if self._options.durable_builds:
                    sealing = asyncio.to_thread(self._builds.seal, key)
                    _ = self._tasks.start(sealing, f"seal {key[:12]}")
            else:
                attempt.note(f"build {key[:12]} reused")
                self._builds.remember(package.label, source, entry)
            self._prune(package.label)
        return build

    async def _run_steps(
        self, platform: Platform, plan: BuildPlan, scratch: Path, attempt: Attempt
    ) -> None:
        output = scratch / "output"
        output.mkdir(mode=0o700)
        places = Places(
            {"input": str(scratch / "input"), "output": str(output)},
            tool=lambda name: self._toolbox.find(name, platform.name),
            cache=self._cache,
        )
        tools = [self._toolbox.find(name, platform.name) for name in plan.tools]
        env = self._step_environment(scratch, tools)
        host = _HostSteps(places, env, self._spawner, attempt)
        async with build_deadline(self._options.limit_s, attempt):
            await run_plan(plan, platform, host, attempt, self._options.silence_s)

    def _step_environment(self, scratch: Path, tools: list[str]) -> dict[str, str]:
        path = [*(str(Path(tool).parent) for tool in tools), self._options.path]
        env = base_environment(scratch, path)
        env.update(self._environment.variables)
        if self._environment.ca_bundle is not None:
            env.update(ca_environment(self._environment.ca_bundle, scratch))
        return env

    def _cache(self, name: str) -> str:
        folder = self._options.cache_root / "toolchains" / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)

    # --- housekeeping ---------------------------------------------------------------------

    async def purge(self, ccid: Ccid) -> int:
        """Remove the build of `ccid` unless something else needs it."""
        found = self._owned.find(ccid)
        trash = None if found is None else self._builds.remove(*found)
        self._owned.drop(ccid)
        if trash is None:
            return 0
        await finish(asyncio.to_thread(remove_tree, trash))
        return 1

    def _prune(self, label: str) -> None:
        for path in self._builds.prune(label, self._options.keep_builds):
            removal = asyncio.to_thread(remove_tree, path)
            _ = self._tasks.start(removal, f"remove {path.name}")

    @contextlib.asynccontextmanager
    async def _turn(self, source: str) -> AsyncIterator[None]:
        """Let one build of a source at a time through."""
        self._queued[source] += 1
        try:
            async with self._turns[source]:
                yield
        finally:
            self._queued[source] -= 1
            if not self._queued[source]:
                del self._queued[source], self._turns[source]

    @contextlib.asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        scratch = self._builds.scratch()
        scratch.mkdir(mode=0o700)
        try:
            yield scratch
        finally:
            removal = asyncio.to_thread(remove_tree, scratch)
            await asyncio.shield(self._tasks.start(removal, "remove scratch"))


class _HostSteps:
    """Implements container.plan.StepExecutor with processes of this machine."""

    def __init__(
        self,
        places: Places,
        env: Mapping[str, str],
        spawner: Spawner,
        attempt: Attempt,
    ) -> None:
        self.places = places
        self._env, self._spawner, self._attempt = env, spawner, attempt

    async def run(self, command: StepCommand, output: StepOutput) -> Exit:
        """Run one program to its end; see the contract."""
        cwd = Path(command.cwd)
        cwd.mkdir(parents=True, exist_ok=True)
        program = Program(
            command.argv, cwd, env={**self._env, **command.env}, kind="build"
        )
        child = await self._spawner.spawn(
            self._spawner.new_run_id(),
            program,
            self._attempt,
            (output.line, output.line),
            output.active,
        )
        try:
            return await child.wait()
        except BaseException:
            await self._spawner.end_quietly(child)
            raise


def _digest(parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_retryable(error: OSError | StartFailed) -> bool:
    return is_retryable(error) if isinstance(error, OSError) else error.retryable
