"""Chaincode as local processes: for machines without an engine, and fast first tries.

Equal inputs are built once; a build that fails or is cancelled leaves no process and no
directory. Everything that the controller starts is ended when it is left, or by the next
`reap`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import platform as machine
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

from chaindock.aio import KeyedLocks, Tasks, finish
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import BuildEnvironment, Exit, Instance, NodeLabels
from chaindock.container.environment import CONTENT_VARIABLES
from chaindock.container.plan import StepOutput, build_deadline, run_plan
from chaindock.controllers.process.builds import Build, Builds
from chaindock.controllers.process.instance import Host, ProcessInstance
from chaindock.controllers.process.options import ProcessOptions
from chaindock.errors import BuildFailed, StartFailed, is_retryable
from chaindock.ids import Ccid
from chaindock.packaging.store import StoredPackage
from chaindock.platforms.base import Places, Platform, Step, planner_fingerprint
from chaindock.platforms.registry import platform_for
from chaindock.processes.child import Output, Program, end_with_node
from chaindock.processes.folders import (
    Sockets,
    base_environment,
    ca_environment,
    remove_tree,
)
from chaindock.processes.sandbox import find_bwrap
from chaindock.processes.spawner import Records, Spawner
from chaindock.processes.table import NODE_MARKER, LimitWatch
from chaindock.processes.toolbox import SYSTEM_PATH, Toolbox

REAP_GRACE_S = 1.0
CLOSE_GRACE_S = 2.0
_LAYOUT = 2
"""Changes when the content of a build directory changes."""


class ProcessController:
    """Implements container.contracts.Builder; an async context manager.

    Makes the directories `root` and `cache_root` of `options`. `platforms` gives the
    platform of a package type, or raises Unsupported.
    """

    name = "process"
    keeps_builds = True

    def __init__(
        self,
        options: ProcessOptions,
        node: NodeLabels,
        environment: BuildEnvironment | None = None,
        *,
        platforms: Callable[[str], Platform] = platform_for,
    ) -> None:
        self._options, self._platforms = options, platforms
        self._environment = environment or BuildEnvironment()
        self._runs = options.root / "runs" / Path(node.node_id).name
        self._tasks = Tasks("process")
        self._spawner = Spawner(Records(self._runs, node.node_id), self._tasks)
        self._builds = Builds(options.cache_root, node.node_id)
        self._sockets = Sockets(self._runs, node.node_id)
        path = ":".join([options.path, *SYSTEM_PATH])
        env = {"PATH": path, "HOME": "/", NODE_MARKER: node.node_id}
        self._toolbox = Toolbox(options.path, env)
        self._host = Host(
            options,
            self._builds,
            self._spawner,
            self._toolbox,
            self._sockets,
            LimitWatch(self._tasks),
        )
        self._locks: KeyedLocks[str] = KeyedLocks()

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        """Make the package ready to start; see the contract."""
        platform = self._platforms(package.package_type)
        attempt.enter(Phase.PACKAGE)
        key = await self._key(platform, package)
        async with self._locks.hold(key):
            build = self._builds.find(key)
            if build is None:
                build = await self._make(platform, package, key, attempt)
            else:
                attempt.note(f"build {key[:12]} reused")
                self._builds.use(package.label, key, self._owner(package.ccid))
        tools = [tool.name for tool in platform.tools]
        return ProcessInstance(attempt.ccid, build, tools, self._host)

    async def discard(self, ccid: Ccid) -> None:
        """Remove the build, unless another chaincode has it, or still runs from it."""
        label = ccid.rpartition(":")[0]
        for trash in self._builds.release(label, self._owner(ccid)):
            await finish(asyncio.to_thread(remove_tree, trash))

    async def reap(self) -> int:
        """End what an earlier process of this node left running, and remove its traces.

        Returns: how many runs and build steps still had processes.
        """
        return await asyncio.to_thread(self._reap)

    def _reap(self) -> int:
        own = set(self._spawner.children)
        count = self._spawner.clear(None, REAP_GRACE_S)
        for path in self._runs.iterdir():
            if not any(run_id in path.name for run_id in own):
                remove_tree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self._builds.reap()
        self._sockets.reap()
        return count

    async def __aenter__(self) -> Self:
        self._runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._options.cache_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._builds.prepare()
        # Asked once, and not while something starts.
        await asyncio.to_thread(end_with_node)
        await asyncio.to_thread(find_bwrap, self._options.sandbox)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._spawner.end_all(CLOSE_GRACE_S)
        await self._tasks.aclose()
        self._sockets.close()

    # --- builds -------------------------------------------------------------------------

    async def _key(self, platform: Platform, package: StoredPackage) -> str:
        """Return what covers everything that goes into the build.

        It is known before the package is unpacked: a warm start does not plan.
        """
        names = [tool.name for tool in platform.tools]
        parts = [
            _LAYOUT,
            package.code_digest,
            package.package_type,
            package.import_path,
            platform.name,
            planner_fingerprint(type(platform)),
            [self._environment.variables.get(name) for name in CONTENT_VARIABLES],
            await self._toolbox.identify(names, platform.name),
            machine.machine(),
        ]
        text = json.dumps(parts, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _owner(self, ccid: Ccid) -> str:
        owner = f"{self._options.root}:{ccid}".encode()
        return hashlib.sha256(owner).hexdigest()[:24]

    async def _make(
        self, platform: Platform, package: StoredPackage, key: str, attempt: Attempt
    ) -> Build:
        try:
            with self._builds.claim(key):
                async with self._scratch() as scratch:
                    build = await self._run_steps(
                        platform, package, key, scratch, attempt
                    )
                    # Noted before it appears: whatever ends us now, it will be pruned.
                    self._builds.use(package.label, key, self._owner(package.ccid))
                    placing = asyncio.to_thread(self._builds.place, scratch, build)
                    build = await finish(placing)
                with contextlib.suppress(OSError):  # the next build removes them
                    for path in self._builds.prune(
                        package.label, self._options.keep_builds
                    ):
                        removal = asyncio.to_thread(remove_tree, path)
                        _ = self._tasks.start(removal, f"remove {path.name}")
        except (OSError, StartFailed) as error:  # disk full, no more processes
            raise BuildFailed(
                f"build of chaincode {attempt.ccid!r} cannot go on: {error}",
                hint="make room for it: disk, processes, open files",
                retryable=getattr(error, "retryable", is_retryable(error)),
                **attempt.facts(),
            ) from error
        sealing = asyncio.to_thread(self._builds.seal, key)
        _ = self._tasks.start(sealing, f"seal {key[:12]}")
        return build

    async def _run_steps(
        self,
        platform: Platform,
        package: StoredPackage,
        key: str,
        scratch: Path,
        attempt: Attempt,
    ) -> Build:
        source, output = scratch / "input", scratch / "output"
        await package.unpack(source)
        plan = await asyncio.to_thread(platform.plan, source, package.import_path)
        output.mkdir(mode=0o700)
        places = Places(
            {"input": str(source), "output": str(output)},
            tool=lambda name: self._toolbox.find(name, platform.name),
            cache=self._cache,
        )
        tools = [
            self._toolbox.find(tool.name, platform.name) for tool in platform.tools
        ]
        path = [*(str(Path(tool).parent) for tool in tools), self._options.path]
        env = base_environment(scratch, path) | dict(self._environment.variables)
        if self._environment.ca_bundle is not None:
            env |= ca_environment(self._environment.ca_bundle, scratch)

        async def run(command: Step, said: StepOutput) -> Exit:
            cwd = Path(command.cwd)
            cwd.mkdir(parents=True, exist_ok=True)
            program = Program(
                command.argv, cwd, env={**env, **command.env}, kind="build"
            )
            takes = Output(said.line, said.line, said.active)
            run_id = self._spawner.new_run_id()
            child = await self._spawner.spawn(run_id, program, attempt, takes)
            try:
                return await child.wait_gone()
            except BaseException:
                await self._spawner.end_quietly(child)
                raise

        silence_s = self._options.silence_s
        async with build_deadline(self._options.limit_s, attempt):
            await run_plan(plan, platform, places, run, attempt, silence_s)
        return Build(key, output, plan.launch, platform.name)

    def _cache(self, name: str) -> str:
        folder = self._options.cache_root / "toolchains" / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return str(folder)

    @contextlib.asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        scratch = self._builds.scratch()
        scratch.mkdir(mode=0o700)
        try:
            yield scratch
        finally:
            removal = asyncio.to_thread(remove_tree, scratch)
            await asyncio.shield(self._tasks.start(removal, "remove scratch"))
