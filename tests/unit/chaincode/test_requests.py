"""What chaincode asks for while it runs a call, and what is not yet supported."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode import outbox, requests
from chaindock.errors import ExecuteTimeout
from support.doubles.memory_state import MemoryState, invocation
from support.shims.session import Session, record
from support.shims.stream_node import StreamNode

Kind = shim.ChaincodeMessage


@pytest.mark.statement(42)
async def test_get_state(session: Session):
    assert await session.ok(Kind.GET_STATE, shim.GetState(key="k")) == b"v"
    assert await session.ok(Kind.GET_STATE, shim.GetState(key="absent")) == b""
    assert session.simulator.reads == ["k", "absent"]
    await session.finish()


@pytest.mark.statement(43, 45)
async def test_put_and_del_state(session: Session):
    assert await session.ok(Kind.PUT_STATE, shim.PutState(key="a", value=b"1")) == b""
    assert await session.ok(Kind.PUT_STATE, shim.PutState(key="b")) == b""
    assert await session.ok(Kind.DEL_STATE, shim.DelState(key="absent")) == b""
    assert session.simulator.writes == {"a": b"1", "b": b"", "absent": b""}
    # The transaction does not see its own writes.
    assert await session.ok(Kind.GET_STATE, shim.GetState(key="a")) == b""
    await session.finish()


@pytest.mark.statement(39)
async def test_replies_carry_the_channel_of_their_request(node: StreamNode):
    peer = await node.ready()
    one, two = MemoryState({"k": b"1"}), MemoryState({"k": b"2"})
    calls = [
        node.call(invocation("f", tx_id="t1", channel="one", state=one)),
        node.call(invocation("f", tx_id="t1", channel="two", state=two)),
    ]
    for message in [await peer.receive(), await peer.receive()]:
        reply = await peer.ask(message, Kind.GET_STATE, shim.GetState(key="k"))
        assert reply.payload == {"one": b"1", "two": b"2"}[message.channel_id]
        await peer.complete(message)
    await asyncio.gather(*calls)


@pytest.mark.statement(40, 41)
async def test_thousands_of_requests_in_a_row_are_all_answered(listening: StreamNode):
    """The next request may come as soon as the reply is there."""
    session = await Session(listening, await listening.ready()).start()
    get = shim.GetState(key="k").SerializeToString()
    for _ in range(2000):
        assert await session.ok(Kind.GET_STATE, get) == b"v"
    await session.finish()


@pytest.mark.parametrize("kind", sorted(requests.REQUESTS))
@pytest.mark.statement(46)
async def test_every_request_with_broken_payload_gets_one_error(
    session: Session, kind: int
):
    cause = await session.error(kind, b"\xff\xff\xff")
    assert cause == "unmarshal failed: proto: cannot parse invalid wire-format data"
    if kind not in {Kind.WRITE_BATCH_STATE, Kind.INVOKE_CHAINCODE}:
        cause = await session.error(kind, b"\x0a\x03\xff\xfe\xff")
        assert cause == "unmarshal failed: string field contains invalid UTF-8"
    assert await session.ok(Kind.GET_STATE, shim.GetState(key="k")) == b"v"
    await session.finish()


@pytest.mark.parametrize("kind", sorted(requests.REQUESTS))
async def test_every_request_of_no_transaction_gets_an_error(
    session: Session, kind: int
):
    await session.peer.send(kind, txid="t2", channel="dev")
    reply = await session.peer.receive()
    name = Kind.Type.Name(kind)
    cause = "no ledger context"
    if kind == Kind.INVOKE_CHAINCODE:
        cause = "could not get valid transaction"
    text = f"{name} failed: transaction ID: t2: {cause}"
    assert (reply.type, reply.payload.decode()) == (Kind.ERROR, text)
    assert (reply.txid, reply.channel_id) == ("t2", "dev")
    await session.finish()


@pytest.mark.statement(47)
async def test_a_defect_gives_an_error_and_the_stream_lives(session: Session):
    put = shim.PutState(key="broken", value=b"v")
    assert await session.error(Kind.PUT_STATE, put) == "panic during execution"
    assert await session.ok(Kind.GET_STATE, shim.GetState(key="k")) == b"v"
    await session.finish()


async def test_the_words_of_the_ledger_arrive(session: Session):
    put = shim.PutState(key="forbidden", value=b"v")
    cause = await session.error(Kind.PUT_STATE, put)
    assert cause == "txid [t]: unsuppored transaction"
    session.simulator.done()
    cause = await session.error(Kind.GET_STATE, shim.GetState(key="k"))
    assert cause == "this instance should not be used after calling Done()"
    await session.finish()


@pytest.mark.statement(48)
async def test_get_state_multiple_keeps_the_order(session: Session):
    keys = ["k2", "absent", "k"] * 40
    payload = await session.ok(
        Kind.GET_STATE_MULTIPLE, shim.GetStateMultiple(keys=keys)
    )
    values = list(shim.GetStateMultipleResult.FromString(payload).values)
    assert values == [b"v2", b"", b"v"] * 40
    await session.finish()


@pytest.mark.statement(49)
async def test_more_keys_and_records_than_were_announced(session: Session):
    """Fabric has no bound; the node has that of the largest message it does not count."""
    get = shim.GetStateMultiple(keys=["k"] * 1001)
    payload = await session.ok(Kind.GET_STATE_MULTIPLE, get)
    assert len(shim.GetStateMultipleResult.FromString(payload).values) == 1001
    get = shim.GetStateMultiple(keys=[""] * 32_769)
    told = await session.error(Kind.GET_STATE_MULTIPLE, get)
    assert told == "32769 keys in one message, more than the limit of 32768"
    put = record(shim.WriteRecord.PUT_STATE, "k", b"v")
    await session.ok(Kind.WRITE_BATCH_STATE, shim.WriteBatchState(rec=[put] * 1001))
    session.simulator.writes.clear()
    batch = shim.WriteBatchState(rec=[put] * 32_769)
    told = await session.error(Kind.WRITE_BATCH_STATE, batch)
    assert told == "more than 32768 records in one message"
    assert session.simulator.writes == {}
    await session.finish()


@pytest.mark.statement(50)
async def test_a_write_batch_is_applied_in_order(session: Session):
    put, delete = shim.WriteRecord.PUT_STATE, shim.WriteRecord.DEL_STATE
    batch = [record(put, "a", b"1"), record(delete, "a"), record(put, "b", b"2")]
    await session.ok(Kind.WRITE_BATCH_STATE, shim.WriteBatchState(rec=batch))
    assert session.simulator.writes == {"a": b"", "b": b"2"}
    await session.finish()


@pytest.mark.statement(51)
async def test_a_failing_record_leaves_the_earlier_ones(session: Session):
    put = shim.WriteRecord.PUT_STATE
    batch = [record(put, "a", b"1"), record(0, "b", b"2"), record(put, "c", b"3")]
    cause = await session.error(Kind.WRITE_BATCH_STATE, shim.WriteBatchState(rec=batch))
    assert cause == "unknown operation type"
    assert session.simulator.writes == {"a": b"1"}
    await session.finish()


async def test_a_batch_of_thousands(session: Session):
    put = shim.WriteRecord.PUT_STATE
    batch = [record(put, f"k{number}", b"v" * 100) for number in range(1000)]
    await session.ok(Kind.WRITE_BATCH_STATE, shim.WriteBatchState(rec=batch))
    assert len(session.simulator.writes) == 1000
    await session.finish()


PURGE = shim.WriteRecord.PURGE_PRIVATE_DATA
REFUSED: list[tuple[int, Any, str]] = [
    (
        Kind.PURGE_PRIVATE_DATA,
        shim.DelState(key="k"),
        "only applicable for private data",
    ),
    (
        Kind.WRITE_BATCH_STATE,
        shim.WriteBatchState(rec=[record(PURGE, "k")]),
        "only applicable for private data",
    ),
    (Kind.PUT_STATE_METADATA, shim.PutStateMetadata(key="k"), "panic during execution"),
]


@pytest.mark.parametrize(("kind", "payload", "cause"), REFUSED)
@pytest.mark.statement(54)
async def test_what_is_refused(
    listening: StreamNode, kind: int, payload: Any, cause: str
):
    session = await Session(listening, await listening.ready()).start()
    assert await session.error(kind, payload) == cause
    await session.finish()


ENTRY = shim.StateMetadata(metakey="VALIDATION_PARAMETER", value=b"v")
PRIVATE: list[tuple[int, Any]] = [
    (Kind.GET_STATE, shim.GetState(key="k", collection="c")),
    (Kind.PUT_STATE, shim.PutState(key="k", collection="c")),
    (Kind.DEL_STATE, shim.DelState(key="k", collection="c")),
    (Kind.GET_STATE_MULTIPLE, shim.GetStateMultiple(keys=["k"], collection="c")),
    (Kind.GET_STATE_BY_RANGE, shim.GetStateByRange(collection="c")),
    (Kind.GET_QUERY_RESULT, shim.GetQueryResult(query="{}", collection="c")),
    (Kind.GET_PRIVATE_DATA_HASH, shim.GetState(key="k", collection="c")),
    (Kind.PURGE_PRIVATE_DATA, shim.DelState(key="k", collection="c")),
    (Kind.GET_STATE_METADATA, shim.GetStateMetadata(key="k", collection="c")),
    (
        Kind.PUT_STATE_METADATA,
        shim.PutStateMetadata(key="k", collection="c", metadata=ENTRY),
    ),
    (
        Kind.WRITE_BATCH_STATE,
        shim.WriteBatchState(rec=[record(PURGE, "k", collection="c")]),
    ),
]


@pytest.mark.parametrize(("kind", "payload"), PRIVATE)
@pytest.mark.statement(58)
async def test_init_may_not_touch_private_data(
    listening: StreamNode, kind: int, payload: Any
):
    session = await Session(listening, await listening.ready()).start(is_init=True)
    cause = await session.error(kind, payload)
    assert cause == "private data APIs are not allowed in chaincode Init()"
    await session.finish()


# --- hostile chaincode --------------------------------------------------------------


async def test_who_does_not_read_is_not_read(
    listening: StreamNode, monkeypatch: pytest.MonkeyPatch
):
    """Replies that nobody takes do not pile up in the node."""
    monkeypatch.setattr(outbox, "WAITING_MESSAGES", 8)
    session = await Session(listening, await listening.ready()).start()
    session.state.keys["large"] = b"x" * 300_000
    get = shim.GetState(key="large").SerializeToString()

    async def flood() -> None:
        for _ in range(100):
            await session.peer.send(Kind.GET_STATE, get, txid="t1", channel="dev")

    async with asyncio.TaskGroup() as group:
        group.create_task(flood())
        await asyncio.sleep(0.3)
        assert len(session.simulator.reads) < 60
        for _ in range(100):
            assert len((await session.peer.receive()).payload) == 300_000
    await session.finish()


async def test_a_flooded_stream_can_end(
    listening: StreamNode, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox, "WAITING_MESSAGES", 2)
    session = await Session(listening, await listening.ready()).start()
    session.state.keys["large"] = b"x" * 1_000_000
    get = shim.GetState(key="large").SerializeToString()
    for _ in range(20):
        await session.peer.send(Kind.GET_STATE, get, txid="t1", channel="dev")
    await session.peer.leave()
    await asyncio.gather(session.call, return_exceptions=True)


async def test_a_result_that_is_too_large_is_an_error():
    async with StreamNode(max_message_bytes=100_000) as node:
        session = await Session(node, await node.ready()).start()
        session.state.keys["large"] = b"x" * 60_000
        get = shim.GetStateMultiple(keys=["large"] * 3)
        assert "ask for fewer" in await session.error(Kind.GET_STATE_MULTIPLE, get)
        session.state.keys["large"] = b"x" * 99_000
        cause = await session.error(Kind.GET_STATE, shim.GetState(key="large"))
        assert cause == "result of 99000 bytes is too large to be sent"
        await session.finish()


async def test_long_work_ends_with_its_transaction():
    async with StreamNode(max_size_get_multiple_keys=300_000) as node:
        peer = await node.ready()
        call = node.call(invocation("f", tx_id="t1"), 0.2)
        message = await peer.receive()
        get = shim.GetStateMultiple(keys=["k"] * 300_000).SerializeToString()
        reply = await peer.ask(message, Kind.GET_STATE_MULTIPLE, get)
        assert reply.payload.endswith(b"no ledger context")
        with pytest.raises(ExecuteTimeout):
            await call


async def test_what_is_not_supported_is_kept_with_the_call(session: Session):
    request = shim.GetQueryResult(query="unsupported")
    told = await session.error(Kind.GET_QUERY_RESULT, request)
    await session.error(Kind.GET_QUERY_RESULT, request)
    await session.error(Kind.GET_STATE, b"\xff")
    for number in range(20):
        session.invoked.refuse(f"too much: {number}")
    await session.finish()
    refusals = session.invoked.refusals
    assert refusals[0] == told
    assert len(refusals) == len(set(refusals)) == 10
