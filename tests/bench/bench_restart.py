"""A node that comes up again: with sixteen chaincodes, and with a thousand packages.

The sixteen are the examples in turns. In each round all of them are stopped, the node is
started and brings them up one by one, each alone; that is the reference. Then the node,
with all of them running, is taken down and started, and killed and started. The goal is
about the launches: from the first answer of the node until it says "ready", which is
when the last one is. How long people wait in all, from the start of the node's process,
is told beside it, and what the same programs gain side by side without us: two
processors that share a core or a cache do not do twice the work of one.

The thousand packages are installed, and no chaincode runs them: what is measured is what
a start does with packages that are just there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest

from bench.boots import bare_boots
from bench.measure import in_turns, scratch
from bench.rows import Row, Skipped
from chaindock.lifecycle.targets import TargetState
from chaindock.node.home import Home
from chaindock.operations.address import find_socket
from chaindock.packaging.store import PackageStore
from support.doubles.deployments import package
from support.nodes.killable import LOST, CrashNode
from support.nodes.node import EXAMPLES, environment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOAL = 0.6
CHAINCODES = 16
LANGUAGES = ("go", "node", "python")
ROUNDS = {"process": 5, "docker": 3}
BARE_ROUNDS = 5
LOOK_S = 0.01
PATIENCE_S = 240.0
PACKAGES = 1000
GOAL_SCAN_MS = 1000.0
START_ROUNDS = 5
SCAN_ROUNDS = 15


class Fleet:
    """Sixteen chaincodes on one node.

    Args:
        node: not up yet.
    """

    def __init__(self, node: CrashNode) -> None:
        self._node = node
        self._names = [
            f"{LANGUAGES[number % len(LANGUAGES)]}{number}"
            for number in range(CHAINCODES)
        ]
        self.whole: list[float] = []
        """From the start of the process until all were ready, after each clean end."""

    async def deploy(self) -> None:
        """Bring the node up and deploy all, each with a package of its own."""
        await self.up()
        for name in self._names:
            source = EXAMPLES / name.rstrip("0123456789")
            await self._node.run(
                "deploy", str(source), "--name", name, limit_s=PATIENCE_S
            )

    async def singles(self) -> list[float]:
        """Return the milliseconds of each launch while no other goes on."""
        async with _client(self._node.home) as client:
            for name in self._names:
                await _post(client, f"/chaincodes/{name}/stop")
        await self.start()
        async with _client(self._node.home) as client:
            return [
                await _post(client, f"/chaincodes/{name}/start") for name in self._names
            ]

    async def killed(self) -> float:
        """Kill the node; return how many ms the next one needs until all are ready."""
        self._node.kill()
        await self._node.gone()
        return sum(await self._ready())

    async def ended(self) -> float:
        """End the node; return how many ms the next one needs for all launches."""
        await self._down()
        boot, launches = await self._ready()
        self.whole.append(boot + launches)
        return launches

    async def start(self) -> float:
        """Return how many ms it takes, after a clean end, until the node answers."""
        await self._down()
        return await self.up()

    async def _ready(self) -> tuple[float, float]:
        """Return how many ms until it answers, and from there until all are ready."""
        boot = await self.up()
        began = time.perf_counter()
        async with asyncio.timeout(PATIENCE_S), _client(self._node.home) as client:
            # The last in the queue: this answers when its launch is over. To ask again
            # and again meanwhile would take processor time from the launches.
            await _post(client, f"/chaincodes/{max(self._names)}/start")
            while not await _all_run(client):  # noqa: ASYNC110  # another process
                await asyncio.sleep(LOOK_S)
        return boot, (time.perf_counter() - began) * 1e3

    async def up(self) -> float:
        began = time.perf_counter()
        await self._node.up_here()
        async with asyncio.timeout(PATIENCE_S):
            while not await _answers(self._node.home):  # noqa: ASYNC110  # as above
                await asyncio.sleep(LOOK_S)
        return (time.perf_counter() - began) * 1e3

    async def _down(self) -> None:
        await self._node.run("down", "--timeout", "60", limit_s=PATIENCE_S)


@contextlib.asynccontextmanager
async def _client(home: Path) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(str(find_socket(home)))
    limit = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(
        "http://localhost", connector=connector, timeout=limit
    ) as client:
        yield client


async def _state(client: aiohttp.ClientSession) -> str:
    async with client.get("/status") as answer:
        assert answer.status == 200
        return str((await answer.json())["state"])


async def _answers(home: Path) -> bool:
    try:
        async with _client(home) as client:
            return bool(await _state(client))
    except LOST:
        return False


async def _all_run(client: aiohttp.ClientSession) -> bool:
    """Whether they do; asking takes next to nothing from the launches."""
    if await _state(client) != "ready":
        return False
    async with client.get("/chaincodes") as answer:
        lines = (await answer.json())["chaincodes"]
    assert len(lines) == CHAINCODES
    assert {line["state"] for line in lines} == {"running"}, lines
    return True


async def _post(client: aiohttp.ClientSession, path: str) -> float:
    """Return how many milliseconds the request took to its end."""
    began = time.perf_counter()
    async with client.post(path) as answer:
        body = (await answer.read()).decode()
    assert answer.status == 200, body
    assert '"event": "error"' not in body, body
    return (time.perf_counter() - began) * 1e3


async def restarts(backend: str, folder: Path, temp: Path) -> AsyncIterator[Row]:
    folder.mkdir()
    env = environment(backend, temp / backend)
    async with CrashNode(folder / "home", env, backend) as node:
        fleet = Fleet(node)
        await fleet.deploy()
        single: list[list[float]] = []

        async def one_by_one() -> float:
            single.append(await fleet.singles())
            return sum(single[-1])

        apart, together, killed = await in_turns(
            ROUNDS[backend], one_by_one, fleet.ended, fleet.killed
        )
        slowest = max(statistics.median(times) for times in zip(*single, strict=True))
        whole = statistics.median(fleet.whole)
    what, sum_of = f"{CHAINCODES} chaincodes, {backend}", "their launches one by one"
    yield Row(f"{what}, launched", together, "ms", apart, sum_of, most=GOAL)
    yield Row(f"{what}, launched", together, "ms", slowest, "the slowest launch alone")
    yield Row(f"{what}, restart", whole, "ms", apart, sum_of)
    yield Row(f"{what}, after a kill", killed, "ms", whole, "after a clean end")


# ---- a thousand packages


def fill(home: Path) -> None:
    """Make a home in which a thousand packages are installed."""
    place = Home(home)
    place.prepare()
    store = PackageStore(place.packages)
    with TargetState(place.desired) as targets:
        for number in range(PACKAGES):
            name = f"asset{number}"
            targets.keep(store.add(package(name, f"{name}_1.0")).ccid, "Org1MSP")


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))  # noqa: PTH208  # the least that can be done


async def scans(home: Path) -> Row:
    """Measure what a start does with packages that are there."""
    folder = Home(home).packages
    store = PackageStore(folder)
    wanted = set(store.list())
    assert len(wanted) == PACKAGES

    async def ours() -> float:
        began = time.perf_counter()
        assert not store.sweep(wanted)
        return (time.perf_counter() - began) * 1e3

    async def bare() -> float:
        began = time.perf_counter()
        assert len(_names(folder)) == PACKAGES
        return (time.perf_counter() - began) * 1e3

    value, floor = await in_turns(SCAN_ROUNDS, ours, bare)
    what = f"looking through {PACKAGES} packages"
    return Row(what, value, "ms", floor, "names of the files", limit=GOAL_SCAN_MS)


async def starts(folder: Path, temp: Path) -> AsyncIterator[Row]:
    """Measure the start of a node that has many packages, and of one that has none."""
    folder.mkdir()
    env = environment("process", temp / "packages")
    await asyncio.to_thread(fill, folder / "full")
    yield await scans(folder / "full")
    async with (
        CrashNode(folder / "full", env, "process") as full,
        CrashNode(folder / "empty", env, "process") as empty,
    ):
        sides = Fleet(full), Fleet(empty)
        for side in sides:
            await side.up()
        value, floor = await in_turns(START_ROUNDS, *(side.start for side in sides))
    what = f"node start, {PACKAGES} installed packages"
    yield Row(what, value, "ms", floor, "node start, no package")


# ---- what the machine can do


async def bare(folder: Path) -> Row:
    """Measure the goal's ratio without us: with the same programs, just started."""
    languages = [LANGUAGES[number % len(LANGUAGES)] for number in range(CHAINCODES)]
    async with bare_boots(languages, folder) as boots:
        together, apart = await in_turns(BARE_ROUNDS, boots.together, boots.one_by_one)
    what = f"{CHAINCODES} bare boots, side by side"
    return Row(what, together, "ms", apart, "the same one by one")


async def run() -> AsyncIterator[Row | Skipped]:
    # Temporary files have a short name, as usual: sockets lie there.
    with scratch() as folder, tempfile.TemporaryDirectory(prefix="bench-") as short:
        temp = Path(short)
        async for row in starts(folder / "packages", temp):
            yield row
        for backend in ROUNDS:
            try:
                async for row in restarts(backend, folder / backend, temp):
                    yield row
            except pytest.skip.Exception as lacking:
                yield Skipped(f"{CHAINCODES} chaincodes, {backend}", str(lacking))
        # Last: where a tool is missing, the rest has been measured.
        yield await bare(folder / "bare")
