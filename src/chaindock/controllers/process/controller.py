"""Chaincode as local processes: for machines without an engine, and fast first tries.

Everything that the controller starts is ended when it is left, or by the next `reap`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Self

from chaindock.aio import Tasks
from chaindock.container.contracts import BuildEnvironment, Declined
from chaindock.controllers.process.builder import ProcessBuilder
from chaindock.controllers.process.builds import Builds
from chaindock.controllers.process.instance import Host, ProcessInstance
from chaindock.errors import Unsupported
from chaindock.platforms.registry import platform_for
from chaindock.processes.child import end_with_node
from chaindock.processes.environment import SYSTEM_PATH
from chaindock.processes.removal import remove_tree
from chaindock.processes.sockets import Sockets
from chaindock.processes.spawner import Records, Spawner
from chaindock.processes.table import NODE_MARKER
from chaindock.processes.toolbox import Toolbox
from chaindock.processes.watch import LimitWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Instance, NodeLabels
    from chaindock.controllers.process.options import ProcessOptions
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage
    from chaindock.platforms.base import Platform

REAP_GRACE_S = 1.0


class ProcessController:
    """Implements container.contracts.Builder; an async context manager.

    Args:
        options: `root` and `cache_root` are made if missing.
        environment: what builds need to reach package registries.
        platforms: gives the platform of a package type; raises Unsupported.
    """

    name = "process"

    def __init__(
        self,
        options: ProcessOptions,
        node: NodeLabels,
        environment: BuildEnvironment | None = None,
        *,
        platforms: Callable[[str], Platform] = platform_for,
    ) -> None:
        self._options, self._platforms = options, platforms
        self._runs = options.root / "runs" / Path(node.node_id).name
        self._tasks = Tasks("process")
        self._spawner = Spawner(Records(self._runs, node.node_id), self._tasks)
        toolbox = Toolbox(
            options.path,
            {
                "PATH": ":".join([options.path, *SYSTEM_PATH]),
                "HOME": "/",
                NODE_MARKER: node.node_id,
            },
        )
        self._host = Host(
            options,
            Builds(options.cache_root, node.node_id),
            self._spawner,
            toolbox,
            Sockets(self._runs, node.node_id),
            LimitWatch(self._tasks),
        )
        self._builder = ProcessBuilder(
            self._host, environment or BuildEnvironment(), self._tasks
        )

    async def build(
        self, package: StoredPackage, attempt: Attempt
    ) -> Instance | Declined:
        """Make the package ready to start; see the contract."""
        try:
            platform = self._platforms(package.package_type)
        except Unsupported as error:
            return Declined(error.message)
        build = await self._builder.make(platform, package, attempt)
        tools = [tool.name for tool in platform.tools]
        return ProcessInstance(package.ccid, build, tools, self._host)

    async def discard(self, ccid: Ccid) -> int:
        """Keep the build: equal packages use it again, and the oldest go by number."""
        del ccid
        return 0

    async def purge(self, ccid: Ccid) -> int:
        """Remove the build, unless another chaincode has it, or still runs from it."""
        return await self._builder.purge(ccid)

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
        self._host.builds.reap()
        self._host.sockets.reap()
        return count

    async def __aenter__(self) -> Self:
        self._runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._options.cache_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._host.builds.prepare()
        await asyncio.to_thread(
            end_with_node
        )  # asked once, and not while something starts
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._spawner.end_all(self._options.close_grace_s)
        await self._tasks.aclose()
        self._host.sockets.close()
