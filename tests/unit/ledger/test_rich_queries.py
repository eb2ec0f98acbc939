"""Rich queries of a simulation over a real ledger: what is read, recorded, counted."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.ledger.rwset import rwset_pb2
from fabric_protos.ledger.rwset.kvrwset import kv_rwset_pb2

from chaindock.errors import (
    BudgetExceeded,
    InvalidInput,
    LedgerClosed,
    ReadOnlyViolation,
)
from chaindock.ids import TxId
from chaindock.ledger.budget import Budget
from chaindock.ledger.rebuild import rebuild_file
from chaindock.ledger.snapshots import MOST_WALKED
from support.eventually import eventually
from support.ledgers.envelopes import CHANNEL, rwset
from support.ledgers.ledger import MVCC, VALID, codes, commit, ledger_at

if TYPE_CHECKING:
    from chaindock.ledger.ledger import Ledger
    from chaindock.ledger.mango.results import QueryResults

INDEX = "META-INF/statedb/couchdb/indexes/size.json"
BY_SIZE = {INDEX: b'{"index":{"fields":["size"]},"ddoc":"d","name":"size"}'}
RED = json.dumps({"selector": {"colour": "red"}})


def marbles(count: int) -> dict[str, bytes]:
    return {
        f"m{n:05}": json.dumps(
            {"colour": ["red", "blue"][n % 2], "size": n % 10}
        ).encode()
        for n in range(count)
    }


def taken(results: QueryResults, n: int = 1000) -> dict[str, bytes]:
    rows: dict[str, bytes] = {}
    while not results.exhausted and len(rows) < n:
        while not results.advance():
            pass
        for row in results.take(n - len(rows)):
            kv = KV.FromString(row)
            rows[kv.key] = kv.value
    return rows


def size(value: object, **more: object) -> str:
    return json.dumps({"selector": {"size": value}, **more})


def reads(ledger_results: bytes) -> dict[str, tuple[int, int]]:
    sets = rwset_pb2.TxReadWriteSet.FromString(ledger_results)
    return {
        read.key: (read.version.block_num, read.version.tx_num)
        for space in sets.ns_rwset
        for read in kv_rwset_pb2.KVRWSet.FromString(space.rwset).reads
    }


async def indexed(ledger: Ledger, files: dict[str, bytes]) -> None:
    await ledger.put_indexes("cc", files)

    def ready() -> bool:
        with ledger.new_simulator(TxId("i")) as simulator:
            reader = simulator.snapshot().reader
            sql = "SELECT count(*) FROM indexed WHERE filled IS NOT NULL"
            return bool(reader.one(sql, ())[0] == 0)

    await eventually(ready)


async def test_results_are_recorded_as_reads_with_their_versions(ledger):
    await commit(ledger, rwset(writes=marbles(4)))
    await commit(ledger, rwset(writes={"raw": b"\x00", "m00001": b"{}"}))
    with ledger.new_simulator(TxId("t")) as simulator:
        found = taken(simulator.open_query("cc", RED))
        assert found == {
            "m00000": b'{"colour":"red","size":0}',
            "m00002": b'{"colour":"red","size":2}',
        }
        everything = simulator.open_query("cc", '{"selector":{}}')
        assert taken(everything, 5)["raw"] == b"\x00"
        assert reads(simulator.results()) == {
            "m00000": (1, 0),
            "m00002": (1, 0),
            "m00003": (1, 0),
            "m00001": (2, 0),
            "raw": (2, 0),
        }


@pytest.mark.parametrize(
    ("change", "code"), [({"m00002": b"{}"}, MVCC), (marbles(7), VALID)]
)
@pytest.mark.statement(10, of="client")
async def test_a_changed_result_conflicts_and_a_new_one_does_not(ledger, change, code):
    await commit(ledger, rwset(writes=marbles(4)))
    with ledger.new_simulator(TxId("t")) as simulator:
        taken(simulator.open_query("cc", RED))
        simulator.put_state("cc", "count", b"2")
        sets = simulator.results()
    new = {key: value for key, value in change.items() if key not in marbles(4)}
    await commit(ledger, rwset(writes=new or change))
    assert codes(await commit(ledger, sets)) == [code]


async def test_only_what_was_taken_is_recorded(ledger):
    await commit(ledger, rwset(writes=marbles(50)))
    with ledger.new_simulator(TxId("t")) as simulator:
        results = simulator.open_query("cc", RED)
        while not results.advance():
            pass
        assert len(results.take(2)) == 2
        results.close()
        with pytest.raises(LedgerClosed):
            results.take(1)
        assert list(reads(simulator.results())) == ["m00000", "m00002"]


@pytest.mark.parametrize("files", [{}, BY_SIZE])
async def test_a_simulation_sees_one_state(ledger, files):
    await commit(ledger, rwset(writes=marbles(40)))
    await indexed(ledger, files)
    with ledger.new_simulator(TxId("t")) as simulator:
        before = taken(simulator.open_query("cc", size(3)))
        assert list(before) == ["m00003", "m00013", "m00023", "m00033"]
        value = b'{"size":3}'
        await commit(
            ledger, rwset(writes={"m00003": b"", "m00013": value, "new": value})
        )
        assert taken(simulator.open_query("cc", size(3))) == before
    with ledger.new_simulator(TxId("u")) as simulator:
        after = taken(simulator.open_query("cc", size(3)))
        assert list(after) == ["m00013", "m00023", "m00033", "new"]
        assert after["m00013"] == value


async def test_an_index_serves_a_sort_and_survives_a_restart(tmp_path):
    query = size({"$gte": 8}, sort=[{"size": "desc"}])
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await commit(ledger, rwset(writes=marbles(3000)))
        with (
            ledger.new_simulator(TxId("t")) as simulator,
            pytest.raises(InvalidInput, match="Error:no_usable_index,"),
        ):
            simulator.open_query("cc", query)
        await indexed(ledger, BY_SIZE)
        with ledger.new_simulator(TxId("t")) as simulator:
            found = list(taken(simulator.open_query("cc", query)))
            assert len(found) == 600
            assert found[0] == "m02999"
            assert found[-1] == "m00008"
    async with ledger_at(tmp_path / "ledger.db") as ledger:
        await commit(ledger, rwset(writes={"z": b'{"size":9}'}))
        with ledger.new_simulator(TxId("t")) as simulator:
            assert next(iter(taken(simulator.open_query("cc", query)))) == "z"


async def test_a_new_index_orders_before_its_documents_are_there(ledger):
    await commit(ledger, rwset(writes=marbles(2500)))
    query = size({"$gte": 0}, sort=["size"])
    await ledger.put_indexes("cc", BY_SIZE)
    with ledger.new_simulator(TxId("t")) as simulator:
        early = list(taken(simulator.open_query("cc", query), 3000))
    await indexed(ledger, BY_SIZE)
    with ledger.new_simulator(TxId("t")) as simulator:
        assert list(taken(simulator.open_query("cc", query), 3000)) == early


@pytest.mark.statement(76, of="client")
async def test_pages(ledger):
    await commit(ledger, rwset(writes=marbles(10)))
    with ledger.new_simulator(TxId("t")) as simulator:
        found: list[str] = []
        bookmark = ""
        for expected in (2, 2, 1, 0):
            page = simulator.open_query("cc", RED, page_size=2, bookmark=bookmark)
            rows = taken(page)
            assert len(rows) == expected
            found += rows
            bookmark = page.bookmark
        assert found == [f"m{n:05}" for n in range(0, 10, 2)]
        nothing = simulator.open_query("cc", size(77), page_size=5)
        assert taken(nothing) == {}
        assert nothing.bookmark == "nil"
        with pytest.raises(ReadOnlyViolation, match="Writes are not allowed"):
            simulator.put_state("cc", "k", b"v")


async def test_a_limit_counts_only_where_fabric_is_not_followed(ledger):
    await commit(ledger, rwset(writes=marbles(2500)))
    limited = '{"selector":{"_id":{"$gt":null}},"limit":2,"skip":1}'
    skipped = '{"selector":{"_id":{"$gt":null}},"skip":10}'
    with ledger.new_simulator(TxId("t")) as simulator:
        # The peer replaces the limit, and has CouchDB skip keys in each of its pages.
        assert len(taken(simulator.open_query("cc", limited), 5000)) == 2497
        simulator.strict = False
        assert list(taken(simulator.open_query("cc", limited))) == ["m00001", "m00002"]
        assert len(taken(simulator.open_query("cc", skipped), 5000)) == 2490


async def test_no_page_after_a_write(ledger):
    with ledger.new_simulator(TxId("t")) as simulator:
        simulator.put_state("cc", "k", b"v")
        assert taken(simulator.open_query("cc", RED)) == {}
        with pytest.raises(ReadOnlyViolation, match="read-only transaction"):
            simulator.open_query("cc", RED, page_size=1)
        with pytest.raises(ReadOnlyViolation, match="Queries on pvt data"):
            simulator.open_query("cc", RED, collection="c")


async def test_a_namespace_without_keys_has_no_documents(ledger):
    with ledger.new_simulator(TxId("t")) as simulator:
        assert taken(simulator.open_query("nobody", '{"selector":{}}')) == {}
        with pytest.raises(InvalidInput, match="invalid_operator"):
            simulator.open_query("nobody", '{"selector":{"a":{"$x":1}}}')


async def test_an_index_may_come_before_any_key(ledger):
    await indexed(
        ledger, {**BY_SIZE, "META-INF/other.json": b"", f"{INDEX[:-5]}2.json": b"bad"}
    )
    await commit(ledger, rwset(writes=marbles(20)))
    with ledger.new_simulator(TxId("t")) as simulator:
        assert list(taken(simulator.open_query("cc", size(3)))) == ["m00003", "m00013"]


async def test_a_query_is_counted_and_sliced(ledger):
    await commit(ledger, rwset(writes=marbles(5000)))
    with ledger.new_simulator(TxId("t")) as simulator:
        simulator.budget = Budget(200_000, "the test")
        results = simulator.open_query("cc", size({"$lt": 0}))
        slices = 1
        while not results.advance():
            slices += 1
        assert slices > 5  # of 2 ms each
        assert results.take(1) == []
        held = simulator.held
        with pytest.raises(BudgetExceeded):
            taken(simulator.open_query("cc", size({"$gte": 0})), 5000)
        assert simulator.held > held
    assert simulator.budget.held == 0


@pytest.mark.parametrize("more", [{}, {"sort": [{"size": "desc"}]}])
@pytest.mark.parametrize("files", [{}, BY_SIZE])
@pytest.mark.parametrize("old", [False, True])
async def test_what_takes_long_is_left_to_a_thread(tmp_path, more, files, old):
    """One of three documents has an array that takes some ms to look through."""
    values: dict[str, Any] = {
        f"k{n:02}": {"size": n, "a": [*range(1, 6000 if n % 3 == 0 else 2), -(n % 2)]}
        for n in range(12)
    }
    writes = {key: json.dumps(value).encode() for key, value in values.items()}
    odd = [key for key, value in values.items() if value["a"][-1] == -1]
    selector = {"size": {"$gte": 0}, "a": {"$elemMatch": {"$lt": 0}}}
    async with ledger_at(tmp_path, strict=False) as ledger:
        await commit(ledger, rwset(writes=writes))
        await indexed(ledger, files)
        with ledger.new_simulator(TxId("t")) as simulator:
            if old:
                await commit(ledger, rwset(writes=dict.fromkeys(values, b"{}")))
            results = simulator.open_query(
                "cc", json.dumps({"selector": selector, **more})
            )
            left = 0
            while not results.advance():
                if results.slow is not None:
                    left += 1
                    await asyncio.to_thread(results.slow)
            found = [KV.FromString(row).key for row in results.take(99)]
    assert found == sorted(odd, reverse=bool(more))
    assert left >= 4


async def test_a_large_document_counts_while_it_waits_for_a_thread(ledger):
    """And is not kept between two batches: a transaction may have a thousand queries."""
    sizes = {"a": 1_200_000, "b": 1, "c": 3_000_000, "d": 1}
    writes = {key: b'{"v":"%s"}' % (b"x" * size) for key, size in sizes.items()}
    await commit(ledger, rwset(writes=writes))
    with ledger.new_simulator(TxId("t")) as simulator:
        results, held = simulator.open_query("cc", '{"selector":{}}'), simulator.held
        waited, found = list[int](), list[str]()
        while not results.exhausted:
            while not results.advance():
                if results.slow:
                    waited.append(simulator.held - held)
                    await asyncio.to_thread(results.slow)
            assert results.slow is None
            assert simulator.held - held < (3_100_000 if found else 1_300_000)
            found += [KV.FromString(row).key for row in results.take(1)]
        assert found == list("abcd")
        assert [size // 100_000 for size in waited] == [12, 30]


async def test_what_a_thread_refuses_ends_the_query(ledger):
    await commit(ledger, rwset(writes={"k": b'{"a": [%s0]}' % (b"0," * 100_000)}))
    many = [{"a": {"$elemMatch": {"$eq": n}}} for n in range(1, 20)]
    with ledger.new_simulator(TxId("t")) as simulator:
        results = simulator.open_query("cc", json.dumps({"selector": {"$or": many}}))
        assert not results.advance()
        await asyncio.to_thread(results.slow)
        with pytest.raises(InvalidInput, match="more than 1000000 conditions"):
            results.advance()


async def test_a_step_passes_over_some_of_the_keys_of_later_blocks(ledger, monkeypatch):
    """A search of an old view looked at all of them at once."""
    monkeypatch.setattr("chaindock.ledger.mango.scan.SLICE_S", -1)
    await commit(ledger, rwset(writes={"a": b'{"colour":"red"}', "z": b"1"}))
    with ledger.new_simulator(TxId("t")) as simulator:
        await commit(ledger, rwset(writes=marbles(3000)))
        results = simulator.open_query("cc", RED)
        waited = 0
        while not results.advance():
            waited += 1
        assert waited >= 3000 / MOST_WALKED
        assert [KV.FromString(row).key for row in results.take(9)] == ["a"]


async def test_indexes_come_back_when_a_ledger_is_rebuilt(tmp_path):
    query = size({"$gte": 8}, sort=["size"])
    async with ledger_at(tmp_path) as ledger:
        await commit(ledger, rwset(writes={"k": b"v"}, ns="other"))
        await commit(ledger, rwset(writes=marbles(20)))
        await indexed(ledger, BY_SIZE)
        with ledger.new_simulator(TxId("t")) as simulator:
            before = taken(simulator.open_query("cc", query))
    await asyncio.to_thread(rebuild_file, tmp_path / "ledger.db", CHANNEL)
    async with ledger_at(tmp_path) as ledger:
        await indexed(ledger, {})
        with ledger.new_simulator(TxId("t")) as simulator:
            assert taken(simulator.open_query("cc", query)) == before


@pytest.mark.parametrize("files", [{}, BY_SIZE])
async def test_a_revert_brings_documents_back(ledger, files):
    await commit(ledger, rwset(writes=marbles(40)))
    await indexed(ledger, files)
    await ledger.take_snapshot("before")
    value = b'{"size":3}'
    await commit(ledger, rwset(writes={"m00003": b"", "m00013": value, "new": value}))
    await ledger.revert("before")
    with ledger.new_simulator(TxId("t")) as simulator:
        found = taken(simulator.open_query("cc", size(3)))
    assert list(found) == ["m00003", "m00013", "m00023", "m00033"]
    assert found["m00013"] == b'{"colour":"blue","size":3}'


@pytest.mark.parametrize("when", ["before", "after"])
async def test_queries_by_an_index_go_back_with_the_ledger(ledger, when):
    """Documents are kept beside the versions, of the newest state only."""
    await commit(ledger, rwset(writes=marbles(30)))
    if when == "before":
        await indexed(ledger, BY_SIZE)
    await ledger.take_snapshot("base")
    changed = {"m00001": b'{"size":4}', "m00004": None, "new": b'{"size":4}'}
    await commit(ledger, rwset(writes={**changed, "m00014": b"no JSON"}))
    if when == "after":
        await indexed(ledger, BY_SIZE)
    for _ in range(2):
        await ledger.revert("base")
        with ledger.new_simulator(TxId("q")) as simulator:
            found = taken(simulator.open_query("cc", size(4)))
        assert sorted(found) == ["m00004", "m00014", "m00024"]
        await commit(ledger, rwset(writes=changed))
        with ledger.new_simulator(TxId("q")) as simulator:
            found = taken(simulator.open_query("cc", size(4)))
        assert sorted(found) == ["m00001", "m00014", "m00024", "new"]
