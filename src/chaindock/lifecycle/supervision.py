"""What to do about a chaincode that should run and does not.

Owns:    how often each failed, when it is tried again, when it is left alone; what is
         still to come up after a start of the node.
Not:     trying (custodian.py), whether an error can pass (the error says so itself).
Entry:   Supervision
Holds:   a cause that can pass is tried again for ever, with growing pauses; a failed
         build that cannot is not tried again; anything else a few times in a row. A
         run that was stable begins the count anew.
Source:  launch.md §9 W4-W6, W20; needs.md rows 3, 20, 28
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from chaindock.aio import Backoff, Latch
from chaindock.errors import ChaindockError, EngineError, LaunchFailed, LaunchTimeout
from chaindock.options import option
from chaindock.telemetry import get_logger
from chaindock.values import Seconds, SecondsOrNone, Whole

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chaindock.ids import Ccid

_log = get_logger("custodian")


@dataclass(frozen=True)
class CustodianOptions:
    """How chores run.

    Args:
        patience_s: a launch older than this many seconds does not count as one that is
            starting.
        stop_limit_s: a stop that takes this many seconds longer than draining and the
            grace period is given up.
        stable_s: a run of this many seconds resets the count of failures.
    """

    parallel: Whole = option(
        0,
        "chaindock.launch.parallel",
        "Launches that start at once; every 80 ms as many more may start, up to "
        "eight times as many; 0 = one per processor.",
    )
    patience_s: float = 10.0
    drain_s: SecondsOrNone = option(
        30.0,
        "chaindock.launch.drain",
        "Time that running calls have to finish before a chaincode is stopped.",
    )
    stop_grace_s: SecondsOrNone = option(
        10.0,
        "chaindock.launch.stopGrace",
        "Time between SIGTERM and SIGKILL when a chaincode is stopped.",
    )
    stop_limit_s: float = 60.0
    retry_first_s: Seconds = option(
        1.0,
        "chaindock.launch.retryFirst",
        "Pause before the first retry of a failed launch; it doubles each time.",
    )
    retry_cap_s: Seconds = option(
        60.0,
        "chaindock.launch.retryCap",
        "Longest pause between retries. After the node gave up, one call in each "
        "such period may still launch the chaincode.",
    )
    retries: Whole = option(
        5,
        "chaindock.launch.retries",
        "Retries of a failed launch, after which the node gives up.",
    )
    stable_s: float = 60.0


class Care(StrEnum):
    """How the custodian stands to a chaincode."""

    NONE = "none"
    BACK_OFF = "back-off"
    CRASH_LOOP = "crash-loop"
    FAILED = "failed"


@dataclass(frozen=True)
class Standing:
    """What is being done about one chaincode.

    Args:
        care: none = nothing has to be; back-off = it is tried again at `next_try`;
            crash-loop = it failed too often and is left alone; failed = its build
            cannot succeed as it is, and it is left alone.
        failures: in a row, but for those that can pass by themselves.
        next_try: seconds since 1970; None = nothing is planned.
        error: the last failure.
    """

    care: Care = Care.NONE
    failures: int = 0
    next_try: float | None = None
    error: ChaindockError | None = None


@dataclass(eq=False)
class _Case:
    backoff: Backoff
    failures: int = 0
    up_since: float = 0.0
    care: Care = Care.NONE
    next_try: float | None = None
    error: ChaindockError | None = None
    left_at: float = 0.0
    outcome: Latch[None] = field(default_factory=Latch)
    """Of the try that is planned."""


class Supervision:
    """The cases of a node.

    Args:
        name_of: the name that users know a ccid by.
    """

    def __init__(
        self,
        options: CustodianOptions,
        name_of: Callable[[Ccid], str] = str,
    ) -> None:
        self._options, self._name_of = options, name_of
        self._cases: dict[Ccid, _Case] = {}
        self._pending: set[Ccid] = set()

    def standing(self, ccid: Ccid) -> Standing:
        """Return what is being done about `ccid`."""
        case = self._cases.get(ccid)
        if case is None:
            return Standing()
        return Standing(case.care, case.failures, case.next_try, case.error)

    def left_alone(self) -> list[Ccid]:
        """Return what nobody tries to bring up any more."""
        return [
            ccid
            for ccid, case in self._cases.items()
            if case.care in {Care.CRASH_LOOP, Care.FAILED}
        ]

    # ---- after a start of the node

    def expect(self, ccids: Iterable[Ccid]) -> None:
        """Take note of what is to come up."""
        self._pending.update(ccids)

    def pending(self) -> list[Ccid]:
        """Return what has neither come up once nor been left alone."""
        return sorted(self._pending)

    # ---- what happened

    def came_up(self, ccid: Ccid) -> None:
        """Take note that it is ready."""
        case = self._case(ccid)
        if not case.up_since:
            case.up_since = asyncio.get_running_loop().time()
        case.care, case.next_try, case.error = Care.NONE, None, None
        self._pending.discard(ccid)
        self._settle(case, None)

    def failed(self, ccid: Ccid, error: ChaindockError) -> float | None:
        """Decide about a launch that failed, or a run that ended by itself.

        Returns: how long to wait before it is tried again; None = not at all.
        """
        case, options = self._case(ccid), self._options
        self._settle(case, error)
        if case.up_since:
            up_s = asyncio.get_running_loop().time() - case.up_since
            case.up_since = 0.0
            if up_s >= options.stable_s:
                case.failures = 0
                case.backoff.reset()
        case.error = error
        if not error.retryable:
            case.failures += 1
            if _fails_again(error):
                self._leave_alone(ccid, case, Care.FAILED)
                return None
            if case.failures > options.retries:
                self._leave_alone(ccid, case, Care.CRASH_LOOP)
                return None
        pause_s = case.backoff.next_s()
        case.care, case.next_try = Care.BACK_OFF, time.time() + pause_s
        case.outcome = Latch()
        _log.warning(
            "chaincode will be started again",
            ccid=ccid,
            pause_s=round(pause_s, 2),
            failures=case.failures,
            why=error.message,
        )
        return pause_s

    def _leave_alone(self, ccid: Ccid, case: _Case, care: Care) -> None:
        case.care, case.next_try = care, None
        case.left_at = asyncio.get_running_loop().time()
        self._pending.discard(ccid)
        error = case.error
        assert error is not None  # noqa: S101  # it failed
        _log.error(
            "chaincode left alone",
            ccid=ccid,
            state=str(care),
            failures=case.failures,
            why=error.message,
            hint=self._hint(ccid, care),
        )

    def begin_anew(self, ccid: Ccid) -> None:
        """Forget how often it failed: a user launches it."""
        case = self._cases.get(ccid)
        if case is not None:
            case.failures, case.up_since = 0, 0.0
            case.care, case.next_try = Care.NONE, None
            case.backoff.reset()

    def forget(self, ccid: Ccid, error: ChaindockError) -> None:
        """Drop the case: it is not to run; who waits for a try gets `error`."""
        self._pending.discard(ccid)
        case = self._cases.pop(ccid, None)
        if case is not None:
            self._settle(case, error)

    def end(self, error: ChaindockError) -> None:
        """Give `error` to everybody who waits for a try: there will be none."""
        for case in self._cases.values():
            self._settle(case, error)

    # ---- calls

    def admit_call(self, ccid: Ccid) -> Latch[None] | None:
        """Decide about a call of a chaincode that is not running.

        Returns: the outcome of the next try, which is to be waited for; None = launch
            it now.
        Raises: LaunchFailed: it was left alone a moment ago; the reason of its last
            failure, and what to do.
        """
        case = self._cases.get(ccid)
        if case is None or case.care is Care.NONE:
            return None
        if case.care is Care.BACK_OFF:
            return case.outcome
        now = asyncio.get_running_loop().time()
        if now - case.left_at < self._options.retry_cap_s:
            raise self._refusal(ccid, case)
        case.left_at = now  # this one tries; others are refused, or join it
        return None

    def _refusal(self, ccid: Ccid, case: _Case) -> LaunchFailed:
        error = case.error
        assert error is not None  # noqa: S101  # it failed
        tried = f"after {case.failures} failures in a row"
        if case.care is Care.FAILED:
            tried = "because its build cannot succeed as it is"
        kind = type(error) if isinstance(error, LaunchFailed) else LaunchFailed
        facts = {**error.facts, "care": str(case.care), "failures": case.failures}
        return kind(
            f"chaincode {ccid} was left alone {tried}: {error.message}",
            hint=self._hint(ccid, case.care),
            **facts,
        )

    def _hint(self, ccid: Ccid, care: Care) -> str:
        name = self._name_of(ccid)
        if care is Care.FAILED:
            return (
                f"mend it and deploy it again, or try as it is: chaindock start {name}"
            )
        return f"see why: chaindock logs {name}; then: chaindock start {name}"

    # ---- pieces

    def _case(self, ccid: Ccid) -> _Case:
        case = self._cases.get(ccid)
        if case is None:
            options = self._options
            backoff = Backoff(options.retry_first_s, options.retry_cap_s)
            case = self._cases[ccid] = _Case(backoff)
        return case

    @staticmethod
    def _settle(case: _Case, error: ChaindockError | None) -> None:
        if error is None:
            case.outcome.settle(None)
        else:
            case.outcome.fail(error)


def _fails_again(error: ChaindockError) -> bool:
    """Whether a build ended for a reason that lies in what was built.

    What an engine refused, or a clock cut off, is worth the usual number of tries.
    """
    passing = isinstance(error, LaunchTimeout) or isinstance(
        error.__cause__, EngineError
    )
    return error.facts.get("stage") == "build" and not passing
