"""Whose peer runs a call decides which private values there are."""

from __future__ import annotations

from copy import copy
from types import GeneratorType
from typing import Any

import pytest
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.peer import chaincode_pb2, policy_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from fabric_protos.peer.proposal_response_pb2 import Response

from chaindock.chaincode.invocation import Call
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.requests import REQUESTS, Kind
from chaindock.errors import ChaindockError, NotFound
from chaindock.identity.policies import parse_policy
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval, Definition
from chaindock.lifecycle.terms import parse_collections
from support.ledgers.ledger import MVCC, VALID

CCID = Ccid("deals_1.0:" + "b" * 64)
COLLECTIONS = b"""[
  {"name": "first", "policy": "OR('Org1MSP.member')"},
  {"name": "closed", "policy": "OR('Org1MSP.member')", "memberOnlyRead": true},
  {"name": "shared", "policy": "OR('Org1MSP.member', 'Org2MSP.member')"}
]"""
OWN = "_implicit_org_Org1MSP"
FORMS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "PUT_STATE": (shim.PutState, ("collection", "key", "value")),
    "GET_STATE": (shim.GetState, ("collection", "key")),
    "GET_PRIVATE_DATA_HASH": (shim.GetState, ("collection", "key")),
    "GET_STATE_METADATA": (shim.GetStateMetadata, ("collection", "key")),
    "GET_STATE_BY_RANGE": (shim.GetStateByRange, ("collection",)),
    "GET_QUERY_RESULT": (shim.GetQueryResult, ("collection", "query")),
}


class Asking:
    """Chaincode whose function is the request that it makes of the peer, or `call`."""

    def process_of(self, _mspid: str) -> str:
        return ""

    async def execute(self, _ccid: Any, invocation: Any, _mspid: str) -> Any:
        call = Call(invocation, 5.0, invocation.simulator.budget, lambda: None)
        name, *words = (bytes(one).decode() for one in invocation.input.args)
        if name == "call":
            args = [one.encode() for one in words[1:]]
            given = chaincode_pb2.ChaincodeInput(args=args)
            said = await invocation.invoke(call, *words[0].split("/"), given)
            return Kind.FromString(said)
        try:
            said = Response(status=200, payload=answer(call, name, words))
        except ChaindockError as error:
            said = Response(status=500, message=error.message)
        return Kind(type=Kind.COMPLETED, payload=said.SerializeToString())


def answer(call: Call, name: str, words: list[str]) -> bytes:
    if name == "GET_STATE_MULTIPLE":
        request = shim.GetStateMultiple(collection=words[0], keys=words[1:])
    else:
        form, fields = FORMS[name]
        given: dict[str, Any] = dict(zip(fields, words, strict=True))
        if "value" in given:
            given["value"] = given["value"].encode()
        request = form(**given)
    found: Any = REQUESTS[Kind.Type.Value(name)][1](call, request, StreamOptions())
    while isinstance(found, GeneratorType):
        try:
            next(found)
        except StopIteration as end:
            found = end.value
    return found if isinstance(found, bytes) else b"".join(found)


class Deals:
    """A channel of two organisations with the chaincode `deals`."""

    def __init__(self, node: Any, second: Any) -> None:
        self.node = node
        self.signers = {"Org1MSP": node.user, "Org2MSP": second.user("User1")}

    async def define(self, name: str) -> None:
        self.node.approvals.known[name, 1] = Approval(name, 1, "1.0", CCID)
        members = parse_policy("OR('Org1MSP.peer', 'Org2MSP.peer')")
        policy = policy_pb2.ApplicationPolicy(signature_policy=members)
        definition = Definition(
            name=name,
            sequence=1,
            version="1.0",
            validation_parameter=policy.SerializeToString(),
            collections=parse_collections(COLLECTIONS),
        )
        await self.node.writer.commit(definition, CCID)

    async def ask(
        self, at: str, *words: str, by: str = "Org1MSP", name: str = "deals"
    ) -> Any:
        """Return the payload that the peer of `at` gives, or the message of its error."""
        args = [one.encode() for one in words]
        answered = await self.node.caller.query(
            name, args, signer=self.signers[by], endorsers=(at,)
        )
        return answered.payload if answered.status == 200 else answered.message

    async def put(self, collection: str, key: str, value: str) -> tuple[int, int]:
        """Commit a private value; return its version."""
        args = [one.encode() for one in ("PUT_STATE", collection, key, value)]
        answered = await self.node.caller.invoke(
            "deals", args, signer=self.node.user, endorsers=("Org1MSP",)
        )
        assert answered.code == 0
        return answered.block, 0


@pytest.fixture
def org(organizations: Any) -> Any:
    return organizations.first


@pytest.fixture
async def deals(node: Any, members: Any, organizations: Any) -> Deals:
    await members.add("Org2", node.orderer)
    node.writer = type(node.writer)(node.caller, node.ledger, members.admins)
    node.endorser.executor = Asking()
    found = Deals(node, organizations.find("Org2MSP"))
    await found.define("deals")
    return found


