"""How chaincodes are launched, stopped and started again: settings and restart policy.

A retryable failure is tried again for ever, any other failure a few times in a row, and a
build that cannot succeed not at all. A run that died while it worked on a call is launched
again at once, as a peer does, and counts as no failure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from chaindock.aio import Backoff
from chaindock.errors import ChaindockError, EngineError, LaunchTimeout
from chaindock.lifecycle.states import LaunchState
from chaindock.options import option
from chaindock.values import Seconds, SecondsOrNone, Whole


@dataclass(frozen=True)
class CustodianOptions:
    """How chaincodes are launched, stopped and started again.

    A stop that takes `stop_limit_s` longer than draining and the grace period is given
    up. A run of `stable_s` resets the count of failures.
    """

    parallel: Whole = option(
        0,
        "chaindock.launch.parallel",
        "Launches that start at once; after 80 ms as many more start, up to "
        "eight times as many; 0 = one per processor.",
    )
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
            if _fails_again(error):
                return self._give_up(LaunchState.FAILED)
            if self.failures > self._options.retries:
                return self._give_up(LaunchState.CRASH_LOOP)
        return LaunchState.BACK_OFF, self._backoff.next_s()

    def admit_call(self) -> bool:
        """Whether a call may launch a chaincode that was given up: one each pause."""
        now = time.monotonic()
        if now - self._gave_up_at < self._options.retry_cap_s:
            return False
        self._gave_up_at = now
        return True

    def _give_up(self, state: LaunchState) -> tuple[LaunchState, float]:
        self._gave_up_at = time.monotonic()
        return state, 0.0


def _fails_again(error: ChaindockError) -> bool:
    """Whether a build failed because of what was built, not of an engine or a clock."""
    other = isinstance(error, LaunchTimeout) or isinstance(error.__cause__, EngineError)
    return error.facts.get("stage") == "build" and not other
