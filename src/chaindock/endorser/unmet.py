"""Say which policy a refused transaction does not satisfy, and who endorsed it.

Source: docs/fabric/policies.md#what-is-checked
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fabric_protos.common import policies_pb2
from fabric_protos.peer import policy_pb2
from fabric_protos.peer import transaction_pb2 as codes
from google.protobuf.message import DecodeError

from chaindock.endorser.configuration import Configuration
from chaindock.endorser.key_policies import KeyPolicies, Rule
from chaindock.endorser.plan import fewest
from chaindock.endorser.validator import (
    SnapshotState,
    Validator,
    parse_and_check,
    written,
)
from chaindock.errors import InvalidInput, NotFound
from chaindock.identity.msp import Identity
from chaindock.identity.policies import policy_text
from chaindock.ledger.snapshots import Snapshot
from chaindock.ledger.transaction import Broken, ParsedTransaction


def unmet(
    envelope: bytes,
    before: Snapshot,
    configuration: Configuration,
    stopped: Mapping[str, Identity],
) -> dict[str, Any]:
    """Return why a transaction has the code ENDORSEMENT_POLICY_FAILURE.

    `before` is the state before its block; the members of the channel are those of now,
    of which `stopped` are the peers that do not run.

    Returns:
        `namespace`; `collection`, "" = public; `key` (bytes; a hash in a collection; None =
        it is not the policy of a key); `policy` as text, `reason` if the policy is one of
        the channel; `endorsers`: who signed, as in `Org1MSP.peer`; `stopped`: MSP ids of
        the peers that would satisfy the policy, too, and do not run. `policy` is None if
        all policies hold: an earlier transaction of the block changed that of a written key.
    """
    tx, _ = parse_and_check(envelope, configuration.channel, configuration.msps)
    signed = [f"{one.mspid}.{one.role}" for one in tx.endorsers]
    told: dict[str, Any] = {"namespace": tx.name, "collection": "", "key": None}
    told |= {"policy": None, "reason": None, "endorsers": signed, "stopped": []}
    try:
        for name, rule in _rules(tx, Validator(configuration), SnapshotState(before)):
            if not rule(tx.endorsers):
                policy, reason = _words(rule, configuration, tx.endorsers)
                told |= {"namespace": name, "collection": rule.collection}
                told["stopped"] = _missing(rule, tx.endorsers, stopped)
                return told | {"key": rule.key, "policy": policy, "reason": reason}
    except Broken as broken:
        if broken.code == codes.ENDORSEMENT_POLICY_FAILURE:
            told["policy"] = "of a collection that is not defined, or too large"
    return told


def _rules(
    tx: ParsedTransaction, validator: Validator, state: SnapshotState
) -> Iterator[tuple[str, Rule]]:
    met = KeyPolicies()
    for name in written(tx.name, tx.spaces):
        for rule in validator.policies(name, tx.spaces, state, met):
            yield name, rule


def _missing(
    rule: Rule, endorsers: Sequence[Identity], others: Mapping[str, Identity]
) -> list[str]:
    """Return as few of the others as would satisfy a policy beside the endorsers."""
    return fewest(dict(others), [lambda more: rule([*endorsers, *more])])


def _words(
    rule: Rule, configuration: Configuration, endorsers: Sequence[Identity]
) -> tuple[str, str | None]:
    """Return the text of a policy, and why one of the channel is not satisfied."""
    try:
        if rule.key is not None:
            envelope = policies_pb2.SignaturePolicyEnvelope.FromString(rule.raw)
            return policy_text(envelope), None
        policy = policy_pb2.ApplicationPolicy.FromString(rule.raw)
        if path := policy.channel_config_policy_reference:
            return path, configuration.policies.reason(path, endorsers)
        return policy_text(policy.signature_policy), None
    except (DecodeError, InvalidInput, NotFound) as error:
        return "a policy that nobody can satisfy", str(error)
