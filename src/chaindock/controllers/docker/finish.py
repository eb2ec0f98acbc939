"""Calls that must not be left half-way.

Owns:    finish.
Not:     what is called.
Entry:   finish
Holds:   a cancelled caller leaves only when the engine has answered, so that what was
         made meanwhile is known and can be undone.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")


async def finish(
    work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[Any]] | None = None
) -> T:
    """Run `work` to its end even when the caller is cancelled meanwhile.

    Args:
        work: bounded in time by itself.
        undo: called with the result when the caller was cancelled.

    Cancelled: after `work` has ended and its result, if any, was undone.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _settled(task)
        if undo is not None and not task.cancelled() and task.exception() is None:
            await _settled(asyncio.ensure_future(undo(task.result())))
        raise


async def _settled(task: asyncio.Future[Any]) -> None:
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    if not task.cancelled():
        task.exception()
