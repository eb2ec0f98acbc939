"""Contracts from source to answer: the examples, and what others wrote for Fabric.

Everything goes through the command line, to a real node, on both back ends.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from support.nodes.node import EXAMPLES, FIXTURES, Node

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]

LANGUAGES = ("python", "node", "go")
FOREIGN = FIXTURES / "foreign"
MANIFEST: dict[str, Any] = json.loads((FOREIGN / "manifest.json").read_text())
SAME_BUILD = {"go-main", "go-old"}
"""Layouts whose build in a container differs from another one's in nothing that is ours;
a Go build with nothing cached takes long."""


def example(node: Node, language: str) -> str:
    name = f"cold-{language}"
    node.deploy(EXAMPLES / language, name)
    return name


# --- the examples ---------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_example_is_built_launched_and_registered(node: Node, language: str):
    name = example(node, language)
    done = node.deploy(EXAMPLES / language, name)
    assert (done["name"], done["version"], done["sequence"]) == (name, "1.0", 1)
    assert done["backend"] == node.backend
    phases = [phase for phase, _ in done["phases"]]
    assert phases[0] == "package"
    assert phases[-2:] == ["register", "ready"] or phases[-1] == "register"
    line = node.ps(name)
    assert line is not None
    assert (line["state"], line["error"]) == ("running", None)
    assert line["package_id"] == done["package_id"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_example_answers_and_keeps_what_it_wrote(node: Node, language: str):
    name = example(node, language)
    parcel = f"P-{language}"
    registered = node.invoke(name, "register", parcel, "-2", "8")
    assert registered["result"]["custodian"] == "Org1MSP"
    breached = node.invoke(name, "record", parcel, "9.5")
    assert breached["result"]["state"] == "breached"
    assert breached["block"] > registered["block"]
    assert json.loads(node.query(name, "parcel", parcel)) == breached["result"]
    history = node.ask("query", name, "history", parcel)["result"]
    assert [one["tx"] for one in history] == [breached["tx_id"], registered["tx_id"]]
    refused = node.cli("invoke", name, "register", parcel, "2", "8", code=1)
    assert refused.out == b""
    assert f"parcel {parcel} is registered already" in refused.err


@pytest.mark.parametrize("language", LANGUAGES)
def test_two_hundred_concurrent_calls_on_one_stream_are_right(
    node: Node, language: str
):
    name = example(node, language)
    before = node.where(name)
    ids = [f"{language}-{number}" for number in range(200)]
    written = node.call_all(
        "invoke", name, [("register", one, "0", str(at)) for at, one in enumerate(ids)]
    )
    assert [answer.get("code") for answer in written] == [0] * 200, written[:3]
    assert len({answer["tx_id"] for answer in written}) == 200
    # Errors and answers in turn, so that one in a wrong place would show.
    asked = [("parcel", one if at % 4 else f"no-{one}") for at, one in enumerate(ids)]
    for at, answer in enumerate(node.call_all("query", name, asked)):
        if at % 4:
            parcel = json.loads(base64.b64decode(answer["payload"]))
            assert (parcel["id"], parcel["highest"]) == (ids[at], at)
        else:
            assert answer["status"] == 500
            assert f"there is no parcel no-{ids[at]}" in answer["message"]
    assert node.where(name) == before


# --- the form of answers --------------------------------------------------------------


def test_a_plain_query_prints_the_payload_and_nothing_else(node: Node):
    name = example(node, "node")
    written = node.cli("invoke", name, "register", "plain", "2", "8")
    found = node.cli("query", name, "parcel", "plain")
    assert found.out == written.out
    assert found.out.startswith(b'{"id":"plain"')
    assert not found.out.endswith(b"\n")
    assert found.err == ""
    assert "is valid, in block" in written.err


def test_answers_in_json_say_everything(node: Node):
    name = example(node, "node")
    written = node.invoke(name, "register", "full", "2", "8")
    asked = node.ask("query", name, "parcel", "full")
    assert set(asked) == {"result", "payload", "status", "message", "refusals"}
    more = {"tx_id", "block", "code", "code_name", "event", "conflict", "unmet"}
    assert set(written) - set(asked) == more
    assert (written["status"], written["code"]) == (200, 0)
    assert written["code_name"] == "VALID"
    assert len(bytes.fromhex(written["tx_id"])) == 32
    assert json.loads(base64.b64decode(asked["payload"])) == asked["result"]
    assert asked["result"]["id"] == "full"
    refused = node.ask("query", name, "parcel", "nowhere", code=1)
    assert (refused["result"], refused["payload"]) == (None, "")
    assert (refused["status"], refused["message"]) == (
        500,
        "there is no parcel nowhere",
    )


def test_a_payload_that_is_no_json_is_told_as_text(node: Node):
    done = node.deploy(FOREIGN / "node-index")
    node.invoke(done["name"], "CreateNote", "n-text", "not { json")
    asked = node.ask("query", done["name"], "ReadNote", "n-text")
    assert asked["result"] == "not { json"
    assert base64.b64decode(asked["payload"]) == b"not { json"


# --- contracts of others --------------------------------------------------------------


@pytest.mark.parametrize("fixture", MANIFEST["fixtures"])
def test_a_foreign_contract_deploys_without_a_change(node: Node, fixture: str):
    skip_equal_build(node, fixture)
    source, says = FOREIGN / fixture, MANIFEST["fixtures"][fixture]
    functions: dict[str, str] = says["functions"]
    before = tree(source)
    name = node.deploy(source)["name"]
    assert name == fixture
    assert tree(source) == before

    node.invoke(name, functions["put"], "n1", "for Zoë: 5 €")
    assert node.query(name, functions["get"], "n1") == "for Zoë: 5 €".encode()
    for asked, told in (
        ((functions["get"], "n2"), "note n2 does not exist"),
        ((functions["refuse"], "no, not 100% today"), "no, not 100% today"),
    ):
        refused = node.invoke(name, *asked, code=1)
        assert (refused["status"], refused["message"]) == (500, told)
        assert refused["block"] is None


@pytest.mark.parametrize(
    "fixture",
    [name for name, f in MANIFEST["fixtures"].items() if "seal" in f["functions"]],
)
def test_transient_data_goes_in_and_events_come_out(node: Node, fixture: str):
    skip_equal_build(node, fixture)
    functions = MANIFEST["fixtures"][fixture]["functions"]
    name = node.deploy(FOREIGN / fixture)["name"]
    sealed = hashlib.sha256(b"a=b, secret").hexdigest()
    written = node.invoke(
        name, functions["seal"], "s1", "--transient", "text=a=b, secret"
    )
    assert base64.b64decode(written["payload"]).decode() == sealed
    assert node.query(name, functions["get"], "s1").decode() == sealed
    refused = node.invoke(name, functions["seal"], "s2", code=1)
    assert refused["message"] == "transient field text is missing"

    announced = node.invoke(name, functions["announce"], "s1")
    assert announced["event"]["name"] == "NoteAnnounced"
    assert base64.b64decode(announced["event"]["payload"]).decode() == sealed


@pytest.mark.parametrize("fixture", MANIFEST["fixtures"])
def test_a_contract_sees_who_calls(node: Node, fixture: str):
    skip_equal_build(node, fixture)
    says = MANIFEST["fixtures"][fixture]
    who, name = says["functions"]["who"], node.deploy(FOREIGN / fixture)["name"]
    nobody = node.ask("query", name, who, "role")["result"]
    assert nobody == {"mspid": "Org1MSP", "attribute": says["no_attribute"]}
    alice = ("--as", "alice", "--attr", "role=admin")
    somebody = node.ask("query", name, who, "role", *alice)["result"]
    shown = "admin" if says.get("attributes", True) else says["no_attribute"]
    assert somebody == {"mspid": "Org1MSP", "attribute": shown}


def skip_equal_build(node: Node, fixture: str) -> None:
    if node.backend == "docker" and fixture in SAME_BUILD:
        pytest.skip("built in a container like another one; as a process it runs")


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
