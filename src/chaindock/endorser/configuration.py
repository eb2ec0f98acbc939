"""The configuration of a channel that is in force: its organisations and policies.

It is what the newest configuration block of the ledger says, also after a restart.
Source: docs/fabric/policies.md#policies-of-a-channel
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from fabric_protos.common import common_pb2, configtx_pb2, policies_pb2
from fabric_protos.common.configtx_pb2 import Config, ConfigGroup
from fabric_protos.common.configuration_pb2 import Capabilities
from fabric_protos.peer.configuration_pb2 import ACLs
from google.protobuf.message import DecodeError

from chaindock.errors import InvalidInput, LedgerCorrupt, NotFound, Unsupported
from chaindock.identity.msp import Identity, Msp, Msps
from chaindock.identity.policies import Evaluator, evaluator
from chaindock.ids import ChannelId
from chaindock.ledger.ledger import Ledger

APPLICATION = "Application"
_Meta = policies_pb2.ImplicitMetaPolicy
_UNSATISFIED: Final = "signature set did not satisfy policy"
FOLLOWED: Final = ("V2_0", "V2_5")
"""Capabilities of the application that a channel of this node may have."""
_REMEMBERED: Final = 1024
"""Evaluations of the policies of a channel that are remembered."""


class Configuration:
    """The configuration in force, and what was made of it; replaced as a whole.

    Attributes:
        msps: all organisations; `definitions` are their messages.
        peers: MSP ids of the organisations whose peers endorse, in order of the names of
            their groups below `Application`.
        acls: path of the policy that the channel names for a resource.
        capability: the highest one of the application, e.g. V2_5; "" = none.
        watchers: called when another configuration is in force.
    """

    def __init__(self, envelope: bytes) -> None:
        """Take what an envelope of type CONFIG holds. Raises: InvalidInput, DecodeError."""
        config = read_config(envelope)
        groups = config.channel_group.groups
        found: dict[str, tuple[bytes, Msp]] = {}
        for kind in (APPLICATION, "Orderer"):
            for group in groups[kind].groups.values():
                msp = Msp.of(raw := group.values["MSP"].value)
                if found.setdefault(msp.mspid, (raw, msp))[0] != raw:
                    text = "Attempted to define two different versions of MSP: "
                    raise InvalidInput(text + msp.mspid)
        self.config, self.policies = config, PolicyManager(config)
        self.msps = Msps(msp for _, msp in found.values())
        self.definitions = {raw for raw, _ in found.values()}
        names = self.policies.organizations
        self.peers = sorted(names, key=names.__getitem__)
        self.acls = _acls(groups[APPLICATION])
        able = _value(Capabilities, groups[APPLICATION], "Capabilities").capabilities
        self.capability = max(able, default="")
        self.channel = channel_of(envelope)
        self.watchers: list[Callable[[], None]] = []

    def adopt(self, other: Configuration) -> None:
        """Become the next configuration of the channel, for all who have this one."""
        vars(self).update(vars(other), watchers=self.watchers)
        for watch in self.watchers:
            watch()

    @classmethod
    def of(cls, ledger: Ledger) -> Configuration:
        """Return what is in force on a ledger. Raises: LedgerError."""
        try:
            raw = config_block(ledger.height, ledger.get_block)
            return cls(common_pb2.Block.FromString(raw).data.data[0])
        except (DecodeError, InvalidInput) as error:
            raise LedgerCorrupt(
                f"the configuration of channel {ledger.channel!r} cannot be read: {error}"
            ) from error


def _value(form: Any, group: ConfigGroup, name: str) -> Any:
    """Return a value of a group; an empty message if there is none. Raises: DecodeError."""
    held = group.values.get(name)
    return form.FromString(held.value if held else b"")


def _acls(application: ConfigGroup) -> dict[str, str]:
    acls = _value(ACLs, application, "ACLs").acls
    named = {resource: str(acl.policy_ref) for resource, acl in acls.items()}
    return {
        resource: path if path.startswith("/") else f"/Channel/{APPLICATION}/{path}"
        for resource, path in named.items()
        if path
    }


def require_followed(capability: str) -> None:
    """Refuse one with which a peer runs no chaincode, or does not run. Raises: Unsupported."""
    if capability not in FOLLOWED:
        raise Unsupported(
            f"Application capability {capability or 'none'} is required but not supported: "
            f"expected {' or '.join(FOLLOWED)}"
        )


def read_config(envelope: bytes) -> configtx_pb2.Config:
    """Return the configuration in an envelope of type CONFIG. Raises: InvalidInput."""
    try:
        outer = common_pb2.Envelope.FromString(envelope)
        payload = common_pb2.Payload.FromString(outer.payload)
        return configtx_pb2.ConfigEnvelope.FromString(payload.data).config
    except DecodeError as error:
        raise InvalidInput(f"this is no configuration: {error}") from error


def channel_of(envelope: bytes) -> ChannelId:
    """Return the channel that a serialised Envelope names. Raises: InvalidInput."""
    try:
        outer = common_pb2.Envelope.FromString(envelope)
        header = common_pb2.Payload.FromString(outer.payload).header.channel_header
        return ChannelId(common_pb2.ChannelHeader.FromString(header).channel_id)
    except DecodeError as error:
        raise InvalidInput(f"the channel header cannot be read: {error}") from error


def config_block(height: int, read: Callable[[int], bytes]) -> bytes:
    """Return the newest configuration block, serialised.

    `height`: of the ledger; `read`: returns a block. Raises: LedgerError, DecodeError.
    """
    newest = common_pb2.Block.FromString(read(height - 1))
    signed = common_pb2.Metadata.FromString(
        newest.metadata.metadata[common_pb2.SIGNATURES]
    )
    last = common_pb2.OrdererBlockMetadata.FromString(signed.value).last_config
    return read(int(last.index))


# --- the policies of a channel ------------------------------------------------------


class PolicyManager:
    """The policies of a channel configuration, found by their paths.

    A path is e.g. `/Channel/Application/Endorsement`.

    Attributes:
        organizations: name of its group below `Application`, by MSP id.
    """

    def __init__(self, config: Config) -> None:
        self._policies: dict[str, Evaluator | _Implicit] = {}
        self._add("/Channel", config.channel_group)
        application = config.channel_group.groups["Application"]
        self.organizations = {
            Msp.of(group.values["MSP"].value).mspid: name
            for name, group in application.groups.items()
            if "MSP" in group.values
        }
        # The policies stay as they are, and so do identities.
        self._known = lru_cache(_REMEMBERED)(self._reason)

    def _add(self, path: str, group: ConfigGroup) -> None:
        for name, child in group.groups.items():
            self._add(f"{path}/{name}", child)
        children = [f"{path}/{child}" for child in sorted(group.groups)]
        for name, held in group.policies.items():
            self._policies[f"{path}/{name}"] = _read(held.policy, children)

    def has(self, path: str) -> bool:
        """Whether the channel has a policy at this path."""
        return path in self._policies

    def satisfied(self, path: str, identities: Sequence[Identity]) -> bool:
        """Tell whether `identities` satisfy the policy together. Raises: NotFound."""
        return self.reason(path, identities) is None

    def reason(self, path: str, identities: Sequence[Identity]) -> str | None:
        """Return Fabric's text of why they do not; None if they do. Raises: NotFound."""
        return self._known(path, tuple(identities))

    def _reason(self, path: str, identities: tuple[Identity, ...]) -> str | None:
        policy = self._policies.get(path)
        if policy is None:
            raise NotFound(f"the channel has no policy {path}", policy=path)
        if not isinstance(policy, _Implicit):
            return None if policy(identities) else _UNSATISFIED
        passed = sum(
            one in self._policies and self.satisfied(one, identities)
            for one in policy.paths
        )
        if passed >= policy.needed:
            return None
        return (
            f"implicit policy evaluation failed - {passed} sub-policies were satisfied, "
            f"but this policy requires {policy.needed} of the '{policy.name}' "
            "sub-policies to be satisfied"
        )


@dataclass(frozen=True)
class _Implicit:
    """An ImplicitMetaPolicy: `needed` of the policies at `paths`, called `name`."""

    name: str
    paths: Sequence[str]
    needed: int


def _read(
    policy: policies_pb2.Policy, children: Sequence[str]
) -> Evaluator | _Implicit:
    """Return a policy of a group whose groups lie at `children`. Raises: InvalidInput."""
    if policy.type == policies_pb2.Policy.SIGNATURE:
        return evaluator(policy.value)
    if policy.type != policies_pb2.Policy.IMPLICIT_META:
        raise InvalidInput(f"Unknown policy type: {policy.type}")
    try:
        meta = _Meta.FromString(policy.value)
    except DecodeError as error:
        raise InvalidInput(
            f"error unmarshalling ImplicitMetaPolicy: {error}"
        ) from error
    count = len(children)
    needed = {_Meta.ANY: 1, _Meta.ALL: count, _Meta.MAJORITY: count // 2 + 1}[meta.rule]
    paths = [f"{child}/{meta.sub_policy}" for child in children]
    return _Implicit(meta.sub_policy, paths, needed if paths else 0)
