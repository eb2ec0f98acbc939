"""Organisations join a running node, endorse a real contract, and are there after a restart."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import FIXTURES, PROCESS, started
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
