"""Chaincode that dies, freezes, lies, floods or will not go: the node goes on."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from chaindock.errors import ChaindockError, ExecuteTimeout, LaunchFailed
from support.faults.clients import Callers
from support.faults.health import RUNNING, STOPPED
from support.faults.matrix import (
    CONNECT_S,
    GRACE_S,
    NEXT_CALL_S,
    ROUND,
    ROUNDS,
    STEADY,
    VICTIM,
)
from support.faults.packages import misbehaves
from support.nodes.node import eventually, is_there

if TYPE_CHECKING:
    from support.faults.matrix import Cell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
LARGEST_LOG = 64 * 1024 * 1024
MORE_MEMORY = 64 * 1024 * 1024
FLOODS = ((1000, 8000), (1000, 100)) if ROUNDS > 1 else ((120, 8000), (12, 100))
"""MB, and bytes of a line: short lines are the ones that cost."""


@ROUND
def test_killed_under_calls_it_is_started_again(cell: Cell, round_: int) -> None:
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    with Callers(cell.world, cell.calls, [VICTIM, STEADY]) as callers:
        callers.wait(10)
        cell.pause(0.3)
        assert cell.world.signal_chaincode(VICTIM, signal.SIGKILL)
        cell.wait_for_another(before)
        callers.wait(10)
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_ended_by_itself_within_a_call_it_is_started_again(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    with pytest.raises(ChaindockError) as caught:
        cell.world.invoke(VICTIM, "crash")
    assert caught.value.slug == "stream-terminated"
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_frozen_it_costs_its_own_calls_only(cell: Cell, round_: int) -> None:
    """For a process this is also what a network looks like that drops everything."""
    cell.deploy_victim()
    cell.pause(0.2)
    pid = cell.world.signal_chaincode(VICTIM, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(ExecuteTimeout):
            cell.world.query(VICTIM, "get", "any", timeout_s=1)
        assert time.monotonic() - began < 1 + NEXT_CALL_S
        cell.next_call(STEADY)
    finally:
        if is_there(pid):
            cell.world.signal_chaincode(VICTIM, signal.SIGCONT)
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_frozen_it_can_be_stopped_and_started(cell: Cell, round_: int) -> None:
    cell.deploy_victim()
    pid = cell.world.signal_chaincode(VICTIM, signal.SIGSTOP)
    cell.world.admin.stop(VICTIM)
    assert not is_there(pid)
    cell.assert_healthy(victim=STOPPED)
    cell.world.start(VICTIM)
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_one_that_never_registers_is_given_up_in_time(cell: Cell, round_: int) -> None:
    package = misbehaves(cell.world.packages, f"never-registers-{cell.label}")
    began = time.monotonic()
    facts = cell.refused(package, "launch-timeout")
    spent_s = time.monotonic() - began
    assert CONNECT_S <= spent_s < CONNECT_S + NEXT_CALL_S
    assert facts["phase"] == "connect"
    assert "waiting for something that will not come" in facts["output"]
    cell.assert_healthy()


@ROUND
def test_one_that_never_registers_takes_nothing_from_the_former_version(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    package = misbehaves(cell.world.packages, f"never-registers-{cell.label}")
    with Callers(cell.world, cell.calls, [VICTIM]) as callers:
        callers.wait(3)
        cell.refused(package, "launch-timeout")
        callers.wait(3)
    assert cell.world.place(VICTIM) == before
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_one_that_exits_before_it_registers_is_told(cell: Cell, round_: int) -> None:
    package = misbehaves(cell.world.packages, f"exits-{cell.label}")
    facts = cell.refused(package, "exited-early")
    assert (facts["exit_code"], facts["signal"]) == (3, None)
    assert "the licence key is missing" in facts["output"]
    cell.assert_healthy()


@ROUND
def test_a_second_registration_is_refused_and_the_first_serves_on(
    cell: Cell, round_: int
) -> None:
    ccid = cell.deploy_victim()
    before = cell.world.place(VICTIM)
    told = cell.world.query(VICTIM, "as", ccid, timeout_s=15)
    assert told != "taken"
    cell.next_call()
    assert cell.world.place(VICTIM) == before
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_one_that_registers_as_another_is_refused(cell: Cell, round_: int) -> None:
    package = misbehaves(cell.world.packages, f"registers-as-another-{cell.label}")
    facts = cell.refused(package, "exited-early")
    assert facts["phase"] in {"connect", "register"}
    cell.assert_healthy()


@ROUND
def test_one_that_registers_as_another_harms_neither_of_them(
    cell: Cell, round_: int
) -> None:
    """The other runs, is started, or is not there at all."""
    cell.deploy_victim()
    steady = cell.world.line(STEADY)["package_id"]
    before = cell.world.place(STEADY)
    for name in (steady, "another:" + "c" * 64):
        assert cell.world.query(VICTIM, "as", name, timeout_s=15) != "taken"
    assert cell.world.place(STEADY) == before
    cell.next_call()
    cell.next_call(STEADY)
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_one_that_ignores_signals_is_ended_after_the_grace(
    cell: Cell, round_: int
) -> None:
    package = misbehaves(cell.world.packages, f"ignores-sigterm-{cell.label}")
    for _ in cell.world.deploying(VICTIM, package):
        pass
    cell.next_call()
    pid = cell.world.chaincode_pid(VICTIM)
    with Callers(cell.world, cell.calls, [STEADY]) as callers:
        callers.wait(1)
        began = time.monotonic()
        cell.world.admin.stop(VICTIM)
        spent_s = time.monotonic() - began
        callers.wait(1)
    assert not is_there(pid)
    assert spent_s < GRACE_S + NEXT_CALL_S
    cell.assert_healthy(victim=STOPPED)
    cell.world.start(VICTIM)
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
@pytest.mark.parametrize(("megabytes", "width"), FLOODS)
def test_a_flood_of_output_fills_neither_memory_nor_disk(
    cell: Cell, megabytes: int, width: int, round_: int
) -> None:
    ccid = cell.deploy_victim()
    before = psutil.Process(cell.world.pid).memory_info().rss
    forget_peak(cell.world.pid)
    words = str(megabytes), str(width)
    with Callers(cell.world, cell.calls, [STEADY], each=1) as callers:
        callers.wait(1)
        began = time.monotonic()
        told = cell.world.query(VICTIM, "flood", *words, timeout_s=560)
        spent_s = time.monotonic() - began
        callers.wait(1)
    assert told == "printed"

    def read_to_the_end() -> bool:
        lines = [one["line"] for one in cell.world.admin.logs(VICTIM)]
        return "flood is over" in lines[-3:]

    eventually(read_to_the_end, "the last line is there", 120)
    highest = peak(cell.world.pid)
    assert highest - before < MORE_MEMORY
    folder = cell.world.home / "output"
    size = sum(path.stat().st_size for path in folder.rglob("*.log"))
    print(
        f"{megabytes} MB in {spent_s:.1f} s, {size / 1e6:.0f} MB kept, "
        f"{(highest - before) / 1e6:.0f} MB more memory; "
        f"slowest call of another: {callers.slowest_s:.3f} s"
    )
    assert size < LARGEST_LOG, ccid
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


def forget_peak(pid: int) -> None:
    """Let the kernel note the peak of a process anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak(pid: int) -> int:
    """Return the most resident memory that a process ever had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, status
    return int(found[1]) * 1024


@ROUND
def test_one_that_never_stays_up_is_left_alone_and_says_why(
    cell: Cell, round_: int
) -> None:
    """It registers, and ends soon after, each time."""
    package = misbehaves(cell.world.packages, f"leaves-{cell.label}")
    for _ in cell.world.deploying(VICTIM, package):
        pass
    with Callers(cell.world, cell.calls, [STEADY], each=1) as callers:
        callers.wait(1)
        eventually(
            lambda: cell.world.line(VICTIM)["state"] == "crash-loop",
            "it is left alone",
            60,
        )
        callers.wait(1)
    began = time.monotonic()
    with pytest.raises(LaunchFailed) as caught:
        cell.world.invoke(VICTIM, "add", "hot")
    assert time.monotonic() - began < NEXT_CALL_S
    assert caught.value.facts["exit_code"] == 5
    assert f"chaindock start {VICTIM}" in (caught.value.hint or "")
    cell.assert_healthy(**{VICTIM: "crash-loop"})
