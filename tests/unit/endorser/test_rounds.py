"""A transaction that the peers of several organisations simulate, each by itself."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.peer.chaincode_pb2 import ChaincodeInput
from fabric_protos.peer.lifecycle.lifecycle_pb2 import (
    ApproveChaincodeDefinitionForMyOrgArgs,
)

from chaindock.chaincode.invocation import Call
from chaindock.endorser.caller import compare
from chaindock.errors import EndorsersMissing, ExecuteFailed, LaunchFailed, NotEndorsed
from chaindock.ids import Ccid
from chaindock.lifecycle.terms import parse_collections

if TYPE_CHECKING:
    from collections.abc import Callable

ORGS = ("Org1MSP", "Org2MSP", "Org3MSP")


@pytest.fixture
def org(organizations: Any) -> Any:
    return organizations.first


class Peers:
    """Each organisation has a process of its own; `before` is what it does first."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.asked: list[str] = []
        self.before: dict[str, Callable[[Any], Any]] = {}
        self._chaincode = node.chaincode
        node.endorser.executor = self

    def process_of(self, mspid: str) -> str:
        return mspid

    async def execute(self, ccid: Any, invocation: Any, mspid: str) -> Any:
        self.asked.append(mspid)
        if mspid in self.before:
            await self.before[mspid](invocation)
        return await self._chaincode.execute(ccid, invocation, mspid)

    async def put(self, *endorsers: str, **other: Any) -> Any:
        return await self.node.caller.invoke(
            "basic",
            [b"put", b"k", b"v"],
            endorsers=endorsers,
            **{"signer": self.node.user, **other},
        )


@pytest.fixture
async def three(node: Any, members: Any) -> Peers:
    """Two of the three organisations must endorse."""
    peers = Peers(node)
    await node.define()
    for name in ("Org2", "Org3"):
        await members.add(name, node.orderer)
    peers.asked.clear()
    return peers


async def writes_more(invocation: Any) -> None:
    invocation.simulator.put_state("basic", "mine", b"other")


async def refuses(_invocation: Any) -> None:
    raise ExecuteFailed("my organisation does not endorse this")


async def test_only_those_that_the_policies_need_are_asked(three):
    assert (await three.put()).code == 0
    assert three.asked == ["Org1MSP", "Org2MSP"]


async def test_a_client_is_served_by_the_peer_of_its_organisation(three, organizations):
    clerk = organizations.find("Org3MSP").user("clerk")
    assert (await three.put(signer=clerk)).code == 0
    assert three.asked == ["Org3MSP", "Org1MSP"]
    three.asked.clear()
    await three.node.caller.query("basic", [b"get", b"k"], signer=clerk)
    assert three.asked == ["Org3MSP"]


async def test_peers_work_at_the_same_time_on_one_state(three):
    """A block that is committed meanwhile makes no difference between them."""
    both = asyncio.Barrier(2)

    async def meets(_invocation: Any) -> None:
        await both.wait()

    async def overtaken(invocation: Any) -> None:
        three.before = {}
        assert (await three.put("Org1MSP", "Org2MSP")).code == 0
        await meets(invocation)

    three.before = {"Org1MSP": meets, "Org3MSP": overtaken}
    answer = await three.node.caller.invoke(
        "basic",
        [b"copy", b"k", b"other"],
        signer=three.node.user,
        endorsers=("Org1MSP", "Org3MSP"),
    )
    assert (answer.payload, answer.code) == (b"", 11)  # as at its begin: a conflict


@pytest.mark.parametrize("wrong", [writes_more, refuses])
async def test_another_peer_stands_in_for_one_that_does_not_endorse(three, wrong):
    three.before["Org2MSP"] = wrong
    assert (await three.put()).code == 0
    assert three.asked == [*ORGS]


async def test_results_that_differ_are_told_with_what_differs(three):
    three.before = dict.fromkeys(ORGS[1:], writes_more)
    height = three.node.ledger.height
    with pytest.raises(NotEndorsed) as told:
        await three.put()
    assert told.value.organizations == dict.fromkeys(
        ORGS[1:], "ProposalResponsePayloads do not match"
    )
    assert "write basic/mine: none and b'other'" in told.value.message
    assert three.node.ledger.height == height


