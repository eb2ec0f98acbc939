"""Keep one chaincode in its target state.

One long-lived task per ccid starts, stops and retries it. Everybody else sets a target,
waits for a state, or reads this record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

from chaindock.aio import Latch, Tasks, first
from chaindock.chaincode.failures import death, log_facts
from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.running import Running
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Exit
from chaindock.errors import ChaindockError, LaunchFailed, StartFailed
from chaindock.ids import Ccid
from chaindock.lifecycle import states
from chaindock.lifecycle.states import (
    GAVE_UP,
    CustodianOptions,
    LaunchState,
    RestartPolicy,
    Target,
)
from chaindock.telemetry import bound, get_logger, metrics

_log = get_logger("custodian")


class Supervisor:
    """The record of one chaincode, and the task that keeps it.

    `slot` is held while a launch begins: it bounds how many begin at once. The others
    as for Custodian.

    Attributes:
        target: what the chaincode is to be; `state`: where it is, `since` when.
        attempt: of the last launch; `running`: the run, while there is one.
        exit: how the last run ended.
        died_at: when a run last ended by itself; all times are seconds since 1970.
        error: why the last launch failed, or the last run ended by itself.
        next_try: when it is launched again; None = not planned.
        awaited: /readyz waits for its first success since the node's start.
    """

    def __init__(
        self,
        ccid: Ccid,
        launcher: RuntimeLauncher,
        options: CustodianOptions,
        *,
        slot: Callable[[], AbstractAsyncContextManager[None]],
        new_attempt: Callable[[Ccid], Attempt],
        name_of: Callable[[Ccid], str],
        by_hand: bool = False,
    ) -> None:
        self.ccid = ccid
        self._launcher, self._options = launcher, options
        self._slot, self._new_attempt, self._name_of = slot, new_attempt, name_of
        self._by_hand = by_hand
        self.policy = RestartPolicy(options)
        self.target = Target.STOPPED
        self.state = LaunchState.DOWN
        self.since = time.time()
        self.attempt: Attempt | None = None
        self.running: Running | None = None
        self.exit: Exit | None = None
        self.died_at: float | None = None
        self.error: ChaindockError | None = None
        self.next_try: float | None = None
        self.awaited = False
        self._trial = self._discards = False
        self._brought: Attempt | None = None
        self._outcome: Latch[None] = Latch()
        """Of the next launch, or the one under way."""
        self._down: Latch[None] | None = None
        """Settled when a stop that was asked for is done."""
        self._drain_s = self._grace_s = 0.0  # of the stop that was asked for
        self._wake = asyncio.Event()

    # ---- what others may ask

    def ask_running(
        self, attempt: Attempt | None = None, *, trial: bool = False
    ) -> Latch[None]:
        """Set the target `running`; return the launch's outcome. As `Custodian.launch`."""
        self._trial = trial and (self._trial or self.target is not Target.RUNNING)
        self.target = Target.RUNNING
        self.policy.reset()
        if self._down is None and self._is_up():
            _spare(attempt, "it is running already")
            done: Latch[None] = Latch()
            done.settle(None)
            return done
        if self._down is None and self.state is LaunchState.STARTING:
            _spare(attempt, "it is being launched already")
            return self._outcome
        if attempt is not None:
            _spare(self._brought, "it is being launched already")
            self._brought = attempt
        self._wake.set()
        return self._outcome

    def ask_down(self, target: Target, grace_s: float, drain_s: float) -> Latch[None]:
        """Set the target `stopped` or `removed`; return when that has happened.

        Launches that wait or run are abandoned. `grace_s` is between SIGTERM and SIGKILL;
        open calls may take `drain_s` before that, which a later call can only shorten.
        """
        self.target, self.awaited, self._trial = target, False, False
        self._discards = self._discards or target is Target.REMOVED
        why = f"chaincode {self.ccid!r} was stopped while it started"
        self._settle(StartFailed(why, ccid=self.ccid))
        _spare(self._brought, "it was stopped")
        self._brought = None
        if self._down is None:
            self._down, self._grace_s, self._drain_s = Latch(), grace_s, drain_s
            self._wake.set()
        else:
            self._drain_s = min(drain_s, self._drain_s)
            if self.running is not None:
                self.running.hurry(self._drain_s)
        return self._down

    async def ready(self) -> None:
        """Return when calls can be sent.

        During a back-off the next launch is waited for. After giving up, one call in a
        while may launch.

        Raises: what the launch raises; ChaincodeRetired when the chaincode is not to
            run; LaunchFailed with the last reason when its restarts were given up.
        """
        if self.target is not Target.RUNNING:
            raise states.retired(self.ccid)
        if self._is_up():
            return
        if self.state is LaunchState.WAITING:
            raise StartFailed(
                f"no program has registered as {self.ccid} (development mode)",
                hint=f"start it with CORE_CHAINCODE_ID_NAME={self.ccid}",
                ccid=self.ccid,
            )
        if self.state in GAVE_UP and self.error is not None:
            if not self.policy.admit_call():
                raise self._given_up(self.error)
            self._wake.set()
        await self._outcome.wait()

    def _given_up(self, error: ChaindockError) -> LaunchFailed:
        failures = self.policy.failures
        why = f"after {failures} failures in a row"
        if self.state is LaunchState.FAILED:
            why = "because its build cannot succeed as it is"
        kind = type(error) if isinstance(error, LaunchFailed) else LaunchFailed
        return kind(
            f"gave up starting chaincode {self.ccid} {why}: {error.message}",
            hint=states.hint(self.state, self._name_of(self.ccid)),
            **{**error.facts, "state": str(self.state), "failures": failures},
        )

    def doing(self) -> str:
        """Say what is being done about a chaincode that is not up, in one phrase."""
        phase = self.attempt.phase if self.attempt else None
        if self.state is LaunchState.STARTING and phase:
            return f"its launch is in phase {phase}"
        if self.error is not None:
            return f"its last launch or run failed: {self.error.message}"
        return "its launch waits for its turn"

    @property
    def trouble(self) -> str | None:
        """Why it is not up although it should be; None = no failure is known."""
        if self.target is not Target.RUNNING or self.state is LaunchState.RUNNING:
            return None
        return f"{self.state}: {self.error.message}" if self.error else None

    # ---- the task

    async def run(self) -> None:
        """Do what the target asks for until the chaincode is removed.

        A defect of this class counts as a failed launch, so that it leaves no chaincode
        unwatched.
        """
        async with Tasks("supervisor") as tasks:
            while self._down is not None or self.target is not Target.REMOVED:
                try:
                    await self._step(tasks)
                except Exception as error:  # noqa: BLE001
                    _log.error("supervisor failed", ccid=self.ccid, exc_info=error)
                    await self._recover(error)

    async def _step(self, tasks: Tasks) -> None:
        if self._down is not None:
            await self._go_down(self._down)
        elif self.target is not Target.RUNNING or self.state in GAVE_UP:
            await self._until_woken()
        elif self.state is LaunchState.BACK_OFF:
            pause_s = (self.next_try or 0.0) - time.time()
            await self._until_woken(max(0.0, pause_s))
        if self._down is None and self.target is Target.RUNNING:
            await self._keep_up(tasks)

    async def _recover(self, defect: Exception) -> None:
        error = StartFailed(f"{type(defect).__name__}: {defect}", ccid=self.ccid)
        run, self.running = self.running, None
        if run is not None:
            with suppress(Exception):
                self.exit = await run.stop(self._options.stop_grace_s, 0)
        if self._down is None and self.target is Target.RUNNING:
            self._failed(error)
            return
        self._move(LaunchState.DOWN)
        if self._down is not None:
            self._down.fail(error)
            self._down, self._discards = None, False

    def abandon(self, *, ended: bool = False) -> None:
        """Tell waiters that the node goes down; `ended`: those of a stop, too."""
        self._settle(states.going_down())
        if ended and self._down is not None:
            self._down.fail(states.going_down())

    async def _until_woken(self, limit_s: float | None = None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._wake.wait()
        self._wake.clear()

    async def _keep_up(self, tasks: Tasks) -> None:
        """Launch it, and watch the run until it ends or a stop is asked for."""
        attempt = self._brought or self._new_attempt(self.ccid)
        self._brought, self.attempt, self.next_try = None, attempt, None
        self._wake.clear()  # this launch serves those who asked for one
        self._move(LaunchState.WAITING if self._by_hand else LaunchState.STARTING)
        launch = tasks.start(self._launch(attempt), f"launch {self.ccid}")
        try:
            await first(end=asyncio.wait({launch}), down=self._until_down())
        finally:
            launch.cancel()  # no effect on one that has ended
            await asyncio.wait({launch})
        if launch.cancelled():  # a stop was asked for
            attempt.close()
            return
        launched = launch.result()
        if isinstance(launched, ChaindockError):
            attempt.close()
            self._failed(launched)
            return
        self.running = launched
        self._move(LaunchState.RUNNING)
        self.error, self.awaited, self._trial = None, False, False
        if self._down is None:
            self._settle(None)
        with bound(ccid=self.ccid, attempt=attempt.id):
            await first(end=launched.wait(), down=self._until_down())
            if self._down is None:
                await self._bury(launched)

    async def _launch(self, attempt: Attempt) -> Running | ChaindockError:
        try:
            if self._by_hand:
                return await self._launcher.await_program(attempt)
            async with self._slot():
                return await self._launcher.launch(attempt)
        except ChaindockError as error:
            return error
        except Exception as error:  # noqa: BLE001  # a defect must not end the supervisor
            _log.error("launch failed unexpectedly", ccid=self.ccid, exc_info=error)
            return StartFailed(f"{type(error).__name__}: {error}", ccid=self.ccid)

    async def _until_down(self) -> None:
        while self._down is None:
            await self._until_woken()

    async def _go_down(self, done: Latch[None]) -> None:
        error: ChaindockError | None = None
        if (run := self.running) is not None:
            self._move(LaunchState.STOPPING)
            self.exit = await run.stop(self._grace_s, self._drain_s)
            metrics.run_ended(self.ccid, str(self.exit.cause), asked=True)
            if (error := run.stop_error) is None:
                _log.info("chaincode stopped", ccid=self.ccid, how=self.exit.text)
        if self._discards:
            try:
                await self._launcher.discard(self.ccid)
            except ChaindockError as failed:
                error = error or failed
        self.running = self.error = self.next_try = self.died_at = self._down = None
        self._discards = False
        self.policy.reset()
        if self.state is not LaunchState.DOWN:
            self._move(LaunchState.DOWN)
        done.settle(None, error)

    def _failed(self, error: ChaindockError, up_s: float | None = None) -> None:
        """Decide what follows a failed launch, or a run of `up_s` seconds that ended."""
        self.error = error
        if self._trial:
            self._trial, self.target = False, Target.STOPPED
            self._move(LaunchState.DOWN)
        else:
            state, pause_s = self.policy.failed(error, up_s or 0.0)
            self._move(state)
            log = _log.bind(
                ccid=self.ccid, failures=self.policy.failures, why=error.message
            )
            if state in GAVE_UP:
                self.awaited = False
                hint = states.hint(state, self._name_of(self.ccid))
                log.error("gave up starting chaincode", state=str(state), hint=hint)
            else:
                self.next_try = time.time() + pause_s
                log.warning(
                    "chaincode will be started again", pause_s=round(pause_s, 2)
                )
        if up_s is None or (self.state in GAVE_UP and not self._wake.is_set()):
            self._settle(error)  # else calls wait for the next launch

    async def _bury(self, run: Running) -> None:
        """Take down what is left of a run that ended by itself."""
        self._move(LaunchState.STOPPING)
        up_s = time.monotonic() - run.ready_since
        self.exit = await run.take_down()
        self.running, self.died_at = None, time.time()
        metrics.run_ended(self.ccid, str(self.exit.cause), asked=False)
        _log.warning(
            "chaincode ended by itself",
            ccid=self.ccid,
            how=self.exit.text,
            **log_facts({**run.attempt.facts(), **self.exit.facts, "registered": True}),
        )
        if self._down is None and not self._by_hand:
            self.error = death(run.attempt, self.exit)
            if not run.ended_in_a_call:  # as in Fabric, that counts as no failed launch
                self._failed(self.error, up_s)

    def _is_up(self) -> bool:
        running = self.running
        up = self.state is LaunchState.RUNNING
        return up and running is not None and running.takes_calls

    def _move(self, state: LaunchState) -> None:
        self.state, self.since = state, time.time()

    def _settle(self, error: ChaindockError | None) -> None:
        """Tell those who wait for the launch; the next launch has its own outcome."""
        outcome, self._outcome = self._outcome, Latch()
        outcome.settle(None, error)


def _spare(attempt: Attempt | None, note: str) -> None:
    """Close the record of a launch that is not needed."""
    if attempt is not None:
        attempt.note(note)
        attempt.close()
