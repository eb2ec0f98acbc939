from __future__ import annotations

import asyncio

import pytest

from chaindock.aio import finish


async def test_the_result_is_returned():
    async def work() -> int:
        return 7

    assert await finish(work()) == 7


async def test_a_cancelled_caller_leaves_after_the_result_was_undone():
    go, order = asyncio.Event(), []

    async def work() -> str:
        await go.wait()
        order.append("made")
        return "thing"

    async def undo(thing: str) -> None:
        await asyncio.sleep(0)
        order.append(f"removed {thing}")

    caller = asyncio.ensure_future(finish(work(), undo))
    await asyncio.sleep(0)
    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert order == ["made", "removed thing"]


async def test_an_error_after_the_cancellation_is_not_lost_track_of():
    go = asyncio.Event()

    async def work() -> None:
        await go.wait()
        raise ValueError

    caller = asyncio.ensure_future(finish(work()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
