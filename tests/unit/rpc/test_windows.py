"""What each side may send ahead, and who comes next when there is room for some only."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from chaindock.identity.ca import TlsAuthority
from chaindock.rpc import frames
from chaindock.rpc.connection import CONNECTION_WINDOW
from chaindock.rpc.frames import Bundle
from chaindock.rpc.stream import STREAM_WINDOW
from chaindock.rpc.tls import client_context, server_context
from chaindock.values import KIB, MIB
from support.eventually import eventually
from support.rpc import raw as h
from support.rpc.calls import Calls
from support.rpc.raw import Raw, frame, message, request, setting, update

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from chaindock.rpc.frames import Buffer

PIECE = 16_384


async def content(raw: Raw, most: int) -> dict[int, int]:
    """Return how many bytes of content each stream gets until `most` are there."""
    found: dict[int, int] = {}
    while sum(found.values()) < most:
        _, _, stream, payload = await raw.until(h.DATA)
        found[stream] = found.get(stream, 0) + len(payload)
    return found


async def silent(raw: Raw) -> bool:
    """Whether no content comes before the answer to a ping."""
    raw.send(frame(h.PING, 0, 0, bytes(8)))
    return (await raw.until(h.PING, h.DATA))[0] == h.PING


def pieces(stream: int, size: int) -> Iterable[bytes]:
    for at in range(0, size, PIECE):
        yield frame(h.DATA, 0, stream, bytes(min(PIECE, size - at)))


# --- what the node sends --------------------------------------------------------------


async def test_nothing_is_sent_beyond_a_window(calls: Calls):
    """Of the stream, made smaller while it is used, and of the connection."""
    raw = await Raw.dial(calls.port, setting(4, 30_000))
    raw.send(request(1, "Pour", b"1 1000000"))
    assert await content(raw, 30_000) == {1: 30_000}
    assert await silent(raw)
    raw.send(setting(4, 10_000) + update(1, 20_000))  # back to nothing
    assert await silent(raw)
    raw.send(update(1, 5))
    assert await content(raw, 5) == {1: 5}
    raw.send(setting(4, 10_007))
    assert await content(raw, 7) == {1: 7}
    raw.send(update(1, MIB))
    assert await content(raw, 35_523) == {1: 35_523}  # 65,535 of the connection
    assert await silent(raw)
    raw.send(update(0, MIB))
    rest, trailers = await raw.answer(1)
    assert len(rest) == 1_000_005 - 65_535
    assert trailers == {"grpc-status": "0"}
    await raw.close()


@pytest.mark.parametrize("window", [700, PIECE, 65_535, 100_000])
async def test_messages_that_go_together_are_cut_where_a_window_ends(
    calls: Calls, window: int
):
    raw = await Raw.dial(calls.port, setting(4, window) + update(0, MIB))
    raw.send(request(1, "Pour", b"2 3000 40"))
    sent = message(bytes(3000)) * 80
    found = b""
    while len(found) < len(sent):
        _, _, _, payload = await raw.until(h.DATA)
        found += payload
        raw.send(update(1, len(payload)))
    assert found == sent
    await raw.close()


def test_calls_that_take_the_same_messages_in_parts_cost_what_they_take(
    monkeypatch: pytest.MonkeyPatch,
):
    """Two calls of one connection have different numbers, so their frames differ."""
    shared, content, framed = Bundle([bytes(3000)] * 40), frames.content, 0

    def counted(stream: int, data: Buffer) -> Iterator[Buffer]:
        nonlocal framed
        framed += len(data)
        return content(stream, data)

    monkeypatch.setattr(frames, "content", counted)
    for at in range(0, len(shared), KIB):
        for number in (1, 3):
            shared.frames(number, at, min(at + KIB, len(shared)))
    assert framed == 2 * len(shared)


async def test_a_client_that_reads_late_gets_all_of_it_through_tls():
    authority = TlsAuthority()
    pair = authority.issue_server()
    serving = server_context(pair.cert_pem, pair.key_pem, None)
    dialling = client_context(None, None, authority.root_pem)
    async with Calls(tls=lambda: serving) as calls:
        more = setting(4, 64 * MIB) + update(0, 64 * MIB)
        raw = await Raw.dial(
            calls.port, more + request(1, "Pour", b"40 3000 160"), dialling
        )
        await asyncio.sleep(0.1)
        found, _ = await raw.answer(1)
        assert found == message(bytes(3000)) * 160 * 40
        await raw.close()


async def test_a_call_goes_on_when_others_have_no_window_of_their_own(calls: Calls):
    raw = await Raw.dial(calls.port, update(0, 64 * MIB) + setting(4, 0))
    for number in (1, 3, 5):
        raw.send(request(number, "Pour", b"1 1000"))
    assert await silent(raw)
    raw.send(update(5, 2000))
    assert len((await raw.answer(5))[0]) == 1005
    raw.send(frame(h.RST, 0, 1, b"\0\0\0\x08") + update(3, 2000))
    assert len((await raw.answer(3))[0]) == 1005
    await raw.close()


async def test_calls_take_turns(calls: Calls):
    """One that sends much leaves room on the connection to those that began later."""
    raw = await Raw.dial(calls.port, setting(4, 2**31 - 1))
    raw.send(request(1, "Pour", b"100 1000000"))
    await content(raw, 65_535)
    for number in (3, 5):
        raw.send(request(number, "Pour", b"1 100000"))
    assert await silent(raw)
    shares: dict[int, int] = {}
    for _ in range(20):
        raw.send(update(0, 3 * PIECE))
        for stream, size in (await content(raw, 3 * PIECE)).items():
            shares[stream] = shares.get(stream, 0) + size
        if shares.get(3) == shares.get(5) == 100_005:
            break
    assert shares[1] <= 200_000
    await raw.close()


async def test_a_call_that_leaves_hands_its_turn_on(calls: Calls):
    raw = await Raw.dial(calls.port, setting(4, 2**31 - 1))
    raw.send(request(1, "Pour", b"100 1000000"))
    await content(raw, 65_535)
    for number in range(3, 23, 2):
        raw.send(request(number, "Pour", b"1 100000"))
    assert await silent(raw)
    gone = b"".join(frame(h.RST, 0, n, b"\0\0\0\x08") for n in range(1, 21, 2))
    raw.send(update(0, MIB) + gone)
    assert len((await raw.answer(21))[0]) == 100_005
    await raw.close()


async def test_windows_of_a_byte_end_the_connection(calls: Calls):
    raw = await Raw.dial(calls.port, request(1, "Pour", b"1 1000000"))
    await content(raw, 65_535)
    for _ in range(150):
        raw.send((update(0, 1) + update(1, 1)) * 10)
        await asyncio.sleep(0)
    assert await raw.fault() in {h.CALM, None}
    await raw.close()


@pytest.mark.parametrize(
    ("asked", "most"), [(b"2000 100000", 200 * KIB), (b"2000 10000 25", 450 * KIB)]
)
async def test_a_client_that_reads_nothing_costs_little(
    calls: Calls, asked: bytes, most: int
):
    raw = await Raw.dial(calls.port, update(0, 2**30) + setting(4, 2**30))
    raw.read_no_more()
    raw.send(request(1, "Pour", asked))
    (connection,) = calls.server._guests
    await eventually(lambda: connection.full)
    assert connection.transport.get_write_buffer_size() < most
    # It is not read either: it cannot make the node answer.
    raw.send(frame(h.PING, 0, 0, bytes(8)) * 1500)
    await asyncio.sleep(0.02)
    assert connection.transport.get_write_buffer_size() < most
    connection.close()
    await eventually(lambda: not calls.server._guests)
    await raw.close()


async def test_what_a_call_has_left_goes_if_nobody_takes_it(calls: Calls):
    raw = await Raw.dial(calls.port, update(0, 2**30) + setting(4, 2**30))
    raw.read_no_more()
    raw.send(request(1, "Pour", b"2000 10000 25"))
    (connection,) = calls.server._guests
    await eventually(lambda: connection.full)
    (stream,) = connection.streams.values()
    assert stream.task is not None
    stream.task.cancel()
    await eventually(lambda: not connection.streams)
    connection.look(time.monotonic() + 15)
    assert not connection._leaving
    for later_s in (25, 30):
        connection.look(time.monotonic() + later_s)
    await eventually(lambda: not calls.server._guests)
    await raw.close()


async def test_a_closed_connection_does_not_wait_for_a_client_that_reads_nothing(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("chaindock.rpc.connection._PONG_S", 0.05)
    raw = await Raw.dial(calls.port, update(0, 2**30) + setting(4, 2**30))
    raw.read_no_more()
    await eventually(lambda: calls.server._guests)
    (connection,) = calls.server._guests
    while not connection.transport.get_write_buffer_size():
        connection.send(frame(99, 0, 0, bytes(PIECE)))
    assert not connection.full
    connection.close()
    assert calls.server._guests
    await eventually(lambda: not calls.server._guests, 2)
    await raw.close()


# --- what the node takes --------------------------------------------------------------


@pytest.mark.parametrize("padded", [0, 200])
async def test_who_keeps_to_the_window_can_send_without_end(calls: Calls, padded: int):
    raw = await Raw.dial(calls.port, request(1, "Each"))
    raw.send(update(0, 2**30) + update(1, 2**30))
    window = {0: 65_535, 1: STREAM_WINDOW}
    body = message(bytes(3 * MIB))
    sent = got = 0
    while got < len(body):
        size = min(12_000, len(body) - sent)
        cost = size + padded + bool(padded)
        if size and min(window.values()) >= cost:
            piece = body[sent : sent + size]
            if padded:
                piece = bytes((padded,)) + piece + bytes(padded)
            raw.send(frame(h.DATA, h.PADDED if padded else 0, 1, piece))
            sent += size
            window = {key: value - cost for key, value in window.items()}
            continue
        kind, _, stream, payload = await raw.until(h.UPDATE, h.DATA)
        if kind == h.UPDATE:
            window[stream] += int.from_bytes(payload, "big")
            assert window[stream] <= (CONNECTION_WINDOW, STREAM_WINDOW)[stream]
        else:
            got += len(payload)
    await raw.close()


@pytest.mark.parametrize("streams", [1, 10])
async def test_who_sends_more_than_a_window_is_sent_away(calls: Calls, streams: int):
    """Nobody reads these: what the node holds is what the windows say."""
    numbers = range(1, 2 * streams, 2)
    raw = await Raw.dial(calls.port, b"".join(request(n, "Wait") for n in numbers))
    await eventually(lambda: calls.begun == streams)
    for number in numbers:
        for piece in pieces(number, STREAM_WINDOW):
            raw.send(piece)
    if streams == 1:
        assert await silent(raw)
        raw.send(frame(h.DATA, 0, 1, b"x"))
    assert await raw.fault() in {h.FLOW, None}
    await raw.close()


async def test_content_of_calls_that_are_over_gives_the_window_back(calls: Calls):
    raw = await Raw.dial(calls.port)
    for number in range(1, 41, 2):
        raw.send(request(number, "Rest") + frame(h.DATA, 0, number, message(b"")))
        for piece in pieces(number, MIB - PIECE):
            raw.send(piece)
        await raw.answer(number)
        for piece in pieces(number, PIECE):
            raw.send(piece)
        await raw.drain()
    await raw.close()


async def test_large_messages_are_held_once(calls: Calls):
    raw = await Raw.dial(calls.port, request(1, "Echo"))
    raw.send(update(0, 2**30) + update(1, 2**30))
    size = 30 * MIB
    tracemalloc.start()
    raw.send(frame(h.DATA, 0, 1, b"\0" + size.to_bytes(4, "big")))
    sent, window = 0, 65_530
    while sent < size - PIECE:
        if window >= PIECE:
            raw.send(frame(h.DATA, 0, 1, bytes(PIECE)))
            sent, window = sent + PIECE, window - PIECE
            continue
        _, _, stream, payload = await raw.until(h.UPDATE)
        window += 0 if stream else int.from_bytes(payload, "big")
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 2 < held < size * 1.3
    assert peak < size * 1.5
    await raw.close()
    await eventually(lambda: not calls.open)
    gc.collect()


async def test_a_client_that_ends_its_direction_and_reads_nothing_has_left(
    calls: Calls,
):
    raw = await Raw.dial(calls.port, update(0, 2**30) + setting(4, 2**30))
    raw.read_no_more()
    raw.send(request(1, "Pour", b"2000 10000") + request(3, "Wait", b""))
    await eventually(lambda: calls.begun)
    (connection,) = calls.server._guests
    raw._writer.write_eof()
    connection.transport.resume_reading()
    await eventually(lambda: not calls.server._guests, 2)
    assert calls.cancelled == 1
    await raw.close()
