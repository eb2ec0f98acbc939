"""Summarise a block as JSON; parts that cannot be decoded are named as such."""

from __future__ import annotations

from typing import Any

from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import (
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)
from google.protobuf.message import DecodeError

from chaindock.operations.wire import encode

_ENDORSER = common_pb2.HeaderType.ENDORSER_TRANSACTION


def summarise(data: bytes) -> dict[str, Any]:
    """Return number, hashes and transactions with their reads and writes."""
    block = common_pb2.Block.FromString(data)
    codes = b""
    if len(block.metadata.metadata) > common_pb2.BlockMetadataIndex.TRANSACTIONS_FILTER:
        at = common_pb2.BlockMetadataIndex.TRANSACTIONS_FILTER
        codes = block.metadata.metadata[at]
    return {
        "number": block.header.number,
        "previous_hash": block.header.previous_hash.hex(),
        "data_hash": block.header.data_hash.hex(),
        "transactions": [
            _transaction(envelope, codes[at] if at < len(codes) else None)
            for at, envelope in enumerate(block.data.data)
        ],
    }


def _transaction(envelope: bytes, code: int | None) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "tx_id": "",
        "type": "UNKNOWN",
        "code": code,
        "code_name": None if code is None else _code_name(code),
        "chaincode": None,
        "reads": [],
        "writes": [],
    }
    try:
        payload = common_pb2.Payload.FromString(
            common_pb2.Envelope.FromString(envelope).payload
        )
        header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
        summary["tx_id"] = header.tx_id
        summary["type"] = _type_name(header.type)
        if header.type == _ENDORSER:
            summary["chaincode"] = _chaincode(header)
            for results in _results(payload.data):
                _add_results(summary, results)
    except DecodeError as error:
        summary["unreadable"] = str(error)
    return summary


def _code_name(code: int) -> str:
    known = code in transaction_pb2.TxValidationCode.values()
    return str(transaction_pb2.TxValidationCode.Name(code) if known else code)


def _type_name(kind: int) -> str:
    try:
        return str(common_pb2.HeaderType.Name(kind))
    except ValueError:
        return f"TYPE_{kind}"


def _chaincode(header: Any) -> str:
    extension = proposal_pb2.ChaincodeHeaderExtension.FromString(header.extension)
    return str(extension.chaincode_id.name)


def _results(data: bytes) -> list[bytes]:
    found = []
    for action in transaction_pb2.Transaction.FromString(data).actions:
        inner = transaction_pb2.ChaincodeActionPayload.FromString(action.payload)
        response = proposal_response_pb2.ProposalResponsePayload.FromString(
            inner.action.proposal_response_payload
        )
        done = proposal_pb2.ChaincodeAction.FromString(response.extension)
        found.append(done.results)
    return found


def _add_results(summary: dict[str, Any], results: bytes) -> None:
    for space in rwset_pb2.TxReadWriteSet.FromString(results).ns_rwset:
        sets = kv_rwset_pb2.KVRWSet.FromString(space.rwset)
        summary["reads"] += [
            {
                "namespace": space.namespace,
                "key": read.key,
                "version": [read.version.block_num, read.version.tx_num]
                if read.HasField("version")
                else None,
            }
            for read in sets.reads
        ]
        summary["writes"] += [
            {
                "namespace": space.namespace,
                "key": write.key,
                "is_delete": write.is_delete,
                "value": encode(write.value),
            }
            for write in sets.writes
        ]