async def test_those_that_are_named_must_all_endorse(three):
    three.before["Org3MSP"] = refuses
    with pytest.raises(NotEndorsed) as told:
        await three.put(*ORGS)
    assert list(told.value.organizations) == ["Org3MSP"]
    assert "my organisation does not endorse this" in told.value.message
    assert told.value.hint == "read what it wrote: chaindock logs basic@Org3MSP"
    three.process_of = lambda _mspid: ""
    with pytest.raises(NotEndorsed) as told:
        await three.put(*ORGS)
    assert told.value.hint == "read what it wrote: chaindock logs basic"


async def test_if_all_fail_alike_that_is_the_answer(three):
    answer = await three.node.caller.invoke(
        "basic", [b"status", b"500", b"no"], signer=three.node.user, endorsers=ORGS
    )
    assert (answer.status, answer.message, answer.block) == (500, "no", None)


async def test_a_peer_whose_chaincode_does_not_start_is_told(three):
    async def fails(_invocation: Any) -> None:
        raise LaunchFailed("could not launch chaincode basic: no room")

    three.before = dict.fromkeys(ORGS[1:], fails)
    with pytest.raises(NotEndorsed) as told:
        await three.put()
    assert {*told.value.organizations} == {*ORGS[1:]}
    assert "no room" in told.value.organizations["Org2MSP"]


