"""The methods of the stub in real shims."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.peer import proposal_pb2

from support.ledgers.proposals import new_proposal
from support.shims.endorsing import CHANNEL
from support.shims.stub import IMPLICIT, Stub, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
LANGUAGES = [
    pytest.param("go", marks=pytest.mark.golang),
    pytest.param("node", marks=pytest.mark.nodejs),
]


@pytest.fixture
async def stub(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stub]:
    async with running(request.param, tmp_path) as stub:
        yield stub


every_language = pytest.mark.parametrize("stub", LANGUAGES, indirect=True)
and_java = pytest.mark.parametrize("stub", [*LANGUAGES, "java"], indirect=True)
"""Java's shim hides most texts and statuses."""


@and_java
@pytest.mark.statement(76, 78, by="go node java")
async def test_a_call_joins_the_transaction(stub: Stub):
    said = json.loads(await stub.commit("call", "b", "", "put", "k", "v"))
    assert said == {"status": 200, "message": "", "payload": ""}
    assert await stub.ask("get", "k", name="b") == "v"
    assert await stub.ask("get", "k") == ""
    said = json.loads(await stub.ask("call", "b:9", CHANNEL, "get", "k"))
    assert said["payload"] == "v"


@and_java
@pytest.mark.statement(81, 82, of="client", by="go node java")
async def test_the_client_and_its_attributes_are_known(
    request: pytest.FixtureRequest, stub: Stub
):
    stub.node.org.user("User1", {"colour": "red"})
    first, again = [json.loads(await stub.ask("client", "colour")) for _ in range(2)]
    assert first == again
    assert first["value"] == "red"
    encoded = request.node.callspec.params["stub"] == "go"
    told = base64.b64decode(first["id"]).decode() if encoded else first["id"]
    assert told.startswith("x509::")
    assert "User1@org1.example.com" in told


@every_language
@pytest.mark.statement(79, by="go node")
async def test_statuses_and_errors_of_a_callee(stub: Stub):
    for status in (200, 399, 404, 500):
        said = json.loads(await stub.ask("call", "b", "", "status", str(status)))
        assert said == {"status": status, "message": "as told", "payload": "p"}
    said = json.loads(await stub.ask("call", "b", "", "fail", "no"))
    assert (said["status"], said["message"]) == (500, "no")


@every_language
@pytest.mark.statement(81, 82, by="go node")
async def test_calls_that_do_not_begin(stub: Stub):
    """Go tells it as a response, Node throws it; the text is the same."""
    exists = "(mychannel) exists"
    unknown = "invalid invocation: [channel mychannel] failed to get chaincode "
    unknown += "container info for nope: chaincode nope not found"
    for name, text in (("a", exists), ("nope", unknown)):
        outcome, _ = await stub.endorse("call", name, "", "get", "k")
        said = outcome.response
        told = said.message or json.loads(said.payload)["payload"]
        assert told.endswith(text)
        assert told.startswith("INVOKE_CHAINCODE failed: transaction ID: ")
        assert ": execute failed: " in told
    said = json.loads(await stub.ask("call", "qscc", "", "GetChainInfo", CHANNEL))
    assert said["status"] == 500
    assert said["message"].startswith("Rejecting invoke of QSCC from another chaincode")


@every_language
@pytest.mark.statement(83, by="go node")
async def test_a_callee_sees_the_proposal_of_the_client(stub: Stub):
    words = [b"call", b"b", b"", b"info"]
    outcome, _ = await stub.node.propose("a", *words)
    seen = json.loads(json.loads(outcome.response.payload)["payload"])
    direct = json.loads(await stub.ask("info"))
    assert (seen["args"], seen["channel"]) == (["info"], CHANNEL)
    assert len(bytes.fromhex(seen["binding"])) == 32
    assert seen["tx"] != direct["tx"]
    assert seen["seconds"] >= direct["seconds"] - 1


@and_java
@pytest.mark.statement(25, 27, by="go node java")
async def test_binding_and_proposal_are_those_of_the_client(stub: Stub):
    node = stub.node
    signed = new_proposal(CHANNEL, "a", [b"info"], node.org.user("User1"))
    outcome, _ = await node.process(signed)
    seen = json.loads(outcome.response.payload)
    proposal = proposal_pb2.Proposal.FromString(signed.proposal_bytes)
    header = common_pb2.Header.FromString(proposal.header)
    signature = common_pb2.SignatureHeader.FromString(header.signature_header)
    channel = common_pb2.ChannelHeader.FromString(header.channel_header)
    bound = hashlib.sha256(signature.nonce + signature.creator + bytes(8)).hexdigest()
    assert seen == {
        "args": ["info"],
        "tx": channel.tx_id,
        "channel": CHANNEL,
        "binding": bound,
        "signature": signed.signature.hex(),
        "seconds": channel.timestamp.seconds,
    }


@every_language
@pytest.mark.statement(52, by="go node")
async def test_validation_parameters(stub: Stub):
    await stub.commit("put", "k", "v")
    assert await stub.ask("getvp", "k") == ""
    await stub.commit("setvp", "k", "policy")
    assert await stub.ask("getvp", "k") == "policy"
    assert await stub.ask("get", "k") == "v"
    await stub.commit("pput", IMPLICIT, "k", "v")
    await stub.commit("psetvp", IMPLICIT, "k", "private policy")
    assert await stub.ask("pgetvp", IMPLICIT, "k") == "private policy"


