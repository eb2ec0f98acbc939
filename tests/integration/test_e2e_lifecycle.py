"""Chaincode that the calls of the `peer` command install, approve and commit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from support.clients.network import CHANNEL, SCENARIOS, Network, network
from support.clients.peer_cli import PeerCli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]

COLLECTION = {
    "name": "secrets",
    "policy": "OR('Org1MSP.member')",
    "requiredPeerCount": 0,
    "maxPeerCount": 1,
    "blockToLive": 0,
}


class Org:
    """The admin of Org1, who uses the command and nothing else."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.node, self.peer, self._folder = net.node, PeerCli(net, folder), folder

    def package(self, label: str) -> tuple[Path, str]:
        """Return a package file of the contract, and its id."""
        file = self._folder / f"{label}.tar.gz"
        made = self.node.cli("package", SCENARIOS, "-o", file, "--label", label)
        return file, made.out.decode().strip()

    def install(self, label: str) -> str:
        file, ccid = self.package(label)
        self.peer("lifecycle", "chaincode", "install", file)
        return ccid

    def lifecycle(self, verb: str, name: str, *more: str | Path, code: int = 0) -> str:
        words = (*self.peer.orderer(), "-C", CHANNEL, "-n", name, *more)
        return self.peer("lifecycle", "chaincode", verb, *words, code=code)

    def define(
        self, name: str, sequence: int, ccid: str = "", *terms: str | Path
    ) -> None:
        """Approve and commit."""
        terms = ("-v", f"{sequence}.0", "--sequence", str(sequence), *terms)
        named = ("--package-id", ccid) if ccid else ()
        self.lifecycle("approveformyorg", name, *terms, *named)
        self.lifecycle("commit", name, *terms)

    def query(self, name: str, code: int = 0) -> str:
        words = ("-C", CHANNEL, "-n", name, "-c", '{"Args":["echo","conga"]}')
        return self.peer("chaincode", "query", *words, code=code)

    def row(self, name: str) -> dict[str, Any]:
        """Return what `ps` shows of a chaincode."""
        (found,) = [one for one in self.node.ask("ps") if one["name"] == name]
        return dict(found)

    def packages(self) -> dict[str, Any]:
        found = self.node.ask("packages", "ls")
        return {one.pop("package_id"): one for one in found}


@pytest.fixture(scope="module")
def org(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Org]:
    folder = tmp_path_factory.mktemp("lifecycle")
    with network(folder) as net:
        yield Org(net, folder)


@pytest.mark.statement(78, 79, of="client", by="own")
def test_what_the_command_defines_is_served_and_shown_like_a_deployment(
    org: Org, tmp_path: Path
):
    ccid = org.install("shown_1")
    collections = tmp_path / "collections.json"
    collections.write_text(json.dumps([COLLECTION]))
    terms = ("--collections-config", collections)
    sequence = ("-v", "1.0", "--sequence", "1", *terms)
    org.lifecycle("approveformyorg", "shown", *sequence, "--package-id", ccid)
    ready = org.lifecycle("checkcommitreadiness", "shown", *sequence, "-O", "json")
    assert json.loads(ready)["approvals"] == {"Org1MSP": True}
    org.lifecycle("commit", "shown", *sequence)
    assert org.query("shown").strip() == "conga"
    told = org.lifecycle("querycommitted", "shown")
    assert "Version: 1.0, Sequence: 1" in told
    assert "Approvals: [Org1MSP: true]" in told
    row = org.row("shown")
    assert (row["state"], row["sequence"], row["version"]) == ("running", 1, "1.0")
    assert row["package_id"] == ccid
    assert row["collections"] == [COLLECTION["name"]]
    assert org.packages()[ccid] == {
        "installed_by": ["Org1MSP"],
        "chaincodes": [{"channel": CHANNEL, "name": "shown", "version": "1.0"}],
    }
    third = ("-v", "3.0", "--sequence", "3", *terms)
    refused = org.lifecycle("commit", "shown", *third, code=1)
    assert "requested sequence is 3, but new definition must be sequence 2" in refused


def test_a_package_that_comes_after_its_definition_is_launched_then(org: Org):
    org.define("late", 1)
    missing = "definition for 'late' exists, but chaincode is not installed"
    assert missing in org.query("late", code=1)
    assert org.row("late")["state"] == "not-installed"
    _, ccid = org.package("late_1")
    org.define("late", 2, ccid)
    assert missing in org.query("late", code=1)
    assert org.install("late_1") == ccid
    assert org.query("late").strip() == "conga"
    assert org.row("late")["state"] == "running"


def test_an_upgrade_retires_what_deploy_brought(org: Org):
    org.node.cli("deploy", SCENARIOS, "--name", "upgraded")
    old = org.row("upgraded")["package_id"]
    new = org.install("upgraded_2")
    org.define("upgraded", 2, new)
    assert org.query("upgraded").strip() == "conga"
    assert org.row("upgraded")["package_id"] == new
    org.node.cli("stop", "upgraded")
    assert "was stopped" in org.query("upgraded", code=1)
    org.define("upgraded", 3, new)
    assert org.query("upgraded").strip() == "conga"
    assert old not in org.packages()


def test_a_node_that_is_killed_after_a_commit_runs_what_was_committed(org: Org):
    one, two = org.install("killed_1"), org.install("killed_2")
    org.define("killed", 1, one)
    assert org.query("killed").strip() == "conga"
    org.define("killed", 2, two)
    org.node.kill()
    org.node.up()
    assert org.query("killed").strip() == "conga"
    assert org.row("killed")["package_id"] == two
    assert {one, two} <= org.packages().keys()
    org.node.cli("rm", "killed")
    org.node.cli("packages", "rm", two)
    assert two not in org.packages()
