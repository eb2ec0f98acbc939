"""The network between chaincode and node breaks: the chaincode is started again."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from chaindock.errors import ExecuteFailed
from chaindock.processes.sandbox import PEER
from support.faults.clients import Callers
from support.faults.health import RUNNING, SANDBOX
from support.faults.matrix import NEXT_CALL_S, ROUND, STEADY, VICTIM, cells
from support.faults.own_engine import KINDS, backend_of
from support.need import missing, need
from support.nodes.node import DOCKER, PROCESS, eventually
from support.nodes.remains import ask, inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chaindock.controllers.docker.engine import Engine
    from support.faults.matrix import Cell

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
SANDBOXED = "sandbox"
NOTICED_S = 80.0
"""A ping after 45 s of silence, 20 s for its answer, and some more."""


@pytest.fixture(scope="module", params=[*KINDS, SANDBOXED])
def cell_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cell]:
    """A run in a sandbox has a network of its own, in which faults are made for it."""
    folder = tmp_path_factory.mktemp("world")
    sandboxed = request.param == SANDBOXED
    if sandboxed:
        need("bwrap", "nsenter")
    flags = {SANDBOX: "require" if sandboxed else "off"}
    kind = PROCESS if sandboxed else request.param
    with backend_of(kind) as backend, cells(backend, folder, flags) as found:
        yield found


@ROUND
def test_a_connection_that_breaks_costs_the_calls_on_it(
    cell: Cell, round_: int
) -> None:
    """The kernel ends it on both sides, as a lost route does in the end."""
    need("ss")
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    with Callers(cell.world, cell.calls, [VICTIM, STEADY]) as callers:
        callers.wait(6)
        cell.pause(0.2)
        cut(cell)
        callers.wait(6)
    cell.wait_for_another(before)
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


@ROUND
@pytest.mark.parametrize("cell_of", [DOCKER], indirect=True)
def test_a_container_without_a_network_is_noticed_and_replaced(
    cell: Cell, round_: int
) -> None:
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    disconnect(before)
    is_replaced(cell, before)
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_packets_that_are_lost_for_a_while_cost_the_calls_of_that_time(
    cell: Cell, round_: int
) -> None:
    """Nobody is told that they are: the same one serves when they pass again."""
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    with lost(cell):
        fails_in_time(cell)
        cell.next_call(STEADY)
        cell.pause(1)
    cell.next_call()
    assert cell.world.place(VICTIM) == before
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_packets_that_are_lost_for_good_are_noticed(cell: Cell, round_: int) -> None:
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    with lost(cell):
        is_replaced(cell, before)
    cell.assert_healthy(victim=RUNNING)


@ROUND
def test_calls_wait_for_what_is_started_again(cell: Cell, round_: int) -> None:
    """Calls that come while it is down are answered, not refused."""
    cell.deploy_victim()
    before = cell.world.place(VICTIM)
    pid = cell.world.signal_chaincode(VICTIM, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(pid), "it is dead")
    # The next one may run already when ps is asked.
    eventually(lambda: cell.world.place(VICTIM) != before, "that is known")
    cell.next_call()
    cell.assert_healthy(victim=RUNNING)


def is_replaced(cell: Cell, before: str) -> None:
    """A call fails in time, the other serves, another one runs and answers."""
    began = time.monotonic()
    fails_in_time(cell)
    cell.next_call(STEADY)
    cell.wait_for_another(before, NOTICED_S)
    print(f"noticed and replaced after {time.monotonic() - began:.1f} s")
    cell.next_call()


def fails_in_time(cell: Cell) -> None:
    began = time.monotonic()
    with pytest.raises(ExecuteFailed):
        cell.world.query(VICTIM, "get", "any", timeout_s=2)
    assert time.monotonic() - began < 2 + NEXT_CALL_S


@contextlib.contextmanager
def lost(cell: Cell) -> Iterator[None]:
    """A time in which every packet between the node and `victim` is lost, both ways."""
    need("iptables")
    if os.geteuid() != 0:
        missing("only root can have packets dropped")
    ends = connections(cell)
    assert ends, "the chaincode has no connection to the node"
    with contextlib.ExitStack() as rules:
        for address, port in ends:
            come = ("PREROUTING", "-s", address, "--sport", port)
            go = ("OUTPUT", "-d", address, "--dport", port)
            rules.enter_context(dropping(network_of(cell), *come))
            rules.enter_context(dropping(network_of(cell), *go))
        yield


@contextlib.contextmanager
def dropping(network: Sequence[str], chain: str, *which: str) -> Iterator[None]:
    """A rule in the table that nobody else uses: the node sees to its own one."""
    rule = (chain, "-p", "tcp", *which, "-m", "comment", "--comment", "fault", "-j")
    table = (*network, "iptables", "-w", "5", "-t", "raw")
    run(*table, "-I", *rule, "DROP")
    try:
        yield
    finally:
        if not network or Path(network[1].removeprefix("--net=")).exists():
            run(*table, "-D", *rule, "DROP")  # else it went with the network


def run(*words: str, checked: bool = True) -> str:
    """Return what a command prints; `checked`: it has to succeed."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not checked, done.stderr
    return done.stdout


