"""What is being done for clients, and how it ends when the server does.

Owns:    the work under way; who may finish, who is told that the node goes down.
Not:     requests and answers (admin.py, stream.py).
Entry:   Inflight
Holds:   nobody who waits for an answer is cut off without one.
Source:  ADR-0001
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from chaindock.errors import NodeStopping

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class Inflight:
    """The work of one server.

    Args:
        close_s: how long work may go on once the server ends.
    """

    def __init__(self, close_s: float) -> None:
        self._close_s = close_s
        self.closing = False
        """Whether the server ends."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns.

        Raises: what it raises; NodeStopping when it was given up, or not begun, because
            the server ends.
        Cancelled: `work` is cancelled and has ended.
        """
        if self.closing:
            work.close()
            raise NodeStopping("the node is going down", hint=_START)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            # Who was cancelled: this one, whose client left, or only the work?
            own = asyncio.current_task()
            left = own is not None and own.cancelling() > 0
            if left or not task.cancelled() or not self.closing:
                raise
            raise NodeStopping(
                f"the node is going down: the request was given up after "
                f"{self._close_s:g} s",
                hint=f"{_START}; look at the ledger before you submit a transaction again",
            ) from None

    async def close(self) -> None:
        """Begin nothing more, let what is under way finish for a while, then end it."""
        self.closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._close_s)
        for task in tuple(self._tasks):
            task.cancel()


_START = "start it again: chaindock up"
