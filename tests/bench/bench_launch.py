"""Time from `launch` to READY, beside what the same start takes without us.

Everything that a warm launch does is in it: the package is read and checked again, its
build looked up, the container or process started, the stream registered. The build is
warm: it was made before, in this run or an earlier one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, cast

import pytest

from bench.floors import (
    BareEngine,
    BareListener,
    docker_floor,
    peer_with_tls,
    process_floor,
)
from bench.measure import in_turns, kept, scratch
from bench.rows import Row, Skipped
from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.chaincode.server import ChaincodeListener
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import NodeLabels
from chaindock.container.output import OutputStore
from chaindock.container.router import Router
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.endpoints import find_engine
from chaindock.controllers.process.controller import ProcessController
from chaindock.identity.ca import TlsAuthority
from chaindock.packaging.store import PackageStore
from chaindock.platforms.base import Connection
from support.doubles.launch_fakes import OneBackend
from support.engines.docker_languages import (
    EXAMPLES,
    environment,
    language_options,
    packaged,
)
from support.need import need
from support.nodes.process_backend import options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from chaindock.chaincode.running import Running
    from chaindock.container.contracts import Builder
    from chaindock.controllers.docker.instance import DockerInstance
    from chaindock.controllers.process.instance import ProcessInstance
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage

GOAL = 1.15
ROUNDS = 15
NODE = NodeLabels("chaindock-bench", "bench", "bench")
"""Always the same, so that images of an earlier run are found, and leftovers removed."""
TOOLS = {"go": ("go",), "node": ("node", "npm"), "python": ("python3",)}


def packages_in(root: Path) -> Callable[[Ccid], Awaitable[StoredPackage]]:
    store = PackageStore(root)
    return lambda ccid: asyncio.to_thread(store.get, ccid)


class Launching:
    """A launcher with one builder; `ms` is one launch."""

    def __init__(
        self,
        launcher: RuntimeLauncher,
        listener: ChaincodeListener,
        new_attempt: Callable[[], Attempt],
    ) -> None:
        self.listener = listener
        self._launcher = launcher
        self._new_attempt = new_attempt

    async def warm(self) -> Any:
        """Launch once, which builds; return the instance."""
        run = await self._launcher.launch(self._new_attempt())
        await self._leave(run)
        return run.instance

    async def ms(self) -> float:
        began = time.perf_counter()
        run = await self._launcher.launch(self._new_attempt())
        spent = time.perf_counter() - began
        await self._leave(run)
        return spent * 1e3

    async def _leave(self, run: Running) -> None:
        await run.stop(0, 0)
        self._launcher.forget(run.ccid)  # so that the next launch looks for its build


@contextlib.asynccontextmanager
async def launching(
    builder: Builder,
    package_of: Callable[[Ccid], Awaitable[StoredPackage]],
    ccid: Ccid,
    folder: Path,
) -> AsyncIterator[Launching]:
    """Compose a launcher the way node/serve.py does."""
    registry, output = HandlerRegistry(), OutputStore(folder / "output")
    async with AsyncExitStack() as stack:
        authority = TlsAuthority()
        listener = await stack.enter_async_context(
            ChaincodeListener(registry, authority=authority)
        )
        launcher = RuntimeLauncher(
            registry,
            package_of,
            Router(OneBackend(builder)),
            lambda _: peer_with_tls(listener, authority),
        )
        yield Launching(launcher, listener, lambda: Attempt(ccid, output.open(ccid)))


@contextlib.asynccontextmanager
async def example_as_process(
    language: str, folder: Path
) -> AsyncIterator[tuple[Launching, ProcessInstance]]:
    """Give a launcher of the example of a language, and its instance, which is built."""
    need(*TOOLS[language])
    root = folder / "packages"
    package = await asyncio.to_thread(packaged, EXAMPLES / language, root, "bench")
    settings = options(folder, cache_root=kept() / "cache")
    async with (
        ProcessController(settings, NODE, environment()) as controller,
        launching(controller, packages_in(root), package.ccid, folder) as ours,
    ):
        yield ours, cast("ProcessInstance", await ours.warm())


async def as_process(language: str, folder: Path) -> Row:
    async with example_as_process(language, folder) as (ours, instance):
        bare = BareListener()
        try:
            value, floor = await in_turns(
                ROUNDS,
                ours.ms,
                lambda: process_floor(instance, bare, folder / "private"),
            )
        finally:
            await bare.aclose()
    return _row(language, "process", value, floor)


async def in_container(language: str, folder: Path) -> Row:
    settings = language_options()
    root = folder / "packages"
    package = await asyncio.to_thread(packaged, EXAMPLES / language, root, "bench")
    controller = DockerController(settings, NODE, environment=environment())
    bare = BareListener()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(bare.aclose)
        await stack.enter_async_context(controller)
        await controller.reap()
        ours = await stack.enter_async_context(
            launching(controller, packages_in(root), package.ccid, folder)
        )
        engine = BareEngine(await find_engine(settings.endpoint))
        stack.push_async_callback(engine.aclose)
        instance = cast("DockerInstance", await ours.warm())

        async def ms() -> float:
            # The floor has a listener of its own. A node has one, and lets it pass once.
            await instance._session.networks.attach(ours.listener, "", calls_back=dials)
            return await ours.ms()

        dials = instance._built.launch.connection is Connection.CALLS_BACK
        value, floor = await in_turns(
            ROUNDS, ms, lambda: docker_floor(instance, bare, engine)
        )
    return _row(language, "container", value, floor)


def _row(language: str, how: str, value: float, floor: float) -> Row:
    against = "bare start and the shim's boot"
    # A bare process has no record that would find it after a crash of the node, which
    # is most of what a Go program of 10 ms is beside it: for information.
    goal = GOAL if how == "container" else None
    return Row(f"launch, {language}, {how}", value, "ms", floor, against, most=goal)


async def run() -> AsyncIterator[Row | Skipped]:
    with scratch() as folder:
        for how, measure in (("container", in_container), ("process", as_process)):
            for language in TOOLS:
                place = folder / how / language
                place.mkdir(parents=True)
                try:
                    yield await measure(language, place)
                except pytest.skip.Exception as missing:
                    yield Skipped(f"launch, {language}, {how}", str(missing))
