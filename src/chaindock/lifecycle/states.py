"""What users want of a chaincode, where it runs, its states, and when it is restarted.

A retryable failure is tried again for ever, any other failure a few times in a row, and a
build that cannot succeed not at all. A run that died while it worked on a call is launched
again at once, as a peer does, and counts as no failure.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from chaindock.aio import Backoff
from chaindock.errors import (
    ChaincodeRetired,
    ChaindockError,
    EngineError,
    LaunchTimeout,
    NodeStopping,
    PlacementConflict,
)
from chaindock.ids import Ccid, split_peer
from chaindock.options import option
from chaindock.values import Seconds, SecondsOrNone, Whole

AUTO: Final = "auto"
BY_HAND: Final = "dev"
"""The back end of programs that a user starts (development mode)."""


class Target(StrEnum):
    """What users want of a chaincode."""

    RUNNING = "running"
    STOPPED = "stopped"
    REMOVED = "removed"


@dataclass(frozen=True)
class Placement:
    """Where a package runs."""

    asked: str = AUTO
    """`auto`, or the back end that a user chose."""
    given: str = ""
    """The back end that runs the package; "" = not decided yet. Once decided, it
    changes only when a user asks for another one."""
    why: str = ""
    """The reason for `given`, in one phrase."""

    def require_free(self, ccid: Ccid, asked: str, others: Collection[str]) -> None:
        """Check that a back end that a user asks for suits the package's other users.

        Raises: PlacementConflict: the package runs elsewhere for `others`.
        """
        there = self.given or self.asked
        if others and asked not in {AUTO, there}:
            raise PlacementConflict(
                f"package {ccid} runs on back end {there!r} for "
                f"{', '.join(sorted(others))}; back end {asked!r} was asked for",
                hint=f"use --backend {there}, or package the contract under another "
                "label (--label), or remove the other chaincode first",
                ccid=ccid,
                asked=asked,
                given=there,
            )


class LaunchState(StrEnum):
    """Where a chaincode is between not running and running.

    `back-off`: the last launch or run failed, and the next launch is planned.
    `crash-loop`, `failed`: gave up after too many failures, or because the build cannot
    succeed; a user starts it again, or one call in a while.
    `waiting`: a user's program is to register (development mode).
    """

    DOWN = "down"
    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACK_OFF = "back-off"
    CRASH_LOOP = "crash-loop"
    FAILED = "failed"


GAVE_UP: Final = frozenset({LaunchState.CRASH_LOOP, LaunchState.FAILED})


# --- the errors for a chaincode that does not run -----------------------------------


def going_down() -> NodeStopping:
    """Say that the node ends."""
    return NodeStopping("the node is stopping", hint="start it again: chaindock up")


def retired(ccid: Ccid) -> ChaincodeRetired:
    """Say that a call came too late."""
    return ChaincodeRetired(
        f"chaincode {ccid} does not run on this node any more: a user stopped it, or "
        "another version replaced it",
        hint="send the call again",
        ccid=ccid,
    )


def hint(state: LaunchState, name: str) -> str:
    """Return what to do about a chaincode whose restarts were given up."""
    start = f"chaindock start {split_peer(Ccid(name))[0]}"
    if state is LaunchState.FAILED:
        return f"correct it and deploy it again, or retry: {start}"
    return f"see why: chaindock logs {name}; then: {start}"


# --- the restart policy


@dataclass(frozen=True)
class CustodianOptions:
    """How chaincodes are launched, stopped and started again."""

    parallel: int = 0
    drain_s: SecondsOrNone = option(30.0, "chaindock.launch.drain")
    """Time that running calls have to finish before a chaincode is stopped."""
    stop_grace_s: SecondsOrNone = option(10.0, "chaindock.launch.stopGrace")
    """Time between SIGTERM and SIGKILL when a chaincode is stopped."""
    retry_first_s: Seconds = option(1.0, "chaindock.launch.retryFirst")
    """Pause before the first retry of a failed launch; it doubles each time."""
    retry_cap_s: Seconds = option(60.0, "chaindock.launch.retryCap")
    """Longest pause between retries. After the node gave up, one call in each such
    period may still launch the chaincode."""
    retries: Whole = option(5, "chaindock.launch.retries")
    """Retries of a failed launch, after which the node gives up."""
    stable_s: float = 60.0
    """A run of so many seconds resets the count of failures."""


class RestartPolicy:
    """Counts the failures of one chaincode in a row, without retryable ones."""

    def __init__(self, options: CustodianOptions) -> None:
        self._options = options
        self._backoff = Backoff(options.retry_first_s, options.retry_cap_s)
        self.failures = 0
        self._gave_up_at = 0.0

    def reset(self) -> None:
        """Forget the failures."""
        self.failures = 0
        self._backoff.reset()

    def failed(
        self, error: ChaindockError, up_s: float = 0.0
    ) -> tuple[LaunchState, float]:
        """Decide after a failed launch, or after a run of `up_s` seconds that ended.

        Returns: back-off, crash-loop or failed; and after how many seconds the next
            launch is, 0 = never.
        """
        if up_s > self._options.stable_s:
            self.reset()
        if not error.retryable:
            self.failures += 1
            cause = error.__cause__
            late = isinstance(error, LaunchTimeout) or isinstance(cause, EngineError)
            hopeless = error.facts.get("stage") == "build" and not late
            if hopeless or self.failures > self._options.retries:
                self._gave_up_at = time.monotonic()
                return LaunchState.FAILED if hopeless else LaunchState.CRASH_LOOP, 0.0
        return LaunchState.BACK_OFF, self._backoff.next_s()

    def admit_call(self) -> bool:
        """Whether a call may launch a chaincode that was given up: one each pause."""
        now = time.monotonic()
        if now - self._gave_up_at < self._options.retry_cap_s:
            return False
        self._gave_up_at = now
        return True
