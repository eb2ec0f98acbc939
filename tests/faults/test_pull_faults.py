"""A node that is killed while its engine fetches a base image."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from chaindock.errors import ChaindockError
from support.engines.registry import Registry
from support.faults.matrix import FLAGS, ROUND, STEADY, VICTIM, Cell
from support.faults.packages import WORKS, builds
from support.faults.world import CliWorld
from support.need import need_docker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from aiohttp import web

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(300),
]


class Hangs(Registry):
    """Says what there is, and sends nothing of it before the end."""

    def __init__(self) -> None:
        super().__init__()
        self.end = asyncio.Event()
        self.place = ""
        self.ready = threading.Event()

    @override
    async def _answer(self, request: web.Request) -> web.Response:
        if "/blobs/" in request.path:
            await self.end.wait()
        return await super()._answer(request)

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with self.serve() as self.place:
            self.ready.set()
            await self.end.wait()


@contextlib.contextmanager
def hanging_registry() -> Iterator[str]:
    """Yield `localhost:PORT` of a registry that serves in a thread."""
    registry = Hangs()
    thread = threading.Thread(target=lambda: asyncio.run(registry.run()), daemon=True)
    thread.start()
    assert registry.ready.wait(20)
    try:
        yield registry.place
    finally:
        registry.loop.call_soon_threadsafe(registry.end.set)
        thread.join(90)


@ROUND
def test_killed_in_the_pull_it_leaves_nothing_and_the_next_one_serves(
    tmp_path: Path, round_: int
) -> None:
    need_docker()
    with hanging_registry() as place:
        flags = {**FLAGS, "chaindock.docker.pull": "missing"}
        image = {"CORE_CHAINCODE_NODE_RUNTIME": f"{place}/base:1"}
        cell = Cell(CliWorld(tmp_path, "docker", flags, **image))
        try:
            cell.set_up()
            package = builds(cell.world.packages, "pulls-1", WORKS)
            passed = []
            with contextlib.suppress(ChaindockError):
                for event in cell.world.deploying(VICTIM, package):
                    passed.append(event.get("phase"))
                    if event.get("phase") == "pull":
                        cell.pause(0.5)
                        cell.world.kill()
            assert "pull" in passed
            cell.world.up()
            cell.next_call(STEADY)
            cell.assert_healthy()
            cell.world.down()
            assert cell.world.remains.all() == []
        finally:
            cell.world.take_down()
