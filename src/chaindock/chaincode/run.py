"""One life of a chaincode: built, started, registered, running, ended.

Owns:    the race between registration, exit, failure, the clock and a stop; taking
         everything down afterwards.
Not:     who waits (launcher.py), how a container starts (runtime.py, controllers).
Entry:   Run.live
Holds:   the first outcome counts; when `over` is settled nothing of the run is left;
         the stream ends after the instance, so work under way can finish.
Source:  launch.md §5.2, §9 W7-W10, W15, W18; shim-protocol.md §3.6
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from chaindock.aio import Latch, Tasks
from chaindock.chaincode.client import serve_dialled
from chaindock.chaincode.handler import Handler
from chaindock.chaincode.race import first, within
from chaindock.chaincode.registry import MOVES, Expected, LaunchState
from chaindock.container.attempt import Phase
from chaindock.container.contracts import Dial, Exit
from chaindock.errors import (
    BuildFailed,
    ChaindockError,
    ExitedEarly,
    LaunchFailed,
    RegistrationRefused,
    StartFailed,
)
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.options import LaunchOptions, StreamOptions
    from chaindock.chaincode.registry import HandlerRegistry
    from chaindock.chaincode.runtime import ContainerRuntime
    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import CallsBack, Instance, PeerConnection
    from chaindock.ids import Ccid

_log = get_logger("chaincode.launcher")
_FAILED_GRACE_S: Final = 1.0
"""For what did not come up, or has lost its stream: it has nothing to finish."""
_EXIT_WAIT_S: Final = 1.0
"""A process whose stream ended mostly exits itself; its own exit tells more."""


@dataclass(frozen=True)
class Parts:
    """What every run of a node uses."""

    registry: HandlerRegistry
    runtime: ContainerRuntime
    peer: PeerConnection
    launch: LaunchOptions
    stream: StreamOptions


class Run:
    """One attempt and what follows it.

    `outcome` settles when the chaincode is ready or has failed (with the one error that
    every waiter gets), `over` when nothing of the run is left. `settling` is told the
    outcome just before the waiters are.
    """

    def __init__(
        self,
        parts: Parts,
        attempt: Attempt,
        settling: Callable[[Run, LaunchFailed | None], None],
    ) -> None:
        self._parts = parts
        self._settling = settling
        self.ccid: Ccid = attempt.ccid
        self.attempt = attempt
        self.state = LaunchState.ABSENT
        self.since = time.time()
        self.instance: Instance | None = None
        self.exit: Exit | None = None
        self.error: LaunchFailed | None = None
        self.outcome: Latch[None] = Latch()
        self.over: Latch[None] = Latch()
        self._expected = Expected(self.ccid, attempt)
        self._creating_since = 0.0
        self._handler: Handler | None = None
        self._stop: Latch[float] = Latch()
        self._move(LaunchState.LAUNCHING)

    def ask_stop(self, grace_s: float) -> None:
        """End the run; wait on `over` for the end. The first grace counts."""
        self._stop.settle(grace_s)

    @property
    def stop_asked(self) -> bool:
        """Whether it ends because somebody wanted it."""
        return self._stop.settled

    @property
    def takes_calls(self) -> bool:
        """Whether invocations may be sent now; its stream may have ended already."""
        handler = self._handler
        ready = self.state is LaunchState.READY
        return ready and handler is not None and handler.takes_calls

    @property
    def open_calls(self) -> int:
        """Invocations under way."""
        return self._handler.open_calls if self._handler else 0

    async def live(self) -> None:
        """Go through the whole life. Never raises, but when cancelled."""
        failure: LaunchFailed | None = None
        try:
            async with Tasks("chaincode") as tasks:
                failure = await self._come_up(tasks)
                if failure is None:
                    self._move(LaunchState.READY)
                    self._settling(self, None)
                    self.outcome.settle(None)
                    await self._stay_up()
                self._move(LaunchState.STOPPING)
                await self._take_down()
        finally:
            self._finish(failure)

    def _finish(self, failure: LaunchFailed | None) -> None:
        self.attempt.close()
        if failure is not None:
            # Only now everything that it wrote has arrived.
            failure.facts["output"] = failure.facts["output"] or self.attempt.tail()
        self.error = None if self.stop_asked else failure
        if self.state is LaunchState.STOPPING:
            self._move(LaunchState.FAILED if self.error else LaunchState.ABSENT)
        if not self.outcome.settled:
            failure = failure or self._failed(StartFailed("launch cancelled"))
            self._settling(self, failure)
            self.outcome.fail(failure)
        self.over.settle(None)

    def _move(self, state: LaunchState) -> None:
        if state not in MOVES[self.state]:
            raise AssertionError(f"run cannot go from {self.state} to {state}")
        self.state, self.since = state, time.time()

    # --- up -------------------------------------------------------------------------

    async def _come_up(self, tasks: Tasks) -> LaunchFailed | None:
        self._parts.registry.expect(self._expected)
        try:
            which, handler = await first(up=self._up(tasks), stop=self._stop.wait())
            if which == "stop":
                return self._failed(LaunchFailed("stopped while it was launching"))
        except ChaindockError as error:
            return self._failed(error)
        except Exception as error:  # noqa: BLE001  # a defect must not leave it hanging
            _log.error("launch failed unexpectedly", ccid=self.ccid, exc_info=error)
            return self._failed(StartFailed(f"{type(error).__name__}: {error}"))
        else:
            self._handler = handler
            self.attempt.over()
            return None
        finally:
            self._parts.registry.forget(self._expected)

    async def _up(self, tasks: Tasks) -> Handler:
        parts, limits = self._parts, self._parts.launch
        started = await parts.runtime.start(
            self.ccid, parts.peer, self.attempt, self._built
        )
        spent_s = time.monotonic() - self._creating_since
        left_s = max(0.0, limits.startup_timeout_s - spent_s)
        return await within(
            min(limits.register_timeout_s, left_s),
            self._registered(started, tasks),
            self.attempt,
        )

    def _built(self, instance: Instance) -> None:
        self._creating_since = time.monotonic()
        self.instance = instance
        self._expected.concurrency = instance.concurrency

    async def _registered(self, started: CallsBack | Dial, tasks: Tasks) -> Handler:
        assert self.instance is not None  # noqa: S101  # it was started
        expected = self._expected
        expected.dialled = isinstance(started, Dial)
        if self.attempt.phase not in {Phase.REGISTER, Phase.READY}:
            self.attempt.enter(Phase.CONNECT)
        waits: dict[str, Any] = {"ready": expected.ready.wait()}
        waits["exit"] = self.instance.wait()
        if isinstance(started, Dial):
            stream = self._parts.stream
            self._handler = Handler(self._parts.registry, stream, dialled=expected)
            dial = serve_dialled(started.address, self._handler, stream)
            _ = tasks.start(dial, "dial")
            waits["end"] = self._handler.ended.wait()
        which, found = await first(**waits)
        if which == "exit":
            self.exit = found
            raise ExitedEarly(
                f"chaincode registration failed: container {exit_text(found)}",
                **_exit_facts(found),
            )
        if which == "end":
            raise StartFailed(f"connection to {self.ccid} failed: {found.reason}")
        handler: Handler = found
        return handler

    def _failed(self, error: ChaindockError) -> LaunchFailed:
        """Return `error` as what the waiters get: facts added, text complete."""
        kind, stage = type(error), ""
        if not isinstance(error, LaunchFailed) or kind in {BuildFailed, StartFailed}:
            building = self.instance is None or kind is BuildFailed
            kind = BuildFailed if building else StartFailed
            stage = "error building chaincode: " if building else "error starting: "
        if isinstance(error, RegistrationRefused):
            stage = "chaincode registration failed: "
        output = error.facts.get("output") or []
        facts = {**self.attempt.facts(), **error.facts, "output": output}
        failed = kind(
            f"could not launch chaincode {self.ccid}: {stage}{error.message}",
            hint=error.hint or f"read its output: chaindock logs {self.ccid}",
            **facts,
        )
        failed.__cause__ = error
        assert isinstance(failed, LaunchFailed)  # noqa: S101  # by the choice above
        return failed

    # --- running --------------------------------------------------------------------

    async def _stay_up(self) -> None:
        assert self.instance is not None  # noqa: S101  # it came up
        assert self._handler is not None  # noqa: S101  # it came up
        which, found = await first(
            stop=self._stop.wait(),
            exit=self.instance.wait(),
            end=self._handler.ended.wait(),
        )
        if which == "exit":
            self._handler.end(
                grpc.StatusCode.UNAVAILABLE, f"chaincode {exit_text(found)}"
            )
        elif which == "end":
            _log.warning("stream lost", ccid=self.ccid, reason=found.reason)
            try:
                async with asyncio.timeout(_EXIT_WAIT_S):
                    _ = await first(exit=self.instance.wait(), stop=self._stop.wait())
            except TimeoutError:
                _log.warning("chaincode runs on without its stream", ccid=self.ccid)

    # --- down -----------------------------------------------------------------------

    async def _take_down(self) -> None:
        grace_s = await self._stop.wait() if self.stop_asked else _FAILED_GRACE_S
        registered = self._parts.registry.find(self.ccid)
        if registered is not None and self.stop_asked:
            grace_s = await self._drain(registered, grace_s)
        if self.instance is not None:
            await self._parts.runtime.stop(self.ccid, self.instance, grace_s)
            await self._note_exit(self.instance)
        for handler in (registered, self._handler):
            if handler is not None:
                handler.end(grpc.StatusCode.UNAVAILABLE, "chaincode was stopped")

    async def _drain(self, handler: Handler, grace_s: float) -> float:
        """Let work under way finish; return what is left of the grace in seconds."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(grace_s):
                await handler.drain()
        except TimeoutError:
            _log.warning(
                "invocations cut off", ccid=self.ccid, calls=handler.open_calls
            )
        return max(_FAILED_GRACE_S, grace_s - (time.monotonic() - began))

    async def _note_exit(self, instance: Instance) -> None:
        if self.exit is not None:
            return
        try:
            async with asyncio.timeout(_EXIT_WAIT_S):
                self.exit = await instance.wait()
        except TimeoutError:
            _log.error("end of chaincode not seen", ccid=self.ccid)


def exit_text(end: Exit) -> str:
    """Return e.g. `exited with 2` or `ended by signal 9 (out of memory)`."""
    text = f"exited with {end.code}"
    if end.signal is not None:
        text = f"ended by signal {end.signal}"
    elif end.code is None:
        text = "ended"
    why = "out of memory" if end.oom else end.reason
    return f"{text} ({why})" if why else text


def _exit_facts(end: Exit) -> dict[str, Any]:
    return {"exit_code": end.code, "signal": end.signal, "oom": end.oom}
