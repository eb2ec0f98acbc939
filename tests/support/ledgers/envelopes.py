"""Real envelopes around a read-write set, and a real key that signs blocks."""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from fabric_protos.common import common_pb2, configtx_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.msp import identities_pb2
from fabric_protos.peer import (
    chaincode_event_pb2,
    chaincode_pb2,
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp

from chaindock.ids import ChannelId, TxId

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CHANNEL = ChannelId("dev")
CREATOR: bytes = identities_pb2.SerializedIdentity(
    mspid="Org1MSP", id_bytes=b"not a certificate"
).SerializeToString()
# Order of P-256: signatures must have s in the lower half.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_seconds = itertools.count(1_700_000_000)


@dataclass(frozen=True)
class Transaction:
    """A serialised envelope and its id."""

    tx_id: TxId
    envelope: bytes
    timestamp: tuple[int, int]


def transaction(
    rwset: bytes,
    *,
    tx_id: str | None = None,
    channel: str = CHANNEL,
    chaincode: str = "cc",
    timestamp: tuple[int, int] | None = None,
    args: Iterable[bytes] = (b"invoke",),
    event: tuple[str, bytes] | None = None,
) -> Transaction:
    """Return an endorser transaction (docs/fabric/ledger.md#transaction) with no signatures."""
    nonce = os.urandom(24)
    tx_id = tx_id or hashlib.sha256(nonce + CREATOR).hexdigest()
    timestamp = timestamp or (next(_seconds), 500)
    cc = chaincode_pb2.ChaincodeID(name=chaincode, version="1")
    channel_header = common_pb2.ChannelHeader(
        type=common_pb2.ENDORSER_TRANSACTION,
        timestamp=Timestamp(seconds=timestamp[0], nanos=timestamp[1]),
        channel_id=channel,
        tx_id=tx_id,
        extension=proposal_pb2.ChaincodeHeaderExtension(
            chaincode_id=cc
        ).SerializeToString(),
    ).SerializeToString()
    signature_header = common_pb2.SignatureHeader(
        creator=CREATOR, nonce=nonce
    ).SerializeToString()
    spec = chaincode_pb2.ChaincodeInvocationSpec(
        chaincode_spec=chaincode_pb2.ChaincodeSpec(
            chaincode_id=cc, input=chaincode_pb2.ChaincodeInput(args=args)
        )
    )
    proposal = proposal_pb2.ChaincodeProposalPayload(
        input=spec.SerializeToString()
    ).SerializeToString()
    events = b""
    if event is not None:
        events = chaincode_event_pb2.ChaincodeEvent(
            chaincode_id=chaincode, tx_id=tx_id, event_name=event[0], payload=event[1]
        ).SerializeToString()
    response = proposal_response_pb2.ProposalResponsePayload(
        proposal_hash=hashlib.sha256(
            channel_header + signature_header + proposal
        ).digest(),
        extension=proposal_pb2.ChaincodeAction(
            results=rwset,
            events=events,
            response=proposal_response_pb2.Response(status=200),
            chaincode_id=cc,
        ).SerializeToString(),
    ).SerializeToString()
    action = transaction_pb2.ChaincodeActionPayload(
        chaincode_proposal_payload=proposal,
        action=transaction_pb2.ChaincodeEndorsedAction(
            proposal_response_payload=response
        ),
    ).SerializeToString()
    data = transaction_pb2.Transaction(
        actions=[
            transaction_pb2.TransactionAction(header=signature_header, payload=action)
        ]
    ).SerializeToString()
    envelope = wrap(channel_header, data, signature_header)
    return Transaction(TxId(tx_id), envelope, timestamp)


def wrap(channel_header: bytes, data: bytes, signature_header: bytes = b"") -> bytes:
    """Return a serialised, unsigned envelope."""
    payload = common_pb2.Payload(
        header=common_pb2.Header(
            channel_header=channel_header, signature_header=signature_header
        ),
        data=data,
    )
    envelope: bytes = common_pb2.Envelope(
        payload=payload.SerializeToString()
    ).SerializeToString()
    return envelope


def config(channel: str = CHANNEL, tx_id: str = "") -> bytes:
    """Return a config envelope, as block 0 holds one."""
    header = common_pb2.ChannelHeader(
        type=common_pb2.CONFIG, channel_id=channel, tx_id=tx_id
    )
    return wrap(
        header.SerializeToString(),
        configtx_pb2.ConfigEnvelope(
            config=configtx_pb2.Config(sequence=0)
        ).SerializeToString(),
    )


Version = tuple[int, int]


def rwset(
    reads: Mapping[str, Version | None] | None = None,
    writes: Mapping[str, bytes | None] | None = None,
    *,
    ns: str = "cc",
    metadata: Mapping[str, Mapping[str, bytes]] | None = None,
    ranges: Iterable[kv_rwset_pb2.RangeQueryInfo] = (),
) -> bytes:
    """Return a `TxReadWriteSet` of one namespace, built from the protos alone."""
    kv = kv_rwset_pb2.KVRWSet(range_queries_info=list(ranges))
    for key, version in sorted((reads or {}).items()):
        kv.reads.append(read(key, version))
    for key, value in sorted((writes or {}).items()):
        kv.writes.add(key=key, is_delete=not value, value=value or b"")
    for key, entries in sorted((metadata or {}).items()):
        write = kv.metadata_writes.add(key=key)
        for name, entry in sorted(entries.items()):
            write.entries.add(name=name, value=entry)
    return namespaces({ns: kv.SerializeToString()})


def namespaces(sets: Mapping[str, bytes]) -> bytes:
    """Return a `TxReadWriteSet` of serialised `KVRWSet`s."""
    result = rwset_pb2.TxReadWriteSet()
    for ns, kv in sets.items():
        result.ns_rwset.add(namespace=ns, rwset=kv)
    data: bytes = result.SerializeToString()
    return data


def read(key: str, version: Version | None) -> kv_rwset_pb2.KVRead:
    """Return a point read."""
    found = kv_rwset_pb2.KVRead(key=key)
    if version is not None:
        found.version.CopyFrom(
            kv_rwset_pb2.Version(block_num=version[0], tx_num=version[1])
        )
    return found


class BlockKey:
    """An ECDSA key that signs blocks as an orderer does."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.creator = CREATOR

    def sign(self, message: bytes) -> bytes:
        """Return a low-S signature."""
        signature = self._key.sign(message, ec.ECDSA(hashes.SHA256()))
        r, s = utils.decode_dss_signature(signature)
        return utils.encode_dss_signature(r, min(s, _P256_ORDER - s))

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raise InvalidSignature if it is not of this key."""
        self._key.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))
