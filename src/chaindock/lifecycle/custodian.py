"""The chores: bring chaincodes up, take them down, keep up those that should be.

Owns:    order of chores, how many run side by side, retries with growing pauses.
Not:     how a launch goes (chaincode.RuntimeLauncher), what should run (desired.py).
Entry:   Custodian
Holds:   chores of one ccid run in order and never at once; equal waiting ones are one;
         a hanging chore delays no other ccid; after `aclose` none starts or runs.
Source:  launch.md §5.6, §9 W1-W6, W19; needs.md rows 20, 28, 29
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Self

from chaindock.aio import Backoff, Latch, Tasks
from chaindock.errors import ChaindockError, EngineTimeout, NodeError, StartFailed
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from chaindock.container.attempt import Attempt
    from chaindock.ids import Ccid

_log = get_logger("custodian")


class Runtime(Protocol):
    """Brings one chaincode up or down; chaincode.RuntimeLauncher is one."""

    async def launch(self, ccid: Ccid, attempt: Attempt | None = None) -> None:
        """Build if needed, start, and wait until it is ready. Harmless when it is.

        Raises: LaunchFailed and others. Cancelled: it goes on until `stop`.
        """

    async def stop(self, ccid: Ccid, grace_s: float) -> None:
        """End its run, and a launch under way. Idempotent.

        Invocations under way may finish within `grace_s` seconds.
        """

    async def forget(self, ccid: Ccid, grace_s: float) -> None:
        """Stop it, and drop what was remembered of its build. Idempotent."""


@dataclass(frozen=True)
class CustodianOptions:
    """How chores run.

    Args:
        parallel: launches side by side; 0 = processors + 2.
        patience_s: a launch older than this no longer counts against `parallel`.
        stop_grace_s: between asking a chaincode to end and killing it.
        stop_limit_s: a stop that takes longer, beyond the grace, is given up.
        retry_first_s, retry_cap_s: pause before a failed launch is tried again; it
            doubles from the first to the cap.
        retries: in a row; after that the next call or `start` launches it.
        stable_s: a run that lasted this long makes the count begin again.
    """

    parallel: int = 0
    patience_s: float = 30.0
    stop_grace_s: float = 10.0
    stop_limit_s: float = 60.0
    retry_first_s: float = 1.0
    retry_cap_s: float = 60.0
    retries: int = 5
    stable_s: float = 60.0


class Kind(StrEnum):
    """What a chore does."""

    LAUNCH = "launch"
    STOP = "stop"
    FORGET = "forget"


@dataclass(eq=False)
class _Chore:
    kind: Kind
    attempt: Attempt | None = None
    done: Latch[None] = field(default_factory=Latch)


@dataclass(eq=False)
class _Lane:
    """The chores of one ccid."""

    waiting: deque[_Chore] = field(default_factory=deque)
    running: _Chore | None = None
    worker: asyncio.Task[None] | None = None
    work: asyncio.Task[None] | None = None


@dataclass(eq=False)
class _Watch:
    """How often a chaincode that should run did not."""

    backoff: Backoff
    failures: int = 0
    up_since: float = 0.0
    retry: asyncio.Task[None] | None = None


class Custodian:
    """Runs the chores of a node.

    Args:
        runtime: does the work.
        wanted: whether a ccid should be running, asked before each retry.
    """

    def __init__(
        self,
        runtime: Runtime,
        wanted: Callable[[Ccid], bool],
        options: CustodianOptions | None = None,
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._options = options or CustodianOptions()
        self._slots = asyncio.Semaphore(
            self._options.parallel or (os.cpu_count() or 1) + 2
        )
        self._lanes: dict[Ccid, _Lane] = {}
        self._watches: dict[Ccid, _Watch] = {}
        self._tasks = Tasks("custodian")
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel running chores, drop waiting ones; their waiters get NodeError."""
        self._closing = True
        await self._tasks.aclose()
        for lane in self._lanes.values():
            _fail(lane.waiting, _going_down())
        self._lanes.clear()

    def restore(self, ccids: Iterable[Ccid]) -> None:
        """Launch everything that should run; failures are retried. Returns at once."""
        for ccid in ccids:
            _ = self._tasks.start(self._launch_quietly(ccid), f"restore {ccid}")

    def lost(self, ccid: Ccid) -> None:
        """Take note that a run ended without being asked to; it is started again.

        After a number of failures in a row (`retries`) it is left alone.
        """
        if not self._closing:
            self._retry_later(ccid)

    async def launch(self, ccid: Ccid, attempt: Attempt | None = None) -> None:
        """Bring `ccid` up after what is queued for it.

        Raises: what the launch raises; StartFailed when a stop overtakes it;
            NodeError when the node goes down.
        Cancelled: the chore goes on.
        """
        self._watch(ccid).failures = 0
        await self._add(ccid, Kind.LAUNCH, attempt).wait()

    async def stop(self, ccid: Ccid, *, forget: bool = False) -> None:
        """Take `ccid` down; launches of it that wait or run are abandoned.

        Args:
            ccid: what to stop.
            forget: also drop its build, so that the next launch builds again.

        Raises: what the stop raises; EngineTimeout after the limit; NodeError when the
            node goes down.
        Cancelled: the chore goes on.
        """
        self._unwatch(ccid)
        lane = self._lane(ccid)
        launches = [c for c in lane.waiting if c.kind is Kind.LAUNCH]
        for chore in launches:
            lane.waiting.remove(chore)
        _fail(launches, _overtaken(ccid))
        done = self._add(ccid, Kind.FORGET if forget else Kind.STOP, None)
        running = lane.running
        if running is not None and running.kind is Kind.LAUNCH and lane.work:
            running.done.fail(_overtaken(ccid))
            lane.work.cancel()
        await done.wait()

    # ---- lanes

    def _lane(self, ccid: Ccid) -> _Lane:
        return self._lanes.setdefault(ccid, _Lane())

    def _add(self, ccid: Ccid, kind: Kind, attempt: Attempt | None) -> Latch[None]:
        if self._closing:
            raise _going_down()
        lane = self._lane(ccid)
        last = lane.waiting[-1] if lane.waiting else lane.running
        if last is not None and last.kind is kind and not last.done.settled:
            if attempt is not None:
                attempt.note("it is being launched already")
            return last.done
        chore = _Chore(kind, attempt)
        lane.waiting.append(chore)
        if lane.worker is None:
            lane.worker = self._tasks.start(self._run_lane(ccid, lane), f"lane {ccid}")
        return chore.done

    async def _run_lane(self, ccid: Ccid, lane: _Lane) -> None:
        while lane.waiting:
            chore = lane.running = lane.waiting.popleft()
            try:
                await self._run(ccid, lane, chore)
            except asyncio.CancelledError:
                chore.done.fail(_going_down())
                raise
            except Exception as error:  # noqa: BLE001  # its waiters get it
                chore.done.fail(error)
            else:
                chore.done.settle(None)
            finally:
                lane.running = lane.work = None
        if self._lanes.get(ccid) is lane:
            del self._lanes[ccid]

    async def _run(self, ccid: Ccid, lane: _Lane, chore: _Chore) -> None:
        if chore.kind is not Kind.LAUNCH:
            await self._run_stop(ccid, chore.kind)
            return
        work = lane.work = self._tasks.start(
            self._run_launch(ccid, chore), f"launch {ccid}"
        )
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            work.cancel()
            raise
        if work.cancelled():
            chore.done.fail(_going_down())
        else:
            work.result()

    async def _run_launch(self, ccid: Ccid, chore: _Chore) -> None:
        await self._slots.acquire()
        # A launch that hangs must not hold its place for ever (W1).
        release = _Once(self._slots.release)
        timer = asyncio.get_running_loop().call_later(self._options.patience_s, release)
        try:
            await self._runtime.launch(ccid, chore.attempt)
        except ChaindockError as error:
            # Here, not in the task's own end, where it would be logged as a fault.
            chore.done.fail(error)
        else:
            self._watch(ccid).up_since = asyncio.get_running_loop().time()
        finally:
            timer.cancel()
            release()

    async def _run_stop(self, ccid: Ccid, kind: Kind) -> None:
        grace_s, limit_s = self._options.stop_grace_s, self._options.stop_limit_s
        try:
            async with asyncio.timeout(grace_s + limit_s):
                if kind is Kind.FORGET:
                    await self._runtime.forget(ccid, grace_s)
                else:
                    await self._runtime.stop(ccid, grace_s)
        except TimeoutError as error:
            raise EngineTimeout(
                f"chaincode {ccid!r} was not stopped within {grace_s + limit_s:g} s",
                hint="look at it with the tools of its back end",
                limit_s=grace_s + limit_s,
            ) from error

    # ---- retries

    def _watch(self, ccid: Ccid) -> _Watch:
        watch = self._watches.get(ccid)
        if watch is None:
            options = self._options
            backoff = Backoff(options.retry_first_s, options.retry_cap_s)
            watch = self._watches[ccid] = _Watch(backoff)
        return watch

    def _unwatch(self, ccid: Ccid) -> None:
        watch = self._watches.pop(ccid, None)
        if watch is not None and watch.retry is not None:
            watch.retry.cancel()

    def _retry_later(self, ccid: Ccid) -> None:
        if not self._wanted(ccid):
            return
        watch = self._watch(ccid)
        if watch.retry is not None and not watch.retry.done():
            return
        up_s = asyncio.get_running_loop().time() - watch.up_since
        if watch.up_since and up_s >= self._options.stable_s:
            watch.failures = 0
            watch.backoff.reset()
        watch.up_since = 0.0
        watch.failures += 1
        if watch.failures > self._options.retries:
            _log.error("chaincode left alone", ccid=ccid, failures=watch.failures)
            return
        pause_s = watch.backoff.next_s()
        _log.info("chaincode will be started again", ccid=ccid, pause_s=pause_s)
        watch.retry = self._tasks.start(self._retry(ccid, pause_s), f"retry {ccid}")

    async def _retry(self, ccid: Ccid, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        self._watch(ccid).retry = None
        if self._wanted(ccid):
            await self._launch_quietly(ccid)

    async def _launch_quietly(self, ccid: Ccid) -> None:
        try:
            await self._add(ccid, Kind.LAUNCH, None).wait()
        except ChaindockError as error:
            if self._closing:
                return
            _log.warning("launch failed", ccid=ccid, error=error.message)
            self._retry_later(ccid)


class _Once:
    """Calls a function the first time only."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def __call__(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


def _fail(chores: Iterable[_Chore], error: Exception) -> None:
    for chore in chores:
        chore.done.fail(error)


def _going_down() -> NodeError:
    return NodeError("the node is going down", hint="start it again: chaindock up")


def _overtaken(ccid: Ccid) -> StartFailed:
    return StartFailed(f"chaincode {ccid!r} was stopped while it started", ccid=ccid)
