"""A launcher that starts nothing: launches and ends happen as the test says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from chaindock.aio import Latch
from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.container.attempt import Phase
from chaindock.container.contracts import Exit
from chaindock.ids import Ccid
from chaindock.lifecycle.states import CustodianOptions
from support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaindock.chaincode.running import Running
    from chaindock.container.attempt import Attempt
    from chaindock.errors import ChaindockError

A, B = Ccid("a:" + "1" * 64), Ccid("b:" + "2" * 64)
FAST = CustodianOptions(retry_first_s=0.01, retry_cap_s=0.02, retries=3)
STOPPED = Exit(0)


class FakeRun:
    """A run that lasts until it is stopped, or ended by the test."""

    def __init__(self, machine: Machine, attempt: Attempt) -> None:
        self._machine, self.attempt = machine, attempt
        self.ccid = attempt.ccid
        self.ready_since = asyncio.get_running_loop().time()
        self.takes_calls = True
        self.ended_in_a_call = False
        self.stop_error: ChaindockError | None = None
        self.handler: Any = None
        self.facts: Mapping[str, str] = {"backend": "fake"}
        self.unanswered: Sequence[Any] = ()
        self._end: Latch[Exit] = Latch()

    def die(self, how: Exit = Exit(3), *, in_a_call: bool = False) -> None:  # noqa: B008
        """End as a process does that crashes."""
        self.takes_calls, self.ended_in_a_call = False, in_a_call
        self._end.settle(how)

    async def wait(self) -> None:
        await self._end.wait()

    async def take_down(self, grace_s: float = 1.0) -> Exit:
        self._machine.runs.pop(self.ccid, None)
        return await self._end.wait()

    async def stop(self, grace_s: float, drain_s: float) -> Exit:
        self._machine.log.append(("stop", self.ccid))
        self.takes_calls = False
        gate = self._machine.stop_gates.get(self.ccid)
        if gate is not None:
            await gate.wait()
        self._end.settle(STOPPED)
        return await self.take_down()

    def hurry(self, drain_s: float) -> None:
        self._machine.log.append(("hurry", drain_s))


class Machine(RuntimeLauncher):
    """In place of the launcher.

    A gate holds launches or stops of a ccid; an error fails its launches.
    """

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.gates: dict[Ccid, asyncio.Event] = {}
        self.stop_gates: dict[Ccid, asyncio.Event] = {}
        self.errors: dict[Ccid, Exception] = {}
        self.runs: dict[Ccid, FakeRun] = {}
        self.busy = self.most = 0

    def hold(self, ccid: Ccid) -> asyncio.Event:
        self.gates[ccid] = asyncio.Event()
        return self.gates[ccid]

    def count(self, what: str, ccid: Ccid) -> int:
        return self.log.count((what, ccid))

    async def until(self, what: str, ccid: Ccid, count: int = 1) -> None:
        await eventually(lambda: self.count(what, ccid) >= count)

    async def launch(self, attempt: Attempt) -> Running:
        ccid = attempt.ccid
        self.busy += 1
        self.most = max(self.most, self.busy)
        try:
            self.log.append(("launch", ccid))
            attempt.enter(Phase.COMPILE)
            if ccid in self.gates:
                await self.gates[ccid].wait()
            if ccid in self.errors:
                raise self.errors[ccid]
        finally:
            self.busy -= 1
        attempt.over()
        self.log.append(("up", ccid))
        self.runs[ccid] = FakeRun(self, attempt)
        return cast("Running", self.runs[ccid])

    async def await_program(self, attempt: Attempt) -> Running:
        await asyncio.Event().wait()
        raise AssertionError("nobody registers here")

    async def discard(self, ccid: Ccid) -> None:
        self.log.append(("discard", ccid))
