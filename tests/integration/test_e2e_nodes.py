"""Nodes and their homes: side by side, started twice, killed, started again."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import (
    BACKENDS,
    FIXTURES,
    PROCESS,
    Node,
    environment,
    eventually,
    is_there,
    started,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
NOTES = FIXTURES / "foreign" / "node-shim"


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with started(PROCESS, tmp_path) as node:
        yield node


def test_nodes_with_the_same_chaincode_live_side_by_side(backend: str, tmp_path: Path):
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(started(backend, tmp_path / name)) for name in "abc"
        ]
        ids = {node.deploy(NOTES, "notes")["package_id"] for node in nodes}
        assert len(ids) == 1
        assert len({node.where("notes") for node in nodes}) == 3
        for node in nodes:
            node.invoke("notes", "put", "n1", f"of {node.home}")
        for node in nodes:
            assert node.query("notes", "get", "n1").decode() == f"of {node.home}"
        nodes[0].end()
        assert nodes[1].query("notes", "get", "n1").decode() == f"of {nodes[1].home}"
        nodes[1].cli("rm", "notes")
        assert nodes[2].query("notes", "get", "n1").decode() == f"of {nodes[2].home}"


def test_a_node_trusts_what_it_has_made_whatever_the_umask(tmp_path: Path):
    home = str(tmp_path / "a" / "b")
    program = [sys.executable, "-P", "-m", "chaindock", "--home", home]
    places = {"XDG_CACHE_HOME": str(tmp_path / "c" / "d")}
    env = environment(PROCESS, tmp_path / "temp") | places
    for words in ["up -d --backend process", "down"] * 2:
        command = [*program, *words.split()]
        subprocess.run(command, env=env, umask=0, check=True, timeout=60)


def test_a_home_has_one_node_at_a_time(node: Node):
    refused = node.cli("up", code=3)
    assert refused.out == b""
    assert f"is served by process {node.status['pid']}" in refused.err
    assert "chaindock down" in refused.err
    assert node.ask("up", "-d")["pid"] == node.status["pid"], "it runs: that is success"
    told = node.ask("up", code=3)
    assert told["error"] == "node-already-running"
    assert told["facts"]["pid"] == str(node.status["pid"])
    assert node.ask("status")["pid"] == node.status["pid"]


def test_down_twice_is_fine(node: Node):
    assert node.ask("down") == {"stopped": True, "home": str(node.home)}
    assert not is_there(node.status["pid"])
    assert node.ask("down") == {"stopped": False, "home": str(node.home)}
    assert "no node is running" in node.cli("down").err
    refused = node.cli("ps", code=3)
    assert "chaindock up" in refused.err


def test_what_was_deployed_comes_up_with_the_node(backend: str, tmp_path: Path):
    with started(backend, tmp_path) as node:
        node.deploy(NOTES, "notes")
        node.deploy(NOTES, "resting")
        node.invoke("notes", "put", "n1", "kept")
        node.cli("stop", "resting")
        node.end()
        node.up()
        assert node.query("notes", "get", "n1") == b"kept"
        line = node.ps("resting")
        assert line is not None
        assert line["state"] == "stopped"


def test_a_killed_node_leaves_nothing_that_its_next_start_does_not_find(
    backend: str, tmp_path: Path
):
    with started(backend, tmp_path) as node:
        node.deploy(NOTES, "notes")
        height = node.invoke("notes", "put", "n1", "kept")["block"] + 1
        before = node.where("notes")
        node.kill()
        refused = node.cli("ps", code=3)
        assert "chaindock up" in refused.err
        node.up()
        assert node.ask("status")["height"] == height
        assert node.query("notes", "get", "n1") == b"kept"
        eventually(lambda: not node.runs(before), "the old instance is gone")
        assert node.invoke("notes", "put", "n2", "more")["block"] == height
