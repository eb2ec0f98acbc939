"""Log lines that a client or a chaincode can cause without end, limited per cause.

Each cause gets `MOST` lines a minute; then one line says how many were not logged. A
cause that floods takes no lines from the others.
Source: docs/security.md
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

MOST: Final = 10
EACH_S: Final = 60.0
_MOST_CAUSES: Final = 100
"""Causes of one minute after these share one budget."""
_OTHERS: Final = ""


class RateLimitedLog:
    """Lines by cause; for use in an event loop.

    Args:
        log: writes how many lines are missing.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._counts: dict[str, int] = {}

    def say(
        self, about: str | None, log: Callable[..., Any], event: str, **facts: Any
    ) -> None:
        """Write a line with `log`, or only count it if its cause had too many.

        Args:
            about: the cause, by something it cannot forge; None = not known.
            log: the logger's method.
            event: the line.
            facts: its data.
        """
        about = about or _OTHERS
        if about not in self._counts:
            if len(self._counts) >= _MOST_CAUSES:
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
                "lines not logged: over the rate limit",
                lines=missing,
                about=about or "others",
            )
