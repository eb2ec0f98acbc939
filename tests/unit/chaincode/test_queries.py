"""Range queries, pages and histories, as chaincode sees them."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import pytest
from fabric_protos.ledger.queryresult import kv_query_result_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode import invocation as invocation_module
from chaindock.chaincode.calls import Calls
from chaindock.chaincode.invocation import BATCH_BYTES, Call, Query
from chaindock.chaincode.options import StreamOptions
from chaindock.ids import TxId
from chaindock.ledger.budget import Budget
from chaindock.ledger.queries import STEP_BYTES
from support.doubles.memory_state import (
    MemoryResults,
    MemorySimulator,
    MemoryState,
    invocation,
    simulator_of,
)
from support.ledgers.envelopes import rwset
from support.ledgers.ledger import PHANTOM, codes, commit, ledger_at
from support.shims.stream_node import StreamNode

if TYPE_CHECKING:
    from pathlib import Path

Kind = shim.ChaincodeMessage


class Querying:
    """A chaincode that queries within one invocation."""

    def __init__(self, state: MemoryState, **options: Any) -> None:
        self.state = state
        self._options = options

    async def __aenter__(self) -> Self:
        self._node = StreamNode(**self._options)
        await self._node.__aenter__()
        self.peer = await self._node.ready()
        invoked = invocation("f", tx_id="t1", state=self.state)
        self.simulator: MemorySimulator = simulator_of(invoked)
        self._call = self._node.call(invoked)
        self._message = await self.peer.receive()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.finish()
        await self._node.__aexit__(None, None, None)

    async def finish(self) -> None:
        if not self._call.done():
            await self.peer.complete(self._message)
            await self._call

    async def ask(self, kind: int, payload: Any) -> Any:
        reply = await self.peer.ask(self._message, kind, payload)
        if reply.type == Kind.ERROR:
            return reply.payload.decode().partition(": t1: ")[2]
        return shim.QueryResponse.FromString(reply.payload)

    async def range(
        self, start: str = "", end: str = "", size: int = 0, bookmark: str = ""
    ) -> Any:
        metadata = shim.QueryMetadata(pageSize=size, bookmark=bookmark)
        request = shim.GetStateByRange(
            startKey=start, endKey=end, metadata=metadata.SerializeToString()
        )
        return await self.ask(Kind.GET_STATE_BY_RANGE, request)

    async def following(self, name: str) -> Any:
        return await self.ask(Kind.QUERY_STATE_NEXT, shim.QueryStateNext(id=name))

    async def all(self, response: Any) -> list[Any]:
        """Return all messages of a query."""
        messages = [response]
        while messages[-1].has_more:
            messages.append(await self.following(response.id))
            assert messages[-1].id == response.id
            assert messages[-1].results
        return messages


def keys_of(*messages: Any) -> list[str]:
    return [
        kv_query_result_pb2.KV.FromString(row.resultBytes).key
        for message in messages
        for row in message.results
    ]


def numbered(count: int) -> MemoryState:
    return MemoryState({f"k{number:04}": b"v%d" % number for number in range(count)})


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 200, 201, 250])
@pytest.mark.statement(63, 64, 65)
async def test_results_arrive_complete_in_batches(count: int):
    async with Querying(numbered(count)) as query:
        messages = await query.all(await query.range())
        assert keys_of(*messages) == sorted(query.state.keys)
        sizes = [len(message.results) for message in messages]
        assert sizes == [100] * ((count - 1) // 100) + [(count - 1) % 100 + 1] or (
            count == 0 and sizes == [0]
        )
        uuid.UUID(messages[0].id)
        assert messages[0].metadata == b""
        assert all(results.closed for results in query.simulator.queries)


async def test_a_row_carries_its_namespace():
    async with Querying(numbered(1)) as query:
        row = (await query.range()).results[0].resultBytes
        assert kv_query_result_pb2.KV.FromString(row) == kv_query_result_pb2.KV(
            namespace="basic", key="k0000", value=b"v0"
        )


async def test_a_batch_is_bounded_by_bytes():
    state = MemoryState({f"k{number:03}": b"x" * 300_000 for number in range(10)})
    async with Querying(state) as query:
        messages = await query.all(await query.range())
        assert keys_of(*messages) == sorted(state.keys)
        assert [len(message.results) for message in messages] == [3, 3, 3, 1]
        assert all(message.ByteSize() <= BATCH_BYTES for message in messages)


async def test_rows_larger_than_the_bound_come_one_by_one():
    state = MemoryState({f"k{number}": b"x" * 2_000_000 for number in range(3)})
    async with Querying(state) as query:
        messages = await query.all(await query.range())
        assert [len(message.results) for message in messages] == [1, 1, 1]


def test_each_large_row_is_a_step_of_its_own_and_counts():
    row = b"x" * (2 * BATCH_BYTES)
    budget = Budget(16 * BATCH_BYTES, "a call")
    rows: Any = MemoryResults([row] * 3, "")
    query = Query(rows, 100, budget)
    assert not query.advance()
    assert budget.held == BATCH_BYTES
    assert query.advance()
    assert query.batch() == ([row], True)
    assert budget.held == len(row)


@pytest.mark.parametrize("limit", [1, 100, 150])
@pytest.mark.statement(66)
async def test_what_is_beyond_the_total_limit_is_cut(limit: int):
    async with Querying(numbered(250), total_query_limit=limit) as query:
        messages = await query.all(await query.range())
        assert len(keys_of(*messages)) == limit


@pytest.mark.statement(67, 68)
async def test_a_page_arrives_in_one_message():
    async with Querying(numbered(300)) as query:
        page = await query.range(size=250)
        assert len(page.results) == 250
        assert not page.has_more
        metadata = shim.QueryResponseMetadata.FromString(page.metadata)
        assert metadata.fetched_records_count == 250
        assert metadata.bookmark == "k0250"
        last = await query.range(size=250, bookmark=metadata.bookmark)
        assert keys_of(last) == [f"k{number:04}" for number in range(250, 300)]
        metadata = shim.QueryResponseMetadata.FromString(last.metadata)
        assert (metadata.fetched_records_count, metadata.bookmark) == (50, "")


async def test_a_page_of_thousands():
    async with Querying(numbered(3000)) as query:
        assert len((await query.range(size=2500)).results) == 2500


async def test_a_bookmark_alone_is_bounded_by_the_total_limit():
    async with Querying(numbered(300), total_query_limit=150) as query:
        page = await query.range(bookmark="k0100")
        assert keys_of(page)[0] == "k0100"
        assert len(page.results) == 150


async def test_a_page_too_large_for_a_message_is_an_error():
    state = MemoryState({f"k{number}": b"x" * 50_000 for number in range(4)})
    async with Querying(state, max_message_bytes=100_000) as query:
        assert "more than the limit of 100000" in await query.range(size=4)


@pytest.mark.parametrize("size", [0, 300])
async def test_rows_are_read_in_steps_of_bounded_size(size: int):
    """However large they are, and whether as a page or in batches."""
    state = MemoryState({f"k{number:03}": b"x" * 100_000 for number in range(300)})
    async with Querying(state) as query:
        assert len(keys_of(*await query.all(await query.range(size=size)))) == 300
        assert query.simulator.queries[0].largest_take <= STEP_BYTES + 100_100


@pytest.mark.statement(69)
async def test_page_size_zero_is_an_ordinary_query():
    async with Querying(numbered(150)) as query:
        response = await query.range(size=0)
        assert (len(response.results), response.has_more) == (100, True)


async def test_broken_paging_metadata():
    async with Querying(numbered(1)) as query:
        request = shim.GetStateByRange(metadata=b"\xff\xff")
        cause = await query.ask(Kind.GET_STATE_BY_RANGE, request)
        assert cause.startswith("unmarshal failed: ")


@pytest.mark.statement(70)
async def test_after_the_end_there_is_no_next_and_close_is_fine():
    async with Querying(numbered(101)) as query:
        messages = await query.all(await query.range())
        name = messages[0].id
        assert await query.following(name) == "query iterator not found"
        closed = await query.ask(Kind.QUERY_STATE_CLOSE, shim.QueryStateClose(id=name))
        assert closed == shim.QueryResponse(id=name)


async def test_close_ends_a_query():
    async with Querying(numbered(150)) as query:
        name = (await query.range()).id
        await query.ask(Kind.QUERY_STATE_CLOSE, shim.QueryStateClose(id=name))
        assert query.simulator.queries[0].closed
        assert await query.following(name) == "query iterator not found"


@pytest.mark.statement(71)
async def test_two_queries_advance_independently():
    async with Querying(numbered(250)) as query:
        one, two = await query.range(), await query.range(start="k0010")
        one_more, two_more = (
            await query.following(one.id),
            await query.following(two.id),
        )
        assert keys_of(one_more)[0] == "k0100"
        assert keys_of(two_more)[0] == "k0110"


@pytest.mark.statement(75)
@pytest.mark.parametrize("paged", [False, True])
async def test_without_couchdb_rich_queries_are_refused_as_by_leveldb(paged):
    async with Querying(numbered(3), state_database="goleveldb") as query:
        paging = shim.QueryMetadata(pageSize=3) if paged else shim.QueryMetadata()
        request = shim.GetQueryResult(query="{}", metadata=paging.SerializeToString())
        told = await query.ask(Kind.GET_QUERY_RESULT, request)
        name = "ExecuteQueryWithMetadata" if paged else "ExecuteQuery"
        assert told == f"{name} not supported for leveldb"


async def test_history_can_be_turned_off_as_at_a_peer():
    async with Querying(MemoryState(), history_database=False) as query:
        request = shim.GetHistoryForKey(key="k")
        told = await query.ask(Kind.GET_HISTORY_FOR_KEY, request)
        assert told == "history database is not enabled"


async def test_a_rich_query_comes_in_batches_that_may_take_time():
    async with Querying(numbered(250)) as query:
        first = await query.ask(Kind.GET_QUERY_RESULT, shim.GetQueryResult(query="{}"))
        assert query.simulator.asked == ("{}", "", 0, "")
        assert [len(x.results) for x in await query.all(first)] == [100, 100, 50]
        assert query.simulator.queries[0].waits < 0


@pytest.mark.parametrize("paged", [False, True])
async def test_what_takes_long_is_done_by_a_thread(paged, monkeypatch):
    """Between two steps of a rich query."""
    threads: list[int] = []
    opened = MemorySimulator.open_query

    def open_slow(*args: Any, **options: Any) -> MemoryResults:
        found = opened(*args, **options)

        def slow() -> None:
            threads.append(threading.get_ident())
            found.slow = None

        found.slow = slow
        return found

    monkeypatch.setattr(MemorySimulator, "open_query", open_slow)
    async with Querying(numbered(5)) as query:
        paging = shim.QueryMetadata(pageSize=5) if paged else shim.QueryMetadata()
        request = shim.GetQueryResult(query="{}", metadata=paging.SerializeToString())
        found = await query.ask(Kind.GET_QUERY_RESULT, request)
        assert len(found.results) == 5
    assert threads
    assert threading.get_ident() not in threads


async def test_a_page_of_a_rich_query():
    async with Querying(numbered(250)) as query:
        paging = shim.QueryMetadata(pageSize=120, bookmark="k0010").SerializeToString()
        request = shim.GetQueryResult(query="{}", metadata=paging)
        page = await query.ask(Kind.GET_QUERY_RESULT, request)
        assert query.simulator.asked == ("{}", "", 120, "k0010")
        assert keys_of(page)[0] == "k0010"
        metadata = shim.QueryResponseMetadata.FromString(page.metadata)
        assert metadata.fetched_records_count == len(page.results) == 120
        assert metadata.bookmark == "k0130"


async def test_a_rich_query_closed_while_it_waits_is_an_error():
    async with Querying(numbered(250)) as query:
        query.simulator.done()
        request = shim.GetQueryResult(query="{}")
        told = await query.ask(Kind.GET_QUERY_RESULT, request)
        assert told == "this instance should not be used after calling Done()"


async def test_the_final_message_closes_open_queries():
    async with Querying(numbered(350)) as query:
        await query.range()
        await query.finish()
        assert [results.closed for results in query.simulator.queries] == [True]


async def test_a_query_that_fails_is_closed():
    async with Querying(numbered(350)) as query:
        name = (await query.range()).id
        results = query.simulator.queries[0]
        await query.following(name)
        results.closed = True  # as if the ledger had gone away
        assert await query.following(name) == "the query was closed"
        assert await query.following(name) == "query iterator not found"


async def test_open_queries_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(invocation_module, "MAX_QUERIES", 3)
    async with Querying(numbered(150)) as query:
        for _ in range(3):
            await query.range()
        assert "3 open queries" in await query.range()


async def test_history_is_passed_on_in_batches():
    state = MemoryState()
    state.history["k"] = [b"v%d" % number for number in range(120)] + [b""]
    async with Querying(state) as query:
        request = shim.GetHistoryForKey(key="k")
        messages = await query.all(await query.ask(Kind.GET_HISTORY_FOR_KEY, request))
        rows = [
            kv_query_result_pb2.KeyModification.FromString(row.resultBytes)
            for message in messages
            for row in message.results
        ]
        assert [len(message.results) for message in messages] == [100, 21]
        assert rows[0].is_delete
        assert rows[1].value == b"v119"
        assert all(row.HasField("timestamp") for row in rows)


def test_a_call_finishes_once():
    """The first outcome counts, whoever comes second."""
    import asyncio

    async def scenario() -> None:
        calls = Calls(StreamOptions(), lambda *_: None)
        running = Call(invocation("f"), 1.0, Budget(1000, "call"), calls.running)
        first, second = shim.ChaincodeMessage(txid="1"), shim.ChaincodeMessage(txid="2")
        running.finish(first)
        running.finish(second)
        assert await running.final is first

    asyncio.run(scenario())


@pytest.mark.statement(9, of="client")
async def test_what_was_sent_ahead_of_the_chaincode_counts_as_read(tmp_path: Path):
    """The chaincode may take one row of three: all three were in its first message."""
    async with ledger_at(tmp_path) as ledger, StreamNode() as node:
        await commit(ledger, rwset(writes=dict.fromkeys("ace", b"1")))
        peer = await node.ready()
        with ledger.new_simulator(TxId("t1")) as simulator:
            invoked = invocation("f", tx_id="t1")
            call = node.call(replace(invoked, namespace="cc", simulator=simulator))
            message = await peer.receive()
            request = shim.GetStateByRange(startKey="a", endKey="z")
            reply = await peer.ask(message, Kind.GET_STATE_BY_RANGE, request)
            first = shim.QueryResponse.FromString(reply.payload)
            assert (len(first.results), first.has_more) == (3, False)
            await peer.complete(message)
            await call
            sets = simulator.results()
        await commit(ledger, rwset(writes={"f": b"1"}))
        assert codes(await commit(ledger, sets)) == [PHANTOM]
