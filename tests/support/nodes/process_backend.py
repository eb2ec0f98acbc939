"""ProcessController as a Backend of the conformance suites."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from chaindock.container.contracts import NodeLabels, RunSettings
from chaindock.controllers.process.controller import ProcessController
from chaindock.controllers.process.options import ProcessOptions
from chaindock.processes import sandbox
from chaindock.processes.spawner import Records
from chaindock.processes.table import find
from support.doubles.backend import WatchedAttempt
from support.doubles.conformance import Backend, platform_for_scripts
from support.doubles.scripts import hang
from support.need import missing

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.container.contracts import Builder, Instance
    from chaindock.processes.child import Child


def options(folder: Path, **changes: Any) -> ProcessOptions:
    """Options below `folder`, with this machine's PATH."""
    settings: dict[str, Any] = {
        "root": folder / "process",
        "cache_root": folder / "cache",
        "path": os.environ.get("PATH", ""),  # noqa: TID251  # tests have no config
    }
    return ProcessOptions(**{**settings, **changes})


class ProcessBackend(Backend):
    """Builders of different nodes have different roots, as in real life."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        super().__init__(folder)
        self.changes = changes
        self._lost: list[Child] = []

    def root(self, node_id: str) -> Path:
        return self.folder / node_id

    def controller(self, node_id: str) -> ProcessController:
        return ProcessController(
            options(self.root(node_id), **self.changes),
            NodeLabels(node_id, "peer0", "dev"),
            platforms=platform_for_scripts,
        )

    async def open_builder(self, node_id: str) -> Builder:
        return await self.controller(node_id).__aenter__()

    async def close_builder(self, builder: Builder) -> None:
        await cast(ProcessController, builder).__aexit__(None, None, None)

    async def abandon(self, builder: Builder) -> None:
        # Kept, because this process cannot really die: asyncio complains about
        # transports that vanish open.
        controller = cast(ProcessController, builder)
        self._lost += controller._spawner.children.values()
        await controller._tasks.aclose()

    async def owned(self, node_id: str) -> set[str]:
        root = self.root(node_id)
        # A process that just becomes another program is known by its record alone.
        folders = root.glob("process/runs/*")
        records = [one for each in folders for one in Records(each, node_id).all()]
        found = await asyncio.to_thread(find, node_id, records)
        processes = {f"processes of run {run_id}" for run_id in found}
        files = {str(path) for path in root.glob("process/runs/*/*")}
        scratch = {str(path) for path in root.glob("cache/builds/.tmp*")}
        return processes | files | scratch

    async def signal(self, instance: Instance, number: int) -> None:
        os.kill(int(instance.describe()["pid"]), number)

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(None, None, None)
        for child in self._lost:
            child.abort()
        for folder in self.folder.iterdir():
            for group in (await asyncio.to_thread(find, folder.name, [])).values():
                for process in group:
                    process.kill()


def need_bwrap() -> None:
    """Skip, or fail in CI, where contracts cannot run in a sandbox."""
    sandbox._find_bwrap.cache_clear()
    tool, why = sandbox.find_bwrap("require")
    if not tool:
        missing(why)


async def started(
    backend: ProcessBackend, text: str, settings: RunSettings | None = None
) -> tuple[Instance, WatchedAttempt]:
    """Start a contract that is the shell script `text`."""
    instance, package = await backend.built(hang())
    folder = next(backend.root(backend.node_id).glob("cache/builds/[!.]*/output"))
    (folder / "main.sh").write_text(text)
    attempt = WatchedAttempt(package)
    peer = replace(backend.peer, settings=settings or RunSettings())
    await instance.start(peer, attempt)
    return instance, attempt
