"""The one thread that writes to the ledger.

Owns:    the queue of jobs; handing each outcome back to the event loop.
Not:     what the jobs do (committer.py).
Entry:   WriterThread
Holds:   jobs run one at a time in the order they were submitted; a job that was
         submitted runs even if nobody waits for it any more.
Source:  architecture.md "Choices already made"
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_log = get_logger("ledger")


class WriterThread:
    """Runs blocking jobs in order. Create it on the event loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stopping = False
        self._stopped = asyncio.Event()
        # A daemon, so that a program that ends without closing the ledger can end:
        # commits that were acknowledged are on disk.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(
        self,
        job: Callable[[], T],
        on_result: Callable[[T], None] | None = None,
        then: Callable[[], None] | None = None,
    ) -> asyncio.Future[T]:
        """Queue `job`; its outcome settles the future on the event loop.

        Args:
            job: called on the thread.
            on_result: called on the loop just before the future is settled, also when
                the waiter was cancelled.
            then: called on the thread after a success was handed back; must not raise.
        """
        future: asyncio.Future[T] = self._loop.create_future()

        def succeed(result: T) -> None:
            if on_result is not None:
                on_result(result)
            if not future.done():
                future.set_result(result)

        def fail(error: BaseException) -> None:
            if future.done():  # cancelled: nobody else would learn of it
                _log.error("ledger job failed", exc_info=error)
            else:
                future.set_exception(error)

        def run() -> None:
            try:
                result = job()
            except BaseException as error:  # noqa: BLE001  # raised where it is awaited
                self._post(fail, error)
            else:
                self._post(succeed, result)
                if then is not None:
                    then()

        self._jobs.put(run)
        return future

    def stop(self, last: Callable[[], None]) -> None:
        """Ask the thread to end after the queued jobs and then `last`."""
        if not self._stopping:
            self._stopping = True
            self._jobs.put(last)
            self._jobs.put(None)

    async def stopped(self) -> None:
        """Wait until the thread has ended."""
        await self._stopped.wait()
        self._thread.join()

    def _work(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        finally:
            self._post(self._stopped.set)

    def _post(self, call: Callable[..., Any], *args: Any) -> None:
        # The loop is closed when the program ends without closing the ledger.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)
