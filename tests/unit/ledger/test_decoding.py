"""Envelopes that are broken somewhere get the code of that layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from fabric_protos.peer import proposal_pb2, proposal_response_pb2, transaction_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from chaindock.ledger.transaction import parse_transaction, pieces
from support.ledgers.envelopes import CHANNEL, namespaces, rwset, transaction, wrap
from support.ledgers.ledger import codes, commit, judged, state

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger

GARBAGE = b"\x0a\xff"


def channel_header(**fields: Any) -> bytes:
    values = {
        "type": common_pb2.ENDORSER_TRANSACTION,
        "channel_id": CHANNEL,
        "tx_id": "x",
        **fields,
    }
    data: bytes = common_pb2.ChannelHeader(**values).SerializeToString()
    return data


def with_data(data: bytes) -> bytes:
    return wrap(channel_header(), data)


def with_action(payload: bytes) -> bytes:
    action = transaction_pb2.TransactionAction(payload=payload)
    tx = transaction_pb2.Transaction(actions=[action])
    return with_data(tx.SerializeToString())


def with_response(response: bytes) -> bytes:
    action = transaction_pb2.ChaincodeEndorsedAction(proposal_response_payload=response)
    payload = transaction_pb2.ChaincodeActionPayload(action=action)
    return with_action(payload.SerializeToString())


def with_extension(extension: bytes) -> bytes:
    response = proposal_response_pb2.ProposalResponsePayload(extension=extension)
    return with_response(response.SerializeToString())


def with_results(results: bytes) -> bytes:
    return with_extension(
        proposal_pb2.ChaincodeAction(results=results).SerializeToString()
    )


def two_actions() -> bytes:
    action = transaction_pb2.TransactionAction()
    return with_data(
        transaction_pb2.Transaction(actions=[action, action]).SerializeToString()
    )


def merkle_degree(degree: int) -> bytes:
    info = kv_rwset_pb2.RangeQueryInfo(start_key="a", itr_exhausted=True)
    info.reads_merkle_hashes.max_degree = degree
    return with_results(rwset(ranges=[info]))


def twice(results: bytes) -> bytes:
    sets = rwset_pb2.TxReadWriteSet.FromString(results)
    sets.ns_rwset.append(sets.ns_rwset[0])
    data: bytes = sets.SerializeToString()
    return data


NO_HEADER = common_pb2.Envelope(
    payload=common_pb2.Payload(data=b"x").SerializeToString()
).SerializeToString()
BROKEN = {
    "nothing": (b"", 1),
    "no envelope": (GARBAGE, 255),
    "no payload": (common_pb2.Envelope(signature=b"x").SerializeToString(), 2),
    "broken payload": (common_pb2.Envelope(payload=GARBAGE).SerializeToString(), 2),
    "no header": (NO_HEADER, 2),
    "no channel header": (wrap(b"", b""), 3),
    "broken channel header": (wrap(GARBAGE, b""), 20),
    "unknown type": (wrap(channel_header(type=77), b""), 3),
    "message": (wrap(channel_header(type=common_pb2.MESSAGE), b""), 3),
    "config update": (wrap(channel_header(type=common_pb2.CONFIG_UPDATE), b""), 7),
    "epoch": (wrap(channel_header(epoch=1), b""), 3),
    "other channel": (wrap(channel_header(channel_id="other"), b""), 14),
    "no id": (wrap(channel_header(tx_id=""), b""), 8),
    "broken transaction": (with_data(GARBAGE), 5),
    "no action": (with_data(b""), 5),
    "two actions": (two_actions(), 5),
    "empty action": (with_action(b""), 16),
    "broken action": (with_action(GARBAGE), 5),
    "broken response": (with_response(GARBAGE), 21),
    "broken chaincode action": (with_extension(GARBAGE), 21),
    "broken results": (with_results(GARBAGE), 22),
    "broken set": (with_results(namespaces({"cc": GARBAGE})), 22),
    "key not utf-8": (with_results(namespaces({"cc": b"\x1a\x03\x0a\x01\xff"})), 22),
    "unknown data model": (with_results(b"\x08\x05"), 22),
    "degree 0": (merkle_degree(0), 22),
    "degree 1": (merkle_degree(1), 22),
    "namespace twice": (with_results(twice(rwset(writes={"a": b"1"}))), 23),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_layer_has_its_code(case: str) -> None:
    envelope, code = BROKEN[case]
    assert parse_transaction(envelope, CHANNEL).code == code


async def test_broken_envelopes_are_recorded_and_harm_nobody(ledger: Ledger) -> None:
    good = transaction(rwset(writes={"k": b"1"}))
    envelopes = [envelope for envelope, _ in BROKEN.values()]
    block = await ledger.commit(judged([(e, 0) for e in [*envelopes, good.envelope]]))
    found = list(block.codes)
    # All that carry an id carry "x": only the first of them is not a duplicate, but
    # what is wrong with an envelope is found before.
    assert found == [code for _, code in BROKEN.values()] + [0]
    assert state(ledger) == {"k": b"1"}
    assert len(ledger.get_block(1)) > 0
    assert codes(await commit(ledger, rwset())) == [0]


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_make_it_raise(noise: bytes, at: int, flip: int) -> None:
    parse_transaction(noise, CHANNEL)
    data = bytearray(transaction(rwset({"a": (1, 1)}, {"b": b"1"})).envelope)
    data[at % len(data)] ^= flip
    parse_transaction(bytes(data), CHANNEL)


MANY = kv_rwset_pb2.KVRWSet(
    reads=[kv_rwset_pb2.KVRead(key=f"k{n}") for n in range(300)],
    writes=[kv_rwset_pb2.KVWrite(key="x" * n, value=b"v") for n in range(300)],
).SerializeToString()


@given(data=st.one_of(st.just(MANY), st.binary(max_size=200)), most=st.integers(1, 400))
def test_a_message_is_cut_between_its_fields_only(data: bytes, most: int) -> None:
    """Parsed piece by piece, it gives what the whole gives, and fails if the whole does."""
    cut = list(pieces(data, most))
    assert b"".join(cut) == data
    if data == MANY:
        assert max(map(len, cut)) < most + 310
    whole, parts = kv_rwset_pb2.KVRWSet(), kv_rwset_pb2.KVRWSet()
    try:
        whole.MergeFromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            merge(parts, cut)
        return
    merge(parts, cut)
    assert parts == whole


def merge(message: kv_rwset_pb2.KVRWSet, cut: list[bytes]) -> None:
    for piece in cut:
        message.MergeFrom(kv_rwset_pb2.KVRWSet.FromString(piece))
