"""Several organisations on a channel: how one joins, who endorses, what counts."""

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest
from fabric_protos.common import common_pb2, configtx_pb2
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.lifecycle import lifecycle_pb2

from chaindock.endorser import key_policies, orderer
from chaindock.endorser.channel import Members
from chaindock.endorser.checks import parse_proposal
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.genesis import with_organization
from chaindock.errors import AlreadyExists, Denied, InvalidInput, NotFound
from chaindock.identity.organization import Organization, Organizations
from chaindock.identity.policies import evaluator, parse_policy
from chaindock.ids import ChannelId
from support.eventually import eventually
from support.ledgers.proposals import new_proposal

CHANNEL = ChannelId("mychannel")


@pytest.fixture
def org(organizations: Any) -> Any:
    return organizations.first


@pytest.fixture
async def two(node: Any, members: Any) -> Any:
    await node.define()
    await members.add("Org2", node.orderer)
    return node


def signed_by(text: Any) -> Any:
    return policy_pb2.ApplicationPolicy(
        signature_policy=parse_policy(text)
    ).SerializeToString()


async def put(node: Any, *endorsers: Any, key: Any = b"k", signer: Any = None) -> Any:
    answer = await node.caller.invoke(
        "basic", [b"put", key, b"v"], signer=signer or node.user, endorsers=endorsers
    )
    return answer.code


async def planned(node: Any) -> Any:
    """The MSP ids of those that endorse a call by themselves."""
    signed = new_proposal("mychannel", "basic", [b"put", b"k", b"v"], node.user)
    _, found = await node.endorser.process(parse_proposal(signed), endorse=True)
    assert len({one.payload for one in found}) == 1
    msps = node.endorser.configuration.msps
    return [msps.identify(one.endorsement.endorser).mspid for one in found]


