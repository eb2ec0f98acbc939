"""The network between chaincode and node breaks: the chaincode is started again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import psutil
import pytest

from chaindock.errors import ExecuteFailed
from support.faults_books import Callers
from support.faults_matrix import NEXT_CALL_S, ROUND, STEADY, VICTIM
from support.faults_well import RUNNING
from support.need import need
from support.node import DOCKER, eventually
from support.remains import ask, inspect

if TYPE_CHECKING:
    from chaindock.controllers.docker.engine import Engine
    from support.faults_matrix import Cell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
NOTICED_S = 80.0
"""A ping after 45 s of silence, 20 s for its answer, and some more."""


@ROUND
def test_a_connection_that_breaks_costs_the_calls_on_it(
    cell: Cell, round_: int
) -> None:
    """The kernel ends it on both sides, as a lost route does in the end."""
    need("ss")
    cell.fresh()
    before = cell.world.place(VICTIM)
    with Callers(cell.world, cell.books, [VICTIM, STEADY]) as callers:
        callers.wait(6)
        cell.pause(0.2)
        cut(cell)
        callers.wait(6)
    eventually(lambda: cell.world.place(VICTIM) not in {before, ""}, "a new one runs")
    cell.next_call()
    cell.well(victim=RUNNING)


@pytest.mark.parametrize("cell_of", [DOCKER], indirect=True)
def test_a_container_without_a_network_is_noticed_and_replaced(cell: Cell) -> None:
    cell.fresh()
    before = cell.world.place(VICTIM)
    disconnect(before)
    began = time.monotonic()
    with pytest.raises(ExecuteFailed):
        cell.world.invoke(VICTIM, "add", "hot", timeout_s=2)
    assert time.monotonic() - began < 2 + NEXT_CALL_S
    cell.next_call(STEADY)
    eventually(
        lambda: cell.world.place(VICTIM) not in {before, ""},
        "another one runs",
        NOTICED_S,
    )
    print(f"noticed and replaced after {time.monotonic() - began:.1f} s")
    cell.next_call()
    cell.well(victim=RUNNING)


@ROUND
def test_calls_wait_for_what_is_started_again(cell: Cell, round_: int) -> None:
    """Calls that come while it is down are answered, not refused."""
    cell.fresh()
    pid = cell.world.signal_chaincode(VICTIM, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(pid), "it is dead")
    eventually(lambda: cell.world.line(VICTIM)["state"] != RUNNING, "that is known")
    cell.next_call()
    cell.well(victim=RUNNING)


def cut(cell: Cell) -> None:
    """End the connections between the node and `victim`."""
    before, far = cell.world.place(VICTIM), far_ends(cell)
    for one in far:
        done = subprocess.run(
            ["ss", "-K", "-t", "dst", one], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    left = [one for one in far if is_open(one)]
    if left and cell.world.place(VICTIM) == before:
        pytest.skip(f"this kernel ends no connection of others: {left} is open")


def far_ends(cell: Cell) -> list[str]:
    """Address and port of the chaincode's side, as the node sees it."""
    listeners = cell.world.admin.status()["endpoints"]["chaincode"]
    ports = {int(one.rpartition(":")[2]) for one in listeners.split(", ")}
    if cell.world.backend == "docker":
        networks = inspect(cell.world.place(VICTIM))["NetworkSettings"]["Networks"]
        return [one["IPAddress"] for one in networks.values()]
    process = psutil.Process(cell.world.chaincode_pid(VICTIM))
    found = process.net_connections(kind="tcp")
    return [
        f"{one.laddr.ip}:{one.laddr.port}"
        for one in found
        if getattr(one.raddr, "port", 0) in ports
    ]


def is_open(far: str) -> bool:
    done = subprocess.run(
        ["ss", "-H", "-t", "dst", far], capture_output=True, text=True, check=False
    )
    return "ESTAB" in done.stdout


def disconnect(container: str) -> None:
    (network,) = inspect(container)["NetworkSettings"]["Networks"]
    body = json.dumps({"Container": container, "Force": True}).encode()

    async def leave(engine: Engine) -> None:
        async with engine.answer("POST", f"networks/{network}/disconnect", data=body):
            pass

    ask(leave)
