"""The disk of the home is full for a while: nothing is lost, and it says so."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ChaindockError, LedgerError, StorageError
from support.faults.disk import full, small_disk
from support.faults.health import RUNNING
from support.faults.matrix import ROUND, STEADY, VICTIM, Cell, cells
from support.faults.packages import misbehaves
from support.faults.world import last
from support.nodes.node import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module", params=BACKENDS)
def cell_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    """As for the other faults, with the home on a small disk."""
    folder = tmp_path_factory.mktemp("world")
    with small_disk(folder / "home"), cells(request.param, folder) as found:
        yield found


@ROUND
def test_calls_that_write_fail_and_those_that_read_do_not(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    cell.next_call()
    with full(cell.world.home):
        for name in (VICTIM, STEADY):
            with pytest.raises(LedgerError, match="full"):
                write_on(cell, name)
            assert cell.world.query(name, "get", "nothing") == ""
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


def write_on(cell: Cell, name: str) -> None:
    """There may be some room in the ledger's own files."""
    for _ in range(50):
        cell.calls.put(cell.world, name)


@ROUND
def test_a_deployment_fails_and_the_former_version_serves_on(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    package = misbehaves(cell.world.packages, f"{cell.label}-next")
    with full(cell.world.home):
        with pytest.raises((StorageError, LedgerError)) as caught:
            last(cell.world.deploying(VICTIM, package))
        assert caught.value.hint
        assert cell.world.query(VICTIM, "get", "nothing") == ""
    assert cell.world.place(VICTIM) == before
    last(cell.world.deploying(VICTIM, package))
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_chaincode_that_dies_meanwhile_comes_back_when_there_is_room(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    with full(cell.world.home):
        cell.world.signal_chaincode(VICTIM, signal.SIGKILL)
        with contextlib.suppress(ChaindockError):
            cell.world.query(VICTIM, "get", "nothing", timeout_s=5)
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)