@and_java
@pytest.mark.statement(44, 60, by="go node java")
@pytest.mark.statement(24, 31, of="client", by="go node java")
async def test_private_data(stub: Stub):
    for key in ("k1", "k2", "k3"):
        await stub.commit("pput", IMPLICIT, key, f"value of {key}")
    assert await stub.ask("pget", IMPLICIT, "k1") == "value of k1"
    hashed = hashlib.sha256(b"value of k1").hexdigest()
    assert await stub.ask("phash", IMPLICIT, "k1") == hashed
    keys = json.loads(await stub.ask("prange", IMPLICIT, "k", "l"))
    assert keys == ["k1", "k2", "k3"]
    await stub.commit("pdel", IMPLICIT, "k1")
    await stub.commit("ppurge", IMPLICIT, "k2")
    for key in ("k1", "k2"):
        assert await stub.ask("pget", IMPLICIT, key) == ""
        assert await stub.ask("phash", IMPLICIT, key) == ""
    await stub.commit("pputc", IMPLICIT, "type", "x", "y")
    assert len(json.loads(await stub.ask("ppartial", IMPLICIT, "type", "x"))) == 1
    assert json.loads(await stub.ask("prange", IMPLICIT, "", "")) == ["k3"]


@pytest.mark.golang
@pytest.mark.parametrize("stub", ["go"], indirect=True)
async def test_what_only_go_has(stub: Stub):
    for attribute in ("x", "y", "z"):
        await stub.commit("putc", "type", attribute)
    page = json.loads(await stub.ask("allp", "2", ""))
    assert page["keys"] == ["\0type\0x\0", "\0type\0y\0"]
    page = json.loads(await stub.ask("allp", "2", page["bookmark"]))
    assert (page["keys"], page["bookmark"]) == (["\0type\0z\0"], "")
    given = json.loads(await stub.ask("given", "x"))
    assert given == {"slice": "givenx", "decorations": None}


@pytest.mark.golang
@pytest.mark.parametrize("stub", ["go"], indirect=True)
@pytest.mark.statement(48, 50, by="go")
async def test_private_batches_and_many_private_keys(stub: Stub):
    for key in ("b2", "b3"):
        await stub.commit("pput", IMPLICIT, key, "v")
    _, action = await stub.endorse("pbatch", IMPLICIT)
    assert b"b4" in action.results
    await stub.commit("pbatch", IMPLICIT)
    values = json.loads(await stub.ask("pmulti", IMPLICIT, "b3", "b1", "b2"))
    assert values == ["", "1", ""]
    assert await stub.ask("get", "b4") == "4"


@every_language
@pytest.mark.statement(75, by="go node")
async def test_rich_queries(stub: Stub):
    for number in range(205):
        marble = json.dumps({"size": number % 2, "n": number})
        await stub.commit("put", f"m{number:03}", marble)
    odd = json.dumps({"selector": {"size": 1}})
    expected = [f"m{number:03}" for number in range(1, 205, 2)]
    assert json.loads(await stub.ask("query", odd)) == expected
    found: list[str] = []
    bookmark = ""
    for count in (70, 32, 0):
        page = json.loads(await stub.ask("queryp", odd, "70", bookmark))
        assert page["count"] == len(page["keys"]) == count
        found, bookmark = found + page["keys"], page["bookmark"]
    assert found == expected
    nothing = json.dumps({"selector": {"size": 9}})
    assert json.loads(await stub.ask("queryp", nothing, "5", ""))["bookmark"] == "nil"
    await stub.commit("pput", IMPLICIT, "p", '{"size":1}')
    assert json.loads(await stub.ask("pquery", IMPLICIT, odd)) == ["p"]
    sort = json.dumps({"selector": {"n": {"$lt": 3}}, "sort": [{"n": "desc"}]})
    outcome, _ = await stub.endorse("query", sort)
    assert outcome.response.message.endswith(
        ": error handling CouchDB request. Error:no_usable_index,  Status Code:400,  "
        "Reason:No index exists for this sort, try indexing by the sort fields."
    )
    index = {"META-INF/statedb/couchdb/indexes/n.json": b'{"index":{"fields":["n"]}}'}
    await stub.node.ledger.put_indexes("a", index)
    assert json.loads(await stub.ask("query", sort)) == ["m002", "m001", "m000"]


@every_language
@pytest.mark.statement(59, by="go node")
async def test_refusals_of_collections_arrive(stub: Stub):
    for words in (("pput", "nocol", "k", "v"), ("pget", "nocol", "k")):
        outcome, _ = await stub.endorse(*words)
        told = outcome.response.message
        assert told.endswith("collection mychannel/a/nocol could not be found")
    outcome, _ = await stub.endorse("phash", "nocol", "k")
    assert outcome.response.message.endswith(
        "collection [nocol] not defined in the collection config for chaincode [a]"
    )
