"""An envelope taken apart: one `ParsedTransaction` serves checks, validation and history.

The parts are read in the order of Fabric's checks, so that an envelope with several
faults gets the same validation code. No bytes make the functions raise anything but
`Broken`.
Source: docs/fabric/ledger.md#validation-codes
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import proposal_pb2, proposal_response_pb2, transaction_pb2
from fabric_protos.peer import transaction_pb2 as codes
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.ids import ChannelId, SpaceName
from chaindock.ledger.encoding import Version

_LENGTH_DELIMITED = 2
"""Tag of a field with a length, but for its number."""
UNKNOWN = "unknown"
"""What Fabric's metrics say of a transaction whose kind or chaincode cannot be read."""


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
    purged: tuple[bytes, ...] = ()
    """key hashes of `writes` whose earlier private values are purged"""
    private_hash: bytes = b""
    """SHA-256 of the private `KVRWSet`; b"" = nothing private was written"""


@dataclass(slots=True)
class ParsedTransaction:
    """What is known of an envelope; parts that cannot be read keep their defaults.

    Args:
        code: NOT_VALIDATED = no fault so far, else the TxValidationCode.
        size: bytes of payload and signature.
        channel: None when the channel header cannot be read.
        kind: name of its header type; `is_config`: whether that is CONFIG.
        name, version: of the chaincode that was called.
        spaces: sorted by namespace, public before collections.
        endorsers: identities whose endorsements are valid, each once; for the validator.
    """

    envelope: bytes
    code: int = codes.NOT_VALIDATED
    size: int = 0
    channel: str | None = None
    tx_id: str = ""
    kind: str = UNKNOWN
    is_config: bool = False
    timestamp: Timestamp = field(default_factory=Timestamp)
    name: str = ""
    version: str = ""
    spaces: list[Space] = field(default_factory=list)
    endorsers: Sequence[Any] = ()


_KINDS = {number: name for name, number in common_pb2.HeaderType.items()}


def packed_id(tx_id: str) -> bytes | str:
    """Return a transaction id as it is stored: the 32 bytes that it names, if it does.

    Whatever else an envelope has as its id is stored as it is; one that nobody can
    decode has the id "".
    """
    if len(tx_id) == 64 and not tx_id.strip("0123456789abcdef"):
        return bytes.fromhex(tx_id)
    return tx_id


def unpacked_id(stored: bytes | str) -> str:
    """Return the transaction id that `packed_id` was given."""
    return stored.hex() if isinstance(stored, bytes) else stored


def code_name(code: int) -> str:
    """Return the name of a TxValidationCode; the number as text if it has none."""
    known = code in codes.TxValidationCode.values()
    return str(codes.TxValidationCode.Name(code) if known else code)


class Broken(Exception):  # control flow of parsers, not an error
    """A part of a transaction that is refused: the TxValidationCode for it."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def parse_transaction(envelope: bytes, channel: ChannelId | None) -> ParsedTransaction:
    """Return what the envelope holds, without looking at signatures and hashes.

    Parts behind the headers are read if it is of `channel`; None = of any channel.
    """
    tx = ParsedTransaction(envelope)
    try:
        _, payload, header = read_headers(tx)
        require_kind(tx, header, channel)
        if not tx.is_config:
            _, action = read_action(tx, payload)
            read_spaces(tx, read_result(tx, read_response(action)))
    except Broken as broken:
        tx.code = broken.code
    return tx


def parse(kind: Any, data: bytes, code: int) -> Any:
    """Return the message of type `kind`. Raises: Broken with `code`."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise Broken(code) from None


def read_headers(tx: ParsedTransaction) -> tuple[Any, Any, Any]:
    """Read headers into `tx`; return Envelope, Payload, ChannelHeader. Raises: Broken."""
    if not tx.envelope:
        raise Broken(codes.NIL_ENVELOPE)
    envelope = parse(common_pb2.Envelope, tx.envelope, codes.INVALID_OTHER_REASON)
    tx.size = len(envelope.payload) + len(envelope.signature)
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
    tx.channel, tx.tx_id = header.channel_id, header.tx_id
    tx.timestamp = header.timestamp
    tx.is_config = header.type == common_pb2.CONFIG
    tx.kind = _KINDS.get(header.type, UNKNOWN)
    return envelope, payload, header


