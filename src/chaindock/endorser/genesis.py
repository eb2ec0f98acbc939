"""The first block: the configuration of a channel with one organisation.

Fabric's tools can read the ConfigEnvelope. The one organisation orders and endorses, in
the roles that its certificates carry.
Source: docs/fabric/ledger.md#identities
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fabric_protos.common import (
    common_pb2,
    configtx_pb2,
    configuration_pb2,
    policies_pb2,
)
from fabric_protos.msp import msp_principal_pb2
from fabric_protos.orderer import configuration_pb2 as orderer_pb2

from chaindock.endorser.caller import new_header
from chaindock.identity.msp import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.endorser.cutting import OrdererOptions
    from chaindock.identity.msp import Msp
    from chaindock.ids import ChannelId

_ADMINS: Final = "Admins"
_META = policies_pb2.ImplicitMetaPolicy
_MERKLE_WIDTH = 0xFFFFFFFF


def genesis_envelope(channel: ChannelId, msp: Msp, options: OrdererOptions) -> bytes:
    """Return the envelope of block 0, serialised; `msp` is the only organisation."""
    nonce, header = new_header(common_pb2.CONFIG, channel, b"")
    header.version = 1
    config = configtx_pb2.ConfigEnvelope(
        config=configtx_pb2.Config(channel_group=_channel_group(msp, options))
    )
    payload = common_pb2.Payload(
        header=common_pb2.Header(
            channel_header=header.SerializeToString(),
            signature_header=common_pb2.SignatureHeader(
                nonce=nonce
            ).SerializeToString(),
        ),
        data=config.SerializeToString(deterministic=True),
    )
    envelope = common_pb2.Envelope(payload=payload.SerializeToString())
    return bytes(envelope.SerializeToString())


def _channel_group(msp: Msp, options: OrdererOptions) -> configtx_pb2.ConfigGroup:
    application = _group(
        groups={
            msp.mspid: _organization(
                msp,
                Readers=(Role.ADMIN, Role.PEER, Role.CLIENT),
                Writers=(Role.ADMIN, Role.CLIENT),
                Endorsement=(Role.PEER,),
            )
        },
        values={"Capabilities": _capabilities("V2_5")},
        policies={
            **_members(),
            "Endorsement": _meta("Endorsement", _META.MAJORITY),
            "LifecycleEndorsement": _meta("Endorsement", _META.MAJORITY),
        },
    )
    return _group(
        groups={"Application": application, "Orderer": _orderer_group(msp, options)},
        values={
            "HashingAlgorithm": configuration_pb2.HashingAlgorithm(name="SHA256"),
            "BlockDataHashingStructure": configuration_pb2.BlockDataHashingStructure(
                width=_MERKLE_WIDTH
            ),
            "Capabilities": _capabilities("V2_0"),
        },
        policies=_members(),
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
    return _group(
        values={"MSP": msp.config()},
        policies={
            name: _any_of(msp, *roles)
            for name, roles in {**policies, _ADMINS: (Role.ADMIN,)}.items()
        },
    )


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


def _any_of(msp: Msp, *roles: Role) -> policies_pb2.Policy:
    """Return the policy that one identity of any of `roles` satisfies."""
    signature = policies_pb2.SignaturePolicy
    envelope = policies_pb2.SignaturePolicyEnvelope(
        rule=signature(
            n_out_of=signature.NOutOf(
                n=1, rules=[signature(signed_by=i) for i in range(len(roles))]
            )
        ),
        identities=[
            msp_principal_pb2.MSPPrincipal(
                principal_classification=msp_principal_pb2.MSPPrincipal.ROLE,
                principal=msp_principal_pb2.MSPRole(
                    msp_identifier=msp.mspid,
                    role=msp_principal_pb2.MSPRole.MSPRoleType.Value(role.name),
                ).SerializeToString(),
            )
            for role in roles
        ],
    )
    return policies_pb2.Policy(
        type=policies_pb2.Policy.SIGNATURE, value=envelope.SerializeToString()
    )
