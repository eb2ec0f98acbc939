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
import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from chaindock.aio import Latch, Tasks
from chaindock.chaincode.client import serve_dialled
from chaindock.chaincode.failures import explain, launch_failure, tls_failure
from chaindock.chaincode.handler import Expected, Handler
from chaindock.chaincode.race import first, within_steps
from chaindock.chaincode.registry import MOVES, LaunchState
from chaindock.container.attempt import Phase
from chaindock.container.contracts import Cause, Dial, Exit
from chaindock.errors import (
    ChaindockError,
    ExitedEarly,
    LaunchFailed,
    LaunchTimeout,
    StartFailed,
)
from chaindock.identity.tls import certificate_hash
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.chaincode.options import LaunchOptions, StreamOptions
    from chaindock.chaincode.registry import HandlerRegistry
    from chaindock.chaincode.runtime import ContainerRuntime
    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import CallsBack, Instance, PeerConnection
    from chaindock.errors import StreamTerminated
    from chaindock.ids import Ccid

_log = get_logger("chaincode.launcher")
_FAILED_GRACE_S: Final = 1.0
"""For what did not come up, or has lost its stream: it has nothing to finish."""
_EXIT_WAIT_S: Final = 1.0
"""A process whose stream ended mostly exits itself; its own exit tells more."""
_PROBE_S: Final = 10.0
"""What kept a chaincode from the node is told when it is found so soon."""
_UNHEARD_S: Final = 20.0
"""Who said nothing for so long is not waited for in vain: is there a way at all?"""
_EXPLAIN_WAIT_S: Final = 5.0
"""How long a call that died with its chaincode waits to learn how that ended."""


@dataclass(frozen=True)
class _Stop:
    grace_s: float
    drain_s: float | None


