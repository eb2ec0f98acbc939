"""Launch each chaincode at most once at a time, and stop it.

Owns:    which run a chaincode has; waiters and their bound; status; counts.
Not:     what happens in a run (run.py), when to launch (lifecycle, support.py), when
         to try again (whoever listens to `on_exit`).
Entry:   RuntimeLauncher.launch
Holds:   one run per ccid; a launch goes on when the one who asked first leaves; after
         leaving the launcher nothing runs.
Source:  launch.md §5.1, §9 W8, W9, W14, W19, W67
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from chaindock.aio import Tasks
from chaindock.chaincode.failures import death, log_facts
from chaindock.chaincode.options import LaunchOptions, StreamOptions
from chaindock.chaincode.registry import HandlerRegistry, LaunchState
from chaindock.chaincode.run import Parts, Run
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Exit
from chaindock.errors import LaunchFailed, LaunchTimeout
from chaindock.telemetry import bound, get_logger, metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chaindock.chaincode.runtime import ContainerRuntime
    from chaindock.container.contracts import PeerConnection
    from chaindock.ids import Ccid

_log = get_logger("chaincode.launcher")


@dataclass(frozen=True)
class LaunchStatus:
    """How a chaincode is.

    Args:
        since: when the state began, seconds of the epoch; None = never launched.
        attempt: the last one.
        exit: how the last run ended; None while it runs.
        error: why the last launch failed.
        open_calls: invocations under way.
        facts: what the instance says about itself (backend, container, pid, …).
    """

    ccid: Ccid
    state: LaunchState
    since: float | None
    attempt: Attempt | None
    exit: Exit | None
    error: LaunchFailed | None
    open_calls: int
    facts: Mapping[str, str]


@dataclass
class LaunchCounts:
    """Launches of this process: once per attempt, however many waited for it."""

    started: int = 0
    ready: int = 0
    failed: int = 0
    timed_out: int = 0


class RuntimeLauncher:
    """All runs of a node; an async context manager that stops them when it is left.

    Args:
        registry: shared with the listener.
        runtime: builds and starts.
        peer_for: makes what the chaincode of one attempt is told about the node.
        new_attempt: makes the record of a launch that brings none along; the launcher
            closes it when the run is over.
        on_exit: called when a chaincode that was ready ended and nobody had asked for
            that; quick, never raises.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        runtime: ContainerRuntime,
        peer_for: Callable[[Attempt], PeerConnection],
        *,
        options: LaunchOptions | None = None,
        stream: StreamOptions | None = None,
        new_attempt: Callable[[Ccid], Attempt] = Attempt,
        on_exit: Callable[[Ccid, Exit], None] | None = None,
    ) -> None:
        self._options = options or LaunchOptions()
        self._parts = Parts(
            registry, runtime, peer_for, self._options, stream or StreamOptions()
        )
        self._runtime = runtime
        self._new_attempt = new_attempt
        self.on_exit = on_exit
        self.counts = LaunchCounts()
        self._runs: dict[Ccid, Run] = {}
        self._tasks = Tasks("launcher")
        self._closing = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        grace_s = self._options.stop_grace_s
        await asyncio.gather(*(self.stop(ccid, grace_s) for ccid in list(self._runs)))
        await self._tasks.aclose()

    async def launch(
        self, ccid: Ccid, attempt: Attempt | None = None, *, wait_s: float | None = None
    ) -> None:
        """Return when `ccid` is ready; launch it unless it is or that is under way.

        Args:
            ccid: what to launch.
            attempt: record of the launch, if this call begins one; else it is closed.
            wait_s: how long this caller waits; None = as long as the launch takes,
                which has its own limits.

        Raises:
            LaunchFailed and its kinds: the one outcome of the launch, the same object
            for everybody. LaunchTimeout also when `wait_s` is over. StorageError when
            its output cannot be kept.
        Cancelled: the launch goes on.
        """
        scope = asyncio.timeout(wait_s)
        try:
            async with scope:
                await self._ready(ccid, attempt)
        except TimeoutError as error:
            if not scope.expired():
                raise
            run = self._runs[ccid]
            raise LaunchTimeout(
                f"could not launch chaincode {ccid}: not ready after {wait_s:g} s of "
                f"waiting, its launch goes on in phase {run.attempt.phase}",
                hint="try again later",
                limit_s=wait_s,
                **run.attempt.facts(),
            ) from error

    async def _ready(self, ccid: Ccid, attempt: Attempt | None) -> None:
        while True:
            run = self._runs.get(ccid)
            if run is None or run.over.settled:
                run, attempt = self._begin(ccid, attempt), None
            if run.outcome.settled and not run.takes_calls:
                await run.over.wait()  # it was ready, and is on its way down
                continue
            if attempt is not None:
                attempt.note("it is running, or being launched, already")
                attempt.close()
            return await run.outcome.wait()

    def _begin(self, ccid: Ccid, attempt: Attempt | None) -> Run:
        if self._closing:
            raise LaunchFailed(
                f"could not launch chaincode {ccid}: the node is stopping", ccid=ccid
            )
        attempt = attempt or self._new_attempt(ccid)
        attempt.begin()
        metrics.launch_begun(ccid)
        run = self._runs[ccid] = Run(self._parts, attempt, self._settling)
        self.counts.started += 1
        _log.info("launching", ccid=ccid, attempt=run.attempt.id)
        _ = self._tasks.start(self._see_through(run), f"run {ccid}")
        return run

    def _settling(self, run: Run, failure: LaunchFailed | None) -> None:
        if not run.stop_asked:
            _count(run.attempt, failure)
        if failure is None:
            self.counts.ready += 1
            seconds = round(sum(phase.seconds for phase in run.attempt.phases), 3)
            _log.info("launched", ccid=run.ccid, seconds=seconds)
            return
        self.counts.failed += 1
        self.counts.timed_out += isinstance(failure, LaunchTimeout)
        _log.warning(
            "launch failed",
            ccid=run.ccid,
            slug=failure.slug,
            error=failure.message,
            **log_facts(failure.facts),
        )

    async def _see_through(self, run: Run) -> None:
        # All that is logged on the way, by whom ever, tells which attempt it is about.
        with bound(ccid=run.ccid, attempt=run.attempt.id):
            await run.live()
            lost = self._over(run)
        # What follows from it is about other attempts.
        if lost is not None and self.on_exit is not None:
            self.on_exit(run.ccid, lost)

    def _over(self, run: Run) -> Exit | None:
        """Tell how it ended; return that when it was up and nobody had asked for it."""
        if run.error is not None or run.exit is None:
            return None
        asked = run.stop_asked
        metrics.run_ended(run.ccid, str(run.exit.cause), asked=asked)
        if asked:
            _log.info("chaincode stopped", ccid=run.ccid, how=run.exit.text)
            return None
        _log.warning(
            "chaincode ended by itself",
            ccid=run.ccid,
            how=run.exit.text,
            **log_facts({**run.attempt.facts(), **run.exit.facts, "registered": True}),
        )
        return run.exit

    def why_ended(self, ccid: Ccid) -> LaunchFailed:
        """Return how the last run ended, as an error; for listeners to `on_exit`."""
        run = self._runs[ccid]
        return death(run.attempt, run.exit or Exit(None, reason="nobody saw its end"))

    def find_run(self, ccid: Ccid) -> Run | None:
        """Return the run that `ccid` has or had last."""
        return self._runs.get(ccid)

    async def stop(
        self, ccid: Ccid, grace_s: float, drain_s: float | None = None
    ) -> None:
        """Stop `ccid` and return when nothing of it is left. Idempotent.

        It takes no more invocations; those under way may finish within `drain_s`
        seconds, and the chaincode gets `grace_s` between SIGTERM and SIGKILL. With None
        the two share the grace. A launch under way is given up.

        Cancelled: the stop goes on.
        """
        run = self._runs.get(ccid)
        if run is not None:
            run.ask_stop(grace_s, drain_s)
            await run.over.wait()

    async def forget(
        self, ccid: Ccid, grace_s: float, drain_s: float | None = None
    ) -> None:
        """Stop `ccid` and remove its build and its status.

        A launch that began meanwhile is given up too: a run nobody knows could not be
        stopped any more.
        """
        while (run := self._runs.get(ccid)) is not None and not run.over.settled:
            await self.stop(ccid, grace_s, drain_s)
        self._runs.pop(ccid, None)
        metrics.forget(ccid)
        await self._runtime.discard(ccid)

    def status(self, ccid: Ccid) -> LaunchStatus:
        """Return how `ccid` is."""
        run = self._runs.get(ccid)
        if run is None:
            return LaunchStatus(ccid, LaunchState.ABSENT, None, None, None, None, 0, {})
        facts = run.instance.describe() if run.instance is not None else {}
        return LaunchStatus(
            ccid,
            run.state,
            run.since,
            run.attempt,
            run.exit,
            run.error,
            run.open_calls,
            facts,
        )


def _count(attempt: Attempt, failure: LaunchFailed | None) -> None:
    facts = attempt.facts() if failure is None else failure.facts
    metrics.launch_ended(
        attempt.ccid,
        [(one["phase"], one["seconds"]) for one in facts.get("phases", ())],
        ok=failure is None,
        failed_phase=None if failure is None else facts.get("phase"),
        timed_out=isinstance(failure, LaunchTimeout),
    )
