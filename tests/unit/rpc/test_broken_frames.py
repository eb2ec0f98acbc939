"""Frames that break the rules of HTTP/2: what the other side sees, others are served on."""

from __future__ import annotations

import asyncio
import struct
import time
from typing import TYPE_CHECKING

import pytest

from support.eventually import eventually
from support.rpc import raw as h
from support.rpc.raw import Raw, frame, message, request, setting, update

if TYPE_CHECKING:
    from support.rpc.calls import Calls

BEGUN = request(1, "Wait")
LONG = frame(h.HEADERS, 0, 1, h.block("Echo"))
TABLE = b"\x3f\xe1\x7f"  # a table of 16,384 bytes, more than was offered
NUMBER = b"\x7f" + b"\xff" * 16_000
MANY = b"\x40\x01a\x7f\x80\x1f" + b"x" * 4095 + b"\xbe" * 12
"""A header of 4 KiB, which is in the table, a dozen times."""

BREAKS = {
    "another protocol": (b"GET / HTTP/1.1\r\n\r\n", h.PROTOCOL),
    "a large frame": (b"\0\x40\x01" + bytes(6), h.SIZE),
    "content before headers": (frame(h.DATA, 0, 1), h.PROTOCOL),
    "content of no stream": (frame(h.DATA, 0, 0, b"x"), h.PROTOCOL),
    "content after the end": (
        BEGUN + frame(h.DATA, h.END, 1) + frame(h.DATA, 0, 1, b"x"),
        h.CLOSED,
    ),
    "headers after the end": (
        BEGUN + frame(h.DATA, h.END, 1) + request(1, "Wait"),
        h.CLOSED,
    ),
    "headers amid a request": (BEGUN + BEGUN, h.PROTOCOL),
    "headers of no stream": (request(0, "Echo"), h.PROTOCOL),
    "an even stream": (request(2, "Echo"), h.PROTOCOL),
    "a promise": (frame(h.PUSH, h.END_HEADERS, 1, bytes(4)), h.PROTOCOL),
    "padding only": (BEGUN + frame(h.DATA, h.PADDED, 1, b"\x05xxxx"), h.PROTOCOL),
    "padding of nothing": (BEGUN + frame(h.DATA, h.PADDED, 1), h.PROTOCOL),
    "padded headers": (frame(h.HEADERS, h.PADDED, 1, b"\x09x"), h.PROTOCOL),
    "a continuation alone": (frame(h.MORE, 0, 1), h.PROTOCOL),
    "another continuation": (LONG + frame(h.MORE, 0, 3), h.PROTOCOL),
    "frames amid headers": (LONG + frame(h.PING, 0, 0, bytes(8)), h.PROTOCOL),
    "an unknown frame amid headers": (LONG + frame(77, 0, 0), h.PROTOCOL),
    "headers without end": (LONG + frame(h.MORE, 0, 1, b"\0" * 9000) * 2, h.CALM),
    "empty continuations": (LONG + frame(h.MORE, 0, 1) * 3000, h.CALM),
    "a table too large": (frame(h.HEADERS, 4, 1, TABLE), h.COMPRESSION),
    "an index of nothing": (frame(h.HEADERS, 4, 1, b"\xff\x7f"), h.COMPRESSION),
    "index 0": (frame(h.HEADERS, 4, 1, b"\x80"), h.COMPRESSION),
    "a number too large": (frame(h.HEADERS, 4, 1, NUMBER), h.COMPRESSION),
    "a text cut": (frame(h.HEADERS, 4, 1, b"\x40\x05ab"), h.COMPRESSION),
    "no UTF-8": (frame(h.HEADERS, 4, 1, b"\0\x02\xff\xfe\x01x"), h.COMPRESSION),
    "headers that grow": (frame(h.HEADERS, 4, 1, MANY), h.COMPRESSION),
    "a short reset": (BEGUN + frame(h.RST, 0, 1, b"x"), h.SIZE),
    "a reset of nothing": (frame(h.RST, 0, 1, bytes(4)), h.PROTOCOL),
    "a reset of no stream": (frame(h.RST, 0, 0, bytes(4)), h.PROTOCOL),
    "settings cut": (frame(h.SETTINGS, 0, 0, bytes(5)), h.SIZE),
    "a window too large": (setting(4, 1 << 31), h.FLOW),
    "a short ping": (frame(h.PING, 0, 0, b"x"), h.SIZE),
    "a short update": (frame(h.UPDATE, 0, 0, b"x"), h.SIZE),
    "updates too large": (update(0, 2**31 - 1) * 2, h.FLOW),
    "a stream's update too large": (BEGUN + update(1, 2**31 - 1) * 2, h.FLOW),
    "a flood of pings": (frame(h.PING, 0, 0, bytes(8)) * 3000, h.CALM),
    "a flood of settings": (frame(h.SETTINGS, 0, 0) * 3000, h.CALM),
    "a flood of updates": (update(0, 1) * 3000, h.CALM),
    "a flood of nothing": (BEGUN + frame(h.DATA, 0, 1) * 3000, h.CALM),
    "a flood of priorities": (frame(h.PRIORITY, 0, 1, bytes(5)) * 3000, h.CALM),
    "a flood of the unknown": (frame(99, 0, 0) * 3000, h.CALM),
    "calls begun and reset": (
        b"".join(
            request(n, "Wait") + frame(h.RST, 0, n, b"\0\0\0\x08")
            for n in range(1, 4001, 2)
        ),
        h.CALM,
    ),
    "large headers again and again": (
        b"".join(request(n, "Echo", None, ("x", "y" * 8000)) for n in range(1, 201, 2)),
        h.CALM,
    ),
}


