"""Make the next configuration of a channel from what a client wants to change.

What the client has read must still be so, and each changed element must be signed for by
those whom its mod_policy names. The node takes what it can follow at once.
Source: docs/fabric/policies.md#changes-by-clients
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from posixpath import join
from re import fullmatch
from typing import Any, Final

from fabric_protos.common import common_pb2, configtx_pb2
from fabric_protos.common.configtx_pb2 import ConfigGroup, ConfigValue
from fabric_protos.common.configuration_pb2 import Capabilities
from fabric_protos.msp.msp_config_pb2 import FabricMSPConfig, MSPConfig
from fabric_protos.orderer.configuration_pb2 import BatchSize, BatchTimeout
from fabric_protos.peer.configuration_pb2 import ACLs, AnchorPeers
from google.protobuf.message import DecodeError

from chaindock.endorser.configuration import Configuration, require_followed
from chaindock.endorser.cutting import OrdererOptions, in_force
from chaindock.endorser.genesis import config_envelope
from chaindock.errors import Denied, InvalidInput, NotFound, Unsupported
from chaindock.identity.msp import Identity
from chaindock.ledger.blocks import BlockSigner
from chaindock.ledger.simulator import require_size
from chaindock.values import MIB

At = tuple[str, str]
"""Kind and path of a group, value or policy."""
Elements = dict[At, Any]

MOST_BYTES: Final = MIB
"""Of a configuration and its update: to read as much takes some ms. Usual are 30 KiB."""
_MOST_SIGNED: Final = 1000
"""Signatures of an update that count; further ones are not looked at, which takes time."""
_ROOT: Final = "/Channel"
_MEMBERS: Final = "/Channel/Application/"
_KINDS: Final = {"groups": "[Group]  ", "values": "[Value]  ", "policies": "[Policy] "}
"""What Fabric's texts write before a path."""
_DELTA: Final = "error validating DeltaSet: "
_CHANGEABLE: Final[dict[str, Any]] = {
    "/Channel/Orderer/BatchSize": BatchSize,
    "/Channel/Orderer/BatchTimeout": BatchTimeout,
    "/Channel/Application/ACLs": ACLs,
    "/Channel/Application/Capabilities": Capabilities,
    "/Channel/Application/*/AnchorPeers": AnchorPeers,
}


def next_configuration(now: Configuration, raw: bytes, orderer: BlockSigner) -> bytes:
    """Return the envelope, type CONFIG, that an envelope of type CONFIG_UPDATE makes.

    Raises: InvalidInput: the update is wrong, nobody may make it, or what comes out is no
        configuration. Unsupported: this node cannot follow it.
    """
    require_size(len(raw), MOST_BYTES)
    try:
        update = common_pb2.Envelope.FromString(raw)
        payload = common_pb2.Payload.FromString(update.payload)
        old = _elements(now.config.channel_group)
        group = _tree({**old, **_delta(now, old, payload.data)}, _ROOT)
        _require_followed(old, _elements(group))
        number = now.config.sequence + 1
        config = configtx_pb2.Config(sequence=number, channel_group=group)
        in_force(OrdererOptions(), config)
        content = configtx_pb2.ConfigEnvelope(config=config, last_update=update)
        envelope = config_envelope(common_pb2.CONFIG, now.channel, content, orderer)
        require_size(len(envelope), MOST_BYTES)
        require_followed(Configuration(envelope).capability)
    except (DecodeError, InvalidInput) as error:
        said = f"error applying config update to existing channel '{now.channel}'"
        raise InvalidInput(f"{said}: {error}") from error
    return envelope


def _elements(group: ConfigGroup, path: str = _ROOT) -> Elements:
    """Return the group and everything in it. Raises: InvalidInput."""
    found: Elements = {("groups", path): group}
    for kind, prefix in _KINDS.items():
        for name, one in getattr(group, kind).items():
            if not fullmatch(r"[a-zA-Z0-9.-]{1,249}", name) or name in {".", ".."}:
                raise InvalidInput(f"Illegal characters in key: {prefix}{path}")
            place = f"{path}/{name}"
            found |= _elements(one, place) if kind == "groups" else {(kind, place): one}
    return found


def _tree(elements: Elements, path: str) -> ConfigGroup:
    """Return a group with what it names, as it is in `elements`."""
    held = elements["groups", path]
    made = configtx_pb2.ConfigGroup(version=held.version, mod_policy=held.mod_policy)
    for kind in _KINDS:
        for name in getattr(held, kind):
            place = f"{path}/{name}"
            whole = kind == "groups"
            one = _tree(elements, place) if whole else elements[kind, place]
            getattr(made, kind)[name].CopyFrom(one)
    return made


