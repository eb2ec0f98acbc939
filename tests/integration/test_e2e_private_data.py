"""The example with private data, as docs/tasks/private-data.md runs it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import EXAMPLES, PROCESS, Node, started
from support.nodes.pages import ROOT, run_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
PAGE = ROOT / "docs" / "tasks" / "private-data.md"
DEALS = EXAMPLES / "private-data"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with started(PROCESS, tmp_path) as node:
        yield node


def test_the_page_shows_what_happens(node: Node):
    run_page(node, PAGE)


def test_what_the_example_does_beside_the_page(node: Node):
    name = "others"
    collections = DEALS / "collections.json"
    done = node.ask(
        "deploy", DEALS, "--name", name, "--collections-config", collections
    )
    assert done["collections"] == ["prices", "appraisals"]
    again = node.cli("deploy", DEALS, "--name", name)
    assert "collections: prices, appraisals (kept)\n" in again.err
    for number in (1, 2, 3):
        deal = ("offer", f"E{number}", "--transient", f"price={number}")
        node.cli("invoke", name, *deal)
    prices = node.ask("query", name, "prices")["result"]
    assert prices == {"E1": "1", "E2": "2", "E3": "3"}
    denied = node.cli("query", name, "appraisal", "E1", code=1)
    assert "tx creator does not have read access permission" in denied.err


def test_collections_of_an_upgrade_must_stay(node: Node, tmp_path: Path):
    name = "kept"
    collections = DEALS / "collections.json"
    node.cli("deploy", DEALS, "--name", name, "--collections-config", collections)
    changed = tmp_path / "c.json"
    changed.write_text(collections.read_text().replace("2", "3"))
    words = ("deploy", DEALS, "--name", name, "--collections-config", changed)
    refused = node.cli(*words, code=5)
    assert (
        "the BlockToLive in an existing collection [appraisals] modified" in refused.err
    )


def test_policies_of_chaincode_and_collection_decide_who_must_endorse(
    node: Node, tmp_path: Path
):
    """The chaincode needs one organisation, and the collection `prices` needs both."""
    node.cli("org", "add", "Org2")
    members = "OR('Org1MSP.member','Org2MSP.member')"
    both = "AND('Org1MSP.peer','Org2MSP.peer')"
    policies: dict[str, dict[str, object]] = {
        "prices": {"endorsementPolicy": {"signaturePolicy": both}},
        "appraisals": {"memberOnlyRead": True},
        "second": {"policy": "OR('Org2MSP.member')", "memberOnlyWrite": True},
    }
    collections = tmp_path / "c.json"
    collections.write_text(
        json.dumps([{"name": n, "policy": members, **p} for n, p in policies.items()])
    )
    one = "OR('Org1MSP.peer', 'Org2MSP.peer')"
    options = ("--signature-policy", one, "--collections-config", collections)
    done = node.ask("deploy", DEALS, "--name", "shared", *options)
    assert done["policy"] == one
    by_second = ("--org", "Org2MSP", "--endorsers", "Org2MSP")
    appraise = ("appraise", "S1", "--transient", "value=9")
    node.cli("invoke", "shared", *appraise, *by_second)
    assert node.ask("query", "shared", "appraisal", "S1")["result"] == 9
    offer = ("offer", "S1", "--transient", "price=7", "--org", "Org2MSP")
    refused = node.cli("invoke", "shared", *offer, "--endorsers", "Org2MSP", code=1)
    assert "ENDORSEMENT_POLICY_FAILURE" in refused.err
    node.cli("invoke", "shared", *offer)
    assert node.ask("query", "shared", "price", "S1")["result"] == 7
    second = ("--collection", "second")
    node.cli("state", "put", "shared", "S1", "by its admin", *second)
    assert b"by its admin" in node.cli("state", "export", "shared", *second).out
