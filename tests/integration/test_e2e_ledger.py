"""A real contract's state, blocks, conflicts and events, seen through the commands."""

from __future__ import annotations

import base64
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from support.nodes.node import EXAMPLES, FIXTURES, PROCESS, Node, eventually, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with started(PROCESS, tmp_path_factory.mktemp("node")) as node:
        node.deploy(EXAMPLES / "node", "coldchain")
        node.deploy(FIXTURES / "foreign" / "node-shim", "notes")
        yield node


@pytest.mark.statement(12, of="client")
def test_composite_keys_of_a_shim_are_found_by_their_parts(node: Node):
    node.invoke("coldchain", "register", "P1", "2", "8")
    node.invoke("coldchain", "record", "P1", "5")
    listed = node.ask("state", "ls", "coldchain", "--composite", "reading", "P1")
    (row,) = listed["rows"]
    assert row["composite"][:2] == ["reading", "P1"]
    words = ["--composite", *row["composite"]]
    value = node.cli("state", "get", "coldchain", *words).out
    assert value == base64.b64decode(row["value"])
    assert json.loads(value)["celsius"] == 5


def test_a_transaction_is_told_as_it_was_asked_and_endorsed(node: Node):
    done = node.invoke("notes", "put", "n1", "hello")
    shown = node.ask("tx", "show", done["tx_id"][:16])
    assert (shown["function"], shown["block"]) == ("put", done["block"])
    assert [base64.b64decode(arg) for arg in shown["args"]] == [b"n1", b"hello"]
    assert shown["creator"]["mspid"] == "Org1MSP"
    assert "CN=User1" in shown["creator"]["subject"]
    assert "peer" in shown["endorsers"][0]["subject"]
    ((kind, (number, all_s, *each_s)),) = shown["requests"].items()
    assert (kind, number, each_s) == ("PUT_STATE", 1, [all_s])
    assert 0 < all_s < 1
    text = node.cli("tx", "show", done["tx_id"]).out.decode()
    assert "notes  n1  hello" in text
    assert "PUT_STATE: 1, " in text
    (genesis,) = node.ask("block", "show", "0")["transactions"]
    assert "  CONFIG\n" in node.cli("tx", "show", genesis["tx_id"]).out.decode()
    brief = node.cli("block", "show", str(done["block"])).out.decode()
    assert done["tx_id"][:12] in brief


def test_a_conflict_names_the_key_and_the_transaction_that_won(node: Node):
    calls = [["register", "P2", "2", "8"]] * 20
    answers = node.call_all("invoke", "coldchain", calls)
    (winner,) = [one for one in answers if one.get("code") == 0]
    losers = [one for one in answers if one.get("code") == 11]
    assert losers
    for one in losers:
        conflict = one["conflict"]
        assert conflict["namespace"] == "coldchain"
        assert conflict["writer"] == winner["tx_id"]
        assert (conflict["read"], conflict["found"][0]) == (None, winner["block"])


def test_events_arrive_as_they_commit(node: Node):
    node.invoke("notes", "put", "n2", "news")
    height = node.ask("status")["height"]
    with node.spawn("events", "notes", "-f", "--from", str(height), "--json") as reader:
        done = node.invoke("notes", "announce", "n2")
        assert reader.stdout is not None
        event = json.loads(reader.stdout.readline())
        reader.terminate()
    assert event["tx_id"] == done["tx_id"]
    assert (event["name"], event["result"]) == ("NoteAnnounced", "news")


def test_state_that_a_developer_writes_is_what_the_contract_reads(node: Node):
    node.cli("state", "put", "notes", "n3", "by hand")
    assert node.query("notes", "get", "n3") == b"by hand"
    lines = node.cli("state", "export", "notes").out
    assert b'{"key": "n3", "text": "by hand"}' in lines
    node.cli("state", "del", "notes", "n3")
    assert "does not exist" in node.cli("query", "notes", "get", "n3", code=1).err


def test_private_data_is_seen_and_written_like_public_state(node: Node):
    example = EXAMPLES / "private-data"
    words = ("--name", "deals", "--collections-config", example / "collections.json")
    node.ask("deploy", example, *words)
    node.invoke("deals", "offer", "D1", "--transient", "price=120")
    prices = ("--collection", "prices")
    (row,) = node.ask("state", "ls", "deals", *prices)["rows"]
    assert row["key"] == "D1"
    assert node.cli("state", "get", "deals", "D1", *prices).out == b"120"
    node.cli("state", "put", "deals", "D1", "130", *prices)
    assert node.query("deals", "price", "D1") == b"130"
    tx_id = node.ask("state", "del", "deals", "D1", *prices)["tx_id"]
    shown = node.cli("tx", "show", tx_id, "--json").out
    assert b"D1" not in shown  # the key is private, too
    text = node.cli("state", "put", "deals", "D1", "1", "--collection", "x", code=5).err
    assert "collection" in text


