"""Small asyncio tools that the whole system shares.

No task is ever started and forgotten: its error is logged or raised.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from weakref import WeakValueDictionary

from chaindock.structured import structlog

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Coroutine

T = TypeVar("T")
K = TypeVar("K")
LARGE_BYTES: Final = 64 * 1024
_large: Final = ThreadPoolExecutor(2, "large")
_log = structlog.get_logger("aio")


async def off_loop(nbytes: int, work: Callable[[], T]) -> T:
    """Return what `work` returns; work on more than 64 KiB is done in one of two threads.

    As much in short keys is 15 ms of work.

    Cancelled: the work finishes on its thread.
    """
    if nbytes <= LARGE_BYTES:
        return work()
    once = [work]
    del work

    def do() -> T:
        return once.pop()()  # or the thread would keep what the work needed for a while

    return await asyncio.get_running_loop().run_in_executor(_large, do)


class Latch(Generic[T]):
    """One outcome for any number of waiters; the first `settle` or `fail` wins."""

    def __init__(self) -> None:
        self._done = asyncio.Event()
        self._value: T | None = None
        self._error: BaseException | None = None

    @property
    def settled(self) -> bool:
        """Whether there is an outcome."""
        return self._done.is_set()

    @property
    def value(self) -> T | None:
        """What it was settled with; None before that."""
        return self._value

    def settle(self, value: T | None, error: BaseException | None = None) -> bool:
        """Set the value, or the error if given; False if an outcome existed already."""
        if self._done.is_set():
            return False
        self._value, self._error = value, error
        self._done.set()
        return True

    def fail(self, error: BaseException) -> bool:
        """Set the error that every waiter gets; False if an outcome existed already."""
        return self.settle(None, error)

    async def wait(self) -> T:
        """Return the value or raise the error."""
        await self._done.wait()
        if self._error is not None:
            # A copy: one object raised to many waiters collects all their tracebacks.
            raise copy.copy(self._error) from self._error.__cause__
        return self._value  # type: ignore[return-value]  # set before the event


class Waiters(Generic[K, T]):
    """Waiters for outcomes that have keys; a waiter that is cancelled is forgotten.

    An outcome costs what its own waiters cost, however many wait for others.
    """

    def __init__(self) -> None:
        self._waiting: dict[K, set[asyncio.Future[T]]] = {}

    async def wait(self, key: K) -> T:
        """Return the next outcome of `key`. Raises: what `fail` is given."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, set()).add(outcome)
        try:
            return await outcome
        finally:
            others = self._waiting.get(key, set())
            others.discard(outcome)
            if not others:
                self._waiting.pop(key, None)

    def settle(self, key: K, value: T, step: int = sys.maxsize) -> int:
        """Give everybody who waits for `key` this outcome; return how many they are.

        `step`: so many in a turn of the event loop.
        """
        waiting = self._waiting.pop(key, set())
        count = len(waiting)
        self._give(waiting, value, step)
        return count

    def _give(self, waiting: set[asyncio.Future[T]], value: T, step: int) -> None:
        for _ in range(min(step, len(waiting))):
            outcome = waiting.pop()
            if not outcome.done():
                outcome.set_result(value)
        if waiting:
            asyncio.get_running_loop().call_soon(self._give, waiting, value, step)

    def fail(
        self,
        error: Callable[[], BaseException],
        chosen: Callable[[K], bool] | None = None,
    ) -> None:
        """Give an error of its own to everybody who waits for a chosen key; None = any."""
        for key in [key for key in self._waiting if chosen is None or chosen(key)]:
            for outcome in self._waiting.pop(key):
                if not outcome.done():
                    outcome.set_exception(error())

    def __contains__(self, key: K) -> bool:
        """Whether somebody waits for `key`."""
        return key in self._waiting

    def __len__(self) -> int:
        """Return for how many keys somebody waits."""
        return len(self._waiting)


class Backoff:
    """Delays that double, with jitter: `first_s`, 2x, 4x … up to `cap_s`."""

    def __init__(self, first_s: float, cap_s: float) -> None:
        self._first_s, self._cap_s, self._failures = first_s, cap_s, 0

    def next_s(self) -> float:
        """Return how long to wait before the next try, in seconds."""
        delay: float = min(self._cap_s, self._first_s * 2 ** min(self._failures, 64))
        self._failures += 1
        return delay * random.uniform(0.8, 1.2)  # noqa: S311  # spread, not secrecy

    def reset(self) -> None:
        """Start again with `first_s`."""
        self._failures = 0


class Tasks(contextlib.AbstractAsyncContextManager["Tasks"]):
    """Background work owned by one object: cancelled and awaited when it leaves.

    An error of a task is logged with its name; it never ends the others.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` until it ends or this object is left."""
        task = asyncio.get_running_loop().create_task(
            work, name=f"{self._owner}:{name}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("task failed", task=task.get_name(), exc_info=error)

    async def aclose(self) -> None:
        """Cancel what still runs and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class KeyedLocks(Generic[T]):
    """One lock per key, which exists as long as somebody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[T, asyncio.Lock] = WeakValueDictionary()

    def hold(self, key: T) -> asyncio.Lock:
        """Return the lock of `key`, for `async with`."""
        return self._locks.setdefault(key, asyncio.Lock())


async def finish(
    work: Coroutine[Any, Any, T], undo: Callable[[T], Awaitable[Any]] | None = None
) -> T:
    """Run `work` to its end even when the caller is cancelled meanwhile.

    `work` is bounded in time by itself; `undo` gets its result if the caller was
    cancelled.

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


async def first(**waits: Awaitable[Any]) -> tuple[str, Any]:
    """Return the name and result of the wait that ends first; cancel the others.

    Raises: what that wait raises. Of several that end at once, the earlier argument
        counts.
    Cancelled: all waits are.
    """
    outcome: Latch[tuple[str, Any]] = Latch()

    async def race(name: str, wait: Awaitable[Any]) -> None:
        try:
            outcome.settle((name, await wait))
        except Exception as error:  # noqa: BLE001  # raised by whoever waits
            outcome.fail(error)

    async with Tasks("race") as tasks:
        for name, wait in waits.items():
            _ = tasks.start(race(name, wait), name)
        return await outcome.wait()


async def readable(channel: socket.socket) -> None:
    """Return when something can be read from a socket, or a connection be accepted."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(channel, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(channel)


async def run_program(
    *words: str, text: bytes, limit_s: float, **how: Any
) -> tuple[int, bytes, bytes]:
    """Run a program to its end; return its exit code, its output and its errors.

    `text` is its input; `how` is for `create_subprocess_exec` (`stderr` too).

    Raises: OSError when it cannot be run; TimeoutError, when it was killed.
    """
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *words, stdin=pipe, stdout=pipe, **{"stderr": pipe, **how}
    )
    try:
        async with asyncio.timeout(limit_s):
            out, said = await child.communicate(text)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return child.returncode or 0, out, said or b""
