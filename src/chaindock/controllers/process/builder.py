"""Build a package by running the steps of its plan, or reuse an equal build.

The key of a build covers everything that went into it, and is known before the package is
unpacked: a warm start neither unpacks nor plans. Equal inputs are built once; a build that
fails or is cancelled leaves no process and no directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import platform as machine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaindock.aio import KeyedLocks, finish
from chaindock.container.attempt import Phase
from chaindock.container.environment import CONTENT_VARIABLES
from chaindock.container.plan import build_deadline, run_plan
from chaindock.controllers.process.builds import Build
from chaindock.errors import BuildFailed, StartFailed, is_retryable
from chaindock.platforms.fingerprint import planner_fingerprint
from chaindock.platforms.placeholders import Places
from chaindock.processes.child import Output, Program
from chaindock.processes.environment import base_environment, ca_environment
from chaindock.processes.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from chaindock.aio import Tasks
    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import BuildEnvironment, Exit
    from chaindock.container.plan import StepCommand, StepOutput
    from chaindock.controllers.process.instance import Host
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage
    from chaindock.platforms.base import BuildPlan, Platform
    from chaindock.processes.spawner import Spawner

_LAYOUT = 2
"""Changes when the content of a build directory changes."""


class ProcessBuilder:
    """Makes builds.

    Args:
        host: what builds and runs of this node share.
        environment: what steps need to reach registries.
        tasks: finishes clean-up that its cause no longer waits for.
    """

    def __init__(self, host: Host, environment: BuildEnvironment, tasks: Tasks) -> None:
        self._options, self._environment = host.options, environment
        self._builds, self._spawner = host.builds, host.spawner
        self._toolbox = host.toolbox
        self._tasks = tasks
        self._locks: KeyedLocks[str] = KeyedLocks()

    async def make(
        self, platform: Platform, package: StoredPackage, attempt: Attempt
    ) -> Build:
        """Return the build of `package`, made now or before.

        Raises: BuildFailed, PackageInvalid, SourceInvalid, ToolMissing, ConfigInvalid.
        Cancelled: nothing half-made is left.
        """
        attempt.enter(Phase.PACKAGE)
        key = await self._key(platform, package)
        async with self._locks.hold(key):
            build = self._builds.find(key)
            if build is None:
                return await self._make_new(platform, package, key, attempt)
        attempt.note(f"build {key[:12]} reused")
        self._builds.use(package.label, key, self._owner(package.ccid))
        return build

    async def _key(self, platform: Platform, package: StoredPackage) -> str:
        names = [tool.name for tool in platform.tools]
        content = [self._environment.variables.get(name) for name in CONTENT_VARIABLES]
        return _digest(
            [
                _LAYOUT,
                package.code_digest,
                package.package_type,
                package.import_path,
                platform.name,
                planner_fingerprint(type(platform)),
                content,
                await self._toolbox.identify(names, platform.name),
                machine.machine(),
            ]
        )

    def _owner(self, ccid: Ccid) -> str:
        owner = f"{self._options.root}:{ccid}".encode()
        return hashlib.sha256(owner).hexdigest()[:24]

    async def _make_new(
        self, platform: Platform, package: StoredPackage, key: str, attempt: Attempt
    ) -> Build:
        try:
            with self._builds.claim(key):
                async with self._scratch() as scratch:
                    build = await self._make(platform, package, key, scratch, attempt)
                self._prune(package.label)
                return build
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
        key: str,
        scratch: Path,
        attempt: Attempt,
    ) -> Build:
        await package.unpack(scratch / "input")
        plan = await asyncio.to_thread(
            platform.plan, scratch / "input", package.import_path
        )
        await self._run_steps(platform, plan, scratch, attempt)
        build = Build(key, scratch / "output", plan.launch, platform.name)
        # Noted before it appears: whatever ends us now, the build will be pruned.
        self._builds.use(package.label, key, self._owner(package.ccid))
        build = await finish(asyncio.to_thread(self._builds.place, scratch, build))
        if self._options.durable_builds:
            sealing = asyncio.to_thread(self._builds.seal, key)
            _ = self._tasks.start(sealing, f"seal {key[:12]}")
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
        names = [tool.name for tool in platform.tools]
        tools = [self._toolbox.find(name, platform.name) for name in names]
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
        label = ccid.rpartition(":")[0]
        removed = self._builds.release(label, self._owner(ccid))
        for trash in removed:
            await finish(asyncio.to_thread(remove_tree, trash))
        return len(removed)

    def _prune(self, label: str) -> None:
        for path in self._builds.prune(label, self._options.keep_builds):
            removal = asyncio.to_thread(remove_tree, path)
            _ = self._tasks.start(removal, f"remove {path.name}")

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
            Output(output.line, output.line, output.active),
        )
        try:
            return await child.wait_gone()
        except BaseException:
            await self._spawner.end_quietly(child)
            raise


def _digest(parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_retryable(error: OSError | StartFailed) -> bool:
    return is_retryable(error) if isinstance(error, OSError) else error.retryable
