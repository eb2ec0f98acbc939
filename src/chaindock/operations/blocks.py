"""Summarise a block as JSON; parts that cannot be decoded are named as such."""

from __future__ import annotations

from typing import Any

from fabric_protos.common import common_pb2
from fabric_protos.peer import transaction_pb2

from chaindock.ids import ChannelId
from chaindock.ledger.transaction import code_name, parse_transaction
from chaindock.operations.wire import encode

_CODES = common_pb2.BlockMetadataIndex.TRANSACTIONS_FILTER


def summarise(data: bytes) -> dict[str, Any]:
    """Return number, hashes and transactions with their reads and writes."""
    block = common_pb2.Block.FromString(data)
    found = block.metadata.metadata
    codes = found[_CODES] if len(found) > _CODES else b""
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
    # The first parse finds the channel; parts behind it are read for that channel only.
    channel = parse_transaction(envelope, ChannelId("")).channel
    tx = parse_transaction(envelope, ChannelId(channel or ""))
    public = [space for space in tx.spaces if not space.collection]
    summary: dict[str, Any] = {
        "tx_id": tx.tx_id,
        "type": tx.kind,
        "code": code,
        "code_name": None if code is None else code_name(code),
        "chaincode": tx.name or None,
        "reads": [
            {
                "namespace": space.ns,
                "key": key.decode(),
                "version": None if version is None else list(version),
            }
            for space in public
            for key, version in space.reads
        ],
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
    }
    if tx.code != transaction_pb2.NOT_VALIDATED:
        summary["unreadable"] = code_name(tx.code)
    return summary