@dataclass(frozen=True)
class Parts:
    """What every run of a node uses."""

    registry: HandlerRegistry
    runtime: ContainerRuntime
    peer_for: Callable[[Attempt], PeerConnection]
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
        self._stop: Latch[_Stop] = Latch()
        self._hurry: Latch[None] = Latch()
        self._ended: Latch[None] = Latch()
        """Settled when `exit` is known, or never will be."""
        self._move(LaunchState.LAUNCHING)

    def ask_stop(self, grace_s: float, drain_s: float | None = None) -> None:
        """End the run; wait on `over` for the end.

        Args:
            grace_s: between asking the instance to end and killing it. The first counts.
            drain_s: for invocations under way, before that; None = within the grace.
                A later call can only make it shorter.
        """
        if not self._stop.settle(_Stop(grace_s, drain_s)):
            limit_s = grace_s if drain_s is None else drain_s
            loop = asyncio.get_running_loop()
            loop.call_later(limit_s, self._hurry.settle, None)

    async def explain(self, lost: StreamTerminated, name: str) -> None:
        """Add to the error of a call of `name` how this run ended.

        Waits a little to know it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXPLAIN_WAIT_S):
                await self._ended.wait()
        explain(lost, name, self.attempt, self.exit)

    @property
    def stop_asked(self) -> bool:
        """Whether it ends because somebody wanted it."""
        return self._stop.settled

    @property
    def takes_calls(self) -> bool:
        """Whether invocations may be sent now; its stream may have ended already."""
        handler = self._handler
        ready = self.state is LaunchState.READY
        return ready and handler is not None and handler.calls.open

    @property
    def open_calls(self) -> int:
        """Invocations under way."""
        return self._handler.calls.count if self._handler else 0

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
        self._ended.settle(None)
        self.over.settle(None)

    def _move(self, state: LaunchState) -> None:
        if state not in MOVES[self.state]:
            raise AssertionError(f"run cannot go from {self.state} to {state}")
        self.state, self.since = state, time.time()

    # --- up -------------------------------------------------------------------------

    async def _come_up(self, tasks: Tasks) -> LaunchFailed | None:
        try:
            peer = self._parts.peer_for(self.attempt)
            if peer.tls is not None:
                self._expected.certificate = certificate_hash(peer.tls.cert_pem)
            self._parts.registry.expect(self._expected)
            up = self._up(peer, tasks)
            which, handler = await first(up=up, stop=self._stop.wait())
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

    async def _up(self, peer: PeerConnection, tasks: Tasks) -> Handler:
        parts, limits = self._parts, self._parts.launch
        started = await parts.runtime.start(self.ccid, peer, self.attempt, self._built)
        spent_s = time.monotonic() - self._creating_since
        left_s = max(0.0, limits.startup_timeout_s - spent_s)
        try:
            return await within_steps(
                left_s,
                {
                    Phase.CONNECT: limits.connect_timeout_s,
                    Phase.REGISTER: limits.register_timeout_s,
                },
                self._registered(started, tasks),
                self.attempt,
            )
        except (ExitedEarly, LaunchTimeout) as error:
            why = await self._why_no_stream(started, error)
            if why is None:
                raise
            raise why from error

    async def _why_no_stream(
        self, started: CallsBack | Dial, error: LaunchFailed
    ) -> LaunchFailed | None:
        """Return what kept it from a stream, when it dials and had none; else None."""
        if self.attempt.phase is not Phase.CONNECT or isinstance(started, Dial):
            return None
        if error.facts.get("cause", Cause.EXITED) == Cause.EXITED:
            count = self._parts.registry.connected_in_vain(self._expected)
            if count:
                return tls_failure(error, self.ccid, count)
        return await self._probed() if isinstance(error, LaunchTimeout) else None

    async def _probed(self) -> LaunchFailed | None:
        """Return what keeps it from the node, where that can be found out."""
        assert self.instance is not None  # noqa: S101  # it was started
        # Whatever goes wrong there, the time-out tells enough.
        with contextlib.suppress(ChaindockError, TimeoutError):
            async with asyncio.timeout(_PROBE_S):
                return await self.instance.probe()
        return None

    async def _unheard(self) -> None:
        """Raise what keeps it from the node when it says nothing; else wait for ever."""
        await asyncio.sleep(_UNHEARD_S)
        registry = self._parts.registry
        if self.attempt.phase is Phase.CONNECT and not (
            registry.connected_in_vain(self._expected)
        ):
            why = await self._probed()
            registry.handshakes.forget()
            if why is not None:
                raise why
        await asyncio.Event().wait()

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
            dial = serve_dialled(started.address, self._handler, stream, started.tls)
            _ = tasks.start(dial, "dial")
            waits["end"] = self._handler.ended.wait()
        else:
            waits["unheard"] = self._unheard()
        which, found = await first(**waits)
        if which == "exit":
            self.exit = found
            raise ExitedEarly(
                f"chaincode registration failed: container {found.text}",
                **found.facts,
            )
        if which == "end":
            raise StartFailed(f"connection to {self.ccid} failed: {found.reason}")
        handler: Handler = found
        return handler

    def _failed(self, error: ChaindockError) -> LaunchFailed:
        built = self.instance is not None
        return launch_failure(self.attempt, error, built=built)

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
            self._know(found)
            self._handler.end(grpc.StatusCode.UNAVAILABLE, f"chaincode {found.text}")
        elif which == "end":
            lost = found.reason
            try:
                async with asyncio.timeout(_EXIT_WAIT_S):
                    which, found = await first(
                        exit=self.instance.wait(), stop=self._stop.wait()
                    )
            except TimeoutError:
                _log.warning(
                    "chaincode runs on without its stream", ccid=self.ccid, reason=lost
                )
            else:
                if which == "exit":
                    self._know(found)

    # --- down -----------------------------------------------------------------------

    async def _take_down(self) -> None:
        grace_s = _FAILED_GRACE_S
        registered = self._parts.registry.find(self.ccid)
        if self.stop_asked:
            asked = await self._stop.wait()
            grace_s = asked.grace_s
            if registered is not None:
                grace_s = await self._drain(registered, asked)
        if self.instance is not None:
            runtime = self._parts.runtime
            gone = await runtime.stop(self.ccid, self.instance, grace_s)
            if gone is not None:
                self._know(gone)
            await self._note_exit(self.instance)
        for handler in (registered, self._handler):
            if handler is not None:
                handler.end(grpc.StatusCode.UNAVAILABLE, "chaincode was stopped")

    async def _drain(self, handler: Handler, asked: _Stop) -> float:
        """Let work under way finish; return the grace for what comes then, in seconds."""
        began = time.monotonic()
        limit_s = asked.grace_s if asked.drain_s is None else asked.drain_s
        try:
            async with asyncio.timeout(limit_s):
                which, _ = await first(
                    done=handler.calls.drain(), hurry=self._hurry.wait()
                )
        except TimeoutError:
            which = "late"
        if which != "done":
            _log.warning(
                "invocations cut off", ccid=self.ccid, calls=handler.calls.count
            )
        if asked.drain_s is not None:
            return asked.grace_s
        return max(_FAILED_GRACE_S, asked.grace_s - (time.monotonic() - began))

    async def _note_exit(self, instance: Instance) -> None:
        if self.exit is not None:
            return
        try:
            async with asyncio.timeout(_EXIT_WAIT_S):
                self._know(await instance.wait())
        except TimeoutError:
            _log.error("end of chaincode not seen", ccid=self.ccid)
            self._know(Exit(None, reason="nobody saw its end", cause=Cause.ENGINE_GONE))

    def _know(self, end: Exit) -> None:
        """Take note how it ended; the first answer counts."""
        if self.exit is None:
            self.exit = end
        self._ended.settle(None)
