"""One supervisor per chaincode: order of starts and stops, and that none delays another."""

from __future__ import annotations

import asyncio

import pytest

from chaindock.container.attempt import Attempt
from chaindock.errors import EngineTimeout, LaunchTimeout, NodeStopping, StartFailed
from chaindock.ids import Ccid
from chaindock.lifecycle import custodian as custodian_module
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.states import CustodianOptions, LaunchState, Target
from support.doubles.machine import FAST, A, B
from support.eventually import eventually


def ccids(letter: str, count: int) -> list[Ccid]:
    return [Ccid(f"{letter}{n}:" + "3" * 64) for n in range(count)]


# ---- one chaincode


async def test_a_launch_that_is_asked_for_during_a_stop_follows_it(custodian, machine):
    await custodian.launch(A)
    stop = asyncio.ensure_future(custodian.stop(A))
    launch = asyncio.ensure_future(custodian.launch(A))
    await asyncio.gather(stop, launch)
    assert machine.log == [
        ("launch", A), ("up", A), ("stop", A), ("launch", A), ("up", A)
    ]  # fmt: skip


async def test_equal_launches_are_one(custodian, machine):
    gate = machine.hold(A)
    launches = [asyncio.ensure_future(custodian.launch(A)) for _ in range(5)]
    await machine.until("launch", A)
    gate.set()
    await asyncio.gather(*launches)
    assert machine.log == [("launch", A), ("up", A)]


@pytest.mark.parametrize("up", [False, True])
async def test_an_attempt_that_is_not_needed_is_closed_and_told(
    custodian, machine, *, up: bool
):
    gate = machine.hold(A)
    first = asyncio.ensure_future(custodian.launch(A))
    await machine.until("launch", A)
    if up:
        gate.set()
        await first
    spare = Attempt(A)
    second = asyncio.ensure_future(custodian.launch(A, spare))
    await asyncio.sleep(0)
    doing = "running" if up else "being launched"
    assert spare.reused == [f"it is {doing} already"]
    gate.set()
    await asyncio.gather(first, second)


async def test_a_stop_overtakes_the_launch_under_way(custodian, machine):
    machine.hold(A)
    launch = asyncio.ensure_future(custodian.launch(A))
    await machine.until("launch", A)
    async with asyncio.timeout(1):
        await custodian.stop(A)
    with pytest.raises(StartFailed, match="was stopped while it started"):
        await launch
    assert machine.log == [("launch", A)]
    assert custodian.find(A).state is LaunchState.DOWN


async def test_a_stop_drops_the_launch_that_waits(custodian, machine):
    await custodian.launch(A)
    gate = machine.stop_gates[A] = asyncio.Event()
    first = asyncio.ensure_future(custodian.stop(A))
    await machine.until("stop", A)
    launch = asyncio.ensure_future(custodian.launch(A))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(custodian.stop(A))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, second)
    with pytest.raises(StartFailed):
        await launch
    assert machine.count("launch", A) == 1


async def test_a_stop_right_after_a_launch_was_asked_for_starts_nothing(
    custodian, machine
):
    launch = asyncio.ensure_future(custodian.launch(A))
    stop = asyncio.ensure_future(custodian.stop(A))
    await stop
    with pytest.raises(StartFailed):
        await launch
    assert machine.count("up", A) == 0
    await custodian.launch(A)
    assert machine.log[-1] == ("up", A)


async def test_a_second_stop_hurries_the_first(custodian, machine):
    await custodian.launch(A)
    gate = machine.stop_gates[A] = asyncio.Event()
    slow = asyncio.ensure_future(custodian.stop(A))
    await machine.until("stop", A)
    quick = custodian.find(A).ask_down(Target.STOPPED, 1, 0.5)
    assert machine.log[-1] == ("hurry", 0.5)
    gate.set()
    await asyncio.gather(slow, quick.wait())


async def test_a_stop_that_failed_is_told_and_a_launch_works_again(custodian, machine):
    await custodian.launch(A)
    machine.runs[A].stop_error = EngineTimeout("was not stopped")
    with pytest.raises(EngineTimeout, match="was not stopped"):
        await custodian.stop(A)
    await custodian.launch(A)


async def test_a_build_that_cannot_be_removed_is_told(custodian, machine, monkeypatch):
    async def hangs(_: Ccid) -> None:
        raise EngineTimeout("the engine did not answer")

    await custodian.launch(A)
    monkeypatch.setattr(machine, "discard", hangs)
    with pytest.raises(EngineTimeout, match="did not answer"):
        await custodian.stop(A, Target.REMOVED)
    assert machine.runs == {}


async def test_a_removal_discards_the_build_and_leaves_no_record(custodian, machine):
    await custodian.launch(A)
    await custodian.stop(A, Target.REMOVED)
    assert machine.log[-2:] == [("stop", A), ("discard", A)]
    assert custodian.find(A) is None
    await custodian.stop(B, Target.REMOVED)
    assert machine.log[-1] == ("discard", B)
    assert custodian.all() == []


async def test_a_launch_during_a_removal_builds_again(custodian, machine):
    await custodian.launch(A)
    gate = machine.stop_gates[A] = asyncio.Event()
    removal = asyncio.ensure_future(custodian.stop(A, Target.REMOVED))
    await machine.until("stop", A)
    launch = asyncio.ensure_future(custodian.launch(A))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(removal, launch)
    assert machine.log[-3:] == [("discard", A), ("launch", A), ("up", A)]


async def test_all_waiters_get_the_error_of_the_launch(custodian, machine):
    machine.errors[A] = LaunchTimeout("too slow")
    results = await asyncio.gather(
        *(custodian.launch(A, trial=True) for _ in range(3)), return_exceptions=True
    )
    assert [str(one) for one in results] == ["too slow"] * 3
    assert len({id(one) for one in results}) == 3