def test_a_contract_that_uses_the_time_of_its_transaction_is_deterministic(node: Node):
    node.invoke("coldchain", "register", "P4", "2", "8")
    words = ("coldchain", "record", "P4", "5", "--check-determinism")
    assert node.ask("invoke", *words)["code"] == 0


def test_time_zone_and_locale_are_found_and_stay_as_they_are(
    node: Node, tmp_path: Path
):
    source = shutil.copytree(FIXTURES / "foreign" / "node-shim", tmp_path / "zones")
    contract = source / "chaincode.js"
    contract.write_text(
        contract.read_text().replace(
            "    async put(",
            "    async zone(stub) {\n"
            "        await stub.putState('zone', Buffer.from(String(new Date(0))));\n"
            "    }\n"
            "    async number(stub) {\n"
            "        await stub.putState('n', Buffer.from((1234.5).toLocaleString()));\n"
            "    }\n"
            "    async put(",
        )
    )
    node.deploy(source, "zones")
    for words, other in ((("zone",), "Dec 31 1969"), (("number",), "1.234,5")):
        told = node.cli("query", "zones", *words, "--check-determinism", code=None)
        assert "gives other results from run to run" in told.err, told.err
        assert other in told.err
    node.cli("query", "zones", "put", "k", "v", "--check-determinism")
    node.invoke("zones", "zone")
    assert node.cli("state", "get", "zones", "zone").out.startswith(b"Thu Jan 01 1970")


def test_a_contract_gets_the_time_that_was_set(node: Node):
    node.cli("time", "set", "2031-05-06T07:08:09")
    node.invoke("coldchain", "register", "P3", "2", "8")
    node.invoke("coldchain", "record", "P3", "5")
    node.cli("time", "reset")
    listed = node.ask("state", "ls", "coldchain", "--composite", "reading", "P3")
    assert listed["rows"][0]["composite"][2].startswith("2031-05-06T07:0")


def test_conflicting_calls_are_put_into_one_block_by_hand(
    tmp_path_factory: pytest.TempPathFactory,
):
    folder = tmp_path_factory.mktemp("manual")
    with started(PROCESS, folder, "--block", "manual") as node:
        node.deploy(EXAMPLES / "node", "coldchain")
        words = ("invoke", "coldchain", "register", "P1", "2", "8")
        calls = [node.spawn("--json", *words) for _ in range(2)]
        eventually(
            lambda: "2 transactions wait" in str(node.ask("status")["warnings"]),
            "both wait",
        )
        assert node.ask("block", "cut")["transactions"] == 2
        answers = [json.loads(call.communicate()[0]) for call in calls]
    assert sorted(one["code"] for one in answers) == [0, 11]
    assert len({one["block"] for one in answers}) == 1


def test_a_copy_brings_back_ledger_and_deployments(
    tmp_path_factory: pytest.TempPathFactory,
):
    folder = tmp_path_factory.mktemp("copies")
    copy = folder / "copy"
    with started(PROCESS, folder) as node:
        node.deploy(FIXTURES / "foreign" / "node-shim", "notes")
        node.invoke("notes", "put", "n1", "before")
        node.cli("dump", copy)
        node.invoke("notes", "put", "n1", "after")
        assert "is served by process" in node.cli("load", copy, "--yes", code=3).err
        node.cli("down")
        node.cli("load", copy, "--yes")
        node.up()
        assert node.query("notes", "get", "n1") == b"before"
        node.cli("down")
        node.cli("reset", "--yes")
        node.up()
        assert node.ask("ps") == []
        node.ask("deploy", FIXTURES / "foreign" / "node-shim", "--name", "notes")
        assert "does not exist" in node.cli("query", "notes", "get", "n1", code=1).err


def test_a_test_begins_with_a_clean_ledger_again(node: Node):
    node.invoke("notes", "put", "n5", "set up")
    node.cli("snapshot", "clean")
    for text in ("one", "two"):
        node.invoke("notes", "put", "n5", text)
        node.invoke("notes", "put", f"only {text}", text)
        assert node.ask("revert", "clean")["removed"] == 2
        assert node.query("notes", "get", "n5") == b"set up"
    listed = node.ask("state", "ls", "notes", "--prefix", "only")["rows"]
    assert listed == []
    assert node.ask("state", "history", "notes", "n5")[0]["value"] == "c2V0IHVw"
