"""Blocks: how they are built, hashed, signed, and checked when a ledger is opened.

The bytes of a block depend on its arguments and the nonce of its signature alone.
Source: docs/fabric/ledger.md#block
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from fabric_protos.common import common_pb2
from google.protobuf.message import DecodeError

from chaindock.ledger.database import corrupt, read_meta
from chaindock.ledger.encoding import field, header_field, number_field, part, uvarint
from chaindock.ledger.packing import read_block
from chaindock.ledger.rwset import in_order

ChangeKey = tuple[str, str, bytes]
"""namespace, collection ("" = public), key or key hash"""
Change = tuple[bytes | None, int]
"""new value (None = deleted), position of the transaction in the block"""

SLOTS = 5
_NONCE_BYTES = 24
_SEQUENCE, _INTEGER, _OCTETS = 0x30, 0x02, 0x04


class BlockSigner(Protocol):
    """Signs blocks as the orderer. Called on the writer thread."""

    @property
    def creator(self) -> bytes:
        """Serialised identity that the signature belongs to."""

    def sign(self, message: bytes) -> bytes:
        """Return a DER signature over SHA-256 of `message`, with low S."""


def header_der(number: int, previous_hash: bytes, data_hash: bytes) -> bytes:
    """Return the ASN.1 form of a block header, which is what is hashed and signed."""
    # One spare bit: INTEGER is signed.
    integer = number.to_bytes(number.bit_length() // 8 + 1, "big")
    octets = _der(_OCTETS, previous_hash) + _der(_OCTETS, data_hash)
    return _der(_SEQUENCE, _der(_INTEGER, integer) + octets)


def build_block(
    number: int,
    previous_hash: bytes,
    envelopes: Sequence[bytes],
    *,
    codes: bytes,
    last_config: int,
    commit: bytes,
    signer: BlockSigner | None,
) -> tuple[bytes, bytes]:
    """Return a serialised block and its hash.

    Block 0, the genesis block, has no previous hash (b""), commit hash (b"") and signer.
    `codes` has one byte for each envelope; `last_config` is the number of the newest
    block that holds a config transaction.
    """
    data_hash = sha256(b"".join(envelopes)).digest()
    der = header_der(number, previous_hash, data_hash)
    config = number_field(last_config)
    signed = part(1, config)
    signatures = field(1, signed)
    if signer is not None:
        by = field(1, signer.creator) + field(2, os.urandom(_NONCE_BYTES))
        signature = signer.sign(signed + by + der)
        signatures += field(2, field(1, by) + field(2, signature))
    slots = signatures, field(1, config), codes, b"", field(1, commit)
    header = header_field(number, previous_hash, data_hash)
    data, metadata = (
        b"".join(part(1, entry) for entry in entries) for entries in (envelopes, slots)
    )
    return header + part(2, data) + part(3, metadata), sha256(der).digest()


def commit_hash(
    codes: bytes, changes: Mapping[ChangeKey, Change], number: int, previous: bytes
) -> bytes:
    """Return the commit hash that chains this block's outcome to `previous`."""
    digest = sha256(uvarint(len(codes)) + codes)
    spaces: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    for ns, collection, key in changes:
        if ns:  # the channel's configuration takes no part
            spaces[ns, collection].append(key)
    versions = {
        position: field(6, _ordered(number) + _ordered(position))
        for position in {position for _, position in changes.values()}
    }
    last_ns = ""
    for ns, collection in sorted(spaces):
        head = field(1, ns.encode()) if ns != last_ns else b""
        head += field(2, collection.encode())
        last_ns = ns
        for key in in_order(spaces[ns, collection]):
            value, position = changes[ns, collection, key]
            effect = b"\x20\x01" if value is None else field(5, value)
            entry = field(1, head + field(3, key) + effect + versions[position])
            digest.update(entry)
            head = b""
    digest.update(previous)
    return digest.digest()


def _ordered(number: int) -> bytes:
    """Return a length byte and the minimal big-endian form: sorts like the number."""
    size = (number.bit_length() + 7) // 8
    return bytes([size]) + number.to_bytes(size, "big")


def _der(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


@dataclass(frozen=True)
class Tip:
    """The end of the chain."""

    height: int
    hash: bytes
    commit: bytes
    """commit hash; b"" at the genesis block"""
    last_config: int
    """number of the newest block with a config transaction"""


def read_tip(db: sqlite3.Connection, path: Path) -> Tip:
    """Return the end of the chain after checking the last block. Raises: LedgerCorrupt."""
    height = int(read_meta(db, path, "height"))
    rows = db.execute(
        "SELECT number, hash, block FROM blocks ORDER BY number DESC LIMIT 2"
    ).fetchall()
    if not rows or rows[0][0] != height - 1:
        last = rows[0][0] if rows else "none"
        raise corrupt(
            path, f"the state is at height {height}, the last block is {last}"
        )
    number, stored_hash, data = rows[0]
    previous = rows[1][1] if len(rows) > 1 else b""
    data = read_block(db.execute, path, number, data)
    block = check_block(data, number, stored_hash, previous, path)
    slots = block.metadata.metadata
    try:
        signatures = common_pb2.Metadata.FromString(slots[common_pb2.SIGNATURES])
        config = common_pb2.OrdererBlockMetadata.FromString(signatures.value)
        commit = common_pb2.Metadata.FromString(slots[common_pb2.COMMIT_HASH]).value
    except DecodeError as error:
        raise corrupt(path, f"block {number} cannot be decoded ({error})") from error
    return Tip(height, stored_hash, commit, config.last_config.index)


def check_block(
    data: bytes, number: int, stored_hash: bytes, previous: bytes, path: Path
) -> Any:
    """Return a block after checking that it has `number` and the hash it is stored by.

    `previous` is the hash of the block before it, b"" for the genesis block.

    Raises: LedgerCorrupt.
    """
    try:
        block = common_pb2.Block.FromString(data)
    except DecodeError as error:
        raise corrupt(path, f"block {number} cannot be decoded ({error})") from error
    header, entries = block.header, block.data.data
    slots = block.metadata.metadata
    filter_ = slots[common_pb2.TRANSACTIONS_FILTER] if len(slots) == SLOTS else b""
    data_hash = sha256(b"".join(entries)).digest()
    der = header_der(header.number, header.previous_hash, header.data_hash)
    checks = (
        (header.number == number, f"has number {header.number}"),
        (header.previous_hash == previous, "does not follow its predecessor"),
        (header.data_hash == data_hash, "has data that does not fit its hash"),
        (
            sha256(der).digest() == stored_hash,
            "does not have the hash it is indexed by",
        ),
        (len(filter_) == len(entries), "has metadata that does not fit its data"),
    )
    for holds, problem in checks:
        if not holds:
            raise corrupt(path, f"block {number} {problem}")
    return block
