"""The output of programs, cut into lines: a flood slows its writer, not the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chaindock.container.attempt import LINE_BYTES
from chaindock.telemetry import get_logger

_log = get_logger("chaincode.output")
SLICE_LINES, REST_S = 200, 0.01
"""After so many lines, or parts, other tasks get their turn: 20,000 lines a second."""


class Lines:
    """The bytes of one stream, handed on to `take` line by line, without the line ends.

    Bytes that are not UTF-8 are replaced; of a longer line the first 8 KiB and one
    character more are handed on. Memory is bounded by one part and one line.
    """

    def __init__(self, take: Callable[[str], None]) -> None:
        self._take, self._line = take, bytearray()
        self._taken, self._refused = 0, False

    async def add(self, part: bytes) -> None:
        """Take what was read."""
        rest = part
        while True:
            *ended, rest = rest.split(b"\n", SLICE_LINES)
            for line in ended:
                self._grow(line)
                self._emit()
            self._taken += max(1, len(ended))
            if self._taken >= SLICE_LINES:
                self._taken = 0
                await asyncio.sleep(REST_S)
            if len(ended) < SLICE_LINES:
                break
        self._grow(rest)

    def end(self) -> None:
        """Hand on a line that has no end."""
        if self._line:
            self._emit()

    def _grow(self, part: bytes) -> None:
        # One byte too many is kept to know that the line is cut.
        self._line += part[: max(0, LINE_BYTES + 1 - len(self._line))]

    def _emit(self) -> None:
        text = self._line.decode("utf-8", "replace").removesuffix("\r")
        self._line.clear()
        try:
            self._take(text)
        except (OSError, ValueError) as error:  # disk full, or the log was closed
            if not self._refused:
                self._refused = True
                _log.warning("output line lost", error=repr(error))
