"""Find out why a transaction was refused: what it had read, or a policy.

Source: docs/fabric/ledger.md#mvcc, docs/fabric/policies.md#what-is-checked
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fabric_protos.common import policies_pb2
from fabric_protos.peer import policy_pb2
from fabric_protos.peer import transaction_pb2 as codes
from google.protobuf.message import DecodeError

from chaindock.endorser.channel import Members
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.key_policies import KeyPolicies, Rule, SnapshotState
from chaindock.endorser.plan import fewest
from chaindock.endorser.validator import Validator, parse_and_check, written
from chaindock.errors import InvalidInput, NotFound
from chaindock.identity.msp import Identity
from chaindock.identity.policies import policy_text
from chaindock.ledger.encoding import Version
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.reader import Change, View
from chaindock.ledger.snapshots import ABOVE_ALL, Snapshot, after
from chaindock.ledger.transaction import Broken, Space, parse_transaction

_CONFLICTS: Final = {codes.MVCC_READ_CONFLICT, codes.PHANTOM_READ_CONFLICT}


def reasons(
    view: View, envelope: bytes, place: TxLocation, members: Members
) -> dict[str, Any]:
    """Return {"conflict", "unmet"}: `explain` and `unmet`; None = not so.

    In `unmet`, `key` is text; None = there is none, or only its `key_hash`, in hex, is known.
    """
    found = None
    if place.code == codes.ENDORSEMENT_POLICY_FAILURE:
        found = unmet(envelope, view.snapshot(place.block), members)
        key, collection = found["key"], found["collection"]
        found["key_hash"] = None
        if key and collection:
            found["key_hash"] = key.hex()
            key = view.name_of(found["namespace"], collection, key)
        found["key"] = None if key is None else key.decode()
    return {"conflict": explain(view, envelope, place), "unmet": found}


def explain(view: View, envelope: bytes, place: TxLocation) -> dict[str, Any] | None:
    """Return why a transaction was refused for what it had read; None = not so.

    Has `namespace`, `collection` ("" = public), `key` (None = only its `key_hash`, in hex,
    is known), `range` ([start, end] or None), `read` and `found`: the versions [block,
    position], None = absent; `known`: whether `read` is recorded; `writer` and
    `writer_version`: the transaction that changed the key.
    """
    if place.code not in _CONFLICTS:
        return None
    below, spaces = (place.block, place.index), parse_transaction(envelope, None).spaces
    return next((one for space in spaces for one in _stale(view, space, below)), None)


def _stale(view: View, space: Space, below: Version) -> Iterator[dict[str, Any]]:
    """Yield the reads of a space that had changed by the version `below`, in order."""
    where = space.ns, space.collection
    for key, read in space.reads:
        last = view.last_change(*where, (key, after(key)), below)
        if last is not None:
            found = None if last.entry.is_delete else (last.block, last.tx)
            # Also a key that was written and deleted in the block is a conflict.
            if found != read or last.block == below[0]:
                name = view.name_of(*where, key) if space.collection else key
                yield _told(where, name, last) | {"read": read and list(read)}
    for info in space.ranges:
        # The range differs from what was read, so its newest change came after the read.
        stop = info.end_key.encode()
        if stop and not info.itr_exhausted:
            stop = after(stop)
        bounds = info.start_key.encode(), stop or ABOVE_ALL
        last = view.last_change(*where, bounds, below)
        if last is not None:
            reads = {
                one.key.encode(): [one.version.block_num, one.version.tx_num]
                for one in info.raw_reads.kv_reads
            }
            yield _told(where, last.key, last) | {
                "range": [info.start_key, info.end_key],
                "read": reads.get(last.key),
                "known": not info.HasField("reads_merkle_hashes"),
            }


def _told(where: tuple[str, str], name: bytes | None, last: Change) -> dict[str, Any]:
    namespace, collection = where
    return {
        "namespace": namespace,
        "collection": collection,
        "key": None if name is None else name.decode(),
        "key_hash": last.key.hex() if collection else None,
        "range": None,
        "known": True,
        "found": None if last.entry.is_delete else [last.block, last.tx],
        "writer": last.entry.tx_id,
        "writer_version": [last.block, last.tx],
    }


def unmet(envelope: bytes, before: Snapshot, members: Members) -> dict[str, Any]:
    """Return why a transaction has the code ENDORSEMENT_POLICY_FAILURE.

    `before` is the state before its block; the members of the channel are those of now.

    Returns:
        `namespace`; `collection`, "" = public; `key` (bytes; a hash in a collection; None =
        it is not the policy of a key); `policy` as text, `reason` if the policy is one of
        the channel; `endorsers`: who signed, as in `Org1MSP.peer`; `stopped`: MSP ids of
        the peers that do not run and without which it is not satisfied. `policy` is None if
        all policies hold: an earlier transaction of the block changed that of a written key.
    """
    configuration = members.configuration
    tx, _ = parse_and_check(envelope, configuration.channel, configuration.msps)
    signed = [f"{one.mspid}.{one.role}" for one in tx.endorsers]
    told: dict[str, Any] = {"namespace": tx.name, "collection": "", "key": None}
    told |= {"policy": None, "reason": None, "endorsers": signed, "stopped": []}
    validator, state = Validator(configuration), SnapshotState(before)
    met = KeyPolicies()
    rules = (
        (name, rule)
        for name in written(tx.name, tx.spaces)
        for rule in validator.policies(name, tx.spaces, state, met)
    )
    try:
        for name, rule in rules:
            if not rule(tx.endorsers):
                policy, reason = _words(rule, configuration, tx.endorsers)
                told |= {"namespace": name, "collection": rule.collection}
                needed = fewest(members.identities(), [rule])
                told["stopped"] = [one for one in needed if one not in members.peers]
                return told | {"key": rule.key, "policy": policy, "reason": reason}
    except Broken as broken:
        if broken.code == codes.ENDORSEMENT_POLICY_FAILURE:
            told["policy"] = "of a collection that is not defined, or too large"
    return told


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
