"""Which transactions of a block are valid, and what they change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.ids import TxId
from chaindock.ledger.ledger import TxLocation
from support.ledgers.envelopes import read, rwset, transaction
from support.ledgers.ledger import (
    DUPLICATE_TXID,
    ENDORSEMENT_POLICY_FAILURE,
    MVCC,
    NOT_VALIDATED,
    PHANTOM,
    VALID,
    codes,
    commit,
    history,
    judged,
    state,
    value,
)

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger


@pytest.mark.parametrize("in_one_block", [True, False])
async def test_worked_example_of_the_specification(
    ledger: Ledger, in_one_block: bool
) -> None:
    await commit(ledger, rwset(writes={f"k{i}": b"1" for i in range(1, 6)}))
    old = (1, 0)
    txs = [
        rwset(writes={"k1": b"t1", "k2": b"t1"}),
        rwset({"k1": old}, {"k3": b"t2"}),
        rwset(writes={"k2": b"t3"}),
        rwset({"k2": old}, {"k2": b"t4"}),
        rwset({"k5": old}, {"k6": b"t5"}),
    ]
    if in_one_block:
        found = codes(await commit(ledger, *txs))
    else:
        found = [codes(await commit(ledger, tx))[0] for tx in txs]
    assert found == [VALID, MVCC, VALID, MVCC, VALID]
    assert state(ledger) == {
        "k1": b"t1",
        "k2": b"t3",
        "k3": b"1",
        "k4": b"1",
        "k5": b"1",
        "k6": b"t5",
    }


@pytest.mark.statement(6, of="client")
async def test_of_two_increments_one_wins(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"n": b"0"}))
    both = []
    for number in (b"1", b"2"):
        with ledger.new_simulator(TxId("t")) as simulator:
            simulator.get_state("cc", "n")
            simulator.put_state("cc", "n", number)
            both.append(simulator.results())
    assert codes(await commit(ledger, *both)) == [VALID, MVCC]
    assert value(ledger, "n") == b"1"


@pytest.mark.statement(2, of="client")
async def test_a_read_of_an_absent_key_conflicts_once_it_exists(ledger: Ledger) -> None:
    absent = rwset({"k": None}, {"x": b"1"})
    assert codes(await commit(ledger, absent)) == [VALID]
    await commit(ledger, rwset(writes={"k": b"1"}))
    assert codes(await commit(ledger, absent)) == [MVCC]


async def test_a_deleted_and_recreated_key_conflicts(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"k": b"1"}))
    await commit(ledger, rwset(writes={"k": None}))
    await commit(ledger, rwset(writes={"k": b"1"}))
    assert codes(await commit(ledger, rwset({"k": (1, 0)}))) == [MVCC]
    assert codes(await commit(ledger, rwset({"k": (3, 0)}))) == [VALID]


@pytest.mark.statement(7, of="client")
async def test_a_key_written_or_deleted_earlier_in_the_block_conflicts(
    ledger: Ledger,
) -> None:
    await commit(ledger, rwset(writes={"a": b"1", "b": b"1"}))
    block = await commit(
        ledger,
        rwset(writes={"a": b"2", "b": None, "never": None}),
        rwset({"a": (2, 0)}),  # not even the version it is about to get
        rwset({"b": None}),
        rwset({"never": None}),
    )
    assert codes(block) == [VALID, MVCC, MVCC, MVCC]


async def test_an_invalid_transaction_changes_nothing_for_later_ones(
    ledger: Ledger,
) -> None:
    block = await commit(
        ledger, rwset({"other": (9, 9)}, {"a": b"1"}), rwset({"a": None}, {"b": b"1"})
    )
    assert codes(block) == [MVCC, VALID]
    assert state(ledger) == {"b": b"1"}
    assert history(ledger, "a") == []


async def test_versions_count_invalid_transactions(ledger: Ledger) -> None:
    block = await commit(ledger, rwset({"x": (9, 9)}), rwset(writes={"a": b"1"}))
    assert codes(block) == [MVCC, VALID]
    assert codes(await commit(ledger, rwset({"a": (1, 1)}))) == [VALID]


@pytest.mark.statement(5, of="client")
async def test_blind_writes_never_conflict(ledger: Ledger) -> None:
    block = await commit(
        ledger, rwset(writes={"a": b"1"}), rwset(writes={"a": b"2"}), rwset()
    )
    assert codes(block) == [VALID, VALID, VALID]
    assert value(ledger, "a") == b"2"


@pytest.mark.statement(3, of="client")
async def test_an_empty_value_deletes_even_if_not_marked(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"1"}))
    kv = kv_rwset_pb2.KVRWSet(writes=[kv_rwset_pb2.KVWrite(key="a")])
    sets = rwset_pb2.TxReadWriteSet()
    sets.ns_rwset.add(namespace="cc", rwset=kv.SerializeToString())
    await commit(ledger, sets.SerializeToString())
    assert value(ledger, "a") is None
    assert [entry.is_delete for entry in history(ledger, "a")] == [True, False]


# --- ranges


async def simulated_range(
    ledger: Ledger, start: str, end: str, take: int = 1000, write: str = "out"
) -> bytes:
    with ledger.new_simulator(TxId("t")) as simulator:
        simulator.open_range("cc", start, end).take(take)
        simulator.put_state("cc", write, b"1")
        return simulator.results()


CHANGES: dict[str, tuple[dict[str, bytes | None], int]] = {
    "insert inside": ({"b": b"new"}, PHANTOM),
    "insert at start": ({"a": b"new"}, PHANTOM),
    "delete": ({"c": None}, PHANTOM),
    "change": ({"c": b"again"}, PHANTOM),
    "same value again": ({"c": b"1"}, PHANTOM),
    "insert at the exclusive end": ({"g": b"new"}, VALID),
    "insert beyond": ({"h": b"new"}, VALID),
    "insert before": ({"_": b"new"}, VALID),
    "other keys": ({"z": b"new"}, VALID),
}


@pytest.mark.parametrize("in_one_block", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.statement(8, of="client")
async def test_a_range_taken_whole(
    ledger: Ledger, change: str, in_one_block: bool
) -> None:
    await commit(ledger, rwset(writes=dict.fromkeys("ace", b"1")))
    writes, expected = CHANGES[change]
    reader = await simulated_range(ledger, "a", "g")
    if in_one_block:
        found = codes(await commit(ledger, rwset(writes=writes), reader))
    else:
        await commit(ledger, rwset(writes=writes))
        found = [VALID, *codes(await commit(ledger, reader))]
    assert found == [VALID, expected]


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ({"b": b"new"}, PHANTOM),
        ({"c": b"again"}, PHANTOM),  # the last key taken belongs to the range
        ({"c": None}, PHANTOM),
        ({"c\x00": b"new"}, VALID),
        ({"d": b"new"}, VALID),
        ({"e": None}, VALID),
    ],
)
async def test_a_range_stopped_early_ends_with_the_last_key_taken(
    ledger: Ledger, writes, expected: int
) -> None:
    await commit(ledger, rwset(writes=dict.fromkeys("ace", b"1")))
    reader = await simulated_range(ledger, "", "", take=2)
    await commit(ledger, rwset(writes=writes))
    assert codes(await commit(ledger, reader)) == [expected]


async def test_an_unbounded_range_sees_every_new_key(ledger: Ledger) -> None:
    reader = await simulated_range(ledger, "", "")
    await commit(ledger, rwset(writes={"\U0010ffff": b"1"}))
    assert codes(await commit(ledger, reader)) == [PHANTOM]


async def test_a_range_ignores_other_namespaces(ledger: Ledger) -> None:
    reader = await simulated_range(ledger, "", "")
    await commit(ledger, rwset(writes={"a": b"1"}, ns="cc2"))
    assert codes(await commit(ledger, reader)) == [VALID]


@pytest.mark.parametrize("count", [51, 240])
@pytest.mark.parametrize("take", [1000, 51])
async def test_long_ranges_are_checked_by_their_hashes(
    ledger: Ledger, count: int, take: int
) -> None:
    await commit(ledger, rwset(writes={f"k{i:04}": b"1" for i in range(count)}))
    reader = await simulated_range(ledger, "k", "l", take=take, write="z1")
    again = await simulated_range(ledger, "k", "l", take=take, write="z2")
    assert codes(await commit(ledger, reader)) == [VALID]
    await commit(ledger, rwset(writes={"k0007x": b"1"}))
    assert codes(await commit(ledger, again)) == [PHANTOM]


async def test_recorded_reads_beyond_the_range_are_a_phantom(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"1"}))
    info = kv_rwset_pb2.RangeQueryInfo(start_key="a", end_key="b", itr_exhausted=True)
    info.raw_reads.kv_reads.extend([read("a", (1, 0)), read("aa", (1, 0))])
    assert codes(await commit(ledger, rwset(ranges=[info]))) == [PHANTOM]


async def test_point_reads_are_checked_before_ranges(ledger: Ledger) -> None:
    info = kv_rwset_pb2.RangeQueryInfo(start_key="a", end_key="b", itr_exhausted=True)
    info.raw_reads.kv_reads.append(read("a", (1, 0)))
    both = rwset({"x": (8, 8)}, ranges=[info])
    assert codes(await commit(ledger, both, rwset(ranges=[info]))) == [MVCC, PHANTOM]


# --- transaction ids and codes decided before


async def test_an_id_is_used_up_by_its_first_occurrence(ledger: Ledger) -> None:
    first = transaction(rwset(writes={"a": b"1"}), tx_id="x")
    block = await ledger.commit(
        judged([(first.envelope, VALID), (first.envelope, VALID)])
    )
    assert codes(block) == [VALID, DUPLICATE_TXID]
    again = transaction(rwset(writes={"a": b"2"}), tx_id="x")
    assert codes(await ledger.commit(judged([(again.envelope, VALID)]))) == [
        DUPLICATE_TXID
    ]
    assert value(ledger, "a") == b"1"
    assert ledger.find_transaction(TxId("x")) == TxLocation(1, 0, VALID)


async def test_an_invalid_transaction_uses_its_id_too(ledger: Ledger) -> None:
    bad = transaction(rwset({"a": (5, 5)}), tx_id="x")
    good = transaction(rwset(writes={"a": b"1"}), tx_id="x")
    assert codes(await ledger.commit(judged([(bad.envelope, VALID)]))) == [MVCC]
    assert codes(await ledger.commit(judged([(good.envelope, VALID)]))) == [
        DUPLICATE_TXID
    ]
    assert ledger.find_transaction(TxId("x")) == TxLocation(1, 0, MVCC)


async def test_an_invalid_transaction_uses_up_no_id_within_its_block(
    ledger: Ledger,
) -> None:
    """Of two with one id, the one that passed the checks counts, as in Fabric.

    Anybody could otherwise spoil a transaction with an envelope that nobody signed. A
    conflict with the state is found later: it does use up the id.
    """
    bad = transaction(rwset(writes={"a": b"0"}), tx_id="x")
    good = transaction(rwset(writes={"a": b"1"}), tx_id="x")
    block = await ledger.commit(
        judged([(bad.envelope, ENDORSEMENT_POLICY_FAILURE), (good.envelope, VALID)])
    )
    assert codes(block) == [ENDORSEMENT_POLICY_FAILURE, VALID]
    assert value(ledger, "a") == b"1"
    assert ledger.find_transaction(TxId("x")) == TxLocation(
        1, 0, ENDORSEMENT_POLICY_FAILURE
    )
    late = transaction(rwset({"a": (9, 9)}), tx_id="y")
    after = transaction(rwset(writes={"a": b"2"}), tx_id="y")
    block = await ledger.commit(
        judged([(late.envelope, VALID), (after.envelope, VALID)])
    )
    assert codes(block) == [MVCC, DUPLICATE_TXID]


async def test_a_code_decided_before_is_recorded_without_effect(ledger: Ledger) -> None:
    failed = transaction(rwset(writes={"a": b"1"}))
    open_ = transaction(rwset({"a": None}, writes={"b": b"1"}))
    block = await ledger.commit(
        judged(
            [
                (failed.envelope, ENDORSEMENT_POLICY_FAILURE),
                (open_.envelope, NOT_VALIDATED),
                (b"", 255),
            ]
        )
    )
    assert codes(block) == [ENDORSEMENT_POLICY_FAILURE, VALID, 255]
    assert state(ledger) == {"b": b"1"}
    assert ledger.find_transaction(failed.tx_id) == TxLocation(
        1, 0, ENDORSEMENT_POLICY_FAILURE
    )


# --- key metadata and hashes of private data


async def test_metadata_alone_keeps_the_value_and_bumps_the_version(
    ledger: Ledger,
) -> None:
    label = {"VALIDATION_PARAMETER": b"policy"}
    await commit(ledger, rwset(writes={"a": b"1"}))
    block = await commit(
        ledger,
        rwset(metadata={"a": label, "absent": label}),
        rwset({"a": (1, 0)}),
        rwset({"absent": None}, writes={"c": b"1"}),
    )
    assert codes(block) == [VALID, MVCC, VALID]
    assert state(ledger) == {"a": b"1", "c": b"1"}
    assert codes(await commit(ledger, rwset({"a": (2, 0)}))) == [VALID]
    assert len(history(ledger, "a")) == 1


async def test_metadata_stays_with_a_new_value_and_goes_with_a_delete(
    ledger: Ledger,
) -> None:
    def metadata() -> dict[str, bytes]:
        with ledger.new_simulator(TxId("t")) as simulator:
            return simulator.get_metadata("cc", "a")

    label = {"VALIDATION_PARAMETER": b"policy"}
    await commit(ledger, rwset(writes={"a": b"1"}, metadata={"a": label}))
    assert metadata() == label
    await commit(ledger, rwset(writes={"a": b"2"}))
    assert metadata() == label
    await commit(ledger, rwset(writes={"a": None}), rwset(writes={"a": b"3"}))
    assert metadata() == {}
    await commit(ledger, rwset(metadata={"a": label}))
    await commit(ledger, rwset(metadata={"a": {}}))
    assert metadata() == {}
    assert value(ledger, "a") == b"3"


async def test_hashed_reads_of_a_collection_conflict_like_keys(ledger: Ledger) -> None:
    def private(version, write: bytes | None) -> bytes:
        hashed = kv_rwset_pb2.HashedRWSet()
        hashed_read = hashed.hashed_reads.add(key_hash=b"\xff" * 32)
        if version:
            hashed_read.version.block_num, hashed_read.version.tx_num = version
        if write:
            hashed.hashed_writes.add(key_hash=b"\xff" * 32, value_hash=write)
        sets = rwset_pb2.TxReadWriteSet()
        sets.ns_rwset.add(namespace="cc").collection_hashed_rwset.add(
            collection_name="secret", hashed_rwset=hashed.SerializeToString()
        )
        data: bytes = sets.SerializeToString()
        return data

    block = await commit(ledger, private(None, b"h" * 32), private(None, b"i" * 32))
    assert codes(block) == [VALID, MVCC]
    assert codes(await commit(ledger, private((1, 0), None))) == [VALID]
    assert state(ledger) == {}
    assert history(ledger, "secret") == []
