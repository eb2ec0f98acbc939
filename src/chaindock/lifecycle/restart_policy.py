"""When a chaincode that should run and does not is launched again.

A retryable failure is tried again for ever, any other failure a few times in a row, and a
build that cannot succeed not at all. A run that died while it worked on a call is launched
again at once, as a peer does, and counts as no failure.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaindock.aio import Backoff
from chaindock.errors import ChaindockError, EngineError, LaunchTimeout
from chaindock.lifecycle.states import LaunchState

if TYPE_CHECKING:
    from chaindock.lifecycle.options import CustodianOptions


@dataclass(frozen=True)
class Decision:
    """What follows a failure.

    Args:
        state: back-off, crash-loop or failed.
        pause_s: until the next launch; 0 when there is none.
    """

    state: LaunchState
    pause_s: float = 0.0


class RestartPolicy:
    """Counts the failures of one chaincode.

    Attributes:
        failures: in a row, without retryable ones.
    """

    def __init__(self, options: CustodianOptions) -> None:
        self._options = options
        self._backoff = Backoff(options.retry_first_s, options.retry_cap_s)
        self.failures = 0
        self._gave_up_at = 0.0

    def reset(self) -> None:
        """Forget the failures."""
        self.failures = 0
        self._backoff.reset()

    def failed(self, error: ChaindockError, up_s: float = 0.0) -> Decision:
        """Decide after a failed launch, or after a run of `up_s` seconds that ended."""
        if up_s > self._options.stable_s:
            self.reset()
        if not error.retryable:
            self.failures += 1
            if _fails_again(error):
                return self._give_up(LaunchState.FAILED)
            if self.failures > self._options.retries:
                return self._give_up(LaunchState.CRASH_LOOP)
        return Decision(LaunchState.BACK_OFF, self._backoff.next_s())

    def admit_call(self) -> bool:
        """Whether a call may launch a chaincode that was given up: one each pause."""
        now = time.monotonic()
        if now - self._gave_up_at < self._options.retry_cap_s:
            return False
        self._gave_up_at = now
        return True

    def _give_up(self, state: LaunchState) -> Decision:
        self._gave_up_at = time.monotonic()
        return Decision(state)


def _fails_again(error: ChaindockError) -> bool:
    """Whether a build failed because of what was built, not of an engine or a clock."""
    other = isinstance(error, LaunchTimeout) or isinstance(error.__cause__, EngineError)
    return error.facts.get("stage") == "build" and not other
