"""Tell which transaction a line of a chaincode's output belongs to.

Source: docs/fabric/shim-protocol.md#calls
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from chaindock.ids import TxId

LATE_S: Final = 0.25
"""Seconds after the answer of a call in which its lines may still arrive."""
MOST: Final = 64
"""With more calls than that at a time no line is marked."""


class OutputCorrelator:
    """Tells which transaction a line of a chaincode's output belongs to.

    A line is marked only when a single call can have written it, or when it names one
    call by the first 8 digits of its transaction id, as shims do. A line comes through
    a pipe and the answer through a connection, so for a moment a call may have written
    what comes after its answer.
    """

    def __init__(self) -> None:
        self._open: dict[TxId, int] = {}
        """How many calls: a transaction may call this chaincode on two channels."""
        self._recent: deque[tuple[float, TxId]] = deque(maxlen=MOST + 1)
        self._closed = False

    def began(self, tx_id: TxId) -> None:
        """Take note that the chaincode was given this call."""
        self._open[tx_id] = self._open.get(tx_id, 0) + 1

    def ended(self, tx_id: TxId) -> None:
        """Take note that the chaincode has answered this call."""
        if (left := self._open.pop(tx_id, 0) - 1) > 0:
            self._open[tx_id] = left
        elif left == 0:
            self._recent.append((time.monotonic(), tx_id))

    def close(self) -> None:
        """Take note that the stream has ended: what is written now is of these calls."""
        self._forget_old()
        self._closed = True
        for tx_id in tuple(self._open)[:MOST]:
            self._open[tx_id] = 1
            self.ended(tx_id)
        self._open.clear()

    def transaction_of(self, line: str) -> str | None:
        """Return the transaction that wrote `line` now; None = it cannot be known."""
        self._forget_old()
        count = len(self._open) + len(self._recent)
        if count == 0 or count > MOST:
            return None
        ids = [*self._open, *(tx_id for _, tx_id in self._recent)]
        named = [tx_id for tx_id in ids if count == 1 or tx_id[:8] in line]
        return named[0] if len(named) == 1 else None

    def _forget_old(self) -> None:
        recent, since = self._recent, time.monotonic() - LATE_S
        while not self._closed and recent and recent[0][0] < since:
            recent.popleft()
