"""A node of the fault tests on an engine that belongs to the test."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from chaindock.controllers.docker.names import BUILD_KEY
from chaindock.errors import ChaindockError
from support.engines.own_engine import (
    OwnDocker,
    OwnEngine,
    OwnPodman,
    own_docker,
    own_podman,
    running,
)
from support.engines.slots import slot
from support.faults.disk import small_disk
from support.faults.health import RUNNING
from support.faults.matrix import (
    FLAGS,
    NEXT_CALL_S,
    ROUNDS,
    STEADY,
    VICTIM,
    Cell,
    cells,
)
from support.faults.world import CliWorld
from support.need import need, need_image
from support.nodes.node import BACKENDS
from support.nodes.remains import KEPT_IMAGES, ask, inspect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from chaindock.controllers.docker.engine import Engine

PODMAN = pytest.param("podman", marks=pytest.mark.docker)
# In `make test`, tests/integration/test_engine_restarts.py has Podman go away.
_PODMAN = () if ROUNDS == 1 else (PODMAN,)
ENGINES, KINDS = ("docker", *_PODMAN), (*BACKENDS, *_PODMAN)
_KINDS: dict[str, tuple[type[OwnEngine], tuple[str, ...]]] = {
    "docker": (OwnDocker, ("dockerd",)),
    "podman": (OwnPodman, ("podman", "runc", "catatonit")),
}
OWN: dict[str, Callable[..., AbstractContextManager[OwnEngine]]] = {
    "docker": own_docker,
    "podman": own_podman,
}
WAIT_S = 15
RECONNECTED_S = 90.0


class NodeOnOwnEngine:
    """A node, and the engine that it uses."""

    def __init__(self, engine: OwnEngine, world: CliWorld) -> None:
        self.engine = engine
        self.cell = Cell(world)

    def begin(self, number: int, test: str) -> None:
        """Deploy `victim` under a new label."""
        self.cell.begin(number, test)
        self.cell.deploy_victim()
        self.cell.next_call()

    def end(self) -> None:
        """Start the engine again; both contracts come back, and nothing is left over."""
        self.engine.resume()
        self.engine.start()
        self.is_back()
        self.cell.end()

    def is_back(self) -> None:
        """The next call succeeds; one instance of each runs; nothing is left over."""
        cell = self.cell
        for name in (STEADY, VICTIM):
            until = time.monotonic() + RECONNECTED_S
            while (failed := refused(cell, name)) is not None:
                if time.monotonic() > until:
                    pytest.fail(f"{name}: {failed.message}\n{cell.world.log_end()}")
                time.sleep(0.2)
        cell.assert_healthy(victim=RUNNING)

    def refused_in_time(self) -> None:
        """Call once: an answer, or an error with a hint, must come in time."""
        began = time.monotonic()
        failed = refused(self.cell, VICTIM)
        assert failed is None or (failed.hint and failed.slug != "internal"), failed
        assert time.monotonic() - began < WAIT_S + NEXT_CALL_S


def refused(cell: Cell, name: str) -> ChaindockError | None:
    """Call once; return the error, if there is one."""
    try:
        cell.calls.put(cell.world, name)
    except ChaindockError as error:
        return error
    return None


@contextlib.contextmanager
def node_on(engine: OwnEngine, image: str, folder: Path) -> Iterator[NodeOnOwnEngine]:
    """Yield a node on `engine`; afterwards nothing of the node may be left.

    Args:
        image: that of `misbehaves` (`image_of_misbehaves`); the engine need not build it.
    """
    engine.load(image)
    with using(engine):
        found = NodeOnOwnEngine(engine, CliWorld(folder, "docker", node_flags()))
        try:
            found.cell.set_up()
            yield found
            found.cell.world.down()
            assert found.cell.world.remains.all() == []
        finally:
            engine.resume()
            engine.start()
            found.cell.world.take_down()


def node_flags() -> dict[str, str]:
    """Settings of a node whose calls wait WAIT_S for an engine."""
    return {**FLAGS, "chaindock.launch.wait": f"{WAIT_S}s"}


@contextlib.contextmanager
def using(engine: OwnEngine) -> Iterator[None]:
    """Make `engine` the DOCKER_HOST of this process."""
    with pytest.MonkeyPatch.context() as at:
        at.setenv("DOCKER_HOST", engine.endpoint)
        yield


@contextlib.contextmanager
def on_a_small_disk(kind: str, *names: str, size: int) -> Iterator[OwnEngine]:
    """Start an engine of our own whose data lie on a file system of `size` bytes.

    Args:
        kind: docker or podman.
        names: base images to load.
    """
    made, tools = _KINDS[kind]
    need("ip", *tools)
    images = [need_image(name) for name in names]
    with slot(kind) as (folder, pool), small_disk(folder / "data", size):
        yield from running(made(folder, pool), images)


@contextlib.contextmanager
def backend_of(kind: str) -> Iterator[str]:
    """Yield the value of --backend; for "podman" an engine is started first."""
    if kind != "podman":
        yield kind
        return
    with OWN[kind]("golang", "node", "runtime") as engine, using(engine):
        yield "docker"


def image_of_misbehaves(folder: Path) -> str:
    """Build `misbehaves` on the shared engine; return the name of its image."""
    with cells("docker", folder) as cell:
        found = inspect(cell.world.place(STEADY))["Image"]

        async def name(engine: Engine) -> str:
            key = (await engine.inspect_image(found))["Config"]["Labels"][BUILD_KEY]
            await engine.tag_image(found, KEPT_IMAGES, key)
            return f"{KEPT_IMAGES}:{key}"

        return ask(name)
