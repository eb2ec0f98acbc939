"""What can be counted about builds.

Owns:    Observer, which does nothing.
Not:     counting (operations/tallies.py).
Entry:   Observer
Holds:   every method is quick, never raises, and is called on the loop.
Source:  launch.md §8.2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaindock.container.attempt import Attempt


class Observer:
    """Told what builders do."""

    def built(
        self, builder: str, attempt: Attempt, seconds: float, *, ok: bool
    ) -> None:
        """Take note that a builder took a package and is done with it.

        Args:
            builder: its name.
            attempt: which phases it went through; none when an equal build was there.
            seconds: that it took.
            ok: it can be started.
        """