def keys(batch: bytes) -> list[str]:
    rows = shim.QueryResponse.FromString(batch).results
    return [KV.FromString(row.resultBytes).key for row in rows]


@pytest.mark.parametrize("collection", ["first", OWN])
async def test_a_value_is_read_at_the_peer_of_a_member_alone(
    deals: Deals, collection: str
) -> None:
    block, _ = await deals.put(collection, "k", "v")
    for by in ("Org1MSP", "Org2MSP"):
        assert await deals.ask("Org1MSP", "GET_STATE", collection, "k", by=by) == b"v"
        assert await deals.ask("Org2MSP", "GET_STATE", collection, "k", by=by) == (
            "private data matching public hash version is not available. Public hash "
            f"version = {{BlockNum: {block}, TxNum: 0}}, Private data version = <nil>"
        )
    assert await deals.ask("Org2MSP", "GET_STATE", collection, "absent") == b""


async def test_both_peers_of_the_members_have_the_value(deals: Deals) -> None:
    await deals.put("shared", "k", "v")
    for at in ("Org1MSP", "Org2MSP"):
        assert await deals.ask(at, "GET_STATE", "shared", "k") == b"v"


@pytest.mark.statement(55)
@pytest.mark.statement(24, of="client")
async def test_a_peer_without_the_values_has_their_hashes(deals: Deals) -> None:
    await deals.put("first", "k", "v")
    told = {
        (at, by): await deals.ask(at, "GET_PRIVATE_DATA_HASH", "first", "k", by=by)
        for at in deals.signers
        for by in deals.signers
    }
    assert {len(one) for one in told.values()} == {32}
    assert len(set(told.values())) == 1


async def test_many_values_are_not_compared_and_are_absent(deals: Deals) -> None:
    await deals.put("first", "k", "v")
    for at, value in (("Org1MSP", b"v"), ("Org2MSP", b"")):
        answered = await deals.ask(at, "GET_STATE_MULTIPLE", "first", "k", "absent")
        found = shim.GetStateMultipleResult.FromString(answered)
        assert list(found.values) == [value, b""]


async def test_who_took_values_for_absent_commits_nothing(deals: Deals) -> None:
    """The peer has read the hashes' versions wrong, as a Fabric peer does."""
    await deals.put("first", "k", "v")
    for at, code in (("Org1MSP", VALID), ("Org2MSP", MVCC)):
        answered = await deals.node.caller.invoke(
            "deals",
            [b"GET_STATE_MULTIPLE", b"first", b"k"],
            signer=deals.node.user,
            endorsers=(at,),
        )
        assert answered.code == code


async def test_ranges_and_rich_queries_find_nothing_where_no_values_are(
    deals: Deals,
) -> None:
    await deals.put("first", "k", '{"a": 1}')
    query = '{"selector": {"a": 1}}'
    for at, found in (("Org1MSP", ["k"]), ("Org2MSP", [])):
        assert keys(await deals.ask(at, "GET_STATE_BY_RANGE", "first")) == found
        assert keys(await deals.ask(at, "GET_QUERY_RESULT", "first", query)) == found
    refused = await deals.ask("Org2MSP", "GET_QUERY_RESULT", "first", "{")
    assert refused == "unexpected EOF"


async def test_who_may_read_is_decided_before_what_there_is(deals: Deals) -> None:
    await deals.put("closed", "k", "v")
    for at in ("Org1MSP", "Org2MSP"):
        told = await deals.ask(at, "GET_STATE", "closed", "k", by="Org2MSP")
        assert "does not have read access permission" in told
    told = await deals.ask("Org2MSP", "GET_STATE", "closed", "k")
    assert "private data matching public hash version is not available" in told


async def test_called_chaincode_reads_at_the_peer_of_its_caller(deals: Deals) -> None:
    """Also when it calls as if from another channel."""
    await deals.define("outer")
    await deals.put("first", "k", "v")
    deals.node.endorser.others = {"elsewhere": deals.node.endorser}.get
    for called in ("deals/", "deals/elsewhere"):
        words = "call", called, "GET_STATE", "first", "k"
        assert await deals.ask("Org1MSP", *words, name="outer") == b"v"
        told = await deals.ask("Org2MSP", *words, name="outer")
        assert "private data matching public hash version is not available" in told


async def test_a_peer_reads_no_channel_that_its_organisation_has_not_joined(
    deals: Deals,
) -> None:
    """Whatever the client may: it is a member there."""
    await deals.define("outer")
    await deals.put("first", "k", "v")
    there = copy(deals.node.endorser)
    there.peers = {"Org1MSP": there.peers["Org1MSP"]}
    deals.node.endorser.others = {"elsewhere": there}.get
    words = "call", "deals/elsewhere", "GET_STATE", "first", "k"
    assert await deals.ask("Org1MSP", *words, name="outer") == b"v"
    with pytest.raises(NotFound, match="Failed to get policy manager for channel"):
        await deals.ask("Org2MSP", *words, name="outer")
