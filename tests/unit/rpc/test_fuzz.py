"""Frames at random, and good ones that were damaged: nothing breaks, nothing is left."""

from __future__ import annotations

import asyncio
import random
import time
import tracemalloc
from typing import TYPE_CHECKING

from chaindock.rpc.connection import CONNECTION_WINDOW
from chaindock.values import MIB
from support.eventually import eventually
from support.rpc import raw as h
from support.rpc.raw import Raw, frame, message, request, setting, update

if TYPE_CHECKING:
    from support.rpc.calls import Calls

SECONDS, AT_ONCE = 1.5, 20
METHODS = ("Echo", "Each", "Pour", "Fail", "Break", "Wait", "Rest", "Other")


def good(draw: random.Random, number: int) -> bytes:
    """Return frames of a call that may be right, if what came before was."""
    method = draw.choice(METHODS)
    body = message(b"%d %d" % (draw.randrange(9), draw.choice((0, 9, 9999, 99999))))
    kinds = (
        lambda: request(number, method, body[5:]),
        lambda: request(number, method),
        lambda: request(number, method, None, ("grpc-timeout", "1m")),
        lambda: frame(h.DATA, draw.choice((0, 0, h.END)), number, body),
        lambda: frame(h.DATA, 0, number, bytes((0, 0, draw.choice((0, 1, 9)), 0, 9))),
        lambda: frame(h.DATA, 0, number, draw.randbytes(draw.choice((1, 999, 16384)))),
        lambda: frame(h.RST, 0, number, bytes(3) + bytes((draw.randrange(14),))),
        lambda: update(draw.choice((0, number)), draw.choice((1, 65_535, 2**30))),
        lambda: setting(draw.randrange(8), draw.choice((0, 1, 65_535, 2**31 - 1))),
        lambda: frame(h.PING, draw.randrange(2), 0, draw.randbytes(8)),
        lambda: frame(h.GOAWAY, 0, 0, bytes(8)),
        lambda: frame(
            draw.randrange(12),
            draw.randrange(256),
            draw.choice((0, number, 77)),
            draw.randbytes(draw.choice((0, 4, 5, 8, 40))),
        ),
    )
    return draw.choice(kinds)()


def damaged(draw: random.Random, sent: bytes) -> bytes:
    bad = bytearray(sent)
    for _ in range(draw.choice((0, 0, 0, 1, 3))):
        at = draw.randrange(len(bad))
        if draw.random() < 0.7:
            bad[at] ^= 1 << draw.randrange(8)
        else:
            bad[at:at] = draw.randbytes(draw.randrange(9))
    return bytes(bad)


async def torment(draw: random.Random, calls: Calls) -> None:
    raw = await Raw.dial(calls.port)
    if draw.random() < 0.3:
        raw._reader._transport.pause_reading()  # type: ignore[attr-defined]
    for number in range(1, draw.randrange(2, 60), 2):
        for _ in range(draw.randrange(5)):
            raw.send(damaged(draw, good(draw, draw.choice((1, number)))))
        if draw.random() < 0.3:
            await asyncio.sleep(0)
    if draw.random() < 0.5:
        raw._writer.transport.abort()
    await raw.close()


async def test_frames_at_random(calls: Calls):
    """The fixture looks for tasks, connections and errors of callbacks that are left."""
    draw = random.Random(20)
    await torment(draw, calls)
    tracemalloc.start()
    end, tries = time.monotonic() + SECONDS, 0
    while time.monotonic() < end:
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(torment(draw, calls))
        tries += AT_ONCE
    await eventually(lambda: not calls.server._guests, 5)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4 * MIB
    assert peak < AT_ONCE * CONNECTION_WINDOW
    assert tries >= AT_ONCE
    raw = await Raw.dial(calls.port, request(1, "Echo", b"on"))
    assert (await raw.answer(1))[0] == message(b"on")
    await raw.close()
