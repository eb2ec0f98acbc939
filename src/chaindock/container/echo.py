"""What a chaincode writes, as lines of the node's log.

Owns:    Echo: the logger of one attempt's output, and its bound.
Not:     keeping output (output.py), log lines in general (telemetry).
Entry:   Echo
Holds:   a chaincode that writes without end costs the log a bounded amount per second,
         and the log says how many lines are missing; they are all in its output file.
Source:  launch.md §3.11, §8.3, §9 W65
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from chaindock.telemetry import get_logger, is_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ids import Ccid

LOGGER: Final = "peer.chaincode"
LINES_PER_S: Final = 50.0
BYTES_PER_S: Final = 16 * 1024.0
BURST_S: Final = 16.0
"""So many seconds' worth may come at once."""
_LINE_MAX: Final = 2000
"""Characters of a line that are logged."""


class _Budget:
    """So many units a second, and a burst of `BURST_S` seconds' worth."""

    def __init__(self, per_s: float, now: float) -> None:
        self._per_s, self._most = per_s, per_s * BURST_S
        self._left, self._then = self._most, now

    def refill(self, now: float) -> None:
        self._left = min(self._most, self._left + (now - self._then) * self._per_s)
        self._then = now

    def take(self, units: float) -> None:
        self._left -= units

    @property
    def empty(self) -> bool:
        return self._left <= 0

    @property
    def half_full(self) -> bool:
        return self._left >= self._most / 2


class Echo:
    """Logs the lines of one attempt at `level`, as `peer.chaincode.LABEL`.

    Args:
        ccid, attempt: of the chaincode; each line carries them.
        level: info or debug.
        clock: seconds.
    """

    def __init__(
        self,
        ccid: Ccid,
        attempt: str,
        level: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        label = ccid.rpartition(":")[0] or ccid
        # A logging specification has no + and no other letters.
        self._name = f"{LOGGER}.{label.replace('+', '_').strip('.')}"
        self._log = get_logger(self._name).bind(ccid=ccid, attempt=attempt)
        self._level, self._clock = level, clock
        self._budgets: tuple[_Budget, ...] = ()
        self._muted, self._dropped = False, 0

    def line(self, line: str, stream: str, tx: str | None) -> None:
        """Log a line, or count it when there were too many."""
        if not is_on(self._name, self._level):
            return
        if not self._may(len(line)):
            self._dropped += 1
            return
        facts = {"stream": stream, "line": line[:_LINE_MAX]}
        if tx is not None:
            facts["tx"] = tx
        self._say(self._level, "chaincode output", **facts)

    def close(self) -> None:
        """Say what was not said yet: no more lines come."""
        self._confess()

    def _may(self, size: int) -> bool:
        now = self._clock()
        if not self._budgets:
            self._budgets = (_Budget(LINES_PER_S, now), _Budget(BYTES_PER_S, now))
        lines, data = self._budgets
        for budget in self._budgets:
            budget.refill(now)
        if self._muted:
            # Not line by line at the edge: a gap is told of once.
            if not (lines.half_full and data.half_full):
                return False
            self._muted = False
            self._confess()
        lines.take(1)
        data.take(min(size, _LINE_MAX))
        if lines.empty or data.empty:
            self._muted = True
        return True

    def _confess(self) -> None:
        if self._dropped:
            self._say(
                "warning",
                "chaincode output not logged: too much of it",
                lines=self._dropped,
                hint="all of it: chaindock logs",
            )
            self._dropped = 0

    def _say(self, level: str, event: str, **facts: object) -> None:
        getattr(self._log, level)(event, **facts)
