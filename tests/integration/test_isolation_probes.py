"""A hostile contract tries each wall, in a container and as a process.

What it aims at are addresses and processes that this test made itself.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

import psutil
import pytest

from chaindock.controllers.process.instance import SANDBOX
from chaindock.processes.sandbox import PEER
from support.need import need_docker, need_image
from support.nodes.node import DOCKER, PROCESS, SECRETS, Node, eventually, started
from support.nodes.prying import NAME, NEIGHBOUR, SOURCE, details, pry, prying
from support.nodes.remains import ask, filter_rules, inspect, inspect_network
from support.nodes.targets import (
    answers,
    elsewhere,
    in_other_network,
    listener,
    need_root,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.controllers.docker.engine import Engine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
MIB = 1024 * 1024
ONLY_DOCKER = pytest.mark.parametrize("node", [DOCKER], indirect=True)
ONLY_PROCESS = pytest.mark.parametrize("node", [PROCESS], indirect=True)
BOTH = pytest.mark.parametrize("node", [PROCESS, DOCKER], indirect=True)


@pytest.fixture(scope="module")
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with prying(request.param, tmp_path_factory.mktemp("node")) as node:
        yield node


# --- who it is ------------------------------------------------------------------------


@ONLY_DOCKER
def test_it_is_nobody_and_cannot_become_anybody(node: Node):
    seen = pry(node, "self")
    assert (seen["uid"], seen["gid"]) == (501, 501)
    status = seen["status"]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert seen["limits"] == {"core": 0, "nofile": 4096, "fsize": 8 * MIB}
    tried = pry(node, "rights")
    assert tried
    assert [name for name, why in tried.items() if not why] == []


@BOTH
def test_it_sees_and_reaches_no_process_of_this_machine(node: Node):
    host = [node.status["pid"], os.getpid()]
    # Numbers of this machine may be processes of its own in there.
    own = set(pry(node, "visible"))
    assert len(own) < 10
    others = [pid for pid in host if pid not in own]
    for verb in ("signal", "ptrace"):
        tried = pry(node, verb, *others)
        assert set(tried.values()) <= {"no such process", "operation not permitted"}


@ONLY_PROCESS
def test_a_process_has_limits_and_a_sandbox_and_says_so(node: Node):
    seen = pry(node, "self")
    assert seen["pid"] < 10
    assert int(seen["status"]["CapEff"], 16) == 0
    assert seen["status"]["NoNewPrivs"] == "1"
    assert seen["limits"] == {"core": 0, "nofile": 4096, "fsize": 8 * MIB}
    assert seen["temp"].startswith(str(node.home / "process" / "runs"))
    told = details(node)
    assert told["isolation"] == SANDBOX
    assert "weaker" not in told
    for limit in ("memory 2048 MiB", "file size 8 MiB", "open files 4096"):
        assert limit in told["limits"]


@BOTH
def test_it_is_told_nothing_of_the_node(node: Node):
    seen = "\n".join(pry(node, "env"))
    assert [value for value in SECRETS.values() if value in seen] == []
    names = {line.partition("=")[0] for line in seen.splitlines()}
    allowed = {"PATH", "HOME", "TMPDIR", "LANG", "HOSTNAME", "PWD", "SHLVL", "_"}
    ours = ("CORE_CHAINCODE_", "CORE_PEER_", "CORE_TLS_CLIENT_", "CHAINDOCK_")
    assert [n for n in names - allowed if not n.startswith(ours)] == []


# --- files, processes, processors --------------------------------------------------------


@ONLY_DOCKER
def test_it_writes_to_tmp_within_its_size_and_nowhere_else(node: Node):
    folders = ["/", "/etc", "/usr/local/bin", "/chaincode", "/var/tmp", "/proc", "/sys"]
    tried = pry(node, "write", *folders, "/etc/hyperledger/fabric", "/tmp")
    assert [folder for folder, why in tried.items() if not why] == ["/tmp"]
    much = pry(node, "fill", "/tmp", 256 * MIB, 4 * MIB)
    assert much["written"] <= 64 * MIB
    assert "no space left" in much["error"]
    assert pry(node, "fill", "/dev/shm", 256 * MIB, 4 * MIB)["written"] <= 64 * MIB


@BOTH
def test_its_files_and_descriptors_are_limited(node: Node):
    large = pry(node, "fill", "", 64 * MIB, 64 * MIB)
    assert large["written"] <= 8 * MIB
    assert "file too large" in large["error"]
    opened = pry(node, "open", 100_000)
    assert opened["opened"] < 4096
    assert "too many open files" in opened["error"]


@ONLY_DOCKER
def test_a_fork_bomb_ends_at_its_limit_and_harms_nobody(node: Node):
    bomb = pry(node, "forks", 5000)
    assert bomb["started"] < 512
    assert bomb["error"]
    assert node.ps(NEIGHBOUR)["state"] == "running"  # type: ignore[index]
    assert pry(node, "self")["uid"] == 501


@BOTH
def test_the_files_of_the_node_and_the_engine_are_not_there(node: Node):
    engine = need_docker().removeprefix("unix://")
    private = [node.home / "admin.sock", node.home / "node.json", engine]
    if node.backend == "docker":  # a process finds a path to its own directory
        private.append(str(node.home))
    tried = pry(node, "read", *private, "/var/run/docker.sock")
    assert [path for path, why in tried.items() if not why] == []
    sockets = [f"unix:{engine}", f"unix:{node.home / 'admin.sock'}"]
    tried = pry(node, "dial", *sockets, "unix:/var/run/docker.sock")
    assert [path for path, why in tried.items() if not why] == []


# --- the network --------------------------------------------------------------------------


@ONLY_PROCESS
def test_a_process_reaches_the_listener_and_nothing_else(node: Node):
    assert node.ask("status")["endpoints"]["chaincode"] == "no port yet"
    with listener("127.0.0.1") as own:
        targets = [*own, "tcp:192.0.2.1:80", "udp:192.0.2.1:53"]
        tried = pry(node, "dial", *targets, f"tcp:{PEER}")
    reached = {target for target, why in tried.items() if not why}
    assert reached & {*own, f"tcp:{PEER}"} == {f"tcp:{PEER}"}


@ONLY_PROCESS
def test_a_process_cannot_fill_the_listener(node: Node):
    pry(node, "crowd", PEER, 200)
    assert node.ps(NEIGHBOUR)["state"] == "running"  # type: ignore[index]
    assert pry(node, "self")["pid"] < 10


@ONLY_PROCESS
def test_a_process_writes_to_its_own_directory_and_nowhere_else(node: Node):
    folders = ["/", "/etc", "/usr/local/bin", "/dev", "/var/tmp", "/proc/sys/kernel"]
    tried = pry(node, "write", *folders, "/tmp")
    assert [folder for folder, why in tried.items() if not why] == ["/tmp"]


@ONLY_DOCKER
def test_it_reaches_the_listener_and_nothing_else(node: Node):
    need_root()
    found = inspect(node.where(NAME))["NetworkSettings"]["Networks"]
    (network,) = found
    gateway = inspect_network(network)["IPAM"]["Config"][0]["Gateway"]
    docker0 = ordinary_gateway()
    beside = inspect(node.where(NEIGHBOUR))["NetworkSettings"]["Networks"]
    (near,) = (net["IPAddress"] for net in beside.values())
    addresses = node.ask("status")["endpoints"]["chaincode"].split(", ")
    (allowed,) = (a for a in addresses if a.startswith(f"{gateway}:"))
    with contextlib.ExitStack() as stack:
        targets = [
            *stack.enter_context(listener(gateway)),
            *stack.enter_context(listener(docker0)),
            stack.enter_context(elsewhere()),
            stack.enter_context(in_other_network(f"{node.id}-other")),
            f"tcp:{near}:9999",
        ]
        for target in targets:
            wait_for(target)
        tried = pry(node, "dial", *targets, f"tcp:{allowed}")
        assert {target for target, why in tried.items() if not why} == {
            f"tcp:{allowed}"
        }
        # From an ordinary container the first of them is reached: the probe can.
        assert reached_from_elsewhere(node, targets[2])
    assert not [a for a in pry(node, "self")["addresses"] if ":" in a]
    told = details(node)
    assert "nothing else" in told["isolation"]
    assert "weaker" not in told


def ordinary_gateway() -> str:
    """Return this machine's address on the engine's default bridge."""
    options = inspect_network("bridge")["Options"]
    cards = psutil.net_if_addrs()[options["com.docker.network.bridge.name"]]
    return next(card.address for card in cards if card.family == socket.AF_INET)


@ONLY_DOCKER
def test_it_cannot_fill_the_listener(node: Node):
    need_root()
    (network,) = inspect(node.where(NAME))["NetworkSettings"]["Networks"]
    gateway = inspect_network(network)["IPAM"]["Config"][0]["Gateway"]
    addresses = node.ask("status")["endpoints"]["chaincode"].split(", ")
    (allowed,) = (a for a in addresses if a.startswith(f"{gateway}:"))
    crowd = pry(node, "crowd", allowed, 200)
    assert 0 < crowd["held"] <= 16
    assert "timeout" in crowd["error"]
    assert pry(node, "self")["uid"] == 501


def reached_from_elsewhere(node: Node, target: str) -> bool:
    """Whether a container on the engine's ordinary network reaches a target."""
    _, host, port = target.split(":")
    label = {"org.chaindock.test": f"{node.id}-control"}
    body = {
        "Image": need_image("runtime"),
        "Cmd": ["bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}"],
        "Labels": label,
    }

    async def run(engine: Engine) -> int:
        container = await engine.create_container(None, body)
        try:
            await engine.start_container(container)
            return await engine.wait_container(container)
        finally:
            await engine.remove_container(container)

    return ask(run) == 0


@ONLY_DOCKER
def test_the_rules_are_put_back_and_go_with_the_node(
    node: Node, tmp_path_factory: pytest.TempPathFactory
):
    need_root()
    rules = filter_rules(node.id)
    assert rules
    with started("docker", tmp_path_factory.mktemp("second")) as second:
        second.deploy(SOURCE, NAME)
        assert len(filter_rules(second.id)) == len(rules)
        assert filter_rules(node.id) == rules
        second.kill()
        assert filter_rules(second.id)  # nobody was left to remove them
        second.up()
        eventually(lambda: second.ps(NAME)["state"] == "running", "it runs", 60)  # type: ignore[index]
        assert len(filter_rules(second.id)) == len(rules)
        mark = second.id
    assert filter_rules(mark) == []
    assert filter_rules(node.id) == rules


def test_targets_answer_when_they_are_reached():
    with listener("127.0.0.1") as found:
        assert [target for target in found if not answers(target)] == []