async def test_leaving_does_not_end_the_launch(custodian, machine):
    gate = machine.hold(A)
    launch = asyncio.ensure_future(custodian.launch(A))
    await machine.until("launch", A)
    launch.cancel()
    gate.set()
    await machine.until("up", A)


async def test_a_first_deployment_that_fails_is_not_tried_again(custodian, machine):
    machine.errors[A] = LaunchTimeout("too slow")
    with pytest.raises(LaunchTimeout):
        await custodian.launch(A, trial=True)
    await asyncio.sleep(0.05)
    assert machine.count("launch", A) == 1
    assert custodian.find(A).target is Target.STOPPED


async def test_a_chaincode_is_watched_from_the_moment_it_is_up(custodian, machine):
    """Also before the definition of a first deployment is committed."""
    await custodian.launch(A, trial=True)
    machine.runs[A].die()
    await machine.until("up", A, 2)


# ---- many


async def test_a_hanging_launch_delays_no_other(custodian, machine):
    machine.hold(A)
    hanging = asyncio.ensure_future(custodian.launch(A))
    await machine.until("launch", A)
    async with asyncio.timeout(5):
        await custodian.launch(B)
    hanging.cancel()


async def test_only_so_many_launches_begin_side_by_side(machine):
    many = ccids("c", 10)
    gates = [machine.hold(c) for c in many]
    async with Custodian(machine, CustodianOptions(parallel=2)) as custodian:
        launches = [asyncio.ensure_future(custodian.launch(c)) for c in many]
        await eventually(lambda: machine.busy == 2)
        for gate in gates:
            gate.set()
        await asyncio.gather(*launches)
    assert machine.most == 2


async def test_many_that_hang_delay_no_other_for_long(machine):
    hung = ccids("h", 15)
    for ccid in hung:
        machine.hold(ccid)
    async with Custodian(machine, CustodianOptions(parallel=2)) as custodian:
        waiting = [asyncio.ensure_future(custodian.launch(c)) for c in hung]
        await eventually(lambda: machine.busy == len(hung))
        async with asyncio.timeout(5):
            await custodian.launch(B)
        assert not any(one.done() for one in waiting)
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_those_that_hang_are_bounded_in_number(machine, monkeypatch):
    """Eight times the slots; one that hangs longer does not count any more."""
    monkeypatch.setattr(custodian_module, "_CROWD_S", 2.0)
    hung = ccids("h", 8)
    for ccid in hung:
        machine.hold(ccid)
    async with Custodian(machine, CustodianOptions(parallel=1)) as custodian:
        waiting = [asyncio.ensure_future(custodian.launch(c)) for c in hung]
        await eventually(lambda: machine.busy == len(hung))
        late = asyncio.ensure_future(custodian.launch(B))
        await asyncio.sleep(0.15)
        assert machine.count("launch", B) == 0
        async with asyncio.timeout(5):
            await late
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_launch_that_is_stopped_while_it_waits_keeps_no_slot(
    machine, monkeypatch
):
    # However busy the machine is, the first launch keeps its slot.
    monkeypatch.setattr(custodian_module, "_SLOT_S", 60.0)
    gate = machine.hold(A)
    c = Ccid("c:" + "6" * 64)
    async with Custodian(machine, CustodianOptions(parallel=1)) as custodian:
        first = asyncio.ensure_future(custodian.launch(A))
        await eventually(lambda: machine.busy == 1)
        leaves = asyncio.ensure_future(custodian.launch(B))
        stays = asyncio.ensure_future(custodian.launch(c))
        await asyncio.sleep(0.01)
        await custodian.stop(B)
        with pytest.raises(StartFailed):
            await leaves
        gate.set()
        await asyncio.gather(first, stays)
    assert machine.count("launch", B) == 0


async def test_twenty_launch_side_by_side(machine, monkeypatch):
    # However busy the machine is, each launch keeps its slot.
    monkeypatch.setattr(custodian_module, "_SLOT_S", 60.0)
    many = ccids("c", 20)
    gates = [machine.hold(ccid) for ccid in many]
    async with Custodian(machine, CustodianOptions(parallel=20)) as custodian:
        launches = [asyncio.ensure_future(custodian.launch(ccid)) for ccid in many]
        await eventually(lambda: machine.busy == 20)
        for gate in gates:
            gate.set()
        await asyncio.gather(*launches)


# ---- the end of the node


async def test_a_launch_that_waits_when_the_node_ends_is_told(machine, capsys):
    many = ccids("c", 5)
    for ccid in many:
        machine.hold(ccid)
    custodian = Custodian(machine, CustodianOptions(parallel=1))
    launches = [asyncio.ensure_future(custodian.launch(c)) for c in many]
    await eventually(lambda: machine.busy == 1)
    await custodian.aclose()
    ends = await asyncio.gather(*launches, return_exceptions=True)
    assert all(isinstance(end, NodeStopping) for end in ends), ends
    assert machine.busy == 0
    assert "task failed" not in capsys.readouterr().out


async def test_after_closing_nothing_runs_and_nothing_starts(machine):
    custodian = Custodian(machine, FAST)
    await custodian.launch(B)
    machine.hold(A)
    launch = asyncio.ensure_future(custodian.launch(A))
    await machine.until("launch", A)
    await custodian.aclose()
    with pytest.raises(NodeStopping, match="the node is stopping"):
        await launch
    for call in (custodian.launch(B), custodian.stop(B), custodian.ready(B, 1)):
        with pytest.raises(NodeStopping):
            await call
    assert (machine.busy, machine.runs) == (0, {})
