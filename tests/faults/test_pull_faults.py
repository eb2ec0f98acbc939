"""A node that is killed while its engine fetches a base image."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
from typing_extensions import override

from chaindock.errors import ChaindockError
from support.faults_matrix import FLAGS, STEADY, VICTIM, Cell
from support.faults_packages import WORKS, builds
from support.faults_world import CliWorld
from support.need import need_docker
from support.registry import Registry

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
    """Says what there is, and never sends it."""

    @override
    async def _answer(self, request: web.Request) -> web.Response:
        if "/blobs/" in request.path:
            await asyncio.Event().wait()
        return await super()._answer(request)


@contextlib.contextmanager
def hanging_registry() -> Iterator[str]:
    """Yield `localhost:PORT` of a registry that serves in a thread."""
    loop, ready, ended = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    places: list[str] = []

    async def serve() -> None:
        async with Hangs().serve() as place:
            places.append(place)
            ready.set()
            await ended.wait()

    thread = threading.Thread(
        target=lambda: loop.run_until_complete(serve()), daemon=True
    )
    thread.start()
    assert ready.wait(20)
    try:
        yield places[0]
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(90)
        loop.close()


def test_killed_in_the_pull_it_leaves_nothing_and_the_next_one_serves(
    tmp_path: Path,
) -> None:
    need_docker()
    with hanging_registry() as place:
        flags = {**FLAGS, "chaindock.docker.pull": "missing"}
        image = {"CORE_CHAINCODE_NODE_RUNTIME": f"{place}/base:1"}
        cell = Cell(CliWorld(tmp_path, "docker", flags, **image))
        try:
            cell.found()
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
            cell.well()
            cell.world.down()
            assert cell.world.remains.all() == []
        finally:
            cell.world.take_down()