def _delta(now: Configuration, old: Elements, data: bytes) -> Elements:
    """Return what a ConfigUpdateEnvelope may change, and does. Raises: InvalidInput."""
    signed = configtx_pb2.ConfigUpdateEnvelope.FromString(data)
    update = configtx_pb2.ConfigUpdate.FromString(signed.config_update)
    read, write = _elements(update.read_set), _elements(update.write_set)
    delta = {
        at: one
        for at, one in write.items()
        if at not in read or read[at].version != one.version
    }
    said, signers = "", _signers(now, signed)
    if update.channel_id != now.channel:
        said = f"ConfigUpdate for channel '{update.channel_id}' but envelope for "
        said += f"channel '{now.channel}'"
    for at, one in read.items():
        key, held = _KINDS[at[0]] + at[1], old.get(at)
        wrong = f"existing config does not contain element for {key} but was in the read set"
        if held is not None:
            wrong = (
                f"proposed update requires that key {key} be at version {one.version}, "
            )
            wrong += f"but it is currently at version {held.version}"
        if held is None or held.version != one.version:
            said = said or f"error validating ReadSet: {wrong}"
    if not delta:
        said = said or f"{_DELTA}delta set was empty -- update would have no effect"
    for at, one in delta.items():
        if not said and (why := _why_not(now, at, old.get(at), one, signers)):
            said = _DELTA + why
    if said:
        raise InvalidInput(f"error authorizing update: {said}")
    return delta


def _why_not(
    now: Configuration, at: At, held: Any, one: Any, signers: list[Identity]
) -> str:
    """Return why an element may not become `one`; "" = it may."""
    kind, path = at
    key = _KINDS[kind] + path
    if not one.mod_policy:
        return f"invalid mod_policy for element {key}: mod_policy not set"
    asked = f"set key {key} to version {one.version}, but key"
    if held is None:  # the policy of the group, which must be changed, too, decides
        return f"attempted to {asked} does not exist" if one.version else ""
    if one.version != held.version + 1:
        return f"attempt to {asked} is at version {held.version}"
    group = path if kind == "groups" else path.rpartition("/")[0]
    try:
        reason = now.policies.reason(join(group, held.mod_policy), signers)
    except NotFound:
        return f"unexpected missing policy {held.mod_policy} for item {key}"
    return f"policy for {key} not satisfied: {reason}" if reason else ""


def _signers(now: Configuration, signed: Any) -> list[Identity]:
    """Return who signed an update: each identity once, wrong signatures left out."""
    found: dict[Any, Identity] = {}
    for one in signed.signatures[:_MOST_SIGNED]:
        try:
            header = common_pb2.SignatureHeader.FromString(one.signature_header)
            identity = now.msps.identify(header.creator)
            if (holder := (identity.mspid, identity.certificate)) not in found:
                message = one.signature_header + signed.config_update
                identity.verify(message, one.signature)
                found[holder] = identity
        except (DecodeError, Denied):
            continue
    return list(found.values())


def _require_followed(old: Elements, new: Elements) -> None:
    """Refuse changes that this node does not follow. Raises: Unsupported, DecodeError."""
    groups = (path for kind, path in old.keys() ^ new.keys() if kind == "groups")
    moves = tuple(
        f"{one}/"
        for one in groups
        if one.startswith(_MEMBERS)
        and ("groups", one.replace(_MEMBERS, "/Channel/Orderer/")) not in old
    )
    for kind, path in sorted(old.keys() | new.keys()):
        was, value = old.get((kind, path)), new.get((kind, path))
        same = bool(was) == bool(value) if kind == "groups" else was == value
        if same or kind == "policies" or f"{path}/".startswith(moves):
            continue
        if path.endswith("/MSP") and was and value and _msp(was) == _msp(value):
            continue
        forms = [form for at, form in _CHANGEABLE.items() if fnmatchcase(path, at)]
        if not forms or kind == "groups" or (value is None and "/Batch" in path):
            raise Unsupported(
                f"this node does not change {_KINDS[kind]}{path} for clients, but "
                "policies, ACLs, anchor peers, BatchSize, BatchTimeout and the capability "
                "of the application; they may revoke certificates, and add and remove "
                "organisations, but not change one otherwise, nor remove that which orders"
            )
        if value is not None:
            forms[0].FromString(value.value)


def _msp(value: ConfigValue) -> Any:
    """Return the definition of an organisation without whom it has revoked."""
    config = MSPConfig.FromString(value.value)
    fabric = FabricMSPConfig.FromString(config.config)
    fabric.ClearField("revocation_list")
    return config.type, fabric
