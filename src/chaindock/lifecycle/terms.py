"""What a user says of a definition: policies as text, and the peer CLI's collections file.

Source: docs/fabric/lifecycle.md#collections
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from fabric_protos.common import policies_pb2
from fabric_protos.msp.msp_principal_pb2 import MSPRole
from fabric_protos.peer import policy_pb2
from fabric_protos.peer.collection_pb2 import (
    CollectionConfigPackage,
    StaticCollectionConfig,
)
from google.protobuf.message import DecodeError

from chaindock.errors import InvalidInput
from chaindock.identity.policies import parse_policy, policy_text
from chaindock.ids import require_version

_SOURCE: Final = "the collections configuration"
_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Blocks = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a user says of a definition. Raises: InvalidInput: no such version."""

    version: str | None = None
    """None = as it is for the same package, else `<sequence>.0`."""
    init_required: bool = False
    """Callers must send an Init first."""
    policy: bytes | None = None
    """The serialised ApplicationPolicy for endorsements; None = as it is."""
    collections: CollectionConfigPackage | None = None
    """None = as they are."""

    def __post_init__(self) -> None:
        if self.version is not None:
            require_version(self.version)


class Said(msgspec.Struct, forbid_unknown_fields=True):
    """Terms as JSON; what is left out stays as it is."""

    signature_policy: str = ""
    """E.g. `OR('Org1MSP.peer')`."""
    channel_config_policy: str = ""
    """Path of a policy of the channel."""
    collections: Any = None
    """What the peer CLI's file holds."""

    def terms(self, version: str | None, *, init_required: bool) -> Terms:
        """Return them, with what is said apart. Raises: InvalidInput."""
        policy = application_policy(
            self.signature_policy, self.channel_config_policy, "the endorsement policy"
        )
        known = self.collections is not None
        return Terms(
            version=version,
            init_required=init_required,
            policy=policy.SerializeToString() if policy else None,
            collections=_package(self.collections, _SOURCE, None) if known else None,
        )


class _Endorsement(msgspec.Struct, rename="camel"):
    signature_policy: str = ""
    channel_config_policy: str = ""


class _Entry(msgspec.Struct, rename="camel"):
    name: str = ""
    policy: str = ""
    required_peer_count: _Int32 = 0
    max_peer_count: _Int32 = 1
    block_to_live: _Blocks = 0
    member_only_read: bool = False
    member_only_write: bool = False
    endorsement_policy: _Endorsement | None = None


_KEYS: Final = {
    field.encode_name.lower(): field.encode_name
    for struct in (_Entry, _Endorsement)
    for field in msgspec.structs.fields(struct)
}


