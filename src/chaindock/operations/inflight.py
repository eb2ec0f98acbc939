"""The requests that run now, and how they end when the server stops.

Every client gets an answer: the result, or that the node is going down.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from chaindock.errors import NodeStopping

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class Inflight:
    """The running requests of one server.

    Args:
        close_s: seconds that running requests get when the server stops.
    """

    def __init__(self, close_s: float) -> None:
        self._close_s = close_s
        self.closing = False
        """Whether the server stops."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns.

        Raises: what `work` raises; NodeStopping if it was cancelled, or not begun,
            because the server stops.
        Cancelled: `work` is cancelled and has ended.
        """
        if self.closing:
            work.close()
            raise NodeStopping("the node is stopping", hint=_START)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            # Was this task cancelled, because its client left, or only the work?
            own = asyncio.current_task()
            client_left = own is not None and own.cancelling() > 0
            if client_left or not task.cancelled() or not self.closing:
                raise
            raise NodeStopping(
                f"the node is stopping: the request was cancelled after "
                f"{self._close_s:g} s",
                hint=f"{_START}; look at the ledger before you submit a transaction again",
            ) from None

    async def close(self) -> None:
        """Refuse new requests, wait `close_s` for running ones, then cancel these."""
        self.closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._close_s)
        for task in tuple(self._tasks):
            task.cancel()


_START = "start it again: chaindock up"
