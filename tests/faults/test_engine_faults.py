"""A container engine that stops, dies, hangs or has no room, and comes back."""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import ChaindockError, ExitedEarly
from support.faults.disk import MIB, full
from support.faults.health import RUNNING, assert_healthy
from support.faults.matrix import ROUND, STEADY, VICTIM
from support.faults.own_engine import ENGINES, node_on, on_a_small_disk
from support.faults.packages import builds, leaves_behind
from support.faults.world import last

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.faults.own_engine import NodeOnOwnEngine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
_numbers = itertools.count(1)
IMAGES, SIZE = ("golang", "node", "runtime"), 1024 * MIB
"""There is room for the base images, and some more."""
ARTIFACT, ROOM = 40 * MIB, 60 * MIB
"""What a build leaves behind: there is room for it once, not twice."""
FULL = "no space left on device"


@pytest.fixture(scope="module", params=ENGINES)
def far_of(
    request: pytest.FixtureRequest, image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NodeOnOwnEngine]:
    folder = tmp_path_factory.mktemp("own-engine")
    with (
        on_a_small_disk(request.param, *IMAGES, size=SIZE) as engine,
        node_on(engine, image, folder) as found,
    ):
        yield found


@pytest.fixture
def far(
    far_of: NodeOnOwnEngine, request: pytest.FixtureRequest
) -> Iterator[NodeOnOwnEngine]:
    far_of.begin(next(_numbers), request.node.name)
    try:
        yield far_of
    finally:
        far_of.end()


@ROUND
def test_stopped_and_started_again(far: NodeOnOwnEngine, round_: int) -> None:
    far.engine.stop()
    far.refused_in_time()
    far.engine.start()
    far.is_back()


@ROUND
def test_killed_and_started_again(far: NodeOnOwnEngine, round_: int) -> None:
    far.engine.kill()
    far.refused_in_time()
    far.engine.start()
    far.is_back()


@ROUND
def test_killed_while_chaincode_is_deployed(far: NodeOnOwnEngine, round_: int) -> None:
    cell = far.cell
    package = cell.package(f"{cell.label}-next")
    with pytest.raises(ChaindockError) as caught:
        kill_engine_in(far, cell.world.deploying(VICTIM, package))
    assert caught.value.hint, caught.value.message
    far.engine.start()
    far.is_back()
    cell.world.deploy(VICTIM, f"{cell.label}-again")
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


def kill_engine_in(far: NodeOnOwnEngine, events: Iterator[dict[str, Any]]) -> None:
    for event in events:
        if event.get("phase") in {"create", "start"}:
            far.engine.kill()


@ROUND
def test_hanging_for_a_while(far: NodeOnOwnEngine, round_: int) -> None:
    """Calls need no engine; a stop waits for it, and then does what it should."""
    cell = far.cell
    far.engine.pause()
    cell.next_call()
    cell.next_call(STEADY)
    time.sleep(1)
    far.engine.resume()
    cell.world.admin.stop(VICTIM)
    assert_healthy(cell.world, {STEADY: RUNNING, VICTIM: "stopped"}, cell.healthy)
    cell.world.start(VICTIM)
    far.is_back()


@ROUND
def test_the_node_is_killed_with_it(far: NodeOnOwnEngine, round_: int) -> None:
    """As the machine is: both come back, and find what they had."""
    cell = far.cell
    far.engine.kill()
    cell.world.kill()
    far.engine.start()
    cell.world.up()
    far.is_back()


@ROUND
def test_an_image_that_finds_no_room_fails_with_the_reason(
    far: NodeOnOwnEngine, round_: int
) -> None:
    cell, large = far.cell, f"large-{far.cell.label}"
    before = cell.world.place(VICTIM)
    package = builds(cell.world.packages, large, leaves_behind(ARTIFACT))
    with full(data(far), but=ROOM):
        facts = cell.refused(package, "build-failed", match=FULL)
        assert facts["phase"] == "image"
        cell.next_call()
        cell.next_call(STEADY)
    assert cell.world.place(VICTIM) == before
    with pytest.raises(ExitedEarly):  # with room it is built, and does what it does
        last(cell.world.deploying(VICTIM, package))
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_a_deployment_without_room_leaves_the_former_version(
    far: NodeOnOwnEngine, round_: int
) -> None:
    cell = far.cell
    before = cell.world.place(VICTIM)
    package = cell.package(f"{cell.label}-next")
    with full(data(far)):
        with pytest.raises(ChaindockError, match=FULL) as caught:
            last(cell.world.deploying(VICTIM, package))
        assert caught.value.hint
        assert caught.value.facts["phase"] in {"image", "create", "upload", "start"}
        cell.next_call()
        cell.next_call(STEADY)
    assert cell.world.place(VICTIM) == before
    last(cell.world.deploying(VICTIM, package))
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_chaincode_that_dies_without_room_comes_back_when_there_is_some(
    far: NodeOnOwnEngine, round_: int
) -> None:
    with full(data(far)):
        far.cell.world.signal_chaincode(VICTIM, signal.SIGKILL)
        far.refused_in_time()
        far.cell.next_call(STEADY)
    far.is_back()


@ROUND
def test_stopped_and_started_again_without_room(
    far: NodeOnOwnEngine, round_: int
) -> None:
    """It may not even start; with room it does."""
    with full(data(far)):
        far.engine.stop()
        with contextlib.suppress(AssertionError):
            far.engine.start()
        far.refused_in_time()
    far.engine.start()
    far.is_back()


def data(far: NodeOnOwnEngine) -> Path:
    """The folder of the small disk."""
    return far.engine.folder / "data"
