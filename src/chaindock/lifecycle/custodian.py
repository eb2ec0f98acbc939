"""The chores: bring chaincodes up, take them down, keep up those that should be.

Owns:    order of chores, launching again what failed, what a call waits for.
Not:     how a launch goes (chaincode.RuntimeLauncher), what should run (desired.py),
         when it is tried again (supervision.py), how many work at a time (slots.py).
Entry:   Custodian
Holds:   chores of one ccid run in order and never at once; equal waiting ones are one;
         a hanging chore delays no other ccid; after `aclose` none starts or runs.
Source:  launch.md §5.6, §9 W1-W6, W19; needs.md rows 20, 28, 29
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, Self

from chaindock.aio import Latch, Tasks
from chaindock.errors import ChaindockError, EngineTimeout, NodeStopping, StartFailed
from chaindock.lifecycle.slots import Slots, processors
from chaindock.lifecycle.supervision import CustodianOptions, Supervision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from chaindock.container.attempt import Attempt
    from chaindock.ids import Ccid
    from chaindock.lifecycle.supervision import Standing

__all__ = ["Custodian", "CustodianOptions", "Runtime"]


class Runtime(Protocol):
    """Brings one chaincode up or down; chaincode.RuntimeLauncher is one."""

    async def launch(self, ccid: Ccid, attempt: Attempt | None = None) -> None:
        """Build if needed, start, and wait until it is ready. Harmless when it is.

        Raises: LaunchFailed and others. Cancelled: it goes on until `stop`.
        """

    async def stop(
        self, ccid: Ccid, grace_s: float, drain_s: float | None = None
    ) -> None:
        """End its run, and a launch under way. Idempotent.

        Invocations under way may finish within `drain_s` seconds; then it has `grace_s`
        to end by itself.
        """

    async def forget(
        self, ccid: Ccid, grace_s: float, drain_s: float | None = None
    ) -> None:
        """Stop it, and drop what was remembered of its build. Idempotent."""


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


class Custodian:
    """Runs the chores of a node.

    Args:
        runtime: does the work.
        wanted: whether a ccid should be running, asked before each retry.
        name_of: the name that users know a ccid by.
    """

    def __init__(
        self,
        runtime: Runtime,
        wanted: Callable[[Ccid], bool],
        options: CustodianOptions | None = None,
        *,
        name_of: Callable[[Ccid], str] = str,
    ) -> None:
        self._runtime = runtime
        self._wanted = wanted
        self._options = options = options or CustodianOptions()
        self._supervision = Supervision(options, name_of)
        self._slots = Slots(options.parallel or processors(), options.patience_s)
        self._lanes: dict[Ccid, _Lane] = {}
        self._retries: dict[Ccid, asyncio.Task[None]] = {}
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
        """Cancel running chores, drop waiting ones; their waiters get NodeStopping."""
        self._closing = True
        await self._tasks.aclose()
        for lane in self._lanes.values():
            _fail(lane.waiting, _going_down())
        self._lanes.clear()
        self._supervision.end(_going_down())

    def restore(self, ccids: Iterable[Ccid]) -> None:
        """Launch everything that should run; failures are retried. Returns at once.

        It is `pending` until it has been ready once, or is left alone.
        """
        ccids = list(ccids)
        self._supervision.expect(ccids)
        for ccid in ccids:
            self.resume(ccid)

    def resume(self, ccid: Ccid) -> None:
        """Launch what should run and does not; failures are retried. Returns at once."""
        _ = self._tasks.start(self._launch_quietly(ccid), f"resume {ccid}")

    def lost(self, ccid: Ccid, error: ChaindockError) -> None:
        """Take note that a run ended without being asked to; it is started again.

        After a number of failures in a row (`retries`) it is left alone.
        """
        self._note(ccid, error)

    # ---- what others may know

    def pending(self) -> list[Ccid]:
        """Return what was restored and has neither been ready once nor left alone."""
        return self._supervision.pending()

    def left_alone(self) -> list[Ccid]:
        """Return what nobody tries to bring up any more."""
        return self._supervision.left_alone()

    def standing(self, ccid: Ccid) -> Standing:
        """Return what is being done about `ccid`."""
        return self._supervision.standing(ccid)

    def chores(self) -> dict[str, int]:
        """Return how many launches and stops are running, and how many waiting."""
        lanes = self._lanes.values()
        return {
            "running": sum(lane.running is not None for lane in lanes),
            "waiting": sum(len(lane.waiting) for lane in lanes),
        }

    # ---- chores

    async def bring_up(self, ccid: Ccid) -> None:
        """Bring `ccid` up for a call; the caller bounds the wait.

        While it is in back-off, the next try is waited for; while it is left alone, one
        call in a while may try.

        Raises: what the launch raises; LaunchFailed with the last reason when it is left
            alone; as `launch`.
        Cancelled: the launch goes on.
        """
        planned = self._supervision.admit_call(ccid)
        if planned is None:
            planned = self._add(ccid, Kind.LAUNCH, None)
        await planned.wait()

    async def launch(self, ccid: Ccid, attempt: Attempt | None = None) -> None:
        """Bring `ccid` up after what is queued for it.

        Raises: what the launch raises; StartFailed when a stop overtakes it;
            NodeStopping when the node goes down.
        Cancelled: the chore goes on.
        """
        self._no_retry(ccid)
        self._supervision.begin_anew(ccid)
        await self._add(ccid, Kind.LAUNCH, attempt).wait()

    async def stop(self, ccid: Ccid, *, forget: bool = False) -> None:
        """Take `ccid` down; launches of it that wait or run are abandoned.

        Args:
            ccid: what to stop.
            forget: also drop its build, so that the next launch builds again.

        Raises: what the stop raises; EngineTimeout after the limit; NodeStopping when the
            node goes down.
        Cancelled: the chore goes on.
        """
        self._no_retry(ccid)
        self._supervision.forget(ccid, _overtaken(ccid))
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
        try:
            async with self._slots.place():
                await self._runtime.launch(ccid, chore.attempt)
        except ChaindockError as error:
            # Here, not in the task's own end, where it would be logged as a fault.
            self._note(ccid, error)
            chore.done.fail(error)
        else:
            self._supervision.came_up(ccid)

    async def _run_stop(self, ccid: Ccid, kind: Kind) -> None:
        options = self._options
        grace_s, drain_s = options.stop_grace_s, options.drain_s
        limit_s = drain_s + grace_s + options.stop_limit_s
        try:
            async with asyncio.timeout(limit_s):
                if kind is Kind.FORGET:
                    await self._runtime.forget(ccid, grace_s, drain_s)
                else:
                    await self._runtime.stop(ccid, grace_s, drain_s)
        except TimeoutError as error:
            raise EngineTimeout(
                f"chaincode {ccid!r} was not stopped within {limit_s:g} s",
                hint="look at it with the tools of its back end",
                limit_s=limit_s,
            ) from error

    # ---- supervision

    def _note(self, ccid: Ccid, error: ChaindockError) -> None:
        """Take note that it does not run, and plan what comes next."""
        retry = self._retries.get(ccid)
        if self._closing or not self._wanted(ccid) or retry is not None:
            return
        pause_s = self._supervision.failed(ccid, error)
        if pause_s is not None:
            self._retries[ccid] = self._tasks.start(
                self._retry(ccid, pause_s), f"retry {ccid}"
            )

    async def _retry(self, ccid: Ccid, pause_s: float) -> None:
        try:
            await asyncio.sleep(pause_s)
        finally:
            if self._retries.get(ccid) is asyncio.current_task():
                del self._retries[ccid]
        if self._wanted(ccid):
            await self._launch_quietly(ccid)

    async def _launch_quietly(self, ccid: Ccid) -> None:
        # What came of it was noted by the chore itself.
        with contextlib.suppress(ChaindockError):
            await self._add(ccid, Kind.LAUNCH, None).wait()

    def _no_retry(self, ccid: Ccid) -> None:
        retry = self._retries.pop(ccid, None)
        if retry is not None:
            retry.cancel()


def _fail(chores: Iterable[_Chore], error: Exception) -> None:
    for chore in chores:
        chore.done.fail(error)


def _going_down() -> NodeStopping:
    return NodeStopping("the node is going down", hint="start it again: chaindock up")


def _overtaken(ccid: Ccid) -> StartFailed:
    return StartFailed(f"chaincode {ccid!r} was stopped while it started", ccid=ccid)
