"""Block 0, as a tool of the Fabric world reads it."""

from typing import Any

from fabric_protos.common import (
    common_pb2,
    configtx_pb2,
    configuration_pb2,
    policies_pb2,
)
from fabric_protos.msp import msp_config_pb2, msp_principal_pb2
from fabric_protos.orderer import configuration_pb2 as orderer_pb2

from chaindock.endorser.configuration import read_config
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.genesis import genesis_envelope
from chaindock.ids import ChannelId

CHANNEL = ChannelId("mychannel")


def channel_group(node: Any) -> Any:
    block = common_pb2.Block.FromString(node.ledger.get_block(0))
    envelope = common_pb2.Envelope.FromString(block.data.data[0])
    assert envelope.signature == b""
    payload = common_pb2.Payload.FromString(envelope.payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    assert (header.type, header.channel_id) == (common_pb2.CONFIG, "mychannel")
    assert bytes(block.metadata.metadata[2]) == b"\x00"
    return configtx_pb2.ConfigEnvelope.FromString(payload.data).config.channel_group


def roles(policy: Any) -> Any:
    assert policy.type == policies_pb2.Policy.SIGNATURE
    envelope = policies_pb2.SignaturePolicyEnvelope.FromString(policy.value)
    assert envelope.rule.n_out_of.n == 1
    assert [r.signed_by for r in envelope.rule.n_out_of.rules] == list(
        range(len(envelope.identities))
    )
    return {
        msp_principal_pb2.MSPRole.FromString(p.principal).role
        for p in envelope.identities
    }


def rule(policy: Any) -> Any:
    meta = policies_pb2.ImplicitMetaPolicy.FromString(policy.value)
    return meta.sub_policy, policies_pb2.ImplicitMetaPolicy.Rule.Name(meta.rule)


async def test_the_organisation_is_the_one_that_signs(node):
    group = channel_group(node)
    for part in ("Application", "Orderer"):
        value = group.groups[part].groups["Org1MSP"].values["MSP"].value
        config = msp_config_pb2.FabricMSPConfig.FromString(
            msp_config_pb2.MSPConfig.FromString(value).config
        )
        assert list(config.root_certs) == [node.org.ca_pem]
        assert config.fabric_node_ous.enable


async def test_policies_are_those_of_a_usual_development_network(node):
    group = channel_group(node)
    application = group.groups["Application"]
    member = {n: p.policy for n, p in application.groups["Org1MSP"].policies.items()}
    role = msp_principal_pb2.MSPRole
    assert roles(member["Readers"]) == {role.ADMIN, role.PEER, role.CLIENT}
    assert roles(member["Writers"]) == {role.ADMIN, role.CLIENT}
    assert roles(member["Admins"]) == {role.ADMIN}
    assert roles(member["Endorsement"]) == {role.PEER}
    for where in (group, application):
        assert rule(where.policies["Readers"].policy) == ("Readers", "ANY")
        assert rule(where.policies["Writers"].policy) == ("Writers", "ANY")
        assert rule(where.policies["Admins"].policy) == ("Admins", "MAJORITY")
    for name in ("Endorsement", "LifecycleEndorsement"):
        assert rule(application.policies[name].policy) == ("Endorsement", "MAJORITY")
    assert "BlockValidation" in group.groups["Orderer"].policies


async def test_capabilities_and_batches(node):
    group = channel_group(node)

    def capabilities(where: Any) -> Any:
        value = where.values["Capabilities"].value
        return set(configuration_pb2.Capabilities.FromString(value).capabilities)

    assert capabilities(group) == {"V2_0"}
    assert capabilities(group.groups["Orderer"]) == {"V2_0"}
    assert capabilities(group.groups["Application"]) == {"V2_5"}
    size = orderer_pb2.BatchSize.FromString(
        group.groups["Orderer"].values["BatchSize"].value
    )
    assert size.max_message_count == OrdererOptions().max_message_count


def test_old_and_new_tools_find_the_orderers_address(org):
    for address, expected in (("localhost:7051", ["localhost:7051"]), ("", None)):
        raw = genesis_envelope(CHANNEL, org.msp, OrdererOptions(), address)
        group = read_config(raw).channel_group
        orderer = group.groups["Orderer"].groups["Org1MSP"]
        for values, name in (
            (group.values, "OrdererAddresses"),
            (orderer.values, "Endpoints"),
        ):
            assert (name in values) == bool(expected)
            if expected:
                found = configuration_pb2.OrdererAddresses.FromString(
                    values[name].value
                )
                assert list(found.addresses) == expected
