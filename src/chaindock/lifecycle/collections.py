"""Private data collections: the rules of their configuration, and who may use them.

A collection is explicit, from the definition of its chaincode, or the implicit one of an
organisation of the channel, which every chaincode has.
Source: docs/fabric/lifecycle.md#collections
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from fabric_protos.common import policies_pb2
from fabric_protos.msp.identities_pb2 import SerializedIdentity
from fabric_protos.msp.msp_principal_pb2 import MSPPrincipal, MSPRole, OrganizationUnit
from fabric_protos.peer.collection_pb2 import (
    CollectionConfig,
    CollectionConfigPackage,
    StaticCollectionConfig,
)

from chaindock.errors import Denied, InvalidInput, NotFound
from chaindock.identity.msp import Identity
from chaindock.identity.policies import evaluator, parse_policy, satisfied

IMPLICIT: Final = "_implicit_org_"
_NAME: Final = re.compile(r"[A-Za-z0-9-][A-Za-z0-9_-]*")


def check_collections(
    package: CollectionConfigPackage,
    mspids: Collection[str],
    former: CollectionConfigPackage | None = None,
) -> None:
    """Apply the rules of a commit of `package`; the texts are Fabric's.

    `mspids` are the organisations of the channel, `former` the collections in force.

    Raises: InvalidInput.
    """
    configs = [_explicit(one) for one in package.config]
    seen: set[str] = set()
    for config in configs:
        _check(config, seen, mspids)
        seen.add(config.name)
    if former is None or not former.config:
        return
    known = ", ".join(one.static_collection_config.name for one in former.config)
    hint = f"a collection cannot be removed; keep those that are defined: {known}"
    if not configs:
        raise InvalidInput(
            "the proposed collection config does not contain previously defined "
            "collections",
            hint=hint,
        )
    proposed = {config.name: config for config in configs}
    for old in map(_explicit, former.config):
        new = proposed.get(old.name)
        if new is None:
            raise InvalidInput(
                f"existing collection [{old.name}] missing in the proposed collection "
                "configuration",
                hint=hint,
            )
        if new.block_to_live != old.block_to_live:
            raise InvalidInput(
                f"the BlockToLive in an existing collection [{old.name}] modified. "
                f"Existing value [{old.block_to_live}]"
            )


def _explicit(config: CollectionConfig) -> StaticCollectionConfig:
    if config.WhichOneof("payload") != "static_collection_config":
        raise InvalidInput("collection config contains unexpected payload type: <nil>")
    return config.static_collection_config


def _check(
    config: StaticCollectionConfig, seen: set[str], mspids: Collection[str]
) -> None:
    name = config.name
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"invalid collection name '{name}'. Names can only consist of "
            "alphanumerics, '_', and '-' and cannot begin with '_'"
        )
    here = f"collection-name: {name} -- "
    if name in seen:
        raise InvalidInput(f"{here}found duplicate in collection configuration")
    required, most = config.required_peer_count, config.maximum_peer_count
    if most < required:
        raise InvalidInput(
            f"{here}maximum peer count ({most}) cannot be less than the required peer "
            f"count ({required})"
        )
    if required < 0:
        raise InvalidInput(
            f"{here}requiredPeerCount ({required}) cannot be less than zero"
        )
    _check_members(config, here, mspids)


def _check_members(
    config: StaticCollectionConfig, here: str, mspids: Collection[str]
) -> None:
    name = config.name
    if not config.HasField("member_orgs_policy"):
        raise InvalidInput(
            f"collection member policy is not set for collection '{name}'"
        )
    if config.member_orgs_policy.WhichOneof("payload") != "signature_policy":
        raise InvalidInput(
            f"collection member org policy is empty for collection '{name}'"
        )
    policy = config.member_orgs_policy.signature_policy
    try:
        evaluator(policy.SerializeToString(deterministic=True))
    except InvalidInput as error:
        raise InvalidInput(
            f"invalid member org policy for collection '{name}': {error.message}"
        ) from error
    for gate in _gates(policy.rule):
        if gate.n != 1:
            raise InvalidInput(
                f"{here}error in member org policy: signature policy is not an OR "
                f"concatenation, NOutOf {gate.n}"
            )
    for principal in policy.identities:
        _check_principal(principal, here, mspids)


def _gates(
    rule: policies_pb2.SignaturePolicy,
) -> Iterator[policies_pb2.SignaturePolicy.NOutOf]:
    if rule.WhichOneof("Type") == "n_out_of":
        yield rule.n_out_of
        for inner in rule.n_out_of.rules:
            yield from _gates(inner)


def _check_principal(
    principal: MSPPrincipal, here: str, mspids: Collection[str]
) -> None:
    kind = principal.principal_classification
    if kind not in _MSPID_OF:
        named = MSPPrincipal.Classification.Name(kind)
        raise InvalidInput(f"{here}principal type {named} is not supported")
    mspid = _MSPID_OF[kind](principal.principal)
    if mspid in mspids:
        return
    if kind == MSPPrincipal.IDENTITY:
        raise InvalidInput(
            f"{here}contains an identity that is not part of the channel"
        )
    raise InvalidInput(
        f"{here}collection member '{mspid}' is not part of the channel",
        hint=f"let it join: chaindock org add {mspid.removesuffix('MSP')}",
    )


_MSPID_OF: Final[Mapping[int, Callable[[bytes], str]]] = {
    MSPPrincipal.ROLE: lambda raw: MSPRole.FromString(raw).msp_identifier,
    MSPPrincipal.ORGANIZATION_UNIT: lambda raw: (
        OrganizationUnit.FromString(raw).msp_identifier
    ),
    MSPPrincipal.IDENTITY: lambda raw: SerializedIdentity.FromString(raw).mspid,
}
"""How a principal of a member policy names its organisation."""


# --- use ----------------------------------------------------------------------------


def find_collection(
    package: CollectionConfigPackage, name: str, mspids: Collection[str]
) -> StaticCollectionConfig | None:
    """Return an explicit collection, or the implicit one of an organisation in `mspids`.

    The implicit one has the organisation's members and no other rule; its endorsement
    policy, that of the organisation, is not set.
    """
    if name.startswith(IMPLICIT):
        mspid = name.removeprefix(IMPLICIT)
        if mspid not in mspids:
            return None
        implicit = StaticCollectionConfig(name=name)
        members = parse_policy(f"OR('{mspid}.member')")
        implicit.member_orgs_policy.signature_policy.CopyFrom(members)
        return implicit
    for config in package.config:
        if config.static_collection_config.name == name:
            return config.static_collection_config
    return None


def stores(config: StaticCollectionConfig, mspid: str) -> bool:
    """Whether the peer of an organisation has the values of a collection.

    It has them if the member policy names the organisation, in whatever role.
    """
    principals = config.member_orgs_policy.signature_policy.identities
    return any(
        _MSPID_OF[one.principal_classification](one.principal) == mspid
        for one in principals
    )


class Collections:
    """What one invocation may do with the collections of one chaincode, `ns`.

    `package` has the collections of its definition, as the invocation sees it; `mspids`
    are the organisations of the channel. `creator` is the client, whose signature was
    checked; `mspid` the organisation of the peer that runs the invocation.
    """

    def __init__(
        self,
        channel: str,
        ns: str,
        package: CollectionConfigPackage,
        mspids: Collection[str],
        creator: Identity,
        mspid: str,
    ) -> None:
        self._channel, self._ns = channel, ns
        self._package, self._mspids = package, mspids
        self._creator, self._mspid = creator, mspid
        self._decided: dict[str, tuple[bool, bool, bool]] = {}

    def require(self, collection: str, *, write: bool) -> bool:
        """Refuse a read or write that the client may not do; the texts are Fabric's.

        Returns: whether the peer has the values of the collection.

        Raises:
            NotFound: no such collection. Denied: the collection allows this to members
                only, and the client is none.
        """
        if collection not in self._decided:
            self._decided[collection] = self._decide(collection)
        *allowed, stored = self._decided[collection]
        if not allowed[write]:
            access = "write" if write else "read"
            raise Denied(
                f"tx creator does not have {access} access permission on privatedata in "
                f"chaincodeName:{self._ns} collectionName: {collection}"
            )
        return stored

    def require_known(self, collection: str) -> None:
        """Refuse a collection that does not exist. Raises: NotFound."""
        if find_collection(self._package, collection, self._mspids) is None:
            raise NotFound(
                f"collection [{collection}] not defined in the collection config for "
                f"chaincode [{self._ns}]"
            )

    def _decide(self, collection: str) -> tuple[bool, bool, bool]:
        """Return whether the client may read, and write, and the peer has the values."""
        config = find_collection(self._package, collection, self._mspids)
        if config is None:
            if collection.startswith(IMPLICIT):
                self.require_known(collection)
            raise NotFound(
                f"collection {self._channel}/{self._ns}/{collection} could not be found"
            )
        members_read, members_write = config.member_only_read, config.member_only_write
        member = (members_read or members_write) and satisfied(
            config.member_orgs_policy.signature_policy, [self._creator]
        )
        stored = stores(config, self._mspid)
        return member or not members_read, member or not members_write, stored
