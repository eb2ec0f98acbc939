"""The bytes of blocks."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import pytest
from fabric_protos.common import common_pb2

from chaindock.errors import InvalidInput, NotFound
from chaindock.ids import TxId
from chaindock.ledger.blocks import commit_hash, header_der
from chaindock.ledger.ledger import Ledger
from support.ledgers.envelopes import CHANNEL, BlockKey, config, rwset, transaction
from support.ledgers.ledger import VALID, commit, der_hash, judged, parsed, replay

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_genesis_block_holds_the_config(ledger: Ledger) -> None:
    assert ledger.height == 1
    block = parsed(ledger, 0)
    assert list(block.data.data) == [config()]
    assert block.header.previous_hash == b""
    slots = block.metadata.metadata
    assert len(slots) == 5
    assert slots[2] == b"\x00"
    assert (slots[3], slots[4]) == (b"", b"")


@pytest.mark.statement(39, of="client")
async def test_blocks_are_chained_by_their_hashes(ledger: Ledger) -> None:
    for number in range(1, 4):
        block = await commit(ledger, *[rwset(writes={"k": b"v"})] * number)
        assert block.number == number
    replay(ledger)
    last, before = parsed(ledger, 3), parsed(ledger, 2)
    assert der_hash(before.header) == last.header.previous_hash


async def test_what_does_not_exist_is_named(ledger: Ledger) -> None:
    with pytest.raises(NotFound, match="no block 1; its height is 1"):
        ledger.get_block(1)
    assert ledger.find_transaction(TxId("x")) is None
    assert ledger.find_transaction(TxId("")) is None


@pytest.mark.parametrize(
    ("number", "integer"),
    [
        (0, "020100"),
        (127, "02017f"),
        (128, "02020080"),
        (65535, "020300ffff"),
        (2**64 - 1, "020900ffffffffffffffff"),
    ],
)
def test_der_integers_are_minimal_and_positive(number: int, integer: str) -> None:
    der = header_der(number, b"", b"\xaa" * 32)
    body = bytes.fromhex(integer) + b"\x04\x00" + b"\x04\x20" + b"\xaa" * 32
    assert der == b"\x30" + bytes([len(body)]) + body


def test_der_lengths_above_127_have_the_long_form() -> None:
    der = header_der(1, b"p" * 100, b"d" * 100)
    assert der[:6] == bytes.fromhex("3081cf020101")


async def test_the_signature_covers_value_header_and_block_header(
    tmp_path: Path,
) -> None:
    key = BlockKey()
    async with Ledger(tmp_path / "db", CHANNEL, key, config) as ledger:
        await commit(ledger, rwset())
        block = parsed(ledger, 1)
    metadata = common_pb2.Metadata.FromString(block.metadata.metadata[0])
    (signature,) = metadata.signatures
    der = header_der(1, block.header.previous_hash, block.header.data_hash)
    key.verify(signature.signature, metadata.value + signature.signature_header + der)
    header = common_pb2.SignatureHeader.FromString(signature.signature_header)
    assert header.creator == key.creator
    assert len(header.nonce) == 24


async def test_a_config_transaction_becomes_the_last_config(ledger: Ledger) -> None:
    await commit(ledger, rwset())
    block = await ledger.commit(judged([(config(tx_id="c"), VALID)]))
    assert list(block.codes) == [VALID]
    await ledger.commit(judged([(config(tx_id="refused"), 6)]))
    found = []
    for number in range(4):
        slots = parsed(ledger, number).metadata.metadata
        value = common_pb2.Metadata.FromString(slots[0]).value
        last = common_pb2.Metadata.FromString(slots[1]).value
        config_ = common_pb2.OrdererBlockMetadata.FromString(value).last_config
        assert config_ == common_pb2.LastConfig.FromString(last)
        found.append(config_.index)
    assert found == [0, 0, 2, 2]


def test_commit_hash_of_a_hand_made_update() -> None:
    changes = {
        ("b", "", b"k2"): (None, 0),
        ("b", "", b"k1"): (b"v", 300),
        ("a", "coll", b"\xff"): (b"h", 0),
        ("a", "", b"k"): (b"v", 0),
        ("", "", b"config"): (b"ignored", 0),
    }
    first = b"\x01\x05"  # block 5
    updates = [
        b"\x0a\x01a\x1a\x01k\x2a\x01v\x32\x03" + first + b"\x00",
        b"\x12\x04coll\x1a\x01\xff\x2a\x01h\x32\x03" + first + b"\x00",
        b"\x0a\x01b\x1a\x02k1\x2a\x01v\x32\x05" + first + b"\x02\x01\x2c",
        b"\x1a\x02k2\x20\x01\x32\x03" + first + b"\x00",
    ]
    data = b"".join(b"\x0a" + bytes([len(entry)]) + entry for entry in updates)
    filter_ = bytes(200)
    expected = sha256(b"\xc8\x01" + filter_ + data + b"previous").digest()
    assert commit_hash(filter_, changes, 5, b"previous") == expected


async def test_commit_hashes_are_chained_over_the_effects(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"k": b"1"}), rwset({"k": (9, 9)}))
    await commit(ledger, rwset(writes={"k": None}))
    body = b"\x0a\x02cc\x1a\x01k\x2a\x011\x32\x03\x01\x01\x00"
    first = sha256(b"\x02" + b"\x00\x0b" + b"\x0a" + bytes([len(body)]) + body).digest()
    body = b"\x0a\x02cc\x1a\x01k\x20\x01\x32\x03\x01\x02\x00"
    second = sha256(
        b"\x01" + b"\x00" + b"\x0a" + bytes([len(body)]) + body + first
    ).digest()
    found = [
        common_pb2.Metadata.FromString(parsed(ledger, n).metadata.metadata[4]).value
        for n in (1, 2)
    ]
    assert found == [first, second]


async def test_a_block_without_transactions_is_refused(ledger: Ledger) -> None:
    with pytest.raises(InvalidInput, match="at least one transaction"):
        await ledger.commit([])


async def test_envelopes_are_kept_byte_for_byte(ledger: Ledger) -> None:
    # An unknown field and a field order that re-serialising would not reproduce.
    tx = transaction(rwset(writes={"k": b"1"}))
    odd = b"\x12\x03sig" + tx.envelope + b"\x7a\x01x"
    await ledger.commit(judged([(odd, VALID)]))
    assert list(parsed(ledger, 1).data.data) == [odd]
