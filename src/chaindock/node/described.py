"""Describe blocks and transactions as JSON, for people who look inside.

No bytes make these functions fail: a part that cannot be read is missing, and
`unreadable` names the validation code of what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.msp import identities_pb2
from fabric_protos.peer import (
    chaincode_event_pb2,
    chaincode_pb2,
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.identity.msp import CREATOR_MAX
from chaindock.ledger.transaction import (
    ParsedTransaction,
    Space,
    code_name,
    parse_transaction,
)
from chaindock.operations.wire import encode

_BRIEF = ("reads", "ranges", "writes", "metadata_writes", "private", "args")
_SLOTS = common_pb2.BlockMetadataIndex


def describe_block(data: bytes, *, brief: bool = False) -> dict[str, Any]:
    """Return number, hashes and transactions; `brief`: counts instead of lists."""
    block = common_pb2.Block.FromString(data)
    codes = _slot(block, _SLOTS.TRANSACTIONS_FILTER)
    found: dict[str, Any] = {
        "number": block.header.number,
        "previous_hash": block.header.previous_hash.hex(),
        "data_hash": block.header.data_hash.hex(),
        "commit_hash": _commit_hash(block),
        "size": len(data),
        "transactions": [
            describe(envelope, codes[at] if at < len(codes) else None, at)
            for at, envelope in enumerate(block.data.data)
        ],
    }
    if brief:
        for tx in found["transactions"]:
            tx.update({name: len(tx[name]) for name in _BRIEF})
    return found


def describe(envelope: bytes, code: int | None, position: int = 0) -> dict[str, Any]:
    """Return what a transaction is, asked, read, wrote, answered, and how it ended.

    Values, arguments and payloads are base64. A read's `version` is [block, position]
    or None for a key that was absent.
    """
    tx = parse_transaction(envelope, None)
    found: dict[str, Any] = {
        "tx_id": tx.tx_id,
        "position": position,
        "type": tx.kind,
        "code": code,
        "code_name": None if code is None else code_name(code),
        "channel": tx.channel,
        "time": iso(tx.timestamp),
        "size": len(envelope),
        "chaincode": tx.name or None,
        "version": tx.version or None,
        "creator": None,
        "endorsers": [],
        "function": None,
        "args": [],
        "is_init": False,
        "response": None,
        "event": None,
        **_effects(tx),
    }
    if not tx.is_config:
        for part in _call(envelope):
            found |= part
    if tx.code != transaction_pb2.NOT_VALIDATED:
        found["unreadable"] = code_name(tx.code)
    return found


def events_of(data: bytes) -> list[dict[str, Any]]:
    """Return the chaincode events of the valid transactions of a block, in order."""
    block = common_pb2.Block.FromString(data)
    codes = _slot(block, _SLOTS.TRANSACTIONS_FILTER)
    found = []
    for position, envelope in enumerate(block.data.data):
        if position >= len(codes) or codes[position] != transaction_pb2.VALID:
            continue
        parts: dict[str, Any] = {}
        for part in _call(envelope):
            parts |= part
        if parts.get("event"):
            place = {"block": block.header.number, "position": position}
            found.append({**place, **parts["event"]})
    return found


def iso(time: Timestamp) -> str | None:
    """Return ISO 8601 UTC; None = outside of the years 1 to 9999."""
    try:
        return str(time.ToJsonString())
    except ValueError:
        return None


def _slot(block: Any, index: int) -> bytes:
    slots = block.metadata.metadata
    return bytes(slots[index]) if len(slots) > index else b""


def _commit_hash(block: Any) -> str:
    try:
        slot = _slot(block, _SLOTS.COMMIT_HASH)
        return str(common_pb2.Metadata.FromString(slot).value.hex())
    except DecodeError:
        return ""


def _effects(tx: ParsedTransaction) -> dict[str, Any]:
    public = [space for space in tx.spaces if not space.collection]
    return {
        "reads": [
            {
                "namespace": space.ns,
                "key": key.decode(),
                "version": version and list(version),
            }
            for space in public
            for key, version in space.reads
        ],
        "ranges": [_range(space.ns, info) for space in public for info in space.ranges],
        "writes": [
            {
                "namespace": space.ns,
                "key": key.decode(),
                "is_delete": value is None,
                "value": encode(value or b""),
            }
            for space in public
            for key, value in space.writes
        ],
        "metadata_writes": [
            {"namespace": space.ns, "key": key.decode(), "entries": _entries(entries)}
            for space in public
            for key, entries in space.metadata
        ],
        "private": [_hashed(space) for space in tx.spaces if space.collection],
    }


def _range(ns: str, info: Any) -> dict[str, Any]:
    reads = [
        {"key": one.key, "version": [one.version.block_num, one.version.tx_num]}
        for one in info.raw_reads.kv_reads
    ]
    return {
        "namespace": ns,
        "start": info.start_key,
        "end": info.end_key,
        "exhausted": info.itr_exhausted,
        "reads": None if info.HasField("reads_merkle_hashes") else reads,
    }


def _entries(data: bytes | None) -> dict[str, str]:
    kept = kv_rwset_pb2.KVMetadataWrite.FromString(data or b"")
    return {one.name: encode(one.value) for one in kept.entries}


def _hashed(space: Space) -> dict[str, Any]:
    purged = frozenset(space.purged)
    return {
        "namespace": space.ns,
        "collection": space.collection,
        "reads": [
            {"key_hash": key.hex(), "version": version and list(version)}
            for key, version in space.reads
        ],
        "writes": [
            {
                "key_hash": key.hex(),
                "is_delete": value is None,
                "is_purge": key in purged,
                "value_hash": (value or b"").hex(),
            }
            for key, value in space.writes
        ],
        "metadata_writes": [
            {"key_hash": key.hex(), "entries": _entries(entries)}
            for key, entries in space.metadata
        ],
    }


def _call(envelope: bytes) -> Iterator[dict[str, Any]]:
    """Yield what is known beyond the read-write set, until something is unreadable."""
    try:
        payload = common_pb2.Payload.FromString(
            common_pb2.Envelope.FromString(envelope).payload
        )
        signed = common_pb2.SignatureHeader.FromString(payload.header.signature_header)
        yield {"creator": identity(signed.creator)}
        transaction = transaction_pb2.Transaction.FromString(payload.data)
        if not transaction.actions:
            return
        action = transaction_pb2.ChaincodeActionPayload.FromString(
            transaction.actions[0].payload
        )
        endorsed = action.action
        yield {"endorsers": [identity(one.endorser) for one in endorsed.endorsements]}
        response = proposal_response_pb2.ProposalResponsePayload.FromString(
            endorsed.proposal_response_payload
        )
        yield _answer(proposal_pb2.ChaincodeAction.FromString(response.extension))
        proposal = proposal_pb2.ChaincodeProposalPayload.FromString(
            action.chaincode_proposal_payload
        )
        called = chaincode_pb2.ChaincodeInvocationSpec.FromString(proposal.input)
        given = called.chaincode_spec.input
        name, *args = given.args or [b""]
        yield {
            "function": name.decode(errors="backslashreplace"),
            "args": [encode(arg) for arg in args],
            "is_init": given.is_init,
        }
    except DecodeError:
        return


def _answer(action: Any) -> dict[str, Any]:
    response = action.response
    told = {"status": response.status, "message": response.message}
    found: dict[str, Any] = {"response": {**told, "payload": encode(response.payload)}}
    if action.events:
        event = chaincode_event_pb2.ChaincodeEvent.FromString(action.events)
        found["event"] = {
            "tx_id": event.tx_id,
            "chaincode": event.chaincode_id,
            "name": event.event_name,
            "payload": encode(event.payload),
        }
    return found


def identity(creator: bytes) -> dict[str, str] | None:
    """Return organisation and subject of a serialised identity; None = unreadable."""
    return _identity(creator) if len(creator) <= CREATOR_MAX else None


@lru_cache(256)
def _identity(creator: bytes) -> dict[str, str] | None:
    try:
        found = identities_pb2.SerializedIdentity.FromString(creator)
        subject = x509.load_pem_x509_certificate(found.id_bytes).subject
        return {"mspid": found.mspid, "subject": subject.rfc4514_string()}
    except (DecodeError, ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        return None
