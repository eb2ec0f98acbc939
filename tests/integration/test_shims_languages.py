"""The same calls in a Go, a Node and a Java shim: same answers and read-write sets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.peer import chaincode_event_pb2

from support.shims.stub import IMPLICIT, Stub, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
BEFORE = [
    ("fill", "250"),
    ("put", "k", "v1"),
    ("put", "k", "v2"),
    ("del", "k"),
    ("put", "simple", "v"),
    ("putc", "owner", "ann", "car1"),
    ("putc", "owner", "bob", "car2"),
    ("putc", "owner", "bobby", "car3"),
    ("put", "m1", '{"size":1}'),
    ("put", "m2", '{"size":2}'),
    ("pput", IMPLICIT, "p", '{"size":1}'),
    ("setvp", "simple", "policy"),
]
"""What is committed first, in each language."""
COUNTS = (0, 1, 99, 100, 101, 200, 201, 250)
ONE = json.dumps({"selector": {"size": 1}})
SAME = [
    ("put", "k", "v"),
    ("get", "simple"),
    ("get", "absent"),
    ("del", "k"),
    *(("range", "r0000", f"r{count:04}") for count in COUNTS),
    ("range", "", ""),
    ("paged", "r", "s", "100", ""),
    ("paged", "r", "s", "100", "r0200"),
    ("paged", "r", "s", "250", ""),
    ("partial", "owner"),
    ("partial", "owner", "bob"),
    ("partialp", "2", "", "owner"),
    ("history", "k"),
    ("event", "sold", "car1", "bought", "car2"),
    ("event", "", "car1"),
    ("transient", "t"),
    ("creator",),
    ("getPeerOrg",),
    ("fail", "no such car"),
    ("query", ONE),
    ("queryp", ONE, "1", ""),
    ("pquery", IMPLICIT, ONE),
    ("setvp", "k", "policy"),
    ("getvp", "k"),
    ("getvp", "simple"),
    ("pput", IMPLICIT, "k", "v"),
    ("pdel", IMPLICIT, "k"),
    ("ppurge", IMPLICIT, "k"),
    ("pget", IMPLICIT, "p"),
    ("pget", IMPLICIT, "absent"),
    ("phash", IMPLICIT, "p"),
    ("phash", IMPLICIT, "absent"),
    ("prange", IMPLICIT, "", ""),
    ("pputc", IMPLICIT, "type", "x", "y"),
    ("ppartial", IMPLICIT, "type", "x"),
    ("psetvp", IMPLICIT, "k", "policy"),
    ("pgetvp", IMPLICIT, "k"),
    ("call", "b", "", "put", "k", "v"),
    ("call", "b", "", "status", "500"),
]


def told(payload: bytes) -> Any:
    """Return what a chaincode said, without ids and times of transactions."""
    if payload[:1] not in (b"[", b"{"):
        return payload
    said = json.loads(payload)
    for row in said:
        if isinstance(row, dict):
            del row["tx"], row["seconds"]
    return said


async def seen(stub: Stub, words: tuple[str, ...]) -> Any:
    """Return answer, read-write set and event of one call."""
    outcome, action = await stub.endorse(*words, transient={"t": b"secret"})
    said = outcome.response
    event = chaincode_event_pb2.ChaincodeEvent.FromString(action.events)
    event.tx_id = ""
    message = "" if words == ("event", "", "car1") else said.message
    return said.status, message, told(said.payload), action.results, event


@pytest.mark.golang
@pytest.mark.nodejs
@pytest.mark.statement(26, 35, 63, 68, 73, 74, 76, by="go node java")
@pytest.mark.statement(11, 12, 44, of="client", by="go node java")
async def test_answers_and_read_write_sets_are_the_same_in_all_languages(
    tmp_path: Path,
):
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for language in ("go", "node", "java"):
        async with running(language, tmp_path / language) as stub:
            for words in BEFORE:
                await stub.commit(*words)
            for words in SAME:
                found.setdefault(words, {})[language] = await seen(stub, words)
    for words, by in found.items():
        assert by["go"] == by["node"] == by["java"], words
    said = {words: by["java"] for words, by in found.items()}
    refused = {("event", "", "car1"), ("fail", "no such car")}
    assert {words for words, (status, *_) in said.items() if status != 200} == refused
    for count in COUNTS:
        keys = said["range", "r0000", f"r{count:04}"][2]
        assert keys == [f"r{number:04}" for number in range(count)]
    assert said["range", "", ""][2][:3] == ["m1", "m2", "r0000"]
    assert said["paged", "r", "s", "100", ""][2]["bookmark"] == "r0100"
    assert said["paged", "r", "s", "100", "r0200"][2]["bookmark"] == ""
    assert said["partial", "owner", "bob"][2] == [["bob", "car2"]]
    changes = [(row["value"], row["deleted"]) for row in said["history", "k"][2]]
    assert changes == [("", True), ("v2", False), ("v1", False)]
    event = said["event", "sold", "car1", "bought", "car2"][4]
    assert (event.chaincode_id, event.event_name, event.payload) == (
        "a",
        "bought",
        b"car2",
    )
    assert said["transient", "t"][2] == b"secret"
    assert said["query", ONE][2] == ["m1"]
    assert said["getPeerOrg",][2] == b"Org1MSP"
