"""Settings of one contract, tried by a hostile one, and what its limits come to."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.nodes.node import DOCKER, PROCESS, Node, eventually
from support.nodes.prying import (
    NAME,
    NEIGHBOUR,
    details,
    pry,
    prying,
    restart,
    settings,
)
from support.nodes.remains import ask, inspect
from support.nodes.targets import in_other_network

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
MIB = 1024 * 1024
TOLD = "for the contract alone"
OWN = f"""\
chaindock:
  chaincodes:
    {NAME}:
      memory: 96m
      cpus: 0.5
      pids: 100
      tmp: 16m
      openFiles: 700
      fileSize: 8m
      executeTimeout: 25s
      env:
        TOLD: {TOLD}
"""
HOSTS, KNOWN = "extraHosts: ['books.internal:192.0.2.7']", "tcp:books.internal:1"
ONLY_DOCKER = pytest.mark.parametrize("node", [DOCKER], indirect=True)
ONLY_PROCESS = pytest.mark.parametrize("node", [PROCESS], indirect=True)
BOTH = pytest.mark.parametrize("node", [PROCESS, DOCKER], indirect=True)


@pytest.fixture(scope="module")
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with prying(request.param, tmp_path_factory.mktemp("node")) as node:
        yield node


@pytest.fixture
def limited(node: Node) -> Iterator[Node]:
    """The contract with settings of its own."""
    with settings(node, OWN):
        yield node


@BOTH
def test_settings_of_one_chaincode_count_from_its_next_launch(limited: Node):
    node, told = limited, details(limited)
    assert told["settings"].startswith("memory, cpus, pids, tmp, openFiles")
    limits = pry(node, "self")["limits"]
    assert (limits["nofile"], limits["fsize"]) == (700, 8 * MIB)
    seen = pry(node, "env")
    assert f"TOLD={TOLD}" in seen
    if node.backend == PROCESS:
        assert "cpus, pids" in told["weaker"]
        assert "memory 96 MiB" in told["limits"]
        return
    assert pry(node, "burn", 2, 4)["processors"] < 0.75
    assert pry(node, "forks", 1000)["started"] < 100
    assert pry(node, "fill", "/tmp", 64 * MIB, MIB)["written"] <= 16 * MIB
    other = inspect(node.where(NEIGHBOUR))["HostConfig"]
    assert (other["Memory"], other["PidsLimit"]) == (2048 * MIB, 512)


@BOTH
def test_variables_are_seen_by_the_chaincode_and_by_nobody_else(limited: Node):
    node = limited
    seen = [node.cli("--json", "ps").out, node.cli("--json", "config", "show").out]
    seen += [path.read_bytes() for path in node.home.glob("*.log")]
    assert [text for text in seen if TOLD.encode() in text] == []
    shown = {one["key"]: one for one in json.loads(seen[1])["settings"]}
    row = shown[f"chaindock.chaincodes.{NAME}.env.TOLD"]
    assert row["value"] == "[secret]"
    assert row["origin"] == f"{node.home / 'core.yaml'}:12"
    if node.backend == "docker":
        image = inspect_image(details(node)["image"])
        assert TOLD not in json.dumps(image)


def inspect_image(name: str) -> Any:
    return ask(lambda engine: engine.inspect_image(name))


@BOTH
def test_too_much_memory_ends_it_alone_and_is_told_as_that(limited: Node):
    node, other = limited, limited.where(NEIGHBOUR)
    told = node.ask("query", NAME, "allocate", str(512 * MIB), code=None)
    assert told["error"] == "stream-terminated"
    assert told["facts"]["oom"] is True
    assert told["facts"]["cause"] == "oom"
    assert node.where(NEIGHBOUR) == other
    assert pry(node, "self")["pid"]  # it was started again


@ONLY_PROCESS
def test_a_process_keeps_no_more_than_its_directory_holds(limited: Node):
    pid = details(limited)["pid"]
    words = ("query", NAME, "fill", "", str(64 * MIB), str(MIB), "keep")
    told = limited.ask(*words)["result"]
    if "no space left" in told["error"]:  # in a sandbox
        assert told["written"] <= 16 * MIB
    else:
        eventually(lambda: details(limited).get("pid") != pid, "it was ended", 30)


@ONLY_DOCKER
def test_a_network_of_its_own_is_joined_and_told(node: Node):
    network = f"{node.id}-other"
    core = f"chaindock: {{chaincodes: {{{NAME}: {{network: {network}}}}}}}\n"
    with in_other_network(network) as target:
        with settings(node, core):
            assert pry(node, "dial", target) == {target: ""}
            assert network in details(node)["weaker"]
        assert pry(node, "dial", target)[target]


@ONLY_DOCKER
def test_its_user_and_extra_hosts_are_its_own(node: Node):
    core = f"chaindock: {{chaincodes: {{{NAME}: {{user: '4711:4712', {HOSTS}}}}}}}\n"
    assert "lookup" in pry(node, "dial", KNOWN)[KNOWN]
    with settings(node, core):
        seen = pry(node, "self")
        assert (seen["uid"], seen["gid"]) == (4711, 4712)
        told = pry(node, "dial", KNOWN)[KNOWN]
        assert "192.0.2.7:1" in told, told
        assert "lookup" not in told


@BOTH
def test_a_wrong_key_of_one_chaincode_leaves_all_running_and_is_explained(node: Node):
    """The chaincode keeps its last correct settings; `ps` and `status` name the line."""
    core = f"chaindock: {{chaincodes: {{{NAME}: {{memry: 64m}}}}}}\n"
    (node.home / "core.yaml").write_text(core)
    try:
        for name in (NAME, NEIGHBOUR):
            node.cli("stop", name)
            node.cli("start", name)
        assert "memry" in details(node)["warning"]
        told = node.ask("status")["warnings"]
        assert [text for text in told if f"{node.home / 'core.yaml'}:1" in text]
        neighbour = [one for one in node.ask("ps") if one["name"] == NEIGHBOUR]
        assert "warning" not in neighbour[0]["details"]
    finally:
        (node.home / "core.yaml").unlink()
        restart(node)