def require_kind(tx: ParsedTransaction, header: Any, channel: ChannelId | None) -> None:
    """Refuse a header that no transaction of `channel` has; None = any. Raises: Broken."""
    if header.type == common_pb2.CONFIG_UPDATE:
        raise Broken(codes.UNSUPPORTED_TX_PAYLOAD)
    known = tx.is_config or header.type == common_pb2.ENDORSER_TRANSACTION
    if not known or header.epoch:
        raise Broken(codes.BAD_COMMON_HEADER)
    if channel is not None and header.channel_id != channel:
        raise Broken(codes.TARGET_CHAIN_NOT_FOUND)


def read_action(tx: ParsedTransaction, payload: Any) -> tuple[Any, Any]:
    """Return `TransactionAction` and `ChaincodeActionPayload` of a `common.Payload`."""
    if not tx.tx_id:
        raise Broken(codes.BAD_PROPOSAL_TXID)
    invalid = codes.INVALID_ENDORSER_TRANSACTION
    transaction = parse(transaction_pb2.Transaction, payload.data, invalid)
    if len(transaction.actions) != 1:
        raise Broken(invalid)
    outer = transaction.actions[0]
    action = parse(transaction_pb2.ChaincodeActionPayload, outer.payload, invalid)
    if not action.HasField("action"):
        raise Broken(codes.NIL_TXACTION)
    return outer, action


def read_response(action: Any) -> Any:
    """Return the `ProposalResponsePayload` of a `ChaincodeActionPayload`."""
    return parse(
        proposal_response_pb2.ProposalResponsePayload,
        action.action.proposal_response_payload,
        codes.BAD_RESPONSE_PAYLOAD,
    )


def read_result(tx: ParsedTransaction, response: Any) -> Any:
    """Return the `ChaincodeAction` of a `ProposalResponsePayload`; note its chaincode."""
    result = parse(
        proposal_pb2.ChaincodeAction, response.extension, codes.BAD_RESPONSE_PAYLOAD
    )
    tx.name, tx.version = result.chaincode_id.name, result.chaincode_id.version
    return result


def read_spaces(tx: ParsedTransaction, result: Any) -> None:
    """Read the read-write set of a `ChaincodeAction` into `tx`."""
    rwset = parse(rwset_pb2.TxReadWriteSet, result.results, codes.BAD_RWSET)
    if rwset.data_model != rwset_pb2.TxReadWriteSet.KV:
        raise Broken(codes.BAD_RWSET)
    spaces: dict[SpaceName, Space] = {}
    for ns in rwset.ns_rwset:
        found = [
            _public(ns),
            *(_hashed(ns.namespace, c) for c in ns.collection_hashed_rwset),
        ]
        for space in found:
            if (space.ns, space.collection) in spaces:
                raise Broken(codes.ILLEGAL_WRITESET)
            spaces[space.ns, space.collection] = space
    tx.spaces = [spaces[name] for name in sorted(spaces)]


def _public(ns: Any) -> Space:
    space = Space(ns.namespace, "", [], [], [], [])
    for piece in pieces(ns.rwset):
        kv = parse(kv_rwset_pb2.KVRWSet, piece, codes.BAD_RWSET)
        space.reads += [(read.key.encode(), _version(read)) for read in kv.reads]
        space.ranges += kv.range_queries_info
        space.writes += [
            (write.key.encode(), None if write.is_delete else write.value or None)
            for write in kv.writes
        ]
        space.metadata += [
            (write.key.encode(), _entries(write)) for write in kv.metadata_writes
        ]
    for info in space.ranges:
        # A tree of degree 0 or 1 would never end.
        if (
            info.HasField("reads_merkle_hashes")
            and info.reads_merkle_hashes.max_degree < 2
        ):
            raise Broken(codes.BAD_RWSET)
    return space


def pieces(data: bytes, most: int = 256 * 1024) -> Iterator[bytes]:
    """Cut a serialised message between its fields, into pieces of about `most` bytes.

    A parser holds the interpreter until it has parsed all it was given. Where `data`
    cannot be cut, the rest is one piece, for the parser to accept or refuse.
    """
    start = at = 0
    while len(data) - start > most:
        length = shift = 0
        byte = 0x80
        if data[at] & 0x87 != _LENGTH_DELIMITED:
            break
        while byte & 0x80 and shift < 32 and (at := at + 1) < len(data):
            byte = data[at]
            length |= (byte & 0x7F) << shift
            shift += 7
        at += length + 1
        if byte & 0x80 or at >= len(data):
            break
        if at - start >= most:
            yield data[start:at]
            start = at
    yield data[start:]


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
        purged=tuple(write.key_hash for write in kv.hashed_writes if write.is_purge),
        private_hash=collection.pvt_rwset_hash,
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