async def test_an_organisation_joins_by_a_configuration_block(node, members, org):
    made = await members.add("Org2", node.orderer)
    assert made["mspid"] == "Org2MSP"
    assert made["domain"] == "org2.example.com"
    block = common_pb2.Block.FromString(node.ledger.get_block(made["block"]))
    assert bytes(block.metadata.metadata[2]) == b"\0"
    envelope = common_pb2.Envelope.FromString(block.data.data[0])
    payload = common_pb2.Payload.FromString(envelope.payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    assert header.type == common_pb2.CONFIG
    creator = common_pb2.SignatureHeader.FromString(payload.header.signature_header)
    assert creator.creator == org.orderer.creator
    content = configtx_pb2.ConfigEnvelope.FromString(payload.data)
    assert content.config.sequence == 1
    application = content.config.channel_group.groups["Application"]
    assert application.version == 1
    assert sorted(application.groups) == ["Org1MSP", "Org2MSP"]
    assert [one["mspid"] for one in members.list()] == ["Org1MSP", "Org2MSP"]
    signed = common_pb2.OrdererBlockMetadata.FromString(
        common_pb2.Metadata.FromString(block.metadata.metadata[0]).value
    )
    assert signed.last_config.index == made["block"]


async def test_the_update_says_what_changed_and_is_signed_by_the_admins(
    node, members, org
):
    made = await members.add("Org2", node.orderer)
    block = common_pb2.Block.FromString(node.ledger.get_block(made["block"]))
    envelope = common_pb2.Envelope.FromString(block.data.data[0])
    payload = common_pb2.Payload.FromString(envelope.payload)
    last = configtx_pb2.ConfigEnvelope.FromString(payload.data).last_update
    data = common_pb2.Payload.FromString(last.payload).data
    update = configtx_pb2.ConfigUpdateEnvelope.FromString(data)
    change = configtx_pb2.ConfigUpdate.FromString(update.config_update)
    read = change.read_set.groups["Application"]
    write = change.write_set.groups["Application"]
    assert (read.version, write.version) == (0, 1)
    assert set(write.groups) - set(read.groups) == {"Org2MSP"}
    assert set(read.policies) == set(write.policies)
    (signature,) = update.signatures
    header = common_pb2.SignatureHeader.FromString(signature.signature_header)
    admin = node.endorser.configuration.msps.identify(header.creator)
    assert header.creator == org.admin.creator
    admin.verify(signature.signature_header + update.config_update, signature.signature)


async def test_a_majority_counts_the_new_organisation(two):
    assert await put(two, "Org1MSP") == 10
    assert await put(two, "Org2MSP") == 10
    assert await put(two, "Org1MSP", "Org2MSP") == 0
    assert await put(two, "Org2MSP", "Org1MSP", "Org2MSP") == 0


async def test_those_that_the_policies_need_endorse_by_themselves(two, members):
    assert await planned(two) == ["Org1MSP", "Org2MSP"]
    assert await put(two) == 0
    await members.add("Org3", two.orderer)
    assert await planned(two) == ["Org1MSP", "Org2MSP"]
    await two.define(validation_parameter=signed_by("OR('Org3MSP.peer')"))
    assert await planned(two) == ["Org3MSP"]
    await two.define(
        validation_parameter=signed_by("OutOf(2, 'Org2MSP.peer', 'Org3MSP.peer')")
    )
    assert await planned(two) == ["Org2MSP", "Org3MSP"]
    assert await put(two) == 0
    # Nobody here can satisfy it: the code says so.
    await two.define(validation_parameter=signed_by("OR('Org9MSP.peer')"))
    assert await planned(two) == ["Org1MSP"]
    assert await put(two) == 10


async def test_a_peer_that_is_stopped_is_in_no_plan(two, members, organizations):
    await members.add("Org3", two.orderer)
    assert await planned(two) == ["Org1MSP", "Org2MSP"]
    organizations.stopped.add("Org2MSP")
    members.refresh()
    assert await planned(two) == ["Org1MSP", "Org3MSP"]
    with pytest.raises(NotFound, match="'Org2MSP' has no peer on this node"):
        await put(two, "Org2MSP")
    listed = {one["mspid"]: one["stopped"] for one in members.list()}
    assert listed == {"Org1MSP": False, "Org2MSP": True, "Org3MSP": False}
    await two.define(version="2.0")  # a majority is left
    assert members.get("Org2").mspid == "Org2MSP"  # its users may call


async def test_users_of_the_new_organisation_may_call(two, organizations):
    stranger = organizations.find("Org2MSP").user("clerk")
    assert await put(two, signer=stranger) == 0
    peer = organizations.find("Org2MSP").peer
    with pytest.raises(Denied, match="Writers"):
        await put(two, signer=peer)


async def test_an_identity_from_outside_is_unknown(node, tmp_path):
    outside = Organization.open(tmp_path / "x", "Org2MSP", "org2.example.com")
    await node.define()
    with pytest.raises(Denied, match="creator org unknown"):
        await put(node, signer=outside.user("eve"))


async def test_an_endorser_that_is_no_member_is_refused_before_the_simulation(node):
    await node.define()
    with pytest.raises(NotFound, match="'Org2MSP' has no peer on this node"):
        await put(node, "Org2MSP")
    assert node.chaincode.seen == []


async def test_the_configuration_survives_a_restart(two, tmp_path):
    await put(two)
    again = Organizations(
        tmp_path / "organizations",
        Organization.open(tmp_path / "organizations", "Org1MSP", "org1.example.com"),
    )
    configuration = Configuration.of(two.ledger)
    assert configuration.config == two.endorser.configuration.config
    members = Members(CHANNEL, again, configuration)
    assert list(members.peers) == ["Org1MSP", "Org2MSP"]
    assert members.peers["Org2MSP"].creator == two.endorser.peers["Org2MSP"].creator
    two.endorser.configuration = configuration
    two.endorser.peers = members.peers
    assert await put(two) == 0


async def test_what_was_made_and_did_not_join_is_no_member(node, organizations):
    """As after a kill between the files and the block."""
    organizations.make("Org2")
    members = Members(CHANNEL, organizations, node.endorser.configuration)
    assert [one["mspid"] for one in members.list()] == ["Org1MSP"]
    assert list(members.peers) == ["Org1MSP"]
    made = await members.add("Org2MSP", node.orderer)
    assert made["mspid"] == "Org2MSP"


async def test_names_that_cannot_join(node, members):
    await members.add("Org2", node.orderer)
    height = node.ledger.height
    with pytest.raises(AlreadyExists, match="'Org2MSP' is a member of channel"):
        await members.add("Org2MSP", node.orderer)
    for name in ("", "2", "a/b", "../x", "MSP", "o" * 40, "Org 3"):
        with pytest.raises(InvalidInput, match="invalid name"):
            await members.add(name, node.orderer)
    with pytest.raises(InvalidInput, match="differs only in case"):
        await members.add("ORG2", node.orderer)
    assert node.ledger.height == height


async def test_two_that_join_at_once_both_do(node, members):
    made = await asyncio.gather(
        members.add("Org2", node.orderer), members.add("Org3", node.orderer)
    )
    assert len({one["block"] for one in made}) == 2
    assert node.endorser.configuration.config.sequence == 2
    assert node.endorser.configuration.peers == ["Org1MSP", "Org2MSP", "Org3MSP"]


async def test_an_organisation_whose_client_leaves_joins_all_the_same(
    node, members, monkeypatch
):
    """Else the node would lack its signature, and a majority needs both."""
    await node.define()
    gate, commit = asyncio.Event(), node.ledger.commit

    async def held(txs: Any) -> Any:
        await gate.wait()
        return await commit(txs)

    monkeypatch.setattr(node.ledger, "commit", held)
    second = asyncio.ensure_future(members.add("Org2", node.orderer))
    await eventually(lambda: node.orderer._bytes > 0)
    second.cancel()
    third = asyncio.ensure_future(members.add("Org3", node.orderer))
    await asyncio.sleep(0.05)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert (await third)["mspid"] == "Org3MSP"
    assert list(members.peers) == ["Org1MSP", "Org2MSP", "Org3MSP"]
    assert node.endorser.configuration.peers == list(members.peers)
    assert await put(node) == 0


async def test_of_two_configurations_with_one_number_the_first_counts(
    node, members, organizations, org
):
    former = node.endorser.configuration.config
    both = [
        with_organization(CHANNEL, former, organizations.make(name).msp, [org.admin])
        for name in ("Org2", "Org3")
    ]
    found: Any = await asyncio.gather(
        *map(node.orderer.submit, both), return_exceptions=True
    )
    first, second = found
    assert first.code == 0
    assert isinstance(second, InvalidInput)
    assert "at version 0, but it is currently at version 1" in second.message
    assert node.endorser.configuration.peers == ["Org1MSP", "Org2MSP"]


async def test_a_configuration_has_a_block_of_its_own(node, members):
    await node.define()
    height = node.ledger.height
    calls = [put(node, key=b"%d" % n) for n in range(6)]
    await asyncio.gather(*calls[:3], members.add("Org2", node.orderer), *calls[3:])
    kinds = []
    for number in range(height, node.ledger.height):
        block = common_pb2.Block.FromString(node.ledger.get_block(number))
        kinds.append({_kind(envelope) for envelope in block.data.data})
        assert len(kinds[-1]) == 1
        if kinds[-1] == {common_pb2.CONFIG}:
            assert len(block.data.data) == 1
    assert {common_pb2.CONFIG} in kinds


def _kind(envelope: Any) -> Any:
    payload = common_pb2.Payload.FromString(
        common_pb2.Envelope.FromString(envelope).payload
    )
    return common_pb2.ChannelHeader.FromString(payload.header.channel_header).type


async def test_a_configuration_that_is_not_the_next_is_refused(two, organizations, org):
    third = organizations.make("Org3").msp
    former = Configuration(
        common_pb2.Block.FromString(two.ledger.get_block(0)).data.data[0]
    ).config
    stale = with_organization(CHANNEL, former, third, [org.admin])
    with pytest.raises(InvalidInput, match="0, but it is currently at version 1"):
        await two.orderer.submit(stale)
    first = common_pb2.Block.FromString(two.ledger.get_block(0)).data.data[0]
    with pytest.raises(InvalidInput, match="cannot be processed directly"):
        await two.orderer.submit(first)


async def test_every_member_approves_what_is_deployed(two, members):
    """Approvals are private data of each organisation, which its own admin can read."""
    two.writer = replace(two.writer, admins=members.admins)
    await two.define(version="2.0")

    async def ask(function: str, args: Any, signer: Any) -> Any:
        raw = [function.encode(), args.SerializeToString()]
        answer = await two.caller.query("_lifecycle", raw, signer=signer)
        assert answer.status == 200, answer.message
        return answer.payload

    for admin in members.admins():
        asked = lifecycle_pb2.QueryChaincodeDefinitionArgs(name="basic")
        payload = await ask("QueryChaincodeDefinition", asked, admin)
        told = lifecycle_pb2.QueryChaincodeDefinitionResult.FromString(payload)
        assert dict(told.approvals) == {"Org1MSP": True, "Org2MSP": True}
        asked = lifecycle_pb2.QueryApprovedChaincodeDefinitionArgs(name="basic")
        payload = await ask("QueryApprovedChaincodeDefinition", asked, admin)
        found = lifecycle_pb2.QueryApprovedChaincodeDefinitionResult.FromString(payload)
        assert (found.sequence, found.version) == (2, "2.0")
        assert found.source.local_package.package_id.startswith("basic")
        asked = lifecycle_pb2.QueryApprovedChaincodeDefinitionsArgs()
        payload = await ask("QueryApprovedChaincodeDefinitions", asked, admin)
        listed = lifecycle_pb2.QueryApprovedChaincodeDefinitionsResult.FromString(
            payload
        )
        sequences = [one.sequence for one in listed.approved_chaincode_definitions]
        assert sequences == ([1, 2] if admin.mspid == "Org1MSP" else [2])


# --- policies of keys ---------------------------------------------------------------


def label(text: Any) -> Any:
    return parse_policy(text).SerializeToString()


async def test_the_policy_of_a_written_key_chooses_who_endorses(two):
    await put(two)
    await two.label("k", label("OR('Org2MSP.peer')"))
    assert await planned(two) == ["Org2MSP"]
    assert await put(two, "Org1MSP") == 10
    assert await put(two) == 0
    assert await put(two, key=b"other") == 0
    # Who may change the policy is said by the policy itself.
    assert await two.label("k", label("OR('Org1MSP.peer')"), "Org1MSP") == 10
    assert await two.label("k", label("OR('Org1MSP.peer')")) == 0
    assert await planned(two) == ["Org1MSP"]


async def test_each_of_many_keys_is_asked_for_its_policy(two, monkeypatch):
    """The last of 1,200 keys has a policy of its own; the loop is not held meanwhile."""
    turns: list[float] = []
    sleep = asyncio.sleep

    async def noted(delay_s: float) -> None:
        turns.append(delay_s)
        await sleep(delay_s)

    monkeypatch.setattr(asyncio, "sleep", noted)
    monkeypatch.setattr(orderer, "_TURNS", 0)
    assert await two.fill(1200) == 0
    assert turns == []
    await two.label("k01199", label("AND('Org2MSP.peer')"))
    assert await two.fill(1200, "Org1MSP") == 10
    assert turns.count(0) >= 2
    assert await two.fill(1200) == 0


async def test_large_policies_are_compiled_beside_the_event_loop(two, monkeypatch):
    await put(two)
    others = ", ".join(f"'Other{number}MSP.peer'" for number in range(1000))
    assert await two.label("k", label(f"OR('Org2MSP.peer', {others})")) == 0
    threads = []

    def noted(raw: bytes) -> Any:
        threads.append(threading.current_thread())
        return evaluator(raw)

    monkeypatch.setattr(key_policies, "evaluator", noted)
    assert await planned(two) == ["Org2MSP"]
    assert len(threads) == 1
    assert threading.current_thread() not in threads
    # Too many bytes: the transaction has to fail, and no policy is compiled.
    monkeypatch.setattr(key_policies, "_MOST", 1000)
    assert await planned(two) == ["Org1MSP"]
    assert await put(two) == 10
    assert len(threads) == 1


async def test_a_key_whose_policy_is_garbage_is_written_no_more(two):
    assert await put(two) == 0
    assert await two.label("k", b"garbage") == 0
    for endorsers in ((), ("Org1MSP", "Org2MSP")):
        with pytest.raises(
            InvalidInput, match="error unmarshalling SignaturePolicyEnvelope: proto: "
        ):
            await put(two, *endorsers)
