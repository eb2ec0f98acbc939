"""The configuration of a channel: the first block, and organisations added to it.

Fabric's tools can read the ConfigEnvelope. The first organisation orders, all endorse, in
the roles that their certificates carry.
Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fabric_protos.common import (
    common_pb2,
    configtx_pb2,
    configuration_pb2,
    policies_pb2,
)
from fabric_protos.orderer import configuration_pb2 as orderer_pb2

from chaindock.endorser.checks import new_header
from chaindock.endorser.configuration import APPLICATION, FOLLOWED
from chaindock.endorser.cutting import OrdererOptions
from chaindock.identity.msp import Msp, Role, SigningIdentity
from chaindock.identity.policies import parse_policy
from chaindock.ids import ChannelId
from chaindock.ledger.blocks import BlockSigner

_ADMINS: Final = "Admins"
_META = policies_pb2.ImplicitMetaPolicy
_MERKLE_WIDTH = 0xFFFFFFFF


def genesis_envelope(
    channel: ChannelId,
    msp: Msp,
    options: OrdererOptions,
    address: str = "",
    members: Iterable[Msp] = (),
    capability: str = FOLLOWED[-1],
) -> bytes:
    """Return the envelope of block 0, serialised.

    `msp` orders and is a member; `members` are further ones; `address`: host:port of the
    orderer, "" = it is not said; `capability`: of the application.
    """
    group = _channel_group(msp, options, members, capability)
    if address:
        place_orderer(group, address)
    config = configtx_pb2.ConfigEnvelope(
        config=configtx_pb2.Config(channel_group=group)
    )
    return config_envelope(common_pb2.CONFIG, channel, config)


def config_envelope(
    kind: int, channel: ChannelId, content: Any, signer: BlockSigner | None = None
) -> bytes:
    """Return a serialised envelope of a type; without `signer` it is not signed."""
    creator = signer.creator if signer else b""
    nonce, header = new_header(kind, channel, creator)
    header.version = 1
    payload = common_pb2.Payload(
        header=common_pb2.Header(
            channel_header=header.SerializeToString(),
            signature_header=common_pb2.SignatureHeader(
                creator=creator, nonce=nonce
            ).SerializeToString(),
        ),
        data=content.SerializeToString(deterministic=True),
    ).SerializeToString()
    signature = signer.sign(payload) if signer else b""
    envelope = common_pb2.Envelope(payload=payload, signature=signature)
    return bytes(envelope.SerializeToString())


def _channel_group(
    msp: Msp, options: OrdererOptions, members: Iterable[Msp], capability: str
) -> configtx_pb2.ConfigGroup:
    application = _group(
        groups={one.mspid: member_group(one) for one in (msp, *members)},
        values={"Capabilities": _capabilities(capability)},
        policies={
            **_members(),
            "Endorsement": _meta("Endorsement", _META.MAJORITY),
            "LifecycleEndorsement": _meta("Endorsement", _META.MAJORITY),
        },
    )
    return _group(
        groups={APPLICATION: application, "Orderer": _orderer_group(msp, options)},
        values={
            "HashingAlgorithm": configuration_pb2.HashingAlgorithm(name="SHA256"),
            "BlockDataHashingStructure": configuration_pb2.BlockDataHashingStructure(
                width=_MERKLE_WIDTH
            ),
            "Capabilities": _capabilities("V2_0"),
        },
        policies=_members(),
    )


def place_orderer(group: configtx_pb2.ConfigGroup, address: str) -> None:
    """Say in the configuration of a channel where its orderer is reached.

    Older tools read the addresses of the channel, newer ones those of the organisation.
    """
    value = configuration_pb2.OrdererAddresses(addresses=[address]).SerializeToString()
    orderers = group.groups["Orderer"].groups.values()
    for held in (
        group.values["OrdererAddresses"],
        *(o.values["Endpoints"] for o in orderers),
    ):
        held.value, held.mod_policy = value, _ADMINS


def member_group(msp: Msp) -> configtx_pb2.ConfigGroup:
    """Return the group of an organisation below `Application`."""
    return _organization(
        msp,
        Readers=(Role.ADMIN, Role.PEER, Role.CLIENT),
        Writers=(Role.ADMIN, Role.CLIENT),
        Endorsement=(Role.PEER,),
    )


def _orderer_group(msp: Msp, options: OrdererOptions) -> configtx_pb2.ConfigGroup:
    both = (Role.ADMIN, Role.ORDERER)
    # Fabric's tools do not accept a timeout of nothing.
    timeout_ms = max(1, round(options.batch_timeout_s * 1000))
    return _group(
        groups={msp.mspid: _organization(msp, Readers=both, Writers=both)},
        values={
            "ConsensusType": orderer_pb2.ConsensusType(type="solo"),
            "BatchSize": orderer_pb2.BatchSize(
                max_message_count=options.max_message_count,
                absolute_max_bytes=options.absolute_max_bytes,
                preferred_max_bytes=options.preferred_max_bytes,
            ),
            "BatchTimeout": orderer_pb2.BatchTimeout(timeout=f"{timeout_ms}ms"),
            "ChannelRestrictions": orderer_pb2.ChannelRestrictions(),
            "Capabilities": _capabilities("V2_0"),
        },
        policies={**_members(), "BlockValidation": _meta("Writers", _META.ANY)},
    )


def _organization(msp: Msp, **policies: tuple[Role, ...]) -> configtx_pb2.ConfigGroup:
    """Return the organisation; `policies` names who fulfils each, beside Admins."""
    made = {}
    for name, roles in {**policies, _ADMINS: (Role.ADMIN,)}.items():
        text = ", ".join(f"'{msp.mspid}.{role}'" for role in roles)
        value = parse_policy(f"OR({text})").SerializeToString()
        kind = policies_pb2.Policy.SIGNATURE
        made[name] = policies_pb2.Policy(type=kind, value=value)
    return _group(values={"MSP": msp.config()}, policies=made)


def _group(
    *,
    groups: Mapping[str, configtx_pb2.ConfigGroup] | None = None,
    values: Mapping[str, Any],
    policies: Mapping[str, policies_pb2.Policy],
) -> configtx_pb2.ConfigGroup:
    return configtx_pb2.ConfigGroup(
        groups=groups,
        values={
            name: configtx_pb2.ConfigValue(
                value=value.SerializeToString(deterministic=True), mod_policy=_ADMINS
            )
            for name, value in values.items()
        },
        policies={
            name: configtx_pb2.ConfigPolicy(policy=policy, mod_policy=_ADMINS)
            for name, policy in policies.items()
        },
        mod_policy=_ADMINS,
    )


def _capabilities(name: str) -> configuration_pb2.Capabilities:
    return configuration_pb2.Capabilities(
        capabilities={name: configuration_pb2.Capability()}
    )


def _members() -> dict[str, policies_pb2.Policy]:
    rules = {"Readers": _META.ANY, "Writers": _META.ANY, _ADMINS: _META.MAJORITY}
    return {name: _meta(name, rule) for name, rule in rules.items()}


def _meta(sub_policy: str, rule: int) -> policies_pb2.Policy:
    return policies_pb2.Policy(
        type=policies_pb2.Policy.IMPLICIT_META,
        value=_META(sub_policy=sub_policy, rule=rule).SerializeToString(),
    )


# --- organisations that come later --------------------------------------------------


def with_organization(
    channel: ChannelId,
    config: configtx_pb2.Config,
    msp: Msp,
    admins: Sequence[SigningIdentity],
) -> bytes:
    """Return the envelope, type CONFIG_UPDATE, that adds `msp`; `admins` have signed it."""
    application = config.channel_group.groups[APPLICATION]
    was, now = _versions(application), _versions(application)
    now.version, now.mod_policy = was.version + 1, application.mod_policy
    now.groups[msp.mspid].CopyFrom(member_group(msp))
    version = config.channel_group.version
    update = configtx_pb2.ConfigUpdate(
        channel_id=channel,
        read_set=configtx_pb2.ConfigGroup(version=version, groups={APPLICATION: was}),
        write_set=configtx_pb2.ConfigGroup(version=version, groups={APPLICATION: now}),
    ).SerializeToString(deterministic=True)
    signed = configtx_pb2.ConfigUpdateEnvelope(
        config_update=update, signatures=[_signed(update, one) for one in admins]
    )
    return config_envelope(common_pb2.CONFIG_UPDATE, channel, signed, admins[0])


def _versions(group: configtx_pb2.ConfigGroup) -> configtx_pb2.ConfigGroup:
    """Return the group with nothing but the versions of what it holds."""
    kept = configtx_pb2.ConfigGroup(version=group.version)
    for kind in ("groups", "values", "policies"):
        for name, held in getattr(group, kind).items():
            getattr(kept, kind)[name].version = held.version
    return kept


def _signed(update: bytes, admin: SigningIdentity) -> configtx_pb2.ConfigSignature:
    header = common_pb2.SignatureHeader(
        creator=admin.creator, nonce=new_header(0, "", b"")[0]
    ).SerializeToString()
    return configtx_pb2.ConfigSignature(
        signature_header=header, signature=admin.sign(header + update)
    )
