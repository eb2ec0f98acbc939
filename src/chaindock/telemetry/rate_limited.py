"""Log lines that somebody else can cause as often as he likes.

Owns:    RateLimitedLog: so many lines a minute about each one, then how many more there were.
Not:     how a line looks (logs.py); what chaincode writes (container/echo.py).
Entry:   RateLimitedLog
Holds:   whoever causes lines costs the log a bounded amount, and takes away nobody
         else's; that lines are missing is said.
Source:  docs/security.md, "What stands in the way": floods
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: Final = 10
EACH_S: Final = 60.0
_MOST_KNOWN: Final = 100
_OTHERS: Final = ""


class RateLimitedLog:
    """Lines by whom they are about; for use in an event loop.

    Args:
        log: the logger that says how many lines are missing.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._counts: dict[str, int] = {}

    def say(
        self, about: str | None, log: Callable[..., Any], event: str, **facts: Any
    ) -> None:
        """Write a line with `log`, or count it when there were too many about that one.

        Args:
            about: who caused it, as far as that cannot be made up; None = not known.
            log: the method of a logger that takes it.
            event: the line.
            facts: what is bound to it.
        """
        about = about or _OTHERS
        if about not in self._counts:
            if len(self._counts) >= _MOST_KNOWN:
                about = _OTHERS
            if about not in self._counts:
                self._counts[about] = 0
                loop = asyncio.get_running_loop()
                loop.call_later(EACH_S, self._sum_up, about)
        self._counts[about] += 1
        if self._counts[about] <= MOST:
            log(event, **facts)

    def _sum_up(self, about: str) -> None:
        missing = self._counts.pop(about) - MOST
        if missing > 0:
            self._log.warning(
                "lines not logged: too many of one cause",
                lines=missing,
                about=about or "others",
            )
