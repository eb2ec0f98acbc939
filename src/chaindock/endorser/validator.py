"""Validate transactions: by themselves when they come, against the state in their block.

`parse_and_check` needs no state: a transaction that is NOT_VALIDATED after it was signed
by its creator, carries the proposal that was endorsed, and knows which of its
endorsements are valid. `Validator.check` decides definitions and policies as of the
block before.
Source: docs/fabric/ledger.md#order-of-checks, docs/fabric/policies.md#what-is-checked
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.peer import chaincode_event_pb2, policy_pb2, proposal_pb2
from fabric_protos.peer import transaction_pb2 as codes
from fabric_protos.peer.lifecycle.lifecycle_pb2 import (
    CommitChaincodeDefinitionArgs as Definition,
)
from google.protobuf.message import DecodeError

from chaindock.endorser.checks import proposal_hash, transaction_id
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.key_policies import (
    KeyPolicies,
    Rule,
    State,
    key_policy,
    never,
    parameter,
    signature_policy,
)
from chaindock.errors import Denied, NotFound
from chaindock.identity.msp import Identity, Msps
from chaindock.identity.policies import Evaluator
from chaindock.ids import ChannelId
from chaindock.ledger.transaction import (
    Broken,
    ParsedTransaction,
    Space,
    parse,
    read_action,
    read_headers,
    read_response,
    read_result,
    read_spaces,
    require_kind,
)
from chaindock.lifecycle.collections import IMPLICIT
from chaindock.lifecycle.definitions import NAMESPACE, read_definition
from chaindock.telemetry import get_logger

_log = get_logger("orderer")
_LIFECYCLE_POLICY: Final = "/Channel/Application/LifecycleEndorsement"
_CACHED: Final = 1024


# --- what needs no state ------------------------------------------------------------


def parse_and_check(
    envelope: bytes, channel: ChannelId, msps: Msps
) -> tuple[ParsedTransaction, Identity | None]:
    """Take a serialised Envelope apart and check what needs no state. Never raises.

    Returns: the transaction with its code, and its creator; None unless that is a member
        whose signature is right.
    """
    tx, creator = ParsedTransaction(envelope), None
    try:
        outer, payload, header = read_headers(tx)
        try:
            signed, creator = _check_creator(outer, payload, msps)
        finally:  # a fault of the header comes before one of the creator
            require_kind(tx, header, channel)
        _check_action(tx, payload, header, signed, msps)
    except Broken as broken:
        tx.code = broken.code
    return tx, creator


def _check_creator(envelope: Any, payload: Any, msps: Msps) -> tuple[Any, Identity]:
    """Check the signature; return the parsed SignatureHeader and the signer."""
    bad = codes.BAD_COMMON_HEADER
    signed = parse(common_pb2.SignatureHeader, payload.header.signature_header, bad)
    if not signed.nonce or not signed.creator:
        raise Broken(bad)
    try:
        identity = msps.identify(signed.creator)
        identity.verify(envelope.payload, envelope.signature)
    except Denied:
        raise Broken(codes.BAD_CREATOR_SIGNATURE) from None
    return signed, identity


def _check_action(
    tx: ParsedTransaction, payload: Any, header: Any, signed: Any, msps: Msps
) -> None:
    if tx.is_config:
        raise Broken(codes.UNSUPPORTED_TX_PAYLOAD)
    if tx.tx_id != transaction_id(signed.nonce, signed.creator):
        raise Broken(codes.BAD_PROPOSAL_TXID)
    invalid = codes.INVALID_ENDORSER_TRANSACTION
    outer, action = read_action(tx, payload)
    if outer.header != payload.header.signature_header and signed != parse(
        common_pb2.SignatureHeader, outer.header, invalid
    ):
        raise Broken(invalid)
    response = read_response(action)
    if response.proposal_hash != proposal_hash(
        payload.header.channel_header,
        payload.header.signature_header,
        action.chaincode_proposal_payload,
    ):
        raise Broken(invalid)
    result = read_result(tx, response)
    _check_names(tx, header, result)
    read_spaces(tx, result)
    tx.endorsers = _endorsers(action.action, msps)


def _check_names(tx: ParsedTransaction, header: Any, result: Any) -> None:
    """Check that header, action and event speak of the same chaincode."""
    extension = parse(
        proposal_pb2.ChaincodeHeaderExtension,
        header.extension,
        codes.BAD_HEADER_EXTENSION,
    )
    other = codes.INVALID_OTHER_REASON
    if not extension.HasField("chaincode_id") or not result.HasField("chaincode_id"):
        raise Broken(other)
    if not tx.name or extension.chaincode_id.name != tx.name or not tx.version:
        raise Broken(codes.INVALID_CHAINCODE)
    if result.events:
        event = parse(chaincode_event_pb2.ChaincodeEvent, result.events, other)
        if event.chaincode_id != tx.name:
            raise Broken(other)


def _endorsers(endorsed: Any, msps: Msps) -> tuple[Identity, ...]:
    """Return who endorsed: each identity once, wrong signatures left out."""
    found: dict[tuple[str, bytes], Identity] = {}
    for endorsement in endorsed.endorsements:
        try:
            identity = msps.identify(endorsement.endorser)
            holder = identity.mspid, identity.fingerprint
            if holder in found:
                continue
            message = endorsed.proposal_response_payload + endorsement.endorser
            identity.verify(message, endorsement.signature)
        except Denied:
            continue
        found[holder] = identity
    return tuple(found.values())


# --- what is decided in the block ---------------------------------------------------


class Validator:
    """Decides policies, block after block and in a block in order; one thread at a time.

    Definitions, policies of keys and the configuration are those of the block before.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._definitions: dict[str, Definition] = {}
        self._redefined = False
        self._number = 0
        self._relabelled: set[tuple[str, str, bytes]] = set()

    def begin(self, number: int) -> None:
        """Begin a block: what the one before changed counts from now on."""
        self._relabelled.clear()
        if self._redefined or number != self._number + 1:
            self._definitions.clear()
            self._redefined = False
        self._number = number

    def check(self, tx: ParsedTransaction, state: State) -> int:
        """Return NOT_VALIDATED when every policy of `tx` holds, else its code."""
        if tx.is_config:
            return int(codes.NOT_VALIDATED)
        try:
            met = KeyPolicies()
            for name in written(tx.name, tx.spaces):
                for policy in self.policies(name, tx.spaces, state, met):
                    if not _holds(policy, tx):
                        return int(codes.ENDORSEMENT_POLICY_FAILURE)
                self._note(name, tx.spaces)
        except Broken as broken:
            return broken.code
        return int(codes.NOT_VALIDATED)

    def _note(self, name: str, spaces: Iterable[Space]) -> None:
        """Remember what a transaction changes that later ones of the block depend on."""
        for space in spaces:
            if space.ns == name:
                self._relabelled |= {
                    (name, space.collection, key) for key, _ in space.metadata
                }
        self._redefined = self._redefined or name == NAMESPACE

    def policies(
        self, name: str, spaces: Iterable[Space], state: State, met: KeyPolicies
    ) -> Iterator[Rule]:
        """Yield the policies that writes to one namespace must satisfy, beside `met`.

        Raises: Broken with the code, when it is not defined, when an earlier transaction
            of the block changed the metadata of a key, or as `KeyPolicies.is_new`.
        """
        definition = self._definition(name, state)
        asked: set[str] = set()
        found = False
        for space in spaces:
            if space.ns != name or not (space.writes or space.metadata):
                continue
            found, collection = True, space.collection
            labelled = state.labelled(name, collection)
            pairs = chain(space.writes, space.metadata)
            for key, _ in pairs if labelled or self._relabelled else ((b"", None),):
                if (name, collection, key) in self._relabelled:
                    raise Broken(codes.ENDORSEMENT_POLICY_FAILURE)
                raw = parameter(state, space, key) if labelled else None
                if raw:
                    if met.is_new(raw):
                        yield Rule(key_policy(raw), raw, collection, key)
                elif collection not in asked:
                    asked.add(collection)
                    yield from self._general(definition, collection, asked)
        if not found:
            yield self._rule(definition.validation_parameter)

    def _general(
        self, definition: Definition, collection: str, asked: set[str]
    ) -> Iterator[Rule]:
        """Yield the policy of a collection, or that of the chaincode unless asked."""
        if collection:
            raw = self._collection_policy(definition, collection)
            if raw:
                yield self._rule(raw, collection)
                return
            if "" in asked:
                return
            asked.add("")
        yield self._rule(definition.validation_parameter)

    def _collection_policy(self, definition: Definition, collection: str) -> bytes:
        """Return the serialised ApplicationPolicy of a collection; b"" = none."""
        failure = codes.ENDORSEMENT_POLICY_FAILURE
        if collection.startswith(IMPLICIT):
            mspid = collection.removeprefix(IMPLICIT)
            group = self._configuration.policies.organizations.get(mspid)
            if group is None:
                raise Broken(failure)
            return _reference(f"/Channel/Application/{group}/Endorsement")
        for config in definition.collections.config:
            static = config.static_collection_config
            if static.name == collection:
                return bytes(static.endorsement_policy.SerializeToString())
        raise Broken(failure)

    def _rule(self, raw: bytes, collection: str = "") -> Rule:
        """Return the policy that a serialised ApplicationPolicy stands for."""
        found = _read_application_policy(raw)
        if isinstance(found, str):
            found = partial(_channel_policy, self._configuration, found)
        return Rule(found, raw, collection)

    def _definition(self, name: str, state: State) -> Definition:
        """Return a definition as of the block before. Raises: Broken."""
        known = self._definitions.get(name)
        if known is None:
            known = _LIFECYCLE if name == NAMESPACE else definition_of(name, state)
            self._definitions[name] = known
        return known