async def test_an_error_at_one_peer_leaves_nothing_of_the_others(three):
    async def breaks(_invocation: Any) -> None:
        raise ZeroDivisionError

    left = asyncio.Event()

    async def waits(_invocation: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()

    three.before = {"Org1MSP": waits, "Org2MSP": breaks}
    with pytest.raises(ExceptionGroup):
        await three.put("Org1MSP", "Org2MSP")
    assert left.is_set()


async def test_each_peer_answers_for_a_system_chaincode_by_itself(three, organizations):
    """The peer of Org2 lets only an admin of Org2 approve there."""
    definition = ApproveChaincodeDefinitionForMyOrgArgs(
        name="more", sequence=1, version="1.0"
    )
    with pytest.raises(NotEndorsed) as told:
        await three.node.caller.invoke(
            "_lifecycle",
            [b"ApproveChaincodeDefinitionForMyOrg", definition.SerializeToString()],
            signer=organizations.first.admin,
            endorsers=ORGS[:2],
        )
    assert [*told.value.organizations] == ["Org2MSP"]


async def test_peers_that_share_a_process_use_it_one_after_the_other(three):
    three.process_of = lambda _mspid: ""
    busy = 0

    async def works(_invocation: Any) -> None:
        nonlocal busy
        assert busy == 0  # a stream takes a transaction once at a time
        busy += 1
        await asyncio.sleep(0)
        busy -= 1

    three.before = dict.fromkeys(ORGS, works)
    assert (await three.put(*ORGS)).code == 0
    assert three.asked == [*ORGS]


async def test_a_peer_that_is_stopped_meanwhile_ends_what_it_has_begun(three):
    async def stopped(_invocation: Any) -> None:
        three.node.endorser.peers.pop("Org2MSP")

    three.before["Org2MSP"] = stopped
    assert (await three.put()).code == 0
    assert three.asked == ["Org1MSP", "Org2MSP"]
    assert (await three.put()).code == 0
    assert three.asked[2:] == ["Org1MSP", "Org3MSP"]


async def test_a_call_during_an_upgrade_runs_the_new_version_everywhere(three):
    """Else one peer has run the former version, and another one the new one."""
    known = three.node.approvals.known

    async def upgrade(_invocation: Any) -> None:
        three.before = {}
        await three.node.define(version="2.0", ccid=Ccid("basic_2.0:" + "b" * 64))
        known["basic", 1] = replace(known["basic", 2], sequence=1)
        three.asked.clear()

    three.before["Org1MSP"] = upgrade
    assert (await three.put()).code == 0
    assert three.asked == ["Org2MSP", "Org3MSP", "Org1MSP", "Org2MSP"]


@pytest.fixture
async def calling(three):
    """`basic` calls `callee`, which writes what package it is."""
    execute, former = three.node.chaincode.execute, Ccid("callee_1.0:" + "c" * 64)
    await three.node.define("callee", ccid=former)
    three.after_call = {}

    async def run(ccid: Ccid, invocation: Any, mspid: str) -> Any:
        if invocation.namespace == "callee":
            invocation.simulator.put_state("callee", "by", ccid.encode())
        elif invocation.namespace == "basic":
            given = ChaincodeInput(args=[b"get", b"k"])
            call = Call(invocation, 5.0, invocation.simulator.budget, lambda: None)
            await invocation.invoke(call, "callee", "", given)
            if mspid in three.after_call:
                await three.after_call.pop(mspid)()
        return await execute(ccid, invocation, mspid)

    three.node.chaincode.execute = run
    three.asked.clear()
    return three


async def upgraded(three: Any, ccid: str) -> None:
    known = three.node.approvals.known
    await three.node.define("callee", version="2.0", ccid=Ccid(ccid))
    known["callee", 1] = replace(known["callee", 2], sequence=1)


async def test_an_upgrade_of_a_called_chaincode_repeats_the_round(calling):
    newer = "callee_2.0:" + "d" * 64
    calling.after_call["Org1MSP"] = partial(upgraded, calling, newer)
    assert (await calling.put()).code == 0
    answer = await calling.node.caller.query(
        "callee", [b"get", b"by"], signer=calling.node.user
    )
    assert answer.payload == newer.encode()


async def test_a_round_is_repeated_once(calling):
    """A chaincode that is upgraded without end does not keep a call for ever."""
    for org, letter in zip(ORGS, "def", strict=True):
        calling.after_call[org] = partial(upgraded, calling, "callee:" + letter * 64)
    calling.before = dict.fromkeys(ORGS[1:], writes_more)
    with pytest.raises(NotEndorsed):
        await calling.put()
    assert calling.asked.count("Org2MSP") == 4  # twice, and each time its callee


# --- transient data -----------------------------------------------------------------

COLLECTIONS = b"""[
  {"name": "some", "policy": "OR('Org1MSP.member', 'Org3MSP.member')"},
  {"name": "mine", "policy": "OR('Org1MSP.member')"}
]"""


@pytest.fixture
async def secret(three):
    """Calls with transient data; two of three organisations must endorse."""
    await three.node.define(collections=parse_collections(COLLECTIONS))
    three.asked.clear()

    async def hide(collection: str, *endorsers: str, **other: Any) -> Any:
        three.asked.clear()
        told = {"signer": three.node.user, "transient": {"pin": b"1"}, **other}
        args = [b"hide", b"k", b"v", collection.encode()]
        return await three.node.caller.invoke(
            "basic", args, endorsers=endorsers, **told
        )

    return hide


async def test_transient_data_go_to_members_of_the_collections_alone(three, secret):
    assert (await secret("some", transient=None)).code == 0
    assert three.asked == ["Org1MSP", "Org2MSP"]
    assert (await secret("some")).code == 0
    assert three.asked == ["Org1MSP", "Org3MSP"]


async def test_nobody_else_sees_transient_data_unless_named(three, secret):
    with pytest.raises(EndorsersMissing, match="collections mine") as told:
        await secret("mine")
    assert three.asked == ["Org1MSP"]
    assert "--endorsers" in str(told.value.hint)
    assert (await secret("mine", "Org1MSP", "Org2MSP")).code == 0


async def test_transient_data_stay_in_the_organisation_of_the_caller(three, secret):
    """While its peer is stopped, no other one is asked for a query, unless named."""
    peer = three.node.endorser.peers.pop("Org1MSP")
    assert (await three.put()).code == 0
    for call in (secret("some"), secret("some", commits=False)):
        with pytest.raises(EndorsersMissing, match="no peer of Org1MSP runs") as told:
            await call
        assert "chaindock org start Org1MSP" in str(told.value.hint)
        assert three.asked == []
    with pytest.raises(EndorsersMissing):
        await compare(
            three.node.caller,
            "basic",
            [b"get", b"k"],
            three.node.user,
            transient={"pin": b"1"},
        )
    assert three.asked == []
    assert (await secret("some", "Org3MSP", commits=False)).status == 200
    three.node.endorser.peers["Org1MSP"] = peer
    assert (await secret("some")).code == 0
