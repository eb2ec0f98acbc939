"""From an envelope in a block to what its transaction read and writes.

Owns:    the layers from Envelope to read-write set; the code for each way to be broken.
Not:     signatures, policies, proposal hashes (endorser); conflicts (mvcc.py).
Entry:   decode, open_envelope
Holds:   never raises for any bytes: what cannot be decoded gets its validation code.
Source:  ledger-gateway.md §2.4, §4.2
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import (
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)
from fabric_protos.peer import transaction_pb2 as codes
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from chaindock.ids import ChannelId
    from chaindock.ledger.snapshots import Version


UNKNOWN = "unknown"
"""What Fabric's metrics say of a transaction that cannot be read that far."""


@dataclass(slots=True)
class Space:
    """What a transaction did in one space of keys.

    A space is the public state of a namespace, or the key hashes of one collection.
    """

    ns: str
    collection: str
    reads: list[tuple[bytes, Version | None]]
    ranges: list[Any]
    """`kvrwset.RangeQueryInfo`"""
    writes: list[tuple[bytes, bytes | None]]
    """None deletes"""
    metadata: list[tuple[bytes, bytes | None]]
    """serialised `KVMetadataWrite` without key; None removes it"""

    @property
    def table(self) -> str:
        """Namespace in the state table."""
        return (
            hashed_namespace(self.ns, self.collection) if self.collection else self.ns
        )


@dataclass(slots=True)
class Decoded:
    """A transaction as far as it could be decoded.

    Args:
        kind: name of its header type.
        chaincode: name:version of what was called.
    """

    tx_id: str = ""
    kind: str = UNKNOWN
    chaincode: str = UNKNOWN
    code: int = codes.VALID
    is_config: bool = False
    timestamp: Timestamp = field(default_factory=Timestamp)
    spaces: list[Space] = field(default_factory=list)
    """sorted by namespace, public before collections"""


class Broken(Exception):  # control flow of those who decode, not an error
    """Bytes of a transaction that cannot be taken: the TxValidationCode for it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def hashed_namespace(ns: str, collection: str) -> str:
    """Return the namespace under which a collection's key hashes are kept."""
    return f"{ns}$$h{collection}"


def decode(envelope: bytes, channel: ChannelId) -> Decoded:
    """Return what the envelope holds; `code` is VALID if all of it could be read."""
    tx = Decoded()
    try:
        payload = _header(envelope, channel, tx)
        if not tx.is_config:
            tx.spaces = _spaces(_results(payload, tx))
    except Broken as broken:
        tx.code = broken.code
    return tx


