"""One supervisor for each chaincode of the node.

Supervisors work side by side; a launch that hangs delays no other by more than 100 ms,
unless eight times as many hang as launches begin at once: then by up to 10 s.
After `aclose` nothing runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Final

from chaindock.aio import Tasks
from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.container.attempt import Attempt
from chaindock.errors import LaunchTimeout
from chaindock.ids import Ccid, split_peer
from chaindock.lifecycle import states
from chaindock.lifecycle.states import GAVE_UP, CustodianOptions, Target
from chaindock.lifecycle.supervisor import Supervisor

_SLOT_S: Final = 0.08
"""Seconds that a launch keeps its slot. Launches side by side take more processor time
than one after the other; one that hangs must not keep others waiting."""
_CROWD: Final = 8
"""Launches in all, as a multiple of the slots: bounds the memory of a large restart."""
_CROWD_S: Final = 10.0
"""Seconds after which a launch does not count against `_CROWD` either: it hangs."""


class Custodian(AbstractAsyncContextManager["Custodian"]):
    """The supervisors of a node.

    `name_of` returns the name that users know a ccid by; `by_hand` whether a user starts
    its program (development mode); `serves` whether the peer of an organisation runs.
    """

    def __init__(
        self,
        launcher: RuntimeLauncher,
        options: CustodianOptions | None = None,
        *,
        new_attempt: Callable[[Ccid], Attempt] = Attempt,
        name_of: Callable[[Ccid], str] = str,
        by_hand: Callable[[Ccid], bool] = lambda _: False,
        serves: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._launcher = launcher
        self._options = options = options or CustodianOptions()
        self._new_attempt, self._name_of = new_attempt, name_of
        self._by_hand, self._serves = by_hand, serves
        slots = options.parallel or processors()
        self._slots = asyncio.Semaphore(slots)
        self._crowd = asyncio.Semaphore(_CROWD * slots)
        self._supervisors: dict[Ccid, Supervisor] = {}
        self._tasks = Tasks("custodian")
        self._closing = False

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop everything; calls under way may finish within the grace."""
        self._closing = True
        grace_s = self._options.stop_grace_s
        stops = []
        for one in self._supervisors.values():
            one.abandon()
            stops.append(one.ask_down(Target.STOPPED, grace_s, grace_s))
        await asyncio.gather(*(stop.wait() for stop in stops), return_exceptions=True)
        await self._tasks.aclose()
        self._supervisors.clear()

    def restore(self, ccids: Iterable[Ccid]) -> None:
        """Launch everything that should run. Returns at once."""
        for ccid in ccids:
            supervisor = self._supervisor(ccid)
            supervisor.awaited = not self._by_hand(ccid)
            supervisor.ask_running()

    # ---- what others may know

    def find(self, ccid: Ccid) -> Supervisor | None:
        """Return the record of `ccid`, if it was to run since the node's start."""
        return self._supervisors.get(ccid)

    def others(self, ccid: Ccid) -> list[Supervisor]:
        """Return the records of what serves the peers of other organisations."""
        all_ = self._supervisors.items()
        return [one for key, one in all_ if key != ccid and split_peer(key)[0] == ccid]

    def all(self) -> list[Supervisor]:
        """Return all records."""
        return list(self._supervisors.values())

    def pending(self) -> list[Supervisor]:
        """Return what was restored and has neither been ready once nor been given up."""
        return [one for one in self._supervisors.values() if one.awaited]

    def gave_up(self) -> list[Supervisor]:
        """Return the chaincodes that the node gave up starting."""
        return [one for one in self._supervisors.values() if one.state in GAVE_UP]

    # ---- what others may ask

    async def launch(
        self, ccid: Ccid, attempt: Attempt | None = None, *, trial: bool = False
    ) -> None:
        """Have `ccid` run, and return when calls can be sent to it.

        `attempt`, the record of the launch, is closed if no launch is needed. After a
        `trial` that fails, the launch is not tried again, unless `ccid` was to run.

        Raises: what the launch raises; StartFailed when a stop overtakes it;
            NodeStopping when the node goes down.
        Cancelled: the launch goes on.
        """
        for one in self.others(ccid):
            if self._serves(split_peer(one.ccid)[1]):
                one.ask_running()
        await self._supervisor(ccid).ask_running(attempt, trial=trial).wait()

    def resume(self, ccid: Ccid) -> None:
        """Have `ccid` run. Returns at once."""
        self._supervisor(ccid).ask_running()

    async def ready(self, ccid: Ccid, wait_s: float) -> None:
        """Return when calls can be sent to `ccid`, at the latest after `wait_s` seconds.

        What serves the peer of another organisation is launched by its first call.

        Raises: as `Supervisor.ready`; LaunchTimeout when the time is over, while the
            launch goes on.
        """
        self._require_open()
        package, mspid = split_peer(ccid)
        supervisor = self._supervisors.get(package)
        if supervisor is None or not self._serves(mspid):
            raise states.retired(ccid)
        if mspid and supervisor.target is Target.RUNNING:
            supervisor = self._supervisor(ccid)
            if supervisor.target is not Target.RUNNING:
                supervisor.ask_running()
        try:
            async with asyncio.timeout(wait_s):
                await supervisor.ready()
        except TimeoutError as error:
            failed, attempt = supervisor.error, supervisor.attempt
            raise LaunchTimeout(
                f"could not launch chaincode {ccid}: not ready after {wait_s:g} s of "
                f"waiting; {supervisor.doing()}",
                hint=(failed and failed.hint) or "try again later",
                limit_s=wait_s,
                registered=False,
                **(attempt.facts() if attempt else {"ccid": ccid}),
            ) from error

    async def stop(self, ccid: Ccid, target: Target = Target.STOPPED) -> None:
        """Stop `ccid`; launches that wait or run are abandoned. Idempotent.

        What serves the peers of other organisations ends, too. With the target `removed`
        its build is removed; a later launch builds again.

        Raises: what the back end raises, EngineTimeout when it does not stop in time;
            NodeStopping when the node goes down.
        Cancelled: the stop goes on.
        """
        self._require_open()
        if ccid in self._supervisors or target is Target.REMOVED:
            grace_s, drain_s = self._options.stop_grace_s, self._options.drain_s
            supervisor, others = self._supervisor(ccid), self.others(ccid)
            # They run from the build of `ccid`, so that goes last.
            first = Target.STOPPED if others else target
            stops = [supervisor.ask_down(first, grace_s, drain_s)]
            stops += [one.ask_down(Target.REMOVED, grace_s, drain_s) for one in others]
            await asyncio.gather(*(stop.wait() for stop in stops))
            if target is not first and supervisor.target is first:
                await supervisor.ask_down(target, grace_s, drain_s).wait()

    # ---- supervisors

    def _supervisor(self, ccid: Ccid) -> Supervisor:
        self._require_open()
        if ccid not in self._supervisors:
            supervisor = self._supervisors[ccid] = Supervisor(
                ccid,
                self._launcher,
                self._options,
                slot=self._slot,
                new_attempt=self._new_attempt,
                name_of=self._name_of,
                by_hand=self._by_hand(ccid),
            )
            _ = self._tasks.start(self._supervise(supervisor), f"supervise {ccid}")
        return self._supervisors[ccid]

    async def _supervise(self, supervisor: Supervisor) -> None:
        try:
            await supervisor.run()
        finally:
            self._supervisors.pop(supervisor.ccid, None)
            supervisor.abandon(ended=True)

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Let a launch begin; it gives its slot back after a moment, or at its end."""
        async with _held(self._crowd, _CROWD_S), _held(self._slots, _SLOT_S):
            yield

    def _require_open(self) -> None:
        if self._closing:
            raise states.going_down()


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


@asynccontextmanager
async def _held(semaphore: asyncio.Semaphore, limit_s: float) -> AsyncIterator[None]:
    """Hold a place for the block, but not for longer than `limit_s` seconds."""
    await semaphore.acquire()
    with ExitStack() as place:
        place.callback(semaphore.release)
        timer = asyncio.get_running_loop().call_later(limit_s, place.close)
        place.callback(timer.cancel)
        yield