def network_of(cell: Cell) -> tuple[str, ...]:
    """What runs a command in the network of `victim`; () = that of this machine."""
    first = psutil.Process(cell.world.chaincode_pid(VICTIM))
    here = Path("/proc/self/ns/net").readlink()
    for process in reversed((first, *first.children(recursive=True))):
        network = Path(f"/proc/{process.pid}/ns/net")
        if cell.world.backend != "docker" and network.readlink() != here:
            return "nsenter", f"--net={network}"
    return ()


def connections(cell: Cell) -> list[tuple[str, str]]:
    """Address and port of the chaincode's side of each connection to the node."""
    if cell.world.backend != "docker":
        ends = [end.rpartition(":") for end in far_ends(cell)]
        return [(address, port) for address, _, port in ends]
    (far,) = far_ends(cell)
    found = psutil.Process(cell.world.pid).net_connections(kind="tcp")
    peers: list[Any] = [one.raddr for one in found]  # () while it listens
    return [
        (far, str(end.port))
        for end in peers
        if end and end.ip.removeprefix("::ffff:") == far
    ]


def cut(cell: Cell) -> None:
    """End the connections between the node and `victim`."""
    before, far, network = cell.world.place(VICTIM), far_ends(cell), network_of(cell)
    for one in far:
        run(*network, "ss", "-K", "-t", "dst", one)
    listed = (*network, "ss", "-H", "-t", "dst")  # the network may be gone, too
    left = [one for one in far if "ESTAB" in run(*listed, one, checked=not network)]
    if left and cell.world.place(VICTIM) == before:
        pytest.skip(f"this kernel ends no connection of others: {left} is open")


def far_ends(cell: Cell) -> list[str]:
    """Address and port of the chaincode's side, as the node sees it."""
    if cell.world.backend == "docker":
        networks = inspect(cell.world.place(VICTIM))["NetworkSettings"]["Networks"]
        return [one["IPAddress"] for one in networks.values()]
    if network := network_of(cell):
        lines = run(*network, "ss", "-Htn", "state", "established").splitlines()
        ends = [line.split()[2:4] for line in lines]
        return [own for own, other in ends if other == PEER]
    listeners = cell.world.admin.status()["endpoints"]["chaincode"]
    ports = {int(one.rpartition(":")[2]) for one in listeners.split(", ")}
    found = psutil.Process(cell.world.chaincode_pid(VICTIM)).net_connections("tcp")
    return [
        f"{one.laddr.ip}:{one.laddr.port}"
        for one in found
        if getattr(one.raddr, "port", 0) in ports
    ]


def disconnect(container: str) -> None:
    (network,) = inspect(container)["NetworkSettings"]["Networks"]
    body = json.dumps({"Container": container, "Force": True}).encode()

    async def leave(engine: Engine) -> None:
        async with engine.answer("POST", f"networks/{network}/disconnect", data=body):
            pass

    ask(leave)
