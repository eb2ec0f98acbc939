"""Requests that take long hold up neither other calls nor their own order."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KV
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.aio import Tasks
from chaindock.chaincode import queries
from chaindock.chaincode.calls import Calls
from chaindock.chaincode.invocation import Call
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.outbox import Outbox
from chaindock.chaincode.requests import serve
from chaindock.chaincode.wire import serialized
from chaindock.ids import TxId
from chaindock.ledger.mango import scan
from chaindock.ledger.mango.query import parse_query
from chaindock.ledger.queries import STEP_BYTES
from support.doubles.memory_state import MemoryState, invocation
from support.ledgers.envelopes import rwset
from support.ledgers.ledger import commit, ledger_at
from support.shims.session import Session, record
from support.shims.stream_node import MODELS, StreamNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.shims.endorsing import EndorsingNode

Kind = shim.ChaincodeMessage


MANY: dict[str, Any] = {
    "max_size_write_batch": 50_000,
    "max_size_get_multiple_keys": 200_000,
}


@pytest.fixture(params=MODELS)
async def session(
    request: pytest.FixtureRequest, no_task_is_left: None
) -> AsyncIterator[Session]:
    async with StreamNode(request.param, **MANY) as node:
        yield await Session(node, await node.ready()).start()


@pytest.fixture
async def listening(no_task_is_left: None) -> AsyncIterator[StreamNode]:
    async with StreamNode(**MANY) as node:
        yield node


def page(rows: int) -> shim.GetStateByRange:
    metadata = shim.QueryMetadata(pageSize=rows).SerializeToString()
    return shim.GetStateByRange(metadata=metadata)


LONG = [
    (Kind.GET_STATE_BY_RANGE, page(5000)),
    (Kind.GET_STATE_MULTIPLE, shim.GetStateMultiple(keys=["k"] * 200_000)),
    (
        Kind.WRITE_BATCH_STATE,
        shim.WriteBatchState(
            rec=[record(shim.WriteRecord.PUT_STATE, "k", b"v") for _ in range(50_000)]
        ),
    ),
]


@pytest.mark.parametrize(("kind", "payload"), LONG)
async def test_a_long_request_of_one_call_does_not_hold_up_another(
    listening: StreamNode, kind: int, payload: Any
):
    """On the same stream: the other one is asked later and answered first."""
    peer = await listening.ready()
    large = MemoryState({f"k{number:04}": b"v" for number in range(5000)})
    long = listening.call(invocation("long", tx_id="t1", state=large))
    one = await peer.receive()
    short = listening.call(invocation("short", tx_id="t2", state=MemoryState()))
    two = await peer.receive()
    await peer.send(kind, payload, txid="t1", channel="dev")
    await peer.send(Kind.GET_STATE, shim.GetState(key="k"), txid="t2", channel="dev")
    assert [(await peer.receive()).txid for _ in range(2)] == ["t2", "t1"]
    await peer.complete(one)
    await peer.complete(two)
    await asyncio.gather(long, short)


@pytest.mark.parametrize(("kind", "payload"), LONG)
async def test_replies_of_one_call_keep_their_order(
    session: Session, kind: int, payload: Any
):
    """Also when it asks on without waiting, more than is kept of it."""
    session.state.keys |= {f"k{number:04}": b"v" for number in range(5000)}
    session.state.keys |= {f"k{number}": b"%d" % number for number in range(500)}
    await session.peer.send(kind, payload, txid="t1", channel="dev")
    for number in range(500):
        get = shim.GetState(key=f"k{number}")
        await session.peer.send(Kind.GET_STATE, get, txid="t1", channel="dev")
    assert (await session.peer.receive()).type == Kind.RESPONSE
    replies = [(await session.peer.receive()).payload for _ in range(500)]
    assert replies == [b"%d" % number for number in range(500)]
    await session.finish()


async def test_a_long_request_of_a_stream_that_ends_ends_too(session: Session):
    session.state.keys |= {f"k{number:04}": b"v" for number in range(5000)}
    for _ in range(3):
        await session.peer.send(*LONG[0], txid="t1", channel="dev")
    await session.peer.leave()
    await asyncio.gather(session.call, return_exceptions=True)
    assert all(rows.closed for rows in session.simulator.queries)


async def test_requests_that_waited_give_way_to_others_after_some_ms(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("chaindock.chaincode.answers.TURN_S", 0.0)
    calls = Calls(StreamOptions(), lambda *_: None)
    invoked = invocation("f", tx_id="t1", state=MemoryState({"k": b"v"}))
    call = Call(invoked, 5.0, calls.budget, calls.running)
    call.sent, turns, seen = True, 0, set()
    calls._calls[call.key] = call

    class Stream:
        def write_now(self, _message: bytes) -> bool:
            seen.add(turns)
            return True

    outbox = Outbox(Stream(), calls.budget)  # type: ignore[arg-type]
    async with Tasks("test") as tasks:
        calls.begin(outbox, tasks)
        _ = tasks.start(outbox.run(), "send")
        many = shim.GetStateMultiple(keys=["k"] * 600)
        for kind, request in [(Kind.GET_STATE_MULTIPLE, many)] + 50 * [
            (Kind.GET_STATE, shim.GetState(key="k"))
        ]:
            payload = request.SerializeToString()
            asked = Kind(type=kind, payload=payload, txid="t1", channel_id="dev")
            assert calls.answers.take_request(asked) is None
        while call.worker is not None:
            turns += 1
            await asyncio.sleep(0)
    assert len(seen) > 20


async def test_a_large_value_gives_way_to_others_before_its_reply_is_made():
    value = b"x" * (STEP_BYTES + 1)
    calls = Calls(StreamOptions(), lambda *_: None)
    invoked = invocation("f", tx_id="t1", state=MemoryState({"k": value}))
    call = Call(invoked, 5.0, calls.budget, calls.running)
    payload = shim.GetState(key="k").SerializeToString()
    asked = Kind(type=Kind.GET_STATE, payload=payload, txid="t1", channel_id="dev")
    serving = serve(call, asked, StreamOptions(), "basic", calls.budget)
    assert next(serving) is None
    with pytest.raises(StopIteration) as done:
        next(serving)
    assert Kind.FromString(serialized(done.value.value[0])).payload == value


async def test_a_query_that_takes_long_to_parse_is_parsed_beside_the_loop(
    endorsing: EndorsingNode, monkeypatch: pytest.MonkeyPatch
):
    """To compile one pattern takes up to 0.5 s, and a query may have 1,000 of them."""
    loop, on_loop = threading.get_ident(), list[bool]()

    def noted(text: str, bookmark: str) -> Any:
        on_loop.append(threading.get_ident() == loop)
        return parse_query(text, bookmark)

    monkeypatch.setattr(queries, "parse_query", noted)
    peer = await endorsing.chaincode("a")
    user = endorsing.org.user("User1")
    put = asyncio.ensure_future(endorsing.caller.invoke("a", [b"put"], signer=user))
    to = await peer.receive()
    await peer.ask(to, Kind.PUT_STATE, shim.PutState(key="k", value=b'{"t":"xay"}'))
    await peer.complete(to)
    await put
    call = endorsing.propose("a", b"f")
    to = await peer.receive()

    async def found(selector: str) -> bytes:
        asked = shim.GetQueryResult(query='{"selector":' + selector + "}")
        reply = await peer.ask(to, Kind.GET_QUERY_RESULT, asked)
        if reply.type == Kind.ERROR:
            return bytes(reply.payload)
        rows = shim.QueryResponse.FromString(reply.payload).results
        return b" ".join(KV.FromString(row.resultBytes).key.encode() for row in rows)

    assert await found('{"t":"xay"}') == b"k"
    assert on_loop == [True]
    slow = '{"t":{"$regex":"x[a-z]*"}}', '{"t":{"$\\u0072egex":"y$"}}'
    wide = ",".join(f'{{"t":"x{number}"}}' for number in range(300))
    for selector in (*slow, '{"$or":[' + wide + ',{"t":"xay"}]}'):
        assert await found(selector) == b"k"
    refused = await found('{"t":{"$regex":"("}}')
    assert b"Bad argument for operator $regex" in refused
    assert on_loop == [True, False, False, False, False]
    await peer.complete(to)
    await call


@pytest.mark.parametrize("paged", [False, True])
async def test_no_large_document_is_waited_for_on_the_event_loop(
    tmp_path: Path, paged, monkeypatch
):
    """Between two batches, too, and two steps of a page."""
    threads: list[int] = []

    def apart(work: Any, *args: Any) -> Any:
        threads.append(threading.get_ident())
        return work(*args)

    monkeypatch.setattr(scan, "apart", apart)
    value = b'{"v": "%s"}' % (b"x" * 600_000)
    async with ledger_at(tmp_path) as ledger, StreamNode() as node:
        await commit(ledger, rwset(writes=dict.fromkeys("abcde", value)))
        peer = await node.ready()
        with ledger.new_simulator(TxId("t1")) as simulator:
            invoked = invocation("f", tx_id="t1")
            call = node.call(replace(invoked, namespace="cc", simulator=simulator))
            message = await peer.receive()
            paging = shim.QueryMetadata(pageSize=5) if paged else shim.QueryMetadata()
            asked: Any = shim.GetQueryResult(
                query='{"selector": {}}', metadata=paging.SerializeToString()
            )
            kind, more, found = Kind.GET_QUERY_RESULT, True, list[Any]()
            while more:
                reply = await peer.ask(message, kind, asked)
                found.append(shim.QueryResponse.FromString(reply.payload))
                asked = shim.QueryStateNext(id=found[-1].id)
                kind, more = Kind.QUERY_STATE_NEXT, found[-1].has_more
            await peer.complete(message)
            await call
    rows = [row for answer in found for row in answer.results]
    assert [KV.FromString(row.resultBytes).key for row in rows] == list("abcde")
    assert len(threads) == 5
    assert threading.get_ident() not in threads
