"""Fields made by hand are those of the protobuf library."""

from __future__ import annotations

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2
from hypothesis import given
from hypothesis import strategies as st

from chaindock.ledger.encoding import field, uvarint, version_field

_NUMBERS = st.integers(0, 300) | st.integers(0, (1 << 64) - 1)
_SIZES = st.integers(0, 3) | st.sampled_from([127, 128, 16_383, 16_384, 70_000])


@given(ns=st.text(max_size=3), key=st.text(max_size=3), size=_SIZES)
def test_a_query_result_is_that_of_the_library(ns: str, key: str, size: int) -> None:
    value = bytes(size)
    made = field(1, ns.encode()) + field(2, key.encode()) + field(3, value)
    assert made == KV(namespace=ns, key=key, value=value).SerializeToString()


@given(key=st.text(max_size=200), block=_NUMBERS, position=_NUMBERS)
def test_a_read_is_that_of_the_library(key: str, block: int, position: int) -> None:
    read = kv_rwset_pb2.KVRead(key=key)
    read.version.SetInParent()
    read.version.block_num, read.version.tx_num = block, position
    made = field(1, key.encode()) + version_field(block, position)
    assert made == read.SerializeToString()
    assert len(uvarint(block)) == max(1, -(-block.bit_length() // 7))
