"""What a chaincode writes, as lines of the node's log.

A chaincode that writes without end costs the log a bounded amount per window, and the log
says how many lines are missing. All of them are in the output file of the attempt.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from chaindock.telemetry import get_logger, is_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.ids import Ccid

LOGGER: Final = "peer.chaincode"
LINES_PER_S: Final = 50
BYTES_PER_S: Final = 16 * 1024
WINDOW_S: Final = 16
"""Lines that exceed the budget of these seconds are counted instead of logged."""
_LINE_MAX: Final = 2000
"""Characters of a line that are logged."""


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
        self._since = clock()
        self._lines = self._bytes = self._dropped = 0

    def line(self, line: str, stream: str, tx: str | None) -> None:
        """Log a line, or count it when there were too many."""
        if not is_on(self._name, self._level):
            return
        if not self._within_budget(len(line)):
            self._dropped += 1
            return
        facts = {"stream": stream, "line": line[:_LINE_MAX]}
        if tx is not None:
            facts["tx"] = tx
        getattr(self._log, self._level)("chaincode output", **facts)

    def close(self) -> None:
        """Report dropped lines: no more lines come."""
        if self._dropped:
            self._log.warning(
                "chaincode output not logged: over the rate limit",
                lines=self._dropped,
                hint="all of it: chaindock logs",
            )
            self._dropped = 0

    def _within_budget(self, size: int) -> bool:
        now = self._clock()
        if now - self._since >= WINDOW_S:
            self.close()
            self._since, self._lines, self._bytes = now, 0, 0
        if self._lines >= LINES_PER_S * WINDOW_S:
            return False
        if self._bytes >= BYTES_PER_S * WINDOW_S:
            return False
        self._lines += 1
        self._bytes += min(size, _LINE_MAX)
        return True
