"""The policies of a channel: those of a recorded one, and how many organisations they ask."""

from typing import Any

import pytest
from fabric_protos.common import common_pb2, configtx_pb2, policies_pb2
from fabric_protos.peer import configuration_pb2

from chaindock.endorser.configuration import Configuration, PolicyManager
from chaindock.errors import InvalidInput, NotFound
from chaindock.identity.msp import Identity, Role
from chaindock.identity.policies import parse_policy
from support.ledgers.recorded import blocks

ENDORSEMENT = "/Channel/Application/Endorsement"


def someone(mspid: str = "AMSP", role: Any = Role.PEER) -> Any:
    facts: Any = (None, None, None)
    return Identity(mspid, role, *facts)


@pytest.fixture(scope="module")
def recorded() -> Any:
    """The configuration in block 0 of a real channel: Org1MSP and an orderer."""
    block = common_pb2.Block.FromString(blocks()[0])
    envelope = common_pb2.Envelope.FromString(block.data.data[0])
    payload = common_pb2.Payload.FromString(envelope.payload)
    return configtx_pb2.ConfigEnvelope.FromString(payload.data).config


def org1(role: Any) -> Any:
    return [someone("Org1MSP", role)]


@pytest.mark.parametrize(
    ("policy", "roles"),
    [
        ("Application/Endorsement", {Role.PEER}),
        ("Application/LifecycleEndorsement", {Role.PEER}),
        ("Application/Readers", {Role.PEER, Role.CLIENT, Role.ADMIN}),
        ("Application/Writers", {Role.CLIENT, Role.ADMIN}),
        ("Application/Admins", {Role.ADMIN}),
        ("Writers", {Role.CLIENT, Role.ADMIN}),
    ],
)
def test_roles_satisfy_the_policies_of_a_recorded_channel(recorded, policy, roles):
    manager = PolicyManager(recorded)
    found = {
        role for role in Role if manager.satisfied(f"/Channel/{policy}", org1(role))
    }
    assert found == roles


def channel(rule: Any, *mspids: Any) -> Any:
    """The policies of a channel whose organisations have a peer each."""
    config = configtx_pb2.Config()
    application = config.channel_group.groups["Application"]
    meta = policies_pb2.ImplicitMetaPolicy(sub_policy="Endorsement", rule=rule)
    policy = application.policies["Endorsement"].policy
    policy.type = policies_pb2.Policy.IMPLICIT_META
    policy.value = meta.SerializeToString()
    for mspid in mspids:
        policy = application.groups[mspid].policies["Endorsement"].policy
        policy.type = policies_pb2.Policy.SIGNATURE
        policy.value = parse_policy(f"OR('{mspid}.peer')").SerializeToString()
    return PolicyManager(config)


@pytest.mark.parametrize(
    ("rule", "needed"), [("ANY", [0, 1, 1, 1]), ("ALL", [0, 1, 2, 3]),
                         ("MAJORITY", [0, 1, 2, 2])],
)  # fmt: skip
def test_how_many_organisations_an_implicit_policy_asks(rule, needed):
    mspids = ("Org1MSP", "Org2MSP", "Org3MSP")
    peers = [someone(mspid) for mspid in mspids]
    rule = policies_pb2.ImplicitMetaPolicy.Rule.Value(rule)
    for count, least in enumerate(needed):
        manager = channel(rule, *mspids[:count])
        for given_ in range(count + 1):
            assert manager.satisfied(ENDORSEMENT, peers[:given_]) == (given_ >= least)


def test_why_a_policy_is_not_satisfied():
    manager = channel(policies_pb2.ImplicitMetaPolicy.MAJORITY, "Org1MSP", "Org2MSP")
    assert manager.reason(ENDORSEMENT, [someone("Org2MSP")]) == (
        "implicit policy evaluation failed - 1 sub-policies were satisfied, but this "
        "policy requires 2 of the 'Endorsement' sub-policies to be satisfied"
    )
    assert manager.reason("/Channel/Application/Org2MSP/Endorsement", []) == (
        "signature set did not satisfy policy"
    )


def test_a_group_that_lacks_the_policy_counts(recorded):
    """`Readers` of the channel asks `Application` and `Orderer`."""
    config = configtx_pb2.Config()
    config.CopyFrom(recorded)
    config.channel_group.policies[
        "Admins"
    ].policy.value = policies_pb2.ImplicitMetaPolicy(
        sub_policy="Endorsement", rule=policies_pb2.ImplicitMetaPolicy.ALL
    ).SerializeToString()
    reason = PolicyManager(config).reason("/Channel/Admins", org1(Role.PEER))
    assert reason is not None
    assert " - 1 sub-policies were satisfied, but this policy requires 2 " in reason


def test_organisations_and_unknown_policies(recorded):
    manager = PolicyManager(recorded)
    assert set(manager.organizations) == {"Org1MSP"}
    with pytest.raises(NotFound, match="no policy /Channel/Nothing"):
        manager.satisfied("/Channel/Nothing", [])


def enveloped(config: Any) -> Any:
    data = configtx_pb2.ConfigEnvelope(config=config).SerializeToString()
    payload = common_pb2.Payload(data=data).SerializeToString()
    return common_pb2.Envelope(payload=payload).SerializeToString()


def test_what_is_no_configuration_is_refused(recorded):
    envelope = common_pb2.Block.FromString(blocks()[0]).data.data[0]
    configuration = Configuration(envelope)
    assert configuration.peers == ["Org1MSP"]
    assert set(configuration.msps.mspids) == {"Org1MSP", "OrdererMSP"}
    with pytest.raises(InvalidInput, match="no configuration"):
        Configuration(b"\xff")
    broken = configtx_pb2.Config()
    broken.CopyFrom(recorded)
    member = broken.channel_group.groups["Application"].groups["Org1MSP"]
    member.policies["Readers"].policy.type = 7
    with pytest.raises(InvalidInput, match="Unknown policy type: 7"):
        Configuration(enveloped(broken))


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("/Channel/Application/Admins", {"event/Block": "/Channel/Application/Admins"}),
        ("Org1MSP/Admins", {"event/Block": "/Channel/Application/Org1MSP/Admins"}),
        ("", {}),
    ],
)
def test_the_policies_that_a_channel_names_for_resources(recorded, named, found):
    changed = configtx_pb2.Config()
    changed.CopyFrom(recorded)
    acls = configuration_pb2.ACLs()
    acls.acls["event/Block"].policy_ref = named
    values = changed.channel_group.groups["Application"].values
    values["ACLs"].value = acls.SerializeToString()
    configuration = Configuration(enveloped(changed))
    assert configuration.acls == found
