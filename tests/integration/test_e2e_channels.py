"""Channels of a real node: one contract on two of them, over restarts, and the page."""

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
OTHER = ("--channel", "trades")


def test_the_page_shows_what_happens(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        run_page(node, ROOT / "docs" / "tasks" / "channels.md")


def test_one_contract_on_two_channels(tmp_path: Path):
    source = str(FIXTURES / "foreign" / "node-shim")
    with started(PROCESS, tmp_path) as node:
        node.ask("channel", "create", "trades")
        node.deploy(FIXTURES / "foreign" / "node-shim", "notes")
        node.cli("deploy", source, "--name", "notes", *OTHER)
        found = node.ask("ps")
        assert [one["channel"] for one in found] == ["mychannel", "trades"]
        (ccid,) = {one["package_id"] for one in found}
        node.invoke("notes", "put", "k", "here")
        node.invoke("notes", "put", "k", "there", *OTHER)
        node.cli("snapshot", "before", *OTHER)
        node.invoke("notes", "put", "k", "later", *OTHER)
        for end in (None, node.kill, partial(node.cli, "down")):
            if end is not None:
                end()
                node.up()
            assert node.query("notes", "get", "k").strip() == b"here"
            assert node.query("notes", "get", "k", *OTHER).strip() == b"later"
            heights = [one["height"] for one in node.ask("channel", "ls")]
            assert heights == [4, 5]
        node.cli("revert", "before", *OTHER)
        assert node.query("notes", "get", "k", *OTHER).strip() == b"there"
        # Stopped on one channel, it serves the other one.
        node.cli("stop", "notes", *OTHER)
        assert node.query("notes", "get", "k").strip() == b"here"
        told = node.cli("query", "notes", "get", "k", *OTHER, code=None).err
        assert "was stopped" in told
        assert "start it: chaindock start notes --channel trades" in told
        shown = {one["channel"]: one["state"] for one in node.ask("ps")}
        assert shown == {"mychannel": "running", "trades": "stopped"}
        node.cli("channel", "rm", "trades", "--yes")
        node.kill()
        node.up()
        assert [one["name"] for one in node.ask("channel", "ls")] == ["mychannel"]
        assert [one["package_id"] for one in node.ask("ps")] == [ccid]
        assert node.query("notes", "get", "k").strip() == b"here"


def test_a_copy_has_all_channels(tmp_path: Path):
    with started(PROCESS, tmp_path) as node:
        node.ask("channel", "create", "trades")
        node.ask("org", "add", "Org2", *OTHER)
        copy = str(tmp_path / "copy")
        node.cli("dump", copy)
        node.cli("down")
        node.cli("reset", "--yes")
        node.cli("load", copy, "--yes")
        node.up()
        assert [
            (one["name"], one["organizations"]) for one in node.ask("channel", "ls")
        ] == [("mychannel", ["Org1MSP"]), ("trades", ["Org1MSP", "Org2MSP"])]