async def serves_others(calls: Calls) -> None:
    other = await Raw.dial(calls.port, request(1, "Echo", b"hello"))
    content, trailers = await other.answer(1)
    assert content == message(b"hello")
    assert trailers == {"grpc-status": "0"}
    await other.close()


@pytest.mark.parametrize(("sent", "fault"), BREAKS.values(), ids=list(BREAKS))
async def test_a_broken_rule_ends_the_connection(calls: Calls, sent, fault):
    raw = await Raw.dial(calls.port)
    if sent.startswith(b"GET"):
        await raw.close()
        ends = await asyncio.open_connection("127.0.0.1", calls.port)
        raw = Raw(*ends)
    raw.send(sent)
    assert await raw.fault() == fault
    await raw.close()
    await eventually(lambda: not calls.open)
    await serves_others(calls)


IGNORED = {
    "unknown frames": frame(77, 255, 9, b"what"),
    "priorities": frame(h.PRIORITY, 0, 7, bytes(5)),
    "a setting unknown": setting(0x1234, 1),
    "a settings acknowledged": frame(h.SETTINGS, h.ACK, 0),
    "a pong unasked": frame(h.PING, h.ACK, 0, b"whatever"),
    "it goes": frame(h.GOAWAY, 0, 0, bytes(8)),
    "an update of an old stream": request(1, "Echo", b"") + update(1, 100),
    "a reset of an old stream": request(1, "Echo", b"") + frame(h.RST, 0, 1, bytes(4)),
    "the reserved bit of a stream": frame(h.UPDATE, 0, 1 << 31, b"\x80\0\0\x01"),
}


@pytest.mark.parametrize("sent", IGNORED.values(), ids=list(IGNORED))
async def test_what_says_nothing_is_passed_over(calls: Calls, sent):
    raw = await Raw.dial(calls.port, sent + request(3, "Echo", b"hello"))
    content, _ = await raw.answer(3)
    assert content == message(b"hello")
    await raw.close()


async def test_headers_may_come_in_pieces_with_padding_and_priority(calls: Calls):
    block = h.block("Echo", ("x", "y" * 5000))
    head = b"\x03" + bytes(5) + block[:100] + bytes(3)
    sent = frame(h.HEADERS, h.PADDED | h.PRIORITISED, 1, head)
    sent += frame(h.MORE, 0, 1, block[100:3000])
    sent += frame(h.MORE, h.END_HEADERS, 1, block[3000:])
    sent += frame(h.DATA, h.PADDED | h.END, 1, b"\x02" + message(b"hi") + bytes(2))
    raw = await Raw.dial(calls.port)
    for byte in range(0, len(sent), 7):
        raw.send(sent[byte : byte + 7])
        await asyncio.sleep(0)
    content, _ = await raw.answer(1)
    assert content == message(b"hi")
    assert len(calls.heard["x"]) == 5000
    await raw.close()


async def test_trailers_of_a_request_end_it(calls: Calls):
    sent = request(1, "Each") + frame(h.DATA, 0, 1, message(b"x"))
    raw = await Raw.dial(calls.port, sent + frame(h.HEADERS, 5, 1, b"\0\x01a\x01b"))
    content, trailers = await raw.answer(1)
    assert (content, trailers) == (message(b"x"), {"grpc-status": "0"})
    await raw.close()


async def test_every_block_of_headers_says_that_no_table_is_used(calls: Calls):
    """RFC 7541, 4.2: a reader that has made its table smaller waits for that."""
    raw = await Raw.dial(calls.port, setting(1, 0) + request(1, "Echo", b""))
    raw._decoder.max_allowed_table_size = 0
    raw._decoder.header_table_size = 4096
    _, trailers = await raw.answer(1)
    assert trailers == {"grpc-status": "0"}
    raw.send(request(3, "Nothing", b""))
    _, trailers = await raw.answer(3)
    assert trailers["grpc-status"] == "12"
    await raw.close()


async def test_calls_beyond_the_limit_are_refused_and_others_go_on(calls: Calls):
    sent = b"".join(request(n, "Wait") for n in range(1, 2001, 2))
    raw = await Raw.dial(calls.port, sent)
    await eventually(lambda: calls.begun == 1000)
    raw.send(request(2001, "Echo", b"x"))
    _, _, stream, fault = await raw.until(h.RST)
    assert (stream, fault) == (2001, b"\0\0\0\x07")
    raw.send(frame(h.RST, 0, 1, b"\0\0\0\x08") + request(2003, "Echo", b"x"))
    assert (await raw.answer(2003))[0] == message(b"x")
    await raw.close()
    await eventually(lambda: calls.cancelled == 1000)


async def test_pings_of_a_day_are_no_flood(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("chaindock.rpc.connection._IDLE_S", 0.05)
    raw = await Raw.dial(calls.port, BEGUN)
    for _ in range(3):
        raw.send(frame(h.PING, 0, 0, bytes(8)) * 900)
        for _ in range(900):
            await raw.until(h.PING)
        await asyncio.sleep(0.06)
    raw.send(request(3, "Echo", b"x"))
    assert (await raw.answer(3))[0] == message(b"x")
    await raw.close()


async def test_settings_are_no_work_however_many_calls_are_open(calls: Calls):
    sent = b"".join(request(n, "Wait") for n in range(1, 2001, 2))
    raw = await Raw.dial(calls.port, sent)
    await eventually(lambda: calls.begun == 1000)
    pairs = b"".join(struct.pack(">HI", 4, n) for n in range(2700))
    begun = time.process_time()
    raw.send(frame(h.SETTINGS, 0, 0, pairs) * 4 + request(2001, "Nothing"))
    await raw.until(h.RST, h.HEADERS)
    assert time.process_time() - begun < 0.5
    await raw.close()
