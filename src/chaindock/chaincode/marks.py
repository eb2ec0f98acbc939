"""Which transaction a line of output belongs to, where that can be known.

Owns:    the ids of the invocations that run on one stream, or did a moment ago.
Not:     where lines come from and go (container/attempt.py).
Entry:   Marks.transaction_of
Holds:   a line is marked only when one invocation alone can have written it, or when
         it names one by its id or the first 8 digits; memory and time are bounded.
Source:  issue "Operations"; shims print the first 8 digits of an id

A line comes through a pipe and the answer through another connection, so an invocation
may have ended when its last lines arrive. For a moment it can still have written them.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chaindock.ids import TxId

LATE_S: Final = 0.25
"""So long after its end lines of an invocation may arrive."""
MOST: Final = 64
"""With more invocations than that at a time nothing is marked."""
SHORT: Final = 8


class Marks:
    """The invocations of one stream."""

    __slots__ = ("_closed", "_open", "_recent")

    def __init__(self) -> None:
        self._open: dict[TxId, None] = {}
        self._recent: deque[tuple[float, TxId]] = deque(maxlen=MOST + 1)
        self._closed = False

    def began(self, tx_id: TxId) -> None:
        """Take note that the chaincode was given this one."""
        self._open[tx_id] = None

    def ended(self, tx_id: TxId) -> None:
        """Take note that it has answered, or that nobody waits any more."""
        if self._open.pop(tx_id, self) is None:
            self._recent.append((time.monotonic(), tx_id))

    def close(self) -> None:
        """Take note that the stream has ended: nothing begins after what is open."""
        self._forget_old()
        self._closed = True
        for tx_id in tuple(self._open)[:MOST]:
            self.ended(tx_id)
        self._open.clear()

    def transaction_of(self, line: str) -> str | None:
        """Return the transaction that wrote `line` now; None = it cannot be known."""
        if not self._open and not self._recent:
            return None
        if not self._closed:
            self._forget_old()
        count = len(self._open) + len(self._recent)
        if count == 0 or count > MOST:
            return None
        ids = [*self._open, *(tx_id for _, tx_id in self._recent)]
        if count == 1:
            return ids[0]
        named = [tx_id for tx_id in ids if tx_id[:SHORT] in line]
        return named[0] if len(named) == 1 else None

    def _forget_old(self) -> None:
        recent, since = self._recent, time.monotonic() - LATE_S
        while recent and recent[0][0] < since:
            recent.popleft()
