"""Organisations join a running node, endorse a real contract, and are there after a restart."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from support.nodes.node import DOCKER, FIXTURES, PROCESS, Node, started
from support.nodes.pages import ROOT, run_page

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize("page", ["organizations", "key-policies"])
def test_the_page_shows_what_happens(tmp_path: Path, page: str):
    with started(PROCESS, tmp_path) as node:
        run_page(node, ROOT / "docs" / "tasks" / f"{page}.md")


def test_a_second_organisation_endorses_calls_and_survives_a_restart(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        node.deploy(FIXTURES / "foreign" / "node-shim", "notes")
        node.invoke("notes", "put", "n1", "one")
        made = node.ask("org", "add", "Org2")
        assert made["mspid"] == "Org2MSP"
        assert "chaindock org ls" in node.cli("org", "add", "Org2", code=None).err
        for end in (None, node.kill, partial(node.cli, "down")):
            if end is not None:
                end()
                node.up()
            assert [one["mspid"] for one in node.ask("org", "ls")] == [
                "Org1MSP",
                "Org2MSP",
            ]
            alone = node.cli(
                "invoke", "notes", "put", "n2", "x", "--endorsers", "Org1MSP", code=None
            )
            assert "ENDORSEMENT_POLICY_FAILURE" in alone.err
            done = node.invoke("notes", "put", "n3", "y", "--org", "Org2MSP")
            shown = node.ask("tx", "show", done["tx_id"])
            assert sorted(one["mspid"] for one in shown["endorsers"]) == [
                "Org1MSP",
                "Org2MSP",
            ]
            assert shown["creator"]["mspid"] == "Org2MSP"
        # A definition that comes later is endorsed by both, too.
        node.deploy(FIXTURES / "foreign" / "node-shim", "more")
        node.invoke("more", "put", "n1", "z")


def test_deploy_warns_of_a_policy_that_nobody_can_satisfy(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        source = str(FIXTURES / "foreign" / "node-shim")
        policy = "AND('Org1MSP.peer', 'Org3MSP.peer')"
        words = ("deploy", source, "--name", "notes", "--signature-policy", policy)
        told = node.cli(*words).err
        assert (
            "warning: nobody can satisfy the endorsement policy: Org3MSP is no" in told
        )
        assert "chaindock org add Org3" in told


def peer_of(node: Node, org: str) -> str:
    return node.cli("query", "peers", "getPeerOrg", "--org", org).out.decode().strip()


def place_of(node: Node, row: dict[str, Any]) -> str:
    if node.backend == PROCESS:
        return str(row["details"]["pid"])
    return node.remains.container_of(row["details"]["container"])


@pytest.mark.parametrize(
    ("backend", "source"),
    [
        pytest.param(PROCESS, "conformance/go", marks=pytest.mark.golang),
        pytest.param("docker", "scenarios", marks=DOCKER.marks),
    ],
)
def test_each_organisation_has_a_process_of_its_own(
    tmp_path: Path, backend: str, source: str
):
    with started(backend, tmp_path) as node:
        node.deploy(FIXTURES / source, "peers")
        node.cli("org", "add", "Org2")
        assert peer_of(node, "Org1") == "Org1MSP"
        assert node.ask("ps")[0]["others"] == []  # nobody has asked Org2's peer
        places: list[str] = []
        for way in (
            (),
            (partial(node.cli, "stop", "peers"), partial(node.cli, "start", "peers")),
            (node.kill, node.up),
        ):
            for step in way:
                step()
            assert not any(map(node.runs, places))
            assert [peer_of(node, org) for org in ("Org2", "Org1")] == [
                "Org2MSP",
                "Org1MSP",
            ]
            (row,) = node.ask("ps")
            (other,) = row["others"]
            assert (other["name"], other["state"]) == ("peers@Org2MSP", "running")
            places = [place_of(node, one) for one in (row, other)]
            assert len(set(places)) == 2
        written = node.cli("logs", "peers@Org2").out
        assert written or source == "conformance/go"  # that one writes nothing
        node.cli("rm", "peers")
        assert not any(map(node.runs, places))
