"""What can be counted about proposals.

Owns:    Observer, which does nothing; End, how a proposal can end.
Not:     counting (operations/tallies.py).
Entry:   Observer
Holds:   every method is quick, never raises, and is called on the loop.
Source:  launch.md §8.2
"""

from __future__ import annotations

from enum import StrEnum


class End(StrEnum):
    """How a proposal ended.

    `INVALID`: it is not one. `DENIED`: its signer may not do this. `DUPLICATE`: its
    transaction id was used. `NOT_SIMULATED`: there is no answer of the chaincode.
    `REFUSED`: the chaincode answered with an error. `CANCELLED`: nobody waited any more.
    """

    ENDORSED = "endorsed"
    INVALID = "invalid"
    DENIED = "denied"
    DUPLICATE = "duplicate"
    NOT_SIMULATED = "not-simulated"
    REFUSED = "refused"
    CANCELLED = "cancelled"


class Observer:
    """Told what becomes of proposals."""

    def received(self) -> None:
        """Take note of a proposal that begins."""

    def done(self, end: End, channel: str, chaincode: str, seconds: float) -> None:
        """Take note that it is over.

        Channel and chaincode are what the proposal says; "" when it cannot be read.
        """
