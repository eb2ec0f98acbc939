"""Long ranges are recorded as a Merkle summary; every value here is computed anew."""

from __future__ import annotations

from hashlib import sha256

import pytest
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.ledger.rwset import ReadsSummary


def field(tag: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([tag, len(content)]) + content


def leaf(first: int, last: int) -> bytes:
    """Hash of QueryReads for results first..last, encoded by hand."""
    data = b""
    for number in range(first, last):
        version = b"\x08\x07" + (b"\x10" + varint(number) if number else b"")
        body = field(0x0A, f"k{number:05}".encode()) + field(0x12, version)
        data += field(0x0A, body)
    return sha256(data).digest()


def varint(number: int) -> bytes:
    return (
        bytes([number])
        if number < 128
        else bytes([number & 127 | 128]) + varint(number >> 7)
    )


def joined(nodes: list[bytes]) -> bytes:
    return sha256(b"".join(nodes)).digest()


def summary(results: int, degree: int = 50) -> kv_rwset_pb2.RangeQueryInfo:
    reads = ReadsSummary(degree)
    for number in range(results):
        reads.add([(f"k{number:05}".encode(), b"", 7, number)])
    info = kv_rwset_pb2.RangeQueryInfo()
    reads.write_to(info)
    return info


@pytest.mark.parametrize("results", [1, 49, 50])
def test_up_to_fifty_results_are_listed(results: int) -> None:
    info = summary(results)
    assert len(info.raw_reads.kv_reads) == results
    assert not info.HasField("reads_merkle_hashes")


def test_no_results_leave_the_reads_unset() -> None:
    assert summary(0).WhichOneof("reads_info") is None


@pytest.mark.parametrize(
    ("results", "leaves"),
    [
        (51, [(0, 51)]),
        (52, [(0, 51), (51, 52)]),
        (102, [(0, 51), (51, 102)]),
        (130, [(0, 51), (51, 102), (102, 130)]),
    ],
)
def test_a_leaf_holds_fifty_one_results(results: int, leaves) -> None:
    hashes = summary(results).reads_merkle_hashes
    assert (hashes.max_degree, hashes.max_level) == (50, 1)
    assert list(hashes.max_level_hashes) == [leaf(*bounds) for bounds in leaves]


def test_fifty_one_leaves_collapse_and_the_rest_is_promoted() -> None:
    full = [leaf(51 * i, 51 * (i + 1)) for i in range(51)]
    hashes = summary(51 * 51).reads_merkle_hashes
    assert (hashes.max_level, list(hashes.max_level_hashes)) == (2, [joined(full)])
    # One leaf more goes up as it is, two are combined first.
    hashes = summary(51 * 51 + 5).reads_merkle_hashes
    tail = [leaf(2601, 2606)]
    assert list(hashes.max_level_hashes) == [joined(full), tail[0]]
    hashes = summary(51 * 51 + 53).reads_merkle_hashes
    tail = [leaf(2601, 2652), leaf(2652, 2654)]
    assert list(hashes.max_level_hashes) == [joined(full), joined(tail)]


def test_a_top_level_that_overflows_by_promotion_is_combined_once_more() -> None:
    # Degree 2: leaves of 3; three leaves collapse into one node of level 2. Eight
    # leaves make two nodes there; the two left over make the third, one too many.
    leaves = [leaf(3 * i, 3 * i + 3) for i in range(8)]
    level2 = [joined(leaves[:3]), joined(leaves[3:6]), joined(leaves[6:])]
    hashes = summary(24, degree=2).reads_merkle_hashes
    assert hashes.max_level == 3
    assert list(hashes.max_level_hashes) == [joined(level2)]
