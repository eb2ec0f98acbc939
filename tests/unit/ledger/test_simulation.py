"""What a simulation sees and what it records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaindock.errors import InvalidInput, LedgerClosed, LedgerError, ReadOnlyViolation
from chaindock.ids import TxId
from chaindock.ledger.rwset import Record, marshal
from support.ledgers.envelopes import namespaces, read, rwset
from support.ledgers.ledger import commit, only_rwset, pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.simulator import Simulator

T = TxId("t1")


@pytest.mark.statement(43)
@pytest.mark.statement(1, of="client")
async def test_a_transaction_does_not_see_its_own_writes(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"k": b"old"}))
    with ledger.new_simulator(T) as simulator:
        simulator.put_state("cc", "k", b"new")
        assert simulator.get_state("cc", "k") == b"old"
        assert pairs(simulator.open_range("cc", "", "")) == [("k", b"old")]


@pytest.mark.statement(4, of="client")
async def test_results_hold_reads_with_versions_and_last_writes(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"1"}), rwset(writes={"k": b"1"}))
    with ledger.new_simulator(T) as simulator:
        found = [simulator.get_state("cc", key) for key in ("k", "missing", "k")]
        assert found == [b"1", None, b"1"]
        simulator.put_state("cc", "z", b"first")
        simulator.put_state("cc", "z", b"last")
        simulator.put_state("cc", "emptied", b"")
        simulator.put_state("cc", "gone", b"")
        results = simulator.results()
    assert results == rwset(
        {"k": (1, 1), "missing": None}, {"z": b"last", "emptied": None, "gone": None}
    )


def marshalled(reads: dict[str, Any], writes: dict[str, Any]) -> bytes:
    records = {
        (ns, ""): Record(reads.get(ns, {}), writes.get(ns, {}))
        for ns in {**reads, **writes}
    }
    return marshal(records, [], {})


async def test_a_version_of_block_zero_is_present_and_not_nil() -> None:
    found = only_rwset(marshalled({"cc": {"k": (0, 0)}}, {}))
    assert found.reads[0].HasField("version")


async def test_namespaces_are_sorted_and_untouched_ones_absent(ledger: Ledger) -> None:
    with ledger.new_simulator(T) as simulator:
        simulator.put_state("zz", "k", b"1")
        simulator.get_state("_lifecycle", "namespaces/fields/cc/Sequence")
        simulator.open_range("never-taken-from", "", "")
        simulator.open_history("only-history", "k").take(1)
        found = simulator.results()
    lifecycle = only_rwset(found, "_lifecycle").SerializeToString()
    assert found == namespaces(
        {"_lifecycle": lifecycle, "zz": only_rwset(found, "zz").SerializeToString()}
    )
    with ledger.new_simulator(T) as simulator:
        assert simulator.results() == b""


@given(
    reads=st.dictionaries(
        st.sampled_from(["cc", "a", "é"]),
        st.dictionaries(st.text(max_size=3), st.none() | st.just((3, 4))),
    ),
    writes=st.dictionaries(
        st.sampled_from(["cc", "b"]),
        st.dictionaries(st.text(max_size=3), st.binary(max_size=3)),
    ),
    random=st.randoms(use_true_random=False),
)
def test_results_do_not_depend_on_the_order_of_execution(reads, writes, random) -> None:
    def shuffled(mapping: dict[str, Any]) -> dict[str, Any]:
        items = [
            (k, shuffled(v) if isinstance(v, dict) else v) for k, v in mapping.items()
        ]
        random.shuffle(items)
        return dict(items)

    expected = marshalled(reads, writes)
    assert marshalled(shuffled(reads), shuffled(writes)) == expected


def test_keys_are_sorted_by_their_utf8_bytes() -> None:
    keys = ["\U0010ffff", "￿", "é", "z", "\x00a"]
    found = only_rwset(marshalled({}, {"cc": dict.fromkeys(keys, b"1")}))
    listed = [write.key.encode() for write in found.writes]
    assert listed == sorted(key.encode() for key in keys)


async def test_after_done_nothing_works(ledger: Ledger) -> None:
    simulator = ledger.new_simulator(T)
    results = simulator.open_range("cc", "", "")
    simulator.done()
    for use in (
        lambda: simulator.get_state("cc", "k"),
        lambda: simulator.put_state("cc", "k", b"1"),
        lambda: simulator.open_range("cc", "", ""),
        lambda: simulator.open_history("cc", "k"),
        lambda: results.take(1),
        simulator.results,
    ):
        with pytest.raises(
            LedgerClosed, match=r"should not be used after calling Done"
        ):
            use()


async def test_after_done_nothing_is_kept(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"r": b"1"}))
    simulator = ledger.new_simulator(T)
    simulator.get_state("cc", "read")
    simulator.put_state("cc", "written", b"1")
    simulator.put_private("cc", "col", "private", b"1")
    simulator.open_range("cc", "", "").take(1)
    simulator.private_results()
    simulator.done()
    assert not any((simulator._records, simulator._ranges, simulator._private))


async def test_results_are_taken_once_and_no_write_is_lost(ledger: Ledger) -> None:
    with ledger.new_simulator(T) as simulator:
        simulator.results()
        with pytest.raises(LedgerError, match="only be called once"):
            simulator.results()
        with pytest.raises(LedgerError, match="would be lost"):
            simulator.put_state("cc", "k", b"1")


@pytest.mark.statement(62)
@pytest.mark.statement(14, of="client")
async def test_a_page_then_a_write_is_refused(ledger: Ledger) -> None:
    with ledger.new_simulator(T) as simulator:
        simulator.open_range("cc", "", "", page_size=2)
        with pytest.raises(ReadOnlyViolation) as put:
            simulator.put_state("cc", "k", b"1")
        with pytest.raises(ReadOnlyViolation) as delete:
            simulator.put_state("cc", "k", b"")
    for caught in (put, delete):
        assert str(caught.value) == (
            "txid [t1]: unsuppored transaction. Transaction has already performed "
            "a paginated query. Writes are not allowed"
        )


@pytest.mark.parametrize("page", [{"page_size": 2}, {"bookmark": "b"}])
@pytest.mark.statement(62)
@pytest.mark.statement(15, of="client")
async def test_a_write_then_a_page_is_refused(ledger: Ledger, page) -> None:
    with ledger.new_simulator(T) as simulator:
        simulator.put_state("cc", "k", b"1")
        with pytest.raises(ReadOnlyViolation) as caught:
            simulator.open_range("cc", "", "", **page)
    assert str(caught.value) == (
        "txid [t1]: unsuppored transaction. Paginated queries are supported only in a "
        "read-only transaction"
    )


@pytest.mark.statement(61)
@pytest.mark.statement(27, of="client")
async def test_private_queries_and_writes_exclude_each_other(ledger: Ledger) -> None:
    writes: list[Callable[[Simulator], None]] = [
        lambda s: s.put_state("cc", "k", b"1"),
        lambda s: s.put_metadata("cc", "k", {"n": b"1"}),
        lambda s: s.put_metadata("cc", "k", {}, "col"),
        lambda s: s.put_private("cc", "col", "k", b"1"),
        lambda s: s.purge_private("cc", "col", "k"),
    ]
    for write in writes:
        with ledger.new_simulator(T) as simulator:
            write(simulator)
            with pytest.raises(ReadOnlyViolation, match=r"pvt data is supported only"):
                simulator.open_private_range("cc", "col", "", "")
            with pytest.raises(ReadOnlyViolation, match=r"queries are supported only"):
                simulator.open_range("cc", "", "", page_size=1)
        with ledger.new_simulator(T) as simulator:
            simulator.open_private_range("cc", "col", "", "")
            with pytest.raises(ReadOnlyViolation, match=r"performed queries on pvt"):
                write(simulator)
            assert simulator.results() == simulator.private_results() == b""


async def test_plain_ranges_mix_with_writes(ledger: Ledger) -> None:
    with ledger.new_simulator(T) as simulator:
        simulator.put_state("cc", "k", b"1")
        simulator.open_range("cc", "", "", page_size=0).take(1)
        simulator.put_state("cc", "l", b"1")


async def test_a_key_that_is_no_unicode_is_named_in_hex(ledger: Ledger) -> None:
    with (
        ledger.new_simulator(T) as simulator,
        pytest.raises(InvalidInput, match=r"invalid key \[eda080\]"),
    ):
        simulator.put_state("cc", "\ud800", b"1")


@pytest.mark.statement(16, of="client")
async def test_pages_continue_without_overlap(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={f"k{i}": b"1" for i in range(5)}))
    pages, bookmark = [], ""
    while True:
        with ledger.new_simulator(T) as simulator:
            results = simulator.open_range(
                "cc", "k", "l", page_size=2, bookmark=bookmark
            )
            page = results.take(3)  # more than a page is not given
            bookmark = results.bookmark
            info = only_rwset(simulator.results()).range_queries_info[0]
        pages.append(
            (len(page), bookmark, info.start_key, info.end_key, info.itr_exhausted)
        )
        if not bookmark:
            break
    assert pages == [
        (2, "k2", "k", "k1", False),
        (2, "k4", "k2", "k3", False),
        (1, "", "k4", "l", True),
    ]


async def test_a_full_last_page_has_no_bookmark_and_is_not_exhausted(
    ledger: Ledger,
) -> None:
    await commit(ledger, rwset(writes={"a": b"1", "b": b"1"}))
    with ledger.new_simulator(T) as simulator:
        results = simulator.open_range("cc", "", "", page_size=2)
        assert len(results.take(2)) == 2
        assert results.bookmark == ""
        assert results.take(2) == []
        info = only_rwset(simulator.results()).range_queries_info[0]
    assert (info.end_key, info.itr_exhausted) == ("b", False)


async def test_a_bookmark_without_page_size_gives_the_rest(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={f"k{i}": b"1" for i in range(5)}))
    with ledger.new_simulator(T) as simulator:
        results = simulator.open_range("cc", "k0", "", bookmark="k3")
        assert [key for key, _ in pairs(results)] == ["k3", "k4"]
        assert results.bookmark == ""


async def test_plain_ranges_have_no_bookmark(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"1", "b": b"1"}))
    with ledger.new_simulator(T) as simulator:
        results = simulator.open_range("cc", "", "")
        results.take(1)
        assert results.bookmark == ""


@pytest.mark.parametrize("page_size", [0, 4])
async def test_large_rows_are_taken_in_steps_of_bounded_size(
    ledger: Ledger, page_size: int
) -> None:
    """However many rows are asked for; what follows is neither lost nor read twice."""
    await commit(ledger, rwset(writes={f"k{i}": b"x" * 1000 for i in range(5)}))
    with ledger.new_simulator(T) as simulator:
        results = simulator.open_range("cc", "", "", page_size=page_size)
        sizes = []
        while not results.exhausted:
            taken = results.take(500, max_bytes=1500)
            sizes.append(len(taken))
            assert sum(map(len, taken)) < 1500 + 1100
        assert results.take(1) == []
        info = only_rwset(simulator.results()).range_queries_info[0]
    wanted = page_size or 5
    assert sizes == ([2, 2] if page_size else [2, 2, 1])
    assert (info.end_key, info.itr_exhausted) == (
        ("k3", False) if page_size else ("", True)
    )
    assert len(info.raw_reads.kv_reads) == wanted


async def test_a_row_larger_than_the_bound_comes_alone(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"x" * 5000, "b": b"y"}))
    with ledger.new_simulator(T) as simulator:
        results = simulator.open_range("cc", "", "")
        assert [len(results.take(9, max_bytes=100)) for _ in range(3)] == [1, 1, 0]
        assert results.exhausted


async def test_taking_exactly_all_is_not_exhausted_until_one_more_is_asked(
    ledger: Ledger,
) -> None:
    await commit(ledger, rwset(writes={"a": b"1", "b": b"1"}))
    with ledger.new_simulator(T) as simulator:
        simulator.open_range("cc", "", "y").take(2)
        ahead = simulator.open_range("cc", "", "z")
        ahead.take(2)
        assert ahead.take(1) == []
        found = only_rwset(simulator.results()).range_queries_info
    assert [(i.end_key, i.itr_exhausted) for i in found] == [("b", False), ("z", True)]
    assert list(found[0].raw_reads.kv_reads) == [read("a", (1, 0)), read("b", (1, 0))]


async def test_repeated_ranges_are_recorded_once_in_execution_order(
    ledger: Ledger,
) -> None:
    await commit(ledger, rwset(writes={"a": b"1"}))
    with ledger.new_simulator(T) as simulator:
        for start, end in (("b", "c"), ("", "z"), ("b", "c")):
            simulator.open_range("cc", start, end).take(10)
        info = only_rwset(simulator.results()).range_queries_info
    assert [(i.start_key, i.end_key) for i in info] == [("b", "c"), ("", "z")]
    assert info[0].WhichOneof("reads_info") is None


@pytest.mark.statement(72)
async def test_ranges_follow_utf8_order_with_open_and_inverted_bounds(
    ledger: Ledger,
) -> None:
    keys = ["\x00type\x00a\x00", "a", "é", "￿", "\U0001f600"]
    await commit(ledger, rwset(writes=dict.fromkeys(keys, b"1")))

    def query(start: str, end: str) -> list[str]:
        with ledger.new_simulator(T) as simulator:
            return [key for key, _ in pairs(simulator.open_range("cc", start, end), 2)]

    assert query("", "") == keys
    assert query("\x01", "") == keys[1:]
    assert query("a", "é") == ["a"]
    assert query("é", "a") == []
    assert query("\x00type\x00", "\x00type\x00\U0010ffff") == keys[:1]


async def test_closed_results_give_nothing_but_stay_recorded(ledger: Ledger) -> None:
    await commit(ledger, rwset(writes={"a": b"1", "b": b"1"}))
    with ledger.new_simulator(T) as simulator:
        results = simulator.open_range("cc", "", "")
        results.take(1)
        results.close()
        results.close()
        with pytest.raises(LedgerClosed):
            results.take(1)
        info = only_rwset(simulator.results()).range_queries_info
    assert info[0].end_key == "a"
