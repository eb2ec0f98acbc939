"""A defect of a supervisor leaves no chaincode unwatched, and no stop undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import ChaindockError, LaunchFailed
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.states import CustodianOptions, LaunchState, Target
from support.doubles.machine import A, Machine
from support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chaindock.ids import Ccid
    from chaindock.lifecycle.supervisor import Supervisor


@pytest.fixture
async def custodian(machine: Machine) -> AsyncIterator[Custodian]:
    options = CustodianOptions(retry_first_s=0.01, retry_cap_s=0.02, retries=2)
    async with Custodian(machine, options) as custodian:
        yield custodian


@pytest.fixture
async def up(custodian: Custodian) -> Supervisor:
    await custodian.launch(A)
    found = custodian.find(A)
    assert found is not None
    return found


async def test_a_defect_while_a_run_is_watched_has_the_chaincode_started_again(
    custodian, machine, up, monkeypatch
):
    async def bury(_: Any) -> None:
        monkeypatch.undo()
        raise KeyError("a defect")

    monkeypatch.setattr(up, "_bury", bury)
    machine.runs[A].die()
    await machine.until("up", A, 2)
    await eventually(lambda: up.state is LaunchState.RUNNING)
    assert custodian.find(A) is up
    await custodian.stop(A)
    assert machine.runs == {}


async def test_a_defect_that_stays_ends_as_a_crash_loop(
    custodian, machine, up, monkeypatch
):
    def new_attempt(_: Ccid) -> Any:
        raise KeyError("a defect")

    monkeypatch.setattr(up, "_new_attempt", new_attempt)
    machine.runs[A].die()
    await eventually(lambda: up.state is LaunchState.CRASH_LOOP)
    assert "a defect" in str(up.trouble)
    with pytest.raises(LaunchFailed, match="a defect"):
        await custodian.ready(A, 5)


@pytest.mark.parametrize("target", [Target.STOPPED, Target.REMOVED])
async def test_a_stop_that_meets_a_defect_ends_the_run_and_says_so(
    custodian, machine, up, monkeypatch, target
):
    """Also one that stays: it must not be met again and again."""
    met = []

    async def go_down(_: Any) -> None:
        met.append(1)
        raise KeyError("a defect")

    monkeypatch.setattr(up, "_go_down", go_down)
    with pytest.raises(ChaindockError, match="a defect"):
        await custodian.stop(A, target)
    assert machine.runs == {}
    assert up.state is LaunchState.DOWN
    assert len(met) == 1
    monkeypatch.undo()
    await custodian.launch(A)
    assert A in machine.runs


async def test_a_removal_that_meets_a_defect_discards_nothing_later(
    custodian, machine, up, monkeypatch
):
    async def go_down(_: Any) -> None:
        monkeypatch.undo()
        up.ask_running()
        raise KeyError("a defect")

    monkeypatch.setattr(up, "_go_down", go_down)
    with pytest.raises(ChaindockError, match="a defect"):
        await custodian.stop(A, Target.REMOVED)
    await machine.until("up", A, 2)
    await custodian.stop(A)
    assert machine.count("discard", A) == 0
