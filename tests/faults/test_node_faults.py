"""A node that is killed in any phase of a launch: the next one puts everything right."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ChaindockError
from support.faults.clients import Callers
from support.faults.health import RUNNING
from support.faults.matrix import GRACE_S, ROUND, STEADY, VICTIM, Cell
from support.faults.packages import WORKS, builds, misbehaves
from support.nodes.node import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
BUILDS = ("package", "dependencies", "compile", "image")
STARTS = ("create", "upload", "start", "connect", "register", "ready")
NOT_THERE = {("process", "image")}
"""A phase that a back end does not have. `pull` has a test of its own."""


@ROUND
@pytest.mark.parametrize("phase", [*BUILDS, *STARTS])
def test_killed_in_a_phase_it_leaves_nothing_and_the_next_one_serves(
    cell: Cell, phase: str, round_: int
) -> None:
    if (cell.world.backend, phase) in NOT_THERE:
        pytest.skip(f"{cell.world.backend} has no phase {phase!r}")
    cell.deploy_victim()
    if phase in BUILDS:
        package = builds(cell.world.packages, f"works-{cell.label}", WORKS)
    else:
        package = misbehaves(cell.world.packages, f"{cell.label}-next")
    with Callers(cell.world, cell.calls, [VICTIM, STEADY], each=1) as callers:
        callers.wait(4)
        kill_in(cell, package, phase)
        cell.world.up()
        callers.wait(4)
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)
    # What was interrupted can be done again.
    cell.world.deploy(VICTIM, f"{cell.label}-again")
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


def kill_in(cell: Cell, package: Path, phase: str) -> None:
    """Kill the node when a deployment enters `phase`; fail when it never does."""
    passed: list[str] = []
    end: object = "success"
    try:
        for event in cell.world.deploying(VICTIM, package):
            if "phase" in event:
                passed.append(event["phase"])
            if event.get("phase") == phase:
                cell.world.kill()
    except ChaindockError as error:
        end = repr(error)
    assert phase in passed, f"no phase {phase!r} came, only {passed}; then {end}"


@ROUND
def test_killed_while_it_is_idle_it_comes_back_with_everything(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    cell.next_call()
    cell.world.kill()
    cell.world.up()
    cell.next_call()
    cell.next_call(STEADY)
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_killed_while_it_starts_it_starts_the_next_time(
    cell: Cell, round_: int
) -> None:
    """Killed twice: while chaincode serves, and while the next one brings it up."""
    cell.deploy_victim()
    cell.world.kill()
    cell.world.up()
    cell.pause(0.3)
    cell.world.kill()
    cell.world.up()
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_killed_while_it_stops_a_chaincode_it_stays_stopped(
    cell: Cell, round_: int
) -> None:
    package = misbehaves(cell.world.packages, f"ignores-sigterm-{cell.label}")
    for _ in cell.world.deploying(VICTIM, package):
        pass
    stopping = threading.Thread(target=stop, args=(cell,), daemon=True)
    stopping.start()
    until_stop_is_known(cell)
    cell.world.kill()
    stopping.join(30)
    cell.world.up()
    cell.assert_healthy(victim="stopped")


@ROUND
def test_killed_while_it_removes_a_chaincode_nothing_of_it_stays(
    cell: Cell, round_: int
) -> None:
    # The cache is one that other nodes have used, too.
    label = f"ignores-sigterm-{cell.label}-{cell.world.node_id[:8]}"
    for _ in cell.world.deploying(VICTIM, misbehaves(cell.world.packages, label)):
        pass
    assert len(kept_of(cell, label)) >= 2, "a package, and a build or an image"
    removing = threading.Thread(target=remove, args=(cell,), daemon=True)
    removing.start()
    eventually(lambda: not is_known(cell), "it is being removed")
    cell.pause(0.8 * GRACE_S)  # it waits for its end so long
    cell.world.kill()
    removing.join(30)
    cell.world.up()
    assert not is_known(cell)
    eventually(lambda: not kept_of(cell, label), "its package and its builds are gone")
    cell.assert_healthy()


def remove(cell: Cell) -> None:
    with contextlib.suppress(ChaindockError):
        cell.world.admin.remove(VICTIM)


def is_known(cell: Cell) -> bool:
    return any(one["name"] == VICTIM for one in cell.world.admin.ps())


def kept_of(cell: Cell, label: str) -> list[str]:
    """Return what there is of a label: packages, builds of processes, images."""
    remains = cell.world.remains
    found = [str(one) for one in cell.world.home.glob(f"packages/{label}*")]
    if cell.world.backend == "docker":
        return found + remains.images_of(label)
    return found + [
        str(one) for one in remains.cache.glob(f"chaindock/labels/{label}*")
    ]


def stop(cell: Cell) -> None:
    with contextlib.suppress(ChaindockError):
        cell.world.admin.stop(VICTIM)


def until_stop_is_known(cell: Cell) -> None:
    eventually(lambda: cell.world.line(VICTIM)["state"] == "stopping", "it is stopping")