def definition_of(name: str, state: State) -> Definition:
    """Return a definition as of a state. Raises: Broken."""
    found = read_definition(state, name)
    if found is None:
        raise Broken(codes.INVALID_CHAINCODE)
    return found


def _holds(policy: Evaluator, tx: ParsedTransaction) -> bool:
    """Tell whether a policy holds. Raises: Broken, when it cannot be evaluated.

    Contracts write policies of keys. An error that nobody expected is a fault of this
    transaction: it must not make the whole block fail, as often as the key is written.
    """
    try:
        return policy(tx.endorsers)
    except Exception as error:
        _log.error("policy not evaluated", tx=tx.tx_id, exc_info=error)
        raise Broken(codes.INVALID_OTHER_REASON) from error


def written(name: str, spaces: Iterable[Space]) -> list[str]:
    """Return the namespaces whose policies count: written ones and the called one."""
    changed = {space.ns for space in spaces if space.writes or space.metadata}
    return sorted(changed | {name})


def _reference(path: str) -> bytes:
    """Return a serialised ApplicationPolicy that refers to one of the channel's."""
    policy = policy_pb2.ApplicationPolicy(channel_config_policy_reference=path)
    return bytes(policy.SerializeToString())


_LIFECYCLE: Final = Definition(
    name=NAMESPACE, validation_parameter=_reference(_LIFECYCLE_POLICY)
)


@lru_cache(_CACHED)
def _read_application_policy(raw: bytes) -> Evaluator | str:
    """Return the signature policy of a serialised ApplicationPolicy, or a path."""
    try:
        policy = policy_pb2.ApplicationPolicy.FromString(raw)
    except DecodeError:
        return never
    if policy.WhichOneof("Type") == "channel_config_policy_reference":
        return str(policy.channel_config_policy_reference)
    return signature_policy(policy.signature_policy.SerializeToString())


def _channel_policy(
    configuration: Configuration, path: str, identities: Sequence[Identity]
) -> bool:
    try:
        return configuration.policies.satisfied(path, identities)
    except NotFound:
        return False
