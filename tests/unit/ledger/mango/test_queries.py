"""What whole queries find, in which order, by which index."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from chaindock.errors import InvalidInput
from chaindock.ledger.mango.documents import fill, indexes_of
from chaindock.ledger.mango.indexes import MAX_INDEXES, definitions_of
from chaindock.ledger.marks import _restore_documents
from support.holds import cpu_of
from support.mango import evaluator
from support.mango.documents import NS, Documents, StateView
from support.mango.strategies import DOCUMENTS, KEYS, SELECTORS

if TYPE_CHECKING:
    from collections.abc import Mapping

# --- against the model ----------------------------------------------------------------

SORTS = st.sampled_from([(), ("a",), ("b",), ("a", "b"), ("b.c", "a"), ("_id",)])
INDEXES = st.lists(
    st.sampled_from(
        [("a",), ("b",), ("a", "b"), ("b", "a"), ("b.c", "a"), ("a", "_id")]
    ),
    unique=True,
    max_size=3,
)


@settings(max_examples=120, deadline=None)
@given(
    st.dictionaries(KEYS, DOCUMENTS, max_size=8),
    SELECTORS
    | st.just({})
    | st.fixed_dictionaries({"a": st.fixed_dictionaries({"$gte": st.none()})}),
    SORTS,
    st.booleans(),
    INDEXES,
    st.integers(1, 4),
    st.dictionaries(KEYS, DOCUMENTS | st.none(), max_size=4),
)
def test_a_query_finds_what_the_model_finds(
    stored, selector, sort, down, indexes, size, later
):
    query = {
        "selector": selector,
        "sort": [{f: "desc" if down else "asc"} for f in sort],
    }
    found = {
        key: {**document, "_id": key}
        for key, document in stored.items()
        if not selector or evaluator.holds(selector, {**document, "_id": key})
    }
    sorting = [name for name in sort if name != "_id"]
    expected = {
        key
        for key, document in found.items()
        if all(evaluator.is_there(document, name) for name in sorting)
    }
    with closing(Documents(stored)) as documents:
        for fields in indexes:
            documents.index(*fields)
        whole = documents.keys(query, strict=False)
        assert set(whole) == expected
        assert len(whole) == len(expected)
        if sort:
            places = [
                [*(evaluator.KEY(evaluator.look_up(found[key], n)) for n in sorting)]
                for key in whole
            ]
            assert places == sorted(places, reverse=down)
        elif not documents.index_for(query, strict=False):
            assert whole == sorted(whole)
        pages, bookmark = [], ""
        while page := documents.page(query, bookmark, size, strict=False):
            keys, bookmark = page
            pages += keys
            if not keys:
                break
        assert pages == whole
        # A view from before the newest block sees nothing of it; nor does it matter
        # whether the indexes are ready.
        documents.put({**later, **dict.fromkeys(list(stored)[:1])})
        assert documents.page(query, strict=False, height=1)[0] == whole
        newest = documents.keys(query, strict=False)
        documents.filled = False
        assert documents.page(query, strict=False, height=1)[0] == whole
        assert documents.keys(query, strict=False) == newest


# --- order and indexes ----------------------------------------------------------------


def explained(documents: Documents, query: Mapping[str, object]) -> str:
    statements: list[str] = []
    documents.db.set_trace_callback(statements.append)
    documents.page(query, size=1)
    documents.db.set_trace_callback(None)
    [sql] = [each for each in statements if "INDEXED BY mango" in each]
    return " ".join(row[3] for row in documents.db.execute(f"EXPLAIN QUERY PLAN {sql}"))


def test_an_index_finds_and_sorts_without_a_temporary_table(colours):
    colours.index("colour", "size")
    query = {
        "selector": {"colour": "red", "size": {"$gte": 2, "$lt": 4}},
        "sort": ["colour", "size"],
    }
    assert explained(colours, query) == (
        "SEARCH documents USING INDEX mango_1 (<expr>=? AND <expr>>? AND <expr><?)"
    )
    assert colours.keys(query) == ["k12", "k27", "k18", "k3"]
    down = {**query, "sort": [{"colour": "desc"}, {"size": "desc"}]}
    assert colours.keys(down) == ["k3", "k18", "k27", "k12"]
    assert "TEMP" not in explained(colours, down)
    assert colours.index_for(query) == "colour-size"


def test_a_page_begins_by_search_behind_the_bookmark(colours):
    colours.index("size")
    query = {"selector": {"size": {"$gt": None}}, "sort": ["size"]}
    _, bookmark = colours.page(query, size=3)
    assert "<expr>>?" in explained(colours, {**query, "bookmark": bookmark})
    assert "TEMP" not in explained(colours, {**query, "bookmark": bookmark})


@pytest.mark.parametrize("way", ["asc", "desc"])
def test_pages_of_an_index_take_the_same_time_each(way):
    stored = {f"k{n:04}": {"n": n // 10, "m": 1} for n in range(2000)}
    steps: list[int] = []
    with closing(Documents(stored)) as documents:
        documents.index("m", "n")
        documents.index("n")
        for selector, *sort in (
            ({"n": {"$gte": 0, "$lt": 900}}, "n"),
            ({"m": 1, "n": {"$gt": None}}, "n"),
            ({"m": {"$lte": 1}, "n": {"$gt": None}}, "m", "n"),
        ):
            query = {"selector": selector, "sort": [{name: way} for name in sort]}
            worst, bookmark, found = 0, "", 0
            documents.db.set_progress_handler(lambda: steps.append(1), 10)
            while True:
                steps.clear()
                keys, bookmark = documents.page(query, bookmark, 20)
                found += len(keys)
                worst = max(worst, len(steps))
                if not keys:
                    break
            documents.db.set_progress_handler(None, 0)
            assert found == 2000
            assert worst < 400, "a page begins with all rows before it"


def test_without_an_index_documents_come_in_the_order_of_keys(colours):
    query = {"selector": {"colour": "red"}}
    assert colours.keys(query) == sorted(f"k{n}" for n in range(0, 30, 3))


def test_an_index_decides_the_order_also_without_sort(colours):
    colours.index("size")
    found = colours.keys({"selector": {"size": {"$gte": 0}, "colour": "red"}})
    assert found == ["k0", "k15", "k21", "k6", "k12", "k27", "k18", "k3", "k24", "k9"]


@pytest.mark.statement(72, of="client")
def test_a_sort_without_an_index_is_refused_unless_that_is_allowed(colours):
    query = {"selector": {"colour": {"$gt": None}}, "sort": ["colour"]}
    with pytest.raises(InvalidInput) as error:
        colours.keys(query)
    assert error.value.message == (
        "error handling CouchDB request. Error:no_usable_index,  Status Code:400,  "
        "Reason:No index exists for this sort, try indexing by the sort fields."
    )
    assert colours.keys(query, strict=False)[:2] == ["k1", "k10"]


@pytest.mark.parametrize(
    ("selector", "sort", "usable"),
    [
        ({"a": 1}, [], False),
        ({"a": 1, "b": 2}, [], True),
        ({"a": 1, "b": {"$exists": False}}, [], False),
        ({"a": 1, "b": {"$exists": True}}, [], True),
        ({"a": 1}, ["b"], True),
        ({"a": {"$gt": 1}}, ["b"], False),
        ({}, ["a", "b"], True),
        ({}, ["a"], False),
        ({"b": 1}, ["a"], True),
        ({"$or": [{"a": 1, "b": 1}, {"a": 2, "b": 2}]}, [], True),
        ({"$or": [{"a": 1}, {"a": 2, "b": 2}]}, [], False),
    ],
)
def test_an_index_is_usable_when_all_its_columns_are_needed(selector, sort, usable):
    with closing(Documents({})) as documents:
        documents.index("a", "b")
        query = {"selector": selector, "sort": sort}
        assert bool(documents.index_for(query, strict=False)) == usable


def test_the_index_with_most_bound_columns_is_chosen():
    with closing(Documents({})) as documents:
        for fields in (("a",), ("a", "b"), ("b",), ("a", "c")):
            documents.index(*fields)
        for selector, name in (
            ({"a": 1, "b": 1}, "a-b"),
            ({"a": 1}, "a"),
            ({"a": 1, "b": {"$ne": 2}}, "a"),
        ):
            assert documents.index_for({"selector": selector}) == name
        both = {"a": 1, "b": 1}
        named = {"selector": both, "use_index": ["_design/db", "b"]}
        assert documents.index_for(named) == "b"
        unusable = {"selector": {"a": 1}, "use_index": "db"}
        assert documents.index_for(unusable) == "a"


def test_a_partial_index_serves_only_when_named(colours):
    colours.index("size", name="big", partial={"n": {"$gte": 20}})
    query = {"selector": {"size": 4}}
    assert colours.index_for(query) == ""
    named = {**query, "use_index": "dbig"}
    assert colours.index_for(named) == "big"
    assert colours.keys(named) == ["k24", "k29"]
    assert "USING INDEX mango_1" in explained(colours, named)


def test_an_index_follows_writes(colours):
    colours.index("size")
    query = {"selector": {"size": 77}}
    colours.put({"new": {"size": 77}})
    assert colours.keys(query) == ["new"]
    colours.put({"new": None})
    assert colours.keys(query) == []
    colours.put({"k1": b"text now"})
    assert "k1" not in colours.keys({"selector": {"size": {"$gte": 0}}})


def test_documents_of_before_an_index_are_added_in_slices():
    stored = {f"k{n:05d}": {"n": n % 7} for n in range(2500)}
    with closing(Documents(stored)) as documents:
        documents.filled = False
        documents.index("n")
        assert fill(documents.db)
        # Behind what is filled, a write waits for its slice.
        documents.put({"k00001": {"n": 100}, "k02000": {"n": 100}, "k02001": None})
        assert documents.keys({"selector": {"n": 100}}) == ["k00001", "k02000"]
        assert [fill(documents.db) for _ in range(3)] == [True, True, False]
        documents.filled = True
        assert documents.keys({"selector": {"n": 100}}) == ["k00001", "k02000"]
        assert len(documents.keys({"selector": {"n": {"$gte": 0}}})) == 2499


def test_an_index_is_replaced_by_one_of_its_name(colours):
    colours.index("size", name="x")
    colours.index("n", name="x")
    colours.index("n", name="x")
    [index] = indexes_of(colours.db, NS)
    assert index.columns == ("n",)
    [(count,)] = colours.db.execute(
        "SELECT count(*) FROM sqlite_master WHERE name LIKE 'mango%'"
    )
    assert count == 1


def test_a_package_makes_a_bounded_number_of_indexes():
    """Each makes the next one slower: two thousand held the writer for 11 s."""
    index = b'{"index":{"fields":["n"]}}'
    files = {f"META-INF/statedb/couchdb/indexes/{n:04}.json": index for n in range(300)}
    with capture_logs() as logs:
        assert len(definitions_of(files)) == MAX_INDEXES == 100
    assert [(one["event"], one["first"][-9:]) for one in logs] == [
        ("indexes left out", "0100.json")
    ]


def test_a_document_that_a_partial_index_cannot_decide_is_committed():
    """A package of one contract must not stop the commits of the channel."""
    costly = {"f": {"$regex": "[ab]*a[ab]{900}c"}}
    elements = {"f": {"$elemMatch": {"$gt": 0}}}
    with closing(Documents({"early": {"f": "ab" * 15_000, "n": 1}})) as documents:
        documents.index("n", name="costly", partial=costly)
        documents.index("n", name="elements", partial=elements)
        documents.put({"late": {"f": "ab" * 15_000, "n": 1}})
        documents.put(
            {"many": {"f": [1] * 1_000_001, "n": 1}, "few": {"f": [1], "n": 1}}
        )
        documents.put({"late": {"n": 1}, "early": None})
        for name, expected in (("costly", []), ("elements", ["few"])):
            query = {"selector": {"n": 1}, "use_index": f"d{name}"}
            documents.filled = True
            assert documents.keys(query) == expected
            documents.filled = False
            assert documents.keys(query) == expected


def test_large_documents_are_added_to_an_index_a_few_at_once():
    """A thousand of them had been in memory together, and no block was committed."""
    stored = {f"k{n}": {"n": n, "v": "x" * 600_000} for n in range(4)}
    with closing(Documents(stored)) as documents:
        documents.filled = False
        documents.index("n")
        counts = []
        while fill(documents.db):
            counts += documents.db.execute("SELECT count(*) FROM documents").fetchone()
        assert counts == [2, 4, 4]
        documents.filled = True
        assert documents.keys({"selector": {"n": {"$gt": 1}}}) == ["k2", "k3"]


def test_a_revert_while_an_index_is_filled_leaves_no_deleted_document():
    with closing(Documents({"a": {"n": 1}, "b": {"n": 2}})) as documents:
        documents.filled = False
        documents.index("n")
        documents.put({"b": {"n": 3}})
        _restore_documents(documents.db, 1)
        documents.put({"b": None})
        documents.filled = True
        while fill(documents.db):
            pass
        assert documents.keys({"selector": {"n": {"$gt": 0}}}) == ["a"]


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_a_step_that_ends_at_the_newer_of_two_equal_rows_loses_none(
    direction: str, monkeypatch: pytest.MonkeyPatch
):
    """A block has put the same again: both rows have one place in the order."""
    monkeypatch.setattr("chaindock.ledger.mango.scan.SLICE_S", -1)
    stored = {f"k{n}": {"n": 1} for n in range(5)}
    query = {"selector": {"n": 1}, "sort": [{"n": direction}]}
    with closing(Documents(stored)) as documents:
        documents.index("n")
        documents.put({key: {"n": 1} for key in stored})
        view, scan = StateView(documents.db, 1), documents.scan(query)
        found: list[str] = []
        while not scan.exhausted:
            found += [row[0].decode() for row in scan.step(view, 101, 1 << 20)]
        assert found == sorted(stored, reverse=direction == "desc")


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_a_view_of_before_many_changes_is_queried_in_linear_time(direction):
    """Each step sorted all superseded rows."""
    stored = {f"k{n:05}": {"n": n % 100, "other": "x" * 50} for n in range(6000)}
    query = {"selector": {"n": {"$gte": 50}}, "sort": [{"n": direction}]}
    with closing(Documents(stored)) as documents:
        documents.index("n")
        documents.put({key: {"n": 75} for key in stored})
        documents.put({f"new{n:05}": {"n": 60} for n in range(6000)})

        def run(height: int) -> list[str]:
            view, scan = StateView(documents.db, height), documents.scan(query)
            found = []
            while not scan.exhausted:
                found += [row[0].decode() for row in scan.step(view, 101, 1 << 20)]
            return found

        found = run(1)
        assert cpu_of(lambda: run(1)) < 60 * cpu_of(lambda: run(3))
        expected = [key for key in stored if int(key[1:]) % 100 >= 50]
        expected.sort(key=lambda key: (int(key[1:]) % 100, key))
        assert found == (expected if direction == "asc" else expected[::-1])


@pytest.mark.parametrize("direction", ["asc", "desc"])
@pytest.mark.parametrize("exact", [True, False])
def test_blocks_between_the_steps_of_a_query_change_nothing(direction, exact):
    stored = {f"k{n:03}": {"n": n % 10, "m": 1} for n in range(100)}
    selector = {"n": {"$gte": 3}} if exact else {"n": {"$gte": 3}, "m": 1}
    query = {"selector": selector, "sort": [{"n": direction}]}
    with closing(Documents(stored)) as documents:
        documents.index("n")
        expected = documents.keys(query)
        view, scan = StateView(documents.db, 1), documents.scan(query)
        found: list[str] = []
        while not scan.exhausted:
            found += [row[0].decode() for row in scan.step(view, 3, 1 << 20)]
            number = len(found)
            changed = {
                f"k{(number * 7) % 100:03}": {"n": 5, "m": 1},
                f"k{number:03}": None,
            }
            documents.put({**changed, f"new{number}": {"n": number % 10, "m": 1}})
        assert found == expected
