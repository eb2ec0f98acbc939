"""Organisations that join and leave a channel by changes of clients."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fabric_protos.msp import msp_config_pb2
from fabric_protos.peer.policy_pb2 import ApplicationPolicy

from chaindock.endorser import orderer
from chaindock.endorser.caller import Caller, assemble, draw
from chaindock.endorser.genesis import member_group
from chaindock.errors import Denied, InvalidInput, LaunchFailed, NotFound
from chaindock.identity.organization import Organization
from chaindock.identity.policies import parse_policy
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval, Definition, set_defaults
from support.clients.strangers import revocations
from support.config_updates import change, joins, leaves, timeout
from support.eventually import eventually
from support.ledgers.ledger import committed_definition

CCID = Ccid("basic_1.0:" + "a" * 64)


@pytest.fixture
def org(organizations: Any) -> Any:
    return organizations.first


async def test_an_organisation_of_elsewhere_joins(two, tmp_path):
    """The node has none of its keys: others endorse, and its users may call."""
    third = Organization.open(tmp_path / "x", "Org3MSP", "org3.example.com")

    await change(two, joins(third.msp))
    assert two.endorser.configuration.peers == ["Org1MSP", "Org2MSP", "Org3MSP"]
    answer = await two.caller.invoke(
        "basic", [b"put", b"k", b"v"], signer=third.user("clerk")
    )
    assert answer.code == 0


async def test_an_organisation_of_the_node_joins_with_its_peer(
    two, members, organizations
):
    third = organizations.make("Org3")

    told = asyncio.Event()

    async def updated() -> None:
        assert [*members.peers] == ["Org1MSP", "Org2MSP", "Org3MSP"]
        told.set()

    two.orderer.updated = updated
    await change(two, joins(third.msp))
    assert told.is_set()
    call = {"signer": third.user("clerk"), "endorsers": ["Org3MSP", "Org1MSP"]}
    answer = await two.caller.invoke("basic", [b"put", b"k", b"v"], **call)
    assert answer.code == 0


async def test_an_organisation_leaves_with_its_peer_and_its_identities(
    two, members, organizations
):
    """What it has signed does not count any more, also if it waits for its block."""
    second = organizations.find("Org2MSP").user("clerk")
    await members.add("Org3", two.orderer)
    two.admins.append(organizations.find("Org3MSP").admin)
    await change(two, timeout("1h"))
    call = [b"put", b"k", b"v"]
    waiting = [
        asyncio.ensure_future(two.caller.invoke("basic", call, **who))
        for who in (
            {"signer": second},
            {"signer": two.user, "endorsers": ["Org1MSP", "Org2MSP"]},
            {"signer": two.user, "endorsers": ["Org1MSP", "Org3MSP"]},
        )
    ]
    await eventually(lambda: two.orderer.waiting == 3)
    await change(two, leaves("Org2MSP"))
    assert [*members.peers] == ["Org1MSP", "Org3MSP"]
    await two.orderer.cut()
    assert [one.code for one in await asyncio.gather(*waiting)] == [4, 10, 0]
    with pytest.raises(NotFound, match="none of those of channel 'mychannel'"):
        members.get("Org2")
    with pytest.raises(Denied):
        await two.caller.invoke("basic", call, signer=second)
    assert [one["mspid"] for one in members.list()] == ["Org1MSP", "Org3MSP"]
    # It may come back.
    await members.add("Org2", two.orderer)
    assert "Org2MSP" in members.peers


@pytest.mark.parametrize("strict", [False, True])
async def test_a_call_in_which_an_organisation_joins_is_endorsed_by_that_too(
    node, members, strict
):
    """The policy of the channel is a majority, so of two both must sign."""
    await node.define()
    node.chaincode.hold = asyncio.Event()
    proposed = draw("mychannel", "basic", [b"put", b"k", b"v"], node.user)
    call = node.endorser.process(proposed, endorse=True, strict=strict)
    running = asyncio.ensure_future(call)
    await node.chaincode.entered.acquire()
    await members.add("Org2", node.orderer)
    node.chaincode.hold.set()
    _, signed = await running
    where = await node.orderer.submit(assemble(proposed, signed, node.user))
    assert (len(signed), where.code) == (2, 0)


async def test_a_call_for_which_a_peer_is_named_that_leaves_meanwhile_is_told_so(
    two, members, organizations
):
    await members.add("Org3", two.orderer)
    two.admins.append(organizations.find("Org3MSP").admin)
    proposed = draw("mychannel", "basic", [b"put", b"k", b"v"], two.user)
    two.chaincode.hold = asyncio.Event()
    asked = {"endorse": True, "endorsers": ["Org1MSP", "Org3MSP"]}
    running = asyncio.ensure_future(two.endorser.process(proposed, **asked))
    await two.chaincode.entered.acquire()
    await change(two, leaves("Org3MSP"))
    two.chaincode.raises = LaunchFailed("it is stopped")
    two.chaincode.hold.set()
    with pytest.raises(NotFound, match="'Org3MSP' has no peer on this node"):
        await running


@pytest.mark.parametrize("how", ["joins", "leaves"])
async def test_a_definition_is_committed_while_members_change(
    two, members, organizations, monkeypatch, how
):
    await members.add("Org3", two.orderer)
    two.admins.append(organizations.find("Org3MSP").admin)
    invoke = Caller.invoke

    async def then_changes(caller: Caller, *args: Any, **told: Any) -> Any:
        monkeypatch.undo()
        answer = await invoke(caller, *args, **told)
        if how == "joins":
            for name in ("Org4", "Org5", "Org6"):
                await members.add(name, two.orderer)
        else:
            await change(two, leaves("Org3MSP"))
        return answer

    monkeypatch.setattr(Caller, "invoke", then_changes)
    two.approvals.known["basic", 2] = Approval("basic", 2, "2.0", CCID)
    definition = Definition(name="basic", sequence=2, version="2.0")
    set_defaults(definition)
    await two.writer.commit(definition, CCID)
    assert committed_definition(two.ledger, "basic").version == "2.0"


async def test_what_is_checked_while_an_organisation_leaves_is_checked_again(
    two, monkeypatch
):
    """To check a large transaction takes a while, on a thread."""
    policy = ApplicationPolicy(signature_policy=parse_policy("OR('Org2MSP.peer')"))
    await two.define(validation_parameter=policy.SerializeToString())
    checked, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_size: int, work: Any) -> Any:
        monkeypatch.undo()
        found = work()
        checked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(orderer, "off_loop", slow)
    call = two.caller.invoke("basic", [b"put", b"k", b"v"], signer=two.user)
    running = asyncio.ensure_future(call)
    await checked.wait()
    await change(two, leaves("Org2MSP"))
    go_on.set()
    assert (await running).code == 10


def revokes(org: Any, who: Any) -> Any:
    """Return the change of both definitions of an organisation, if it orders, too."""
    listed = revocations(org._ca, org.msp.identify(who.creator).certificate)

    def how(group: Any) -> None:
        for kind in ("Application", "Orderer"):
            if org.mspid in group.groups[kind].groups:
                value = group.groups[kind].groups[org.mspid].values["MSP"]
                made = msp_config_pb2.MSPConfig.FromString(value.value)
                fabric = msp_config_pb2.FabricMSPConfig.FromString(made.config)
                fabric.revocation_list.append(listed)
                made.config = fabric.SerializeToString()
                value.value = made.SerializeToString()

    return how


@pytest.mark.parametrize("mspid", ["Org1MSP", "Org2MSP"])
async def test_an_organisation_revokes_a_user(two, organizations, mspid):
    """Also what waits for its block is of nobody any more."""
    org, call = organizations.find(mspid), [b"put", b"k", b"v"]
    clerk, other = org.user("clerk"), org.user("other")
    await change(two, timeout("1h"))
    waiting = [
        asyncio.ensure_future(two.caller.invoke("basic", call, signer=one))
        for one in (clerk, other)
    ]
    await eventually(lambda: two.orderer.waiting == 2)
    await change(two, revokes(org, clerk))
    await two.orderer.cut()
    assert [one.code for one in await asyncio.gather(*waiting)] == [4, 0]
    with pytest.raises(Denied, match="access denied"):
        await two.caller.invoke("basic", call, signer=clerk)


async def test_a_peer_that_was_revoked_endorses_no_more(two, organizations, members):
    second = organizations.find("Org2MSP")
    policy = ApplicationPolicy(signature_policy=parse_policy("OR('Org1MSP.peer')"))
    await two.define(validation_parameter=policy.SerializeToString())
    await change(two, revokes(second, second.peer))
    answer = await two.caller.invoke("basic", [b"put", b"k", b"v"], signer=two.user)
    assert answer.code == 0
    members._node.stopped.add("Org2MSP")
    members.refresh()
    assert list(members.identities()) == ["Org1MSP"]


async def test_a_call_that_runs_while_an_organisation_leaves_ends_without_it(
    two, members
):
    two.chaincode.hold = asyncio.Event()
    call = [b"put", b"k", b"v"]
    running = asyncio.ensure_future(two.caller.invoke("basic", call, signer=two.user))
    await two.chaincode.entered.acquire()
    await change(two, leaves("Org2MSP"))
    two.chaincode.hold.set()
    assert (await running).code == 0


async def test_nobody_joins_under_the_id_of_a_member(two, tmp_path):
    other = Organization.open(tmp_path / "x", "Org1MSP", "org1.example.com")

    def joins(group: Any) -> None:
        members = group.groups["Application"].groups
        members["Org9MSP"].CopyFrom(member_group(other.msp))

    with pytest.raises(InvalidInput, match="two different versions of MSP: Org1MSP"):
        await change(two, joins)
