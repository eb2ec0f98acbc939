"""Turn what a pipe delivers into lines, without ever holding up the event loop.

Memory is bounded by one read and one line. After a slice of lines other tasks get their
turn, so a flood slows its writer, not the node.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chaindock.container.attempt import LINE_BYTES
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_logger("process")

SLICE_LINES = 200
CUT = " [cut]"
_MOST = LINE_BYTES - len(CUT)


class Pump:
    """Passes the bytes of one pipe to `take`, line by line, without the line ends.

    Args:
        take: gets each line; bytes that are not UTF-8 are replaced, a line of more than
            8 KiB is cut.
        pause, resume: stop and continue reading the pipe.
    """

    def __init__(
        self,
        take: Callable[[str], None],
        pause: Callable[[], None],
        resume: Callable[[], None],
    ) -> None:
        self._take, self._pause, self._resume = take, pause, resume
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()
        self._line = bytearray()
        self._ended = self._paused = self._refused = False
        self.done = asyncio.Event()

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._pending += data
        if not self._paused:
            self._work()

    def end(self) -> None:
        """No more is coming; what is pending is still handed on, then `done` is set."""
        if not self._ended:
            self._ended = True
            if not self._paused:
                self._work()

    def _work(self) -> None:
        at = 0
        for _ in range(SLICE_LINES):
            end = self._pending.find(b"\n", at)
            if end < 0:
                self._grow(at, len(self._pending))
                at = len(self._pending)
                break
            self._grow(at, end)
            self._emit()
            at = end + 1
        del self._pending[:at]
        if self._pending:
            if not self._paused:
                self._paused = True
                self._pause()
            self._loop.call_soon(self._work)
            return
        if self._paused:
            self._paused = False
            self._resume()
        if self._ended and not self.done.is_set():
            if self._line:
                self._emit()
            self.done.set()

    def _grow(self, start: int, end: int) -> None:
        # One byte too many is kept to know that the line was cut.
        room = _MOST + 1 - len(self._line)
        if room > 0:
            self._line += self._pending[start : min(end, start + room)]

    def _emit(self) -> None:
        cut = len(self._line) > _MOST
        text = self._line[:_MOST].decode("utf-8", "replace")
        self._line.clear()
        try:
            self._take(text + CUT if cut else text.removesuffix("\r"))
        except (OSError, ValueError) as error:  # disk full, or the log was closed
            if not self._refused:
                self._refused = True
                _log.warning("output line lost", error=repr(error))
