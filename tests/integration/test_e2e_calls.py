"""Contracts that call each other, through the command line, on both back ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import BACKENDS, FIXTURES, PROCESS, Node, started
from support.nodes.pages import ROOT, run_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(300),
]
CONTRACT = FIXTURES / "conformance" / "node"


@pytest.fixture(scope="module", params=BACKENDS)
def node(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    with started(request.param, tmp_path_factory.mktemp("node")) as node:
        for name in ("outer", "inner"):
            node.deploy(CONTRACT, name)
        yield node


def words(*args: str) -> str:
    """Return what the contract passes on."""
    return json.dumps(args)


@pytest.mark.statement(17, of="client")
def test_what_a_called_contract_writes_is_committed_under_its_name(node: Node):
    answer = node.invoke("outer", "call", "inner", words("put", "k", "v"))
    assert answer["code_name"] == "VALID"
    assert node.query("inner", "get", "k").strip() == b"v"
    assert node.query("outer", "get", "k").strip() == b""


def test_a_contract_that_is_down_is_started_by_the_call(node: Node):
    node.invoke("inner", "put", "k2", "v2")
    line = node.ps("inner")
    assert line is not None
    node.cli("stop", "inner")
    told = node.ask("invoke", "outer", "call", "inner", words("get", "k2"), code=None)
    assert "was stopped" in json.dumps(told)
    node.cli("start", "inner")
    assert node.query("outer", "call", "inner", words("get", "k2")).strip() == b"v2"


def test_a_contract_cannot_call_itself(node: Node):
    told = node.ask("invoke", "outer", "call", "outer", words("get", "k"), code=None)
    assert "exists" in json.dumps(told)


def test_the_page_shows_what_happens(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        run_page(node, ROOT / "docs" / "tasks" / "calls.md")
