"""Documents with much JSON, which other processes judge, are found as small ones are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from queue import LifoQueue
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import InvalidInput
from chaindock.ledger.mango import apart, judge, order
from support.mango.documents import Documents, StateView

if TYPE_CHECKING:
    from collections.abc import Iterator

STORED = {
    "a": {"n": 1, "owner": "Ann", "tags": ["x", "y"], "at": 1.50},
    "b": {"n": 2, "owner": "Bob", "nested": {"deep": [1, {"n": 1e30}]}},
    "c": b"no JSON",
    "d": [1, 2],
    "e": {"n": 3, "owner": "\u00e9\ud800", "tags": []},
    "f": {"n": 4, "_id": "reserved", "owner": "Ann"},
}
QUERIES = (
    {"selector": {"n": {"$gt": 1}}},
    {"selector": {"n": {"$gt": 1}, "owner": "Ann"}, "fields": ["n", "tags"]},
    {"selector": {"n": {"$gt": 0}}, "sort": [{"n": "desc"}], "skip": 1},
    {"selector": {"n": {"$gt": 0}}, "sort": ["n"], "fields": ["nested.deep", "_id"]},
    {"selector": {"owner": "Ann", "n": {"$gt": 1}}, "use_index": ["dsome", "some"]},
    {"selector": {"tags": {"$elemMatch": {"$eq": "y"}}}},
    {"selector": {"_id": {"$gt": "b"}}},
)


@pytest.fixture(params=["indexed", "being filled", "without an index"])
def documents(request: pytest.FixtureRequest) -> Iterator[Documents]:
    with closing(Documents(STORED)) as found:
        if request.param != "without an index":
            found.index("n")
            found.index("n", name="some", partial={"owner": "Ann"})
        found.filled = request.param != "being filled"
        found.put({"a": {"n": 9}, "new": {"n": 2, "owner": "Ann"}, "b": None})
        yield found


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("height", [1, 2])
def test_what_is_found_and_shown_is_the_same(documents, query, height, monkeypatch):
    def found() -> object:
        page, bookmark = documents.page(query, strict=False, height=height)
        return page, bookmark, documents.rows

    small = found()
    monkeypatch.setattr(judge, "LARGE", 0)
    assert found() == small


def test_a_large_document_is_stored_and_found_by_an_index():
    values = [{"n": number} for number in range(apart.LARGE // 8)]
    documents = Documents({"small": {"n": 1, "v": []}, "large": {"n": 2, "v": values}})
    with closing(documents):
        documents.index("n")
        documents.put({"later": {"n": 2, "v": values}})
        documents.index("n", name="long", partial={"v": {"$elemMatch": {"n": 7}}})
        query = {"selector": {"n": 2, "v": {"$size": len(values)}}}
        for use in ("dn", "dlong"):
            assert documents.keys(query | {"use_index": use}) == ["large", "later"]


def test_the_limit_of_conditions_holds_for_a_large_document():
    with closing(Documents({"k": {"v": list(range(20_000))}})) as documents:
        part = {"$or": [{"$eq": -n} for n in range(1, 100)]}
        with pytest.raises(
            InvalidInput, match="more than 1000000 conditions"
        ) as refused:
            documents.keys({"selector": {"v": {"$elemMatch": part}}})
        assert refused.value.hint == "use fewer conditions on elements"


def test_a_process_that_somebody_has_ended_is_started_again():
    first = apart.apart(os.getpid)
    assert first != os.getpid()
    os.kill(first, signal.SIGKILL)
    assert apart.apart(str, 7) == "7"
    second = apart.apart(os.getpid)
    assert second not in {first, os.getpid()}


def test_an_answer_that_was_not_read_whole_is_not_the_next_one(monkeypatch):
    """As if there were no memory for it."""

    def fails(*_: object) -> None:
        raise MemoryError

    assert apart.apart(str, 7) == "7"
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "recv", fails)
        with pytest.raises(MemoryError):
            apart.apart(str, 8)
    assert apart.apart(str, 9) == "9"


def test_a_search_goes_on_behind_a_large_document_page_by_page():
    text = "x" * apart.LARGE
    stored = {f"k{n}": {"n": n, "v": text if n % 2 else ""} for n in range(6)}
    with closing(Documents(stored)) as documents:
        documents.index("n")
        scan = documents.scan({"selector": {"n": {"$gte": 0}}})
        view, pages = StateView(documents.db, 1), []
        while not scan.exhausted:
            pages += [row[0] for row in scan.step(view, 2, 1 << 20)]
        assert pages == [key.encode() for key in sorted(stored)]


@pytest.mark.parametrize("filled", [True, False])
def test_no_pattern_of_an_index_is_compiled_on_the_event_loop(filled, monkeypatch):
    def compiled(_: str) -> None:
        raise AssertionError

    with closing(Documents({"a": {"n": 1, "v": "xyz"}, "b": {"n": 2}})) as documents:
        documents.index("n", name="some", partial={"v": {"$regex": "y"}})
        documents.put({"a": None, "b": None})
        documents.filled = filled
        monkeypatch.setattr(judge, "parse_partial", compiled)
        query = {"selector": {"n": {"$gt": 0}}, "use_index": ["dsome", "some"]}
        assert documents.page(query, height=1)[0] == ["a"]


@pytest.mark.parametrize("step", range(1, 5))
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_a_document_written_again_while_it_is_judged_is_found(step, direction):
    text = "x" * apart.LARGE
    stored = {f"k{n}": {"n": n, "v": text} for n in range(4)}
    with closing(Documents(stored)) as documents:
        documents.index("n")
        query = {"selector": {"n": {"$gte": 0}}, "sort": [{"n": direction}]}
        scan, view = documents.scan(query), StateView(documents.db, 1)
        found: list[str] = []
        while not scan.exhausted:
            found += [row[0].decode() for row in scan.step(view, 9, 1 << 20)]
            if scan.slow:
                scan.slow()
            step -= 1
            if step == 0:
                documents.put({key: {"n": 9} for key in stored})
        assert found == sorted(stored, reverse=direction == "desc")


def test_without_processes_a_document_is_judged_beside_the_event_loop(monkeypatch):
    """Both search with the same query, and count what they do for a document."""

    def none(_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr(apart._Process, "__init__", none)
    monkeypatch.setattr(apart, "_idle", LifoQueue())
    apart._idle.put(None)
    texts = [f"{number:04}" * 1000 for number in range(1000)]
    with closing(Documents({"large": {"v": texts}, "small": {"v": []}})) as documents:
        query = {"selector": {"v": {"$elemMatch": {"$gt": "0999"}}}}
        scan, view = documents.scan(query), StateView(documents.db, 1)
        assert scan.step(view, 9, 1 << 20) == []
        assert scan.slow
        thread = Thread(target=scan.slow)
        thread.start()
        other = documents.scan(query)
        while thread.is_alive():
            other.exhausted, other._next = False, b"m"
            assert other.step(view, 9, 1 << 20) == []
            time.sleep(0.01)
        assert [row[0] for row in scan.step(view, 9, 1 << 20)] == [b"large"]


def test_the_processes_end_with_the_node():
    program = (
        "import os, signal; from chaindock.ledger.mango.apart import apart; "
        "print(apart(os.getpid), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    until = time.monotonic() + 10
    while Path(f"/proc/{ended.stdout.strip()}").exists():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("indexed", [True, False])
def test_the_first_text_that_is_not_ascii_waits_for_no_table(indexed, monkeypatch):
    """To read the collator's table takes 0.1 s, which all other calls would wait."""
    stored = {"a": {"name": "\u00e1"}, "b": {"name": "b"}, "c": {"name": "\u00e7"}}
    with closing(Documents(stored)) as documents:
        if indexed:
            documents.index("name")
        monkeypatch.setattr(order, "_collator", None)
        scan = documents.scan({"selector": {"name": {"$gte": "a"}}})
        view, found = StateView(documents.db, documents.height), list[str]()
        while not scan.exhausted:
            with order.collator_lock:  # whoever reads the table in a step is stuck
                found += [row[0].decode() for row in scan.step(view, 101, 1 << 20)]
            if scan.slow:
                scan.slow()
        assert found == ["a", "b", "c"]