def parse_collections(
    text: str | bytes, source: str = _SOURCE, warn: Callable[[str], None] | None = None
) -> CollectionConfigPackage:
    """Return what the peer CLI makes of its file: a JSON array of collections.

    Keys match whatever their case is, null means the default, and unknown keys have no
    effect, as in the peer CLI. `check_collections` applies the rules of the channel.
    Errors name the file as `source`. `warn` is called for each key that has no effect.

    Raises: InvalidInput: names the file, the collection, what was expected and found.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{source} is not JSON: {error}",
            hint="it holds an array of collections: docs/fabric/lifecycle.md",
        ) from error
    return _package(found, source, warn)


def _package(
    found: Any, source: str, warn: Callable[[str], None] | None
) -> CollectionConfigPackage:
    if not isinstance(found, list):
        raise InvalidInput(
            f"{source}: expected an array of collections, found {_shown(found)}"
        )
    package = CollectionConfigPackage()
    for at, entry in enumerate(found):
        name = entry.get("name") if isinstance(entry, dict) else None
        where = f"{source}, collection {name!r}" if name else f"{source}, item {at + 1}"
        package.config.add().static_collection_config.CopyFrom(
            _static(entry, where, warn)
        )
    return package


def _static(
    entry: Any, where: str, warn: Callable[[str], None] | None
) -> StaticCollectionConfig:
    if not isinstance(entry, dict):
        raise InvalidInput(f"{where}: expected an object, found {_shown(entry)}")
    try:
        read = msgspec.convert(_folded(entry, where, warn), _Entry)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{where}: {_told(error)}") from error
    config = StaticCollectionConfig(
        name=read.name,
        required_peer_count=read.required_peer_count,
        maximum_peer_count=read.max_peer_count,
        block_to_live=read.block_to_live,
        member_only_read=read.member_only_read,
        member_only_write=read.member_only_write,
    )
    config.member_orgs_policy.signature_policy.CopyFrom(
        _policy(read.policy, f"{where}, key 'policy'")
    )
    if read.endorsement_policy is not None:
        policy = application_policy(
            read.endorsement_policy.signature_policy,
            read.endorsement_policy.channel_config_policy,
            f"{where}, key 'endorsementPolicy'",
        )
        if policy is not None:
            config.endorsement_policy.CopyFrom(policy)
    return config


def _folded(
    entry: dict[str, Any], where: str, warn: Callable[[str], None] | None
) -> dict[str, Any]:
    """Return the known keys in their own case, without nulls."""
    known = {}
    for key, value in entry.items():
        name = _KEYS.get(key.lower())
        if name is None:
            if warn is not None:
                warn(f"{where}: key {key!r} is unknown and has no effect")
        elif value is not None:
            nested = isinstance(value, dict)
            known[name] = _folded(value, where, warn) if nested else value
    return known


def application_policy(
    signature: str, reference: str, where: str
) -> policy_pb2.ApplicationPolicy | None:
    """Return the endorsement policy that a user gave in words; None = none was given.

    `signature` is a signature policy, e.g. `OR('Org1MSP.peer')`, `reference` the name
    of a policy of the channel; "" = not given. `where`: how errors name the place.

    Raises: InvalidInput: both, or no policy.
    """
    if signature and reference:
        raise InvalidInput(
            f"{where}: expected a signature policy or the name of a channel policy, "
            "found both"
        )
    if reference:
        return policy_pb2.ApplicationPolicy(channel_config_policy_reference=reference)
    if not signature:
        return None
    policy = _policy(signature, where)
    return policy_pb2.ApplicationPolicy(signature_policy=policy)


def shown_policy(parameter: bytes) -> str:
    """Return the text of a serialised ApplicationPolicy, or the path that it names."""
    try:
        policy = policy_pb2.ApplicationPolicy.FromString(parameter)
        signed = policy.WhichOneof("Type") == "signature_policy"
        text = policy_text(policy.signature_policy) if signed else ""
    except (DecodeError, InvalidInput):
        return f"unreadable: {parameter.hex()}"
    return text or policy.channel_config_policy_reference


def unsatisfiable(
    parameter: bytes,
    channel: str,
    mspids: Collection[str],
    has_policy: Callable[[str], bool],
) -> str | None:
    """Return why nobody can satisfy an endorsement policy; None = somebody may.

    `mspids` are the members of `channel`; `has_policy` tells whether a path exists.
    """
    policy = policy_pb2.ApplicationPolicy.FromString(parameter)
    if policy.WhichOneof("Type") != "signature_policy":
        path = policy.channel_config_policy_reference
        return None if has_policy(path) else f"the channel has no policy {path}"
    signed = policy.signature_policy
    named = [
        MSPRole.FromString(one.principal).msp_identifier for one in signed.identities
    ]
    absent = [one for one in dict.fromkeys(named) if one not in mspids]
    if not absent or _may_hold(signed.rule, [one in mspids for one in named]):
        return None
    orgs = (f"{one.removesuffix('MSP')} --channel {channel}" for one in absent)
    adds = ", ".join(f"chaindock org add {one}" for one in orgs)
    verb = "is no member" if len(absent) == 1 else "are no members"
    return f"{', '.join(absent)} {verb} of the channel: {adds}"


def _may_hold(rule: policies_pb2.SignaturePolicy, members: Sequence[bool]) -> bool:
    if rule.WhichOneof("Type") == "signed_by":
        return members[int(rule.signed_by)]
    held = rule.n_out_of
    return sum(_may_hold(one, members) for one in held.rules) >= int(held.n)


def _policy(text: str, where: str) -> policies_pb2.SignaturePolicyEnvelope:
    try:
        return parse_policy(text)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error.message}", hint=error.hint) from error


def _told(error: msgspec.ValidationError) -> str:
    """Return msgspec's sentence about a key, with the key in front."""
    problem, _, path = str(error).partition(" - at `$.")
    key = path.removesuffix("`")
    problem = problem[:1].lower() + problem[1:].replace(", got", ", found")
    return f"key {key!r}: {problem}" if key else problem


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
