"""What can be counted about chaincodes.

Owns:    Observer and StreamObserver, which do nothing.
Not:     counting (operations/tallies.py).
Entry:   Observer
Holds:   every method is quick, never raises, and is called on the loop; a launch is
         told of once, however many waited for it.
Source:  launch.md §8.2, §9 W7, W67
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Exit
    from chaindock.errors import LaunchFailed
    from chaindock.ids import Ccid


class StreamObserver:
    """Told what happens on the streams of one chaincode."""

    def received(self, kind: int, channel: str) -> None:
        """Take note of a request of ChaincodeMessage type `kind`.

        `channel` is "" for a request that belongs to no running invocation.
        """

    def completed(self, kind: int, channel: str, seconds: float, ok: bool) -> None:
        """Take note that it was answered; not `ok` = with an ERROR."""

    def timed_out(self) -> None:
        """Take note of an invocation that was given up."""


class Observer:
    """Told what happens to the chaincodes of a node."""

    def stream(self, ccid: Ccid) -> StreamObserver:  # noqa: ARG002
        """Return whom to tell about the streams of `ccid`."""
        return StreamObserver()

    def launching(self, attempt: Attempt) -> None:
        """Take note of an attempt that begins."""

    def launched(self, attempt: Attempt, failure: LaunchFailed | None) -> None:
        """Take note of its outcome; it was not given up by a stop."""

    def ended(self, attempt: Attempt, end: Exit, *, asked: bool) -> None:
        """Take note that a chaincode that was ready has ended.

        Args:
            attempt: that had brought it up.
            end: how.
            asked: somebody wanted it to.
        """

    def forgotten(self, ccid: Ccid) -> None:
        """Take note that this chaincode is none of the node's any more."""
