"""The lives of one node that is killed again and again, and checked after each start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from support.eventually import eventually
from support.faults.matrix import ROUNDS
from support.ledgers.audit import Audit
from support.need import need_image
from support.nodes.killable import LOST, CrashNode
from support.nodes.load import Account, Load, Told
from support.nodes.node import cache_folder, environment
from support.nodes.traces import DockerTraces, ProcessTraces, files_of
from support.shims.versions import version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.nodes.killable import Admin
    from support.nodes.traces import Traces

NAME = "conformance"
CLIENTS, PAUSE_S = 6, 0.0 if ROUNDS > 1 else 0.02
"""What is acknowledged is read again after each start: `make test` has some hundreds."""
NEXT_CALL_S = 30.0
SETTLED_S = 20.0
FORMER = 10
PHASES = ("dependencies", "compile", "image", "create", "start", "register", "ready")


@dataclass
class Lives:
    """The lives of one node, and all that is known of them."""

    node: CrashNode
    traces: Traces
    rng: random.Random
    seed: int
    folder: Path
    audit: Audit = field(default_factory=lambda: Audit(NAME))
    account: Account = field(default_factory=Account)
    packages: list[Path] = field(default_factory=list)
    sequence: int = 0
    """of the last deployment that was acknowledged"""
    files: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)
    """seconds until ready, and from then to the answer of a call"""

    async def begin(self, *marks: str) -> None:
        """Deploy a version, note what belongs to a healthy node, kill it."""
        self.packages = [version(self.folder, mark) for mark in marks]
        for package in reversed(self.packages):
            await self.deploy(package)
        await self.call("first")
        await self.settled()
        await self.end()
        await self.node.up()
        await self.settled()
        # The package of the former version goes in the background.
        packages = self.node.home / "packages"
        await eventually(lambda: len(list(packages.iterdir())) == 1, SETTLED_S)
        self.files = files_of(self.node.home)
        self.others = await self.traces.other()
        await self.end()

    async def end(self) -> None:
        """Kill it now."""
        self.node.kill()
        await self.node.gone()

    def new_version(self, mark: str) -> Path:
        """Return a package that nobody built before."""
        return version(self.folder, f"{mark} of {self.seed}")

    async def deploy(self, package: Path, name: str = NAME) -> None:
        async with self.node.admin() as admin:
            async for event in admin.deploy(package, name):
                if event["event"] == "result":
                    self.sequence = event["result"]["sequence"]

    async def round(self, number: int, what: str) -> None:
        """Start it, look at everything, do something, kill it."""
        if what == "start":
            await self.node.up_here()
            await asyncio.sleep(self.rng.uniform(0, 1.5))
            await self.end()
            return
        await self.start(number)
        load = Load(self.node, self.account, NAME, str(number), CLIENTS, PAUSE_S)
        calling = asyncio.ensure_future(load.run())
        async with asyncio.timeout(NEXT_CALL_S):
            await load.answered.wait()
        await self.disturb(what, number)
        await self.end()
        async with asyncio.timeout(NEXT_CALL_S):
            await calling

    async def disturb(self, what: str, number: int) -> None:
        """Return at the instant of the kill."""
        if what == "build":
            await self.deploy_until_killed(self.new_version(f"n{number}"))
        elif what == "upgrade":
            await self.deploy_until_killed(self.packages[number % 2])
        else:
            if what == "down":
                async with self.node.admin() as admin:
                    await admin.post("/shutdown")
            await asyncio.sleep(self.rng.uniform(0, 0.8))

    async def deploy_until_killed(self, package: Path) -> None:
        phase, pause_s = self.rng.choice(PHASES), self.rng.uniform(0, 0.1)
        reached = asyncio.Event()

        async def deploy() -> None:
            async with self.node.admin() as admin:
                async for event in admin.deploy(package, NAME):
                    if event.get("phase") == phase:
                        reached.set()
                    if event["event"] == "result":
                        self.sequence = event["result"]["sequence"]

        deploying = asyncio.ensure_future(deploy())
        deploying.add_done_callback(lambda _: reached.set())
        await reached.wait()
        await asyncio.sleep(pause_s)
        self.node.kill()
        with contextlib.suppress(*LOST):
            await deploying

    async def start(self, number: int) -> None:
        """Start it and look at everything."""
        await self.traces.mislead()
        before = await self.traces.all()
        ready_s = await self.node.up()
        left = before & await self.traces.all()
        assert not left, f"an earlier life left {left}"
        clock = asyncio.get_running_loop().time
        began = clock()
        await self.call(str(number))
        self.times.append((ready_s, clock() - began))
        async with self.node.admin() as admin:
            await self.audit.read(admin)
            self.audit.check_account(self.account)
            await self.audit.check_state(admin)
            found = (await admin.get("/chaincodes"))["chaincodes"]
        assert [one["sequence"] for one in found] == [self.audit.definitions]
        assert self.audit.definitions >= self.sequence
        await self.settled()
        await self.traces.check_foreign()
        assert await self.traces.other() == self.others
        assert not self.files_apart()
        assert not list(self.node.scratch.iterdir())
        # The output of some former versions may still be read.
        assert len(list((self.node.home / "output").iterdir())) <= FORMER + 1

    async def call(self, tag: str) -> None:
        """Make a call that has to succeed, whatever it has to wait for."""
        key = f"u-probe-{tag}"
        self.account.asked[key] = tag
        async with asyncio.timeout(NEXT_CALL_S), self.node.admin() as admin:
            answer = await admin.call("invoke", NAME, "put", key, tag)
        assert answer["code"] == 0
        told = Told(answer["tx_id"], answer["block"], 0, key)
        self.account.told.append(told)

    async def settled(self) -> None:
        """Wait until exactly one instance of the deployed version runs."""
        try:
            async with asyncio.timeout(SETTLED_S), self.node.admin() as admin:
                while not await self._is_settled(admin):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            runs = await self.traces.runs()
            pytest.fail(f"not settled: {runs}, {self.files_apart()}")

    async def _is_settled(self, admin: Admin) -> bool:
        (found,) = (await admin.get("/chaincodes"))["chaincodes"]
        if found["state"] != "running":
            return False
        runs = await self.traces.runs()
        if list(runs) != [found["package_id"]] or len(runs[found["package_id"]]) != 1:
            return False
        return not self.files or not self.files_apart()

    def files_apart(self) -> list[str]:
        """Return the paths that a healthy node does not have, then those it lacks."""
        now, then = Counter(files_of(self.node.home)), Counter(self.files)
        return [f"+{path}" for path in now - then] + [f"-{path}" for path in then - now]


@contextlib.asynccontextmanager
async def lives_of(
    backend: str, folder: Path, home: Path | None = None
) -> AsyncIterator[Lives]:
    """Yield a node that is up, empty, with look-alikes around it.

    Args:
        backend: process or docker.
        folder: an empty one, for packages, temporary files and, unless told, the home.
        home: of the node.

    CHAINDOCK_TEST_SEED repeats the chances of an earlier run.
    """
    given = os.environ.get("CHAINDOCK_TEST_SEED")  # noqa: TID251  # tests have no config
    seed = int(given) if given else random.SystemRandom().randrange(1 << 32)
    # Container names must not meet those of other nodes on the engine.
    network_id = f"kill{seed}"
    settings = [f"peer.networkId={network_id}", "peer.id=peer0"]
    env = environment(backend, folder / "tmp")
    async with CrashNode(home or folder / "home", env, backend, settings) as node:
        await node.up()
        traces = (
            DockerTraces(node, f"{network_id}-peer0", need_image("runtime"))
            if backend == "docker"
            else ProcessTraces(node, cache_folder() / "chaindock")
        )
        async with traces:
            try:
                yield Lives(node, traces, random.Random(seed), seed, folder)
            except BaseException as error:
                error.add_note(f"repeat it with CHAINDOCK_TEST_SEED={seed}")
                raise
            finally:
                await node.take_down()  # or it brings back what is cleaned up now
