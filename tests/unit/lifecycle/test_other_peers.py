"""What serves the peers of other organisations than the node's first one."""

from __future__ import annotations

import asyncio

import pytest

from chaindock.errors import ChaincodeRetired, StartFailed
from chaindock.ids import at_peer
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.states import Target
from support.doubles.machine import FAST, A, B
from support.eventually import eventually

A2 = at_peer(A, "Org2MSP")


async def test_what_serves_another_peer_is_launched_by_its_first_call(
    custodian, machine
):
    await custodian.launch(A)
    assert machine.log == [("launch", A), ("up", A)]
    await asyncio.gather(*(custodian.ready(A2, 5) for _ in range(3)))
    assert machine.log[2:] == [("launch", A2), ("up", A2)]
    assert [one.ccid for one in custodian.others(A)] == [A2]


@pytest.mark.parametrize("target", [Target.STOPPED, Target.REMOVED])
async def test_it_ends_with_its_package_before_the_build_goes(
    custodian, machine, target: Target
):
    await custodian.launch(A)
    await custodian.ready(A2, 5)
    await custodian.launch(B)
    await custodian.stop(A, target)
    assert [*machine.runs] == [B]
    assert machine.log.index(("stop", A2)) < len(machine.log) - 1
    discarded = [ccid for what, ccid in machine.log if what == "discard"]
    assert discarded == ([A2] if target is Target.STOPPED else [A2, A])
    with pytest.raises(ChaincodeRetired):
        await custodian.ready(A2, 5)
    await custodian.launch(A)
    await custodian.ready(A2, 5)
    assert {*machine.runs} == {A, A2, B}


async def test_it_is_started_again_by_itself_and_by_a_start(custodian, machine):
    await custodian.launch(A)
    await custodian.ready(A2, 5)
    machine.runs[A2].die()
    await machine.until("up", A2, 2)
    assert machine.count("up", A) == 1
    machine.errors[A2] = StartFailed("no", ccid=A2)
    machine.runs[A2].die()
    await eventually(lambda: [one.ccid for one in custodian.gave_up()] == [A2])
    with pytest.raises(StartFailed, match="gave up") as told:
        await custodian.ready(A2, 5)
    assert told.value.hint == f"see why: chaindock logs {A2}; then: chaindock start {A}"
    del machine.errors[A2]
    await custodian.launch(A)
    await machine.until("up", A2, 3)


async def test_a_call_under_way_starts_nothing_at_a_peer_that_was_stopped(machine):
    stopped: set[str] = set()
    async with Custodian(
        machine, FAST, serves=lambda mspid: mspid not in stopped
    ) as custodian:
        await custodian.launch(A)
        await custodian.ready(A2, 5)
        gate = machine.stop_gates[A2] = asyncio.Event()
        stopped.add("Org2MSP")
        stop = asyncio.ensure_future(custodian.stop(A2, Target.REMOVED))
        await machine.until("stop", A2)
        with pytest.raises(ChaincodeRetired):
            await custodian.ready(A2, 5)
        await custodian.launch(A)
        gate.set()
        await stop
        with pytest.raises(ChaincodeRetired):
            await custodian.ready(A2, 5)
        assert {*machine.runs} == {A}
        stopped.clear()
        await custodian.ready(A2, 5)
        assert {*machine.runs} == {A, A2}
