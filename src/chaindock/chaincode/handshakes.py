"""Count the TLS handshakes with the node that no stream followed.

gRPC says nothing of handshakes that fail, but asks for the node's certificate before each
of them. A handshake that no stream follows has failed.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from typing import Final

_MOST: Final = 1000
"""The latest handshakes that are remembered."""


class Handshakes:
    """Start times (monotonic) of the handshakes that no stream followed yet."""

    def __init__(self) -> None:
        self._begun: deque[float] = deque(maxlen=_MOST)

    def begins(self) -> None:
        """Take note of a handshake; from any thread."""
        self._begun.append(time.monotonic())

    def through(self) -> None:
        """Take note of a stream: one of the handshakes was good."""
        with contextlib.suppress(IndexError):
            self._begun.pop()

    def in_vain(self, since: float) -> int:
        """Return how many handshakes since then no stream followed."""
        return sum(began >= since for began in tuple(self._begun))

    def forget(self) -> None:
        """Forget everything: the node's own probe has connected."""
        self._begun.clear()
