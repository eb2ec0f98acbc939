"""A container engine that stops, dies or hangs under a node, and comes back."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.controllers.docker.names import BUILD_KEY
from chaindock.errors import ChaindockError
from support.faults_matrix import FLAGS, NEXT_CALL_S, ROUND, STEADY, VICTIM, Cell
from support.faults_well import RUNNING, assert_well
from support.faults_world import CliWorld
from support.node import DOCKER
from support.own_engine import own_docker
from support.remains import KEPT_IMAGES, ask, inspect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.controllers.docker.engine import Engine
    from support.own_engine import OwnDocker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("cell_of", [DOCKER], indirect=True),
]
_numbers = itertools.count(1)
WAIT_S = 15
RECONNECTED_S = 90.0


@pytest.fixture(scope="module")
def image(cell_of: Cell) -> str:
    """A name of the image of `steady`, as it was built on the engine of all tests."""
    found = inspect(cell_of.world.place(STEADY))["Image"]

    async def name(engine: Engine) -> str:
        key = (await engine.inspect_image(found))["Config"]["Labels"][BUILD_KEY]
        await engine.tag_image(found, KEPT_IMAGES, key)
        return f"{KEPT_IMAGES}:{key}"

    return ask(name)


class Apart:
    """A node whose engine belongs to the test."""

    def __init__(self, engine: OwnDocker, world: CliWorld) -> None:
        self.engine = engine
        self.cell = Cell(world)

    def engine_is_back(self) -> None:
        """The next call succeeds; one instance of each runs; nothing is left over."""
        cell = self.cell
        for name in (STEADY, VICTIM):
            until = time.monotonic() + RECONNECTED_S
            while (failed := refused(cell, name)) is not None:
                if time.monotonic() > until:
                    pytest.fail(f"{name}: {failed.message}\n{cell.world.log_end()}")
                time.sleep(0.2)
        cell.well(victim=RUNNING)


@pytest.fixture(scope="module")
def far(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    with own_docker("golang", "runtime") as engine, pytest.MonkeyPatch.context() as at:
        engine.load(image)
        at.setenv("DOCKER_HOST", engine.endpoint)
        flags = {**FLAGS, "chaindock.launch.wait": f"{WAIT_S}s"}
        world = CliWorld(tmp_path_factory.mktemp("apart"), "docker", flags)
        found = Apart(engine, world)
        try:
            found.cell.found()
            yield found
            world.down()
            assert world.remains.all() == []
        finally:
            engine.resume()
            engine.start()
            world.take_down()


@pytest.fixture
def apart(far: Apart, request: pytest.FixtureRequest) -> Iterator[Apart]:
    far.cell.begin(next(_numbers), request.node.name)
    far.cell.fresh()
    far.cell.next_call()
    try:
        yield far
    finally:
        far.engine.resume()
        far.engine.start()
        far.engine_is_back()
        far.cell.end()


def refused(cell: Cell, name: str) -> ChaindockError | None:
    try:
        cell.books.put(cell.world, name)
    except ChaindockError as error:
        return error
    return None


def refused_in_time(apart: Apart) -> None:
    """While the engine is away a call is answered, or fails with the reason, in time."""
    cell = apart.cell
    began = time.monotonic()
    failed = refused(cell, VICTIM)
    assert failed is None or (failed.hint and failed.slug != "internal"), failed
    assert time.monotonic() - began < WAIT_S + NEXT_CALL_S


@ROUND
def test_stopped_and_started_again(apart: Apart, round_: int) -> None:
    apart.engine.stop()
    refused_in_time(apart)
    apart.engine.start()
    apart.engine_is_back()


@ROUND
def test_killed_and_started_again(apart: Apart, round_: int) -> None:
    apart.engine.kill()
    refused_in_time(apart)
    apart.engine.start()
    apart.engine_is_back()


@ROUND
def test_killed_while_chaincode_is_deployed(apart: Apart, round_: int) -> None:
    cell = apart.cell
    package = cell.package(f"{cell.label}-next")
    with pytest.raises(ChaindockError) as caught:
        kill_engine_in(apart, cell.world.deploying(VICTIM, package))
    assert caught.value.hint, caught.value.message
    apart.engine.start()
    apart.engine_is_back()
    cell.world.deploy(VICTIM, f"{cell.label}-again")
    cell.next_call()
    cell.well(victim=RUNNING)


def kill_engine_in(apart: Apart, events: Iterator[dict[str, Any]]) -> None:
    for event in events:
        if event.get("phase") in {"create", "start"}:
            apart.engine.kill()


@ROUND
def test_hanging_for_a_while(apart: Apart, round_: int) -> None:
    """Calls need no engine; a stop waits for it, and then does what it should."""
    cell = apart.cell
    apart.engine.pause()
    cell.next_call()
    cell.next_call(STEADY)
    time.sleep(1)
    apart.engine.resume()
    cell.world.admin.stop(VICTIM)
    assert_well(cell.world, {STEADY: RUNNING, VICTIM: "stopped"}, cell.healthy)
    cell.world.start(VICTIM)
    apart.engine_is_back()


@ROUND
def test_the_node_is_killed_with_it(apart: Apart, round_: int) -> None:
    """As the machine is: both come back, and find what they had."""
    cell = apart.cell
    apart.engine.kill()
    cell.world.kill()
    apart.engine.start()
    cell.world.up()
    apart.engine_is_back()
