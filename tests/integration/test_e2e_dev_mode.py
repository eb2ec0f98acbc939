"""Development mode through the command line, as docs/tasks/dev-mode.md says."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import PROCESS, eventually, started
from support.shims.builds import node_project

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.nodes.node import Node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
LISTEN = "peer.chaincodeListenAddress"


def state(node: Node) -> str:
    found: str = node.ask("ps")[0]["state"]
    return found


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    settings = ("--set", "chaincode.mode=dev", "--set", f"{LISTEN}=127.0.0.1:0")
    with started(PROCESS, tmp_path, *settings) as node:
        yield node


def test_a_program_started_by_hand_serves_and_may_be_started_again(node: Node):
    address = node.ask("status")["endpoints"]["chaincode"]
    done = node.ask("deploy", "--dev", "parcels")
    assert (done["package_id"], done["sequence"]) == ("parcels:1.0", 1)
    (row,) = node.ask("ps")
    assert (row["state"], row["backend"]) == ("waiting", "dev")
    early = node.cli("invoke", "parcels", "put", "k", "v", code=None)
    assert early.code != 0
    assert "CORE_CHAINCODE_ID_NAME=parcels:1.0" in early.err

    for value in ("one", "two"):
        program = subprocess.Popen(
            ["node", "plain.js", "--peer.address", address],
            cwd=node_project(),
            env={"PATH": os.environ["PATH"], "CORE_CHAINCODE_ID_NAME": "parcels:1.0"},  # noqa: TID251
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: state(node) == "running", "running")
            node.cli("invoke", "parcels", "put", "k", value)
            assert (
                node.cli("query", "parcels", "get", "k").out.strip() == value.encode()
            )
        finally:
            program.kill()
            program.wait()
        eventually(lambda: state(node) == "waiting", "waiting")


def test_without_the_mode_it_is_refused(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        refused = node.cli("deploy", "--dev", "parcels", code=None)
        assert refused.code != 0
        assert "chaincode.mode" in refused.err