def parse(kind: Any, data: bytes, code: int) -> Any:
    """Return the message of type `kind`. Raises: Broken with `code`."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise Broken(code) from None


def open_envelope(data: bytes) -> tuple[Any, Any, Any]:
    """Return Envelope, Payload and ChannelHeader. Raises: Broken."""
    if not data:
        raise Broken(codes.NIL_ENVELOPE)
    envelope = parse(common_pb2.Envelope, data, codes.INVALID_OTHER_REASON)
    payload = parse(common_pb2.Payload, envelope.payload, codes.BAD_PAYLOAD)
    if not payload.HasField("header"):
        raise Broken(codes.BAD_PAYLOAD)
    if not payload.header.channel_header:
        raise Broken(codes.BAD_COMMON_HEADER)
    header = parse(
        common_pb2.ChannelHeader,
        payload.header.channel_header,
        codes.BAD_CHANNEL_HEADER,
    )
    return envelope, payload, header


def _header(data: bytes, channel: ChannelId, tx: Decoded) -> Any:
    """Fill in what the headers say; return the payload."""
    _, payload, header = open_envelope(data)
    tx.tx_id = header.tx_id
    tx.timestamp = header.timestamp
    tx.is_config = header.type == common_pb2.CONFIG
    if header.type in _KINDS:
        tx.kind = _KINDS[header.type]
    _check_header(header, channel, tx)
    return payload


_KINDS = {number: name for name, number in common_pb2.HeaderType.items()}


def _check_header(header: Any, channel: ChannelId, tx: Decoded) -> None:
    if header.type == common_pb2.CONFIG_UPDATE:
        raise Broken(codes.UNSUPPORTED_TX_PAYLOAD)
    known = tx.is_config or header.type == common_pb2.ENDORSER_TRANSACTION
    if not known or header.epoch:
        raise Broken(codes.BAD_COMMON_HEADER)
    if header.channel_id != channel:
        raise Broken(codes.TARGET_CHAIN_NOT_FOUND)
    if not header.tx_id and not tx.is_config:
        raise Broken(codes.BAD_PROPOSAL_TXID)


def _results(payload: Any, tx: Decoded) -> Any:
    """Return the `TxReadWriteSet` of an endorser transaction; note what was called."""
    invalid = codes.INVALID_ENDORSER_TRANSACTION
    transaction = parse(transaction_pb2.Transaction, payload.data, invalid)
    if len(transaction.actions) != 1:
        raise Broken(invalid)
    action = parse(
        transaction_pb2.ChaincodeActionPayload, transaction.actions[0].payload, invalid
    )
    if not action.HasField("action"):
        raise Broken(codes.NIL_TXACTION)
    bad = codes.BAD_RESPONSE_PAYLOAD
    response = parse(
        proposal_response_pb2.ProposalResponsePayload,
        action.action.proposal_response_payload,
        bad,
    )
    done = parse(proposal_pb2.ChaincodeAction, response.extension, bad)
    if done.HasField("chaincode_id"):
        tx.chaincode = f"{done.chaincode_id.name}:{done.chaincode_id.version}"
    return parse(rwset_pb2.TxReadWriteSet, done.results, codes.BAD_RWSET)


def _spaces(rwset: Any) -> list[Space]:
    if rwset.data_model != rwset_pb2.TxReadWriteSet.KV:
        raise Broken(codes.BAD_RWSET)
    spaces: dict[tuple[str, str], Space] = {}
    for ns in rwset.ns_rwset:
        found = [
            _public(ns),
            *(_hashed(ns.namespace, c) for c in ns.collection_hashed_rwset),
        ]
        for space in found:
            if (space.ns, space.collection) in spaces:
                raise Broken(codes.ILLEGAL_WRITESET)
            spaces[space.ns, space.collection] = space
    return [spaces[name] for name in sorted(spaces)]


def _public(ns: Any) -> Space:
    kv = parse(kv_rwset_pb2.KVRWSet, ns.rwset, codes.BAD_RWSET)
    for info in kv.range_queries_info:
        # A tree of degree 0 or 1 would never end.
        if (
            info.HasField("reads_merkle_hashes")
            and info.reads_merkle_hashes.max_degree < 2
        ):
            raise Broken(codes.BAD_RWSET)
    return Space(
        ns.namespace,
        "",
        reads=[(read.key.encode(), _version(read)) for read in kv.reads],
        ranges=list(kv.range_queries_info),
        writes=[
            (write.key.encode(), None if write.is_delete else write.value or None)
            for write in kv.writes
        ],
        metadata=[
            (write.key.encode(), _entries(write)) for write in kv.metadata_writes
        ],
    )


def _hashed(ns: str, collection: Any) -> Space:
    kv = parse(kv_rwset_pb2.HashedRWSet, collection.hashed_rwset, codes.BAD_RWSET)
    # The public space of the namespace would be taken for this collection.
    if not collection.collection_name:
        raise Broken(codes.BAD_RWSET)
    return Space(
        ns,
        collection.collection_name,
        reads=[(read.key_hash, _version(read)) for read in kv.hashed_reads],
        ranges=[],
        writes=[
            (write.key_hash, None if write.is_delete else write.value_hash or None)
            for write in kv.hashed_writes
        ],
        metadata=[(write.key_hash, _entries(write)) for write in kv.metadata_writes],
    )


def _version(read: Any) -> Version | None:
    if not read.HasField("version"):
        return None
    return read.version.block_num, read.version.tx_num


def _entries(write: Any) -> bytes | None:
    if not write.entries:
        return None
    kept = kv_rwset_pb2.KVMetadataWrite(entries=write.entries)
    data: bytes = kept.SerializeToString()
    return data
