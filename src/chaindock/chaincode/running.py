"""One run of a chaincode, from the start of its instance until nothing of it is left.

The stream is closed after the instance has ended, so that calls under way can finish.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

from chaindock.aio import Tasks, first
from chaindock.chaincode.handler import Expected, Handler
from chaindock.chaincode.invocation import Call
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Cause, Exit, Instance
from chaindock.errors import ChaindockError, EngineTimeout, EngineUnavailable
from chaindock.ids import Ccid
from chaindock.rpc.status import Status
from chaindock.telemetry import get_logger

_log = get_logger("chaincode.running")
FAILED_GRACE_S: Final = 1.0
"""Seconds between SIGTERM and SIGKILL for a run that has nothing left to finish."""
_EXIT_WAIT_S: Final = 1.0
"""Seconds to wait, after the stream has ended, for the exit code of the instance."""
_STOP_MARGIN_S: Final = 30.0
"""Seconds beyond the grace after which `Instance.stop` is given up."""


class Running:
    """A launched chaincode.

    `instance` is None until it is built, and for a program that a user started;
    `handler` until the stream is open. `stop_error`: why the instance was not stopped:
    it may run on.
    """

    def __init__(self, registry: HandlerRegistry, attempt: Attempt) -> None:
        self._registry = registry
        self.attempt = attempt
        self.ccid: Ccid = attempt.ccid
        self.expected = Expected(attempt.ccid, attempt)
        self.instance: Instance | None = None
        self.handler: Handler | None = None
        self.stop_error: ChaindockError | None = None
        self.ready_since = 0.0
        self.tasks = Tasks("chaincode")
        self._drain_limit: asyncio.Timeout | None = None

    @property
    def exit(self) -> Exit | None:
        """How the instance ended; None while it runs."""
        return self.expected.exit.value

    @property
    def takes_calls(self) -> bool:
        """Whether calls can be sent now."""
        return self.handler is not None and self.handler.calls.open

    @property
    def unanswered(self) -> Sequence[Call]:
        """The calls that have no answer yet, oldest first."""
        return self.handler.calls.unanswered if self.handler else ()

    @property
    def ended_in_a_call(self) -> bool:
        """Whether a call was open when the run ended, or was never answered."""
        overran = self.exit is not None and self.exit.cause is Cause.OVERRUN
        return overran or (self.handler is not None and self.handler.lost_calls > 0)

    @property
    def facts(self) -> Mapping[str, str]:
        """What the instance says of itself: back end, container, pid, isolation."""
        return self.instance.describe() if self.instance is not None else {}

    def came_up(self, handler: Handler) -> None:
        """Record that calls can be sent."""
        self.handler = handler
        self.ready_since = time.monotonic()
        self.attempt.over()

    async def wait(self) -> None:
        """Return when the instance has exited or the stream has ended."""
        assert self.handler is not None  # noqa: S101  # it was launched
        waits = {"end": self.handler.ended.wait()}
        if self.instance is not None:
            waits["exit"] = self.instance.wait()  # type: ignore[assignment]
        which, found = await first(**waits)
        if which == "exit":
            self.expected.exit.settle(found)
            self.handler.end(Status.UNAVAILABLE, f"chaincode {found.text}")
        elif found.overrun_s is not None:
            self.expected.exit.settle(
                Exit(None, reason=found.reason, cause=Cause.OVERRUN)
            )

    async def stop(self, grace_s: float, drain_s: float) -> Exit:
        """Take no new calls, give open ones `drain_s` seconds, and stop the instance."""
        handler = self._registry.find(self.ccid) or self.handler
        if handler is not None:
            try:
                async with asyncio.timeout(drain_s) as self._drain_limit:
                    await handler.calls.drain()
            except TimeoutError:
                calls = handler.calls.count
                _log.warning("calls cut off by a stop", ccid=self.ccid, calls=calls)
            finally:
                self._drain_limit = None
        return await self.take_down(grace_s)

    def hurry(self, drain_s: float) -> None:
        """Give the calls that a `stop` under way waits for at most `drain_s` seconds."""
        limit = self._drain_limit
        if limit is not None and not limit.expired():
            until = asyncio.get_running_loop().time() + drain_s
            limit.reschedule(min(until, limit.when() or until))

    async def take_down(self, grace_s: float = FAILED_GRACE_S) -> Exit:
        """End what is left of the run, and return how the instance ended."""
        registered = self._registry.find(self.ccid)
        last = Exit(None, reason="its stream ended", cause=Cause.EXITED)
        try:
            if self.instance is not None:
                if self.handler is not None and self.handler.ended.settled:
                    await self._await_exit(self.instance)
                await self._stop_instance(self.instance, grace_s)
                await self._await_exit(self.instance)
                if self.exit is None:
                    _log.error("exit of chaincode not seen", ccid=self.ccid)
                    unseen = "the engine did not report the exit"
                    last = Exit(None, reason=unseen, cause=Cause.ENGINE_GONE)
        finally:
            self.expected.exit.settle(last)
            for handler in (registered, self.handler):
                if handler is not None:
                    handler.end(Status.UNAVAILABLE, "chaincode was stopped")
            await self.tasks.aclose()
            self.attempt.close()
        return await self.expected.exit.wait()

    async def _stop_instance(self, instance: Instance, grace_s: float) -> None:
        """Stop the instance; what a failed stop leaves, the next start or node removes."""
        limit_s = grace_s + _STOP_MARGIN_S
        try:
            async with asyncio.timeout(limit_s):
                await instance.stop(grace_s)
        except TimeoutError:
            self.stop_error = EngineTimeout(
                f"chaincode {self.ccid!r} was not stopped within {limit_s:g} s",
                hint="find its container (docker ps) or process (ps), and stop it there",
                limit_s=limit_s,
            )
        except ChaindockError as error:
            self.stop_error = error
            if isinstance(error, EngineUnavailable):
                gone = Exit(None, reason=error.message, cause=Cause.ENGINE_GONE)
                self.expected.exit.settle(gone)
        if self.stop_error is not None:
            why = self.stop_error.message
            _log.error("chaincode could not be stopped", ccid=self.ccid, error=why)

    async def _await_exit(self, instance: Instance) -> None:
        """Wait a moment for the exit of the instance, unless it is known."""
        if self.exit is not None:
            return
        try:
            async with asyncio.timeout(_EXIT_WAIT_S):
                self.expected.exit.settle(await instance.wait())
        except TimeoutError:
            _log.debug("chaincode runs without its stream", ccid=self.ccid)
