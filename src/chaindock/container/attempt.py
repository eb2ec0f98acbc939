"""One try to bring a chaincode up: its phases, their times, its output.

Exactly one phase is open until the attempt is over. Times are monotonic.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from chaindock.container.output import LINE_BYTES, Echo, OutputFile
from chaindock.ids import Ccid
from chaindock.platforms.registry import looks_like_error

TAIL_LINES = 20
"""Lines of output that an error carries; earlier lines that look like one come first."""
ERROR_LINES = 4
ERROR_AGE_LINES = 500
"""An error line that is followed by more lines than these is no cause of the end."""
SKIPPED = "[...]"


class Phase(StrEnum):
    """The named parts of a launch, in order."""

    PACKAGE = "package"
    PULL = "pull"
    DEPENDENCIES = "dependencies"
    COMPILE = "compile"
    IMAGE = "image"
    CREATE = "create"
    UPLOAD = "upload"
    START = "start"
    CONNECT = "connect"
    REGISTER = "register"
    READY = "ready"


NETWORK_PHASES = frozenset({Phase.PULL, Phase.DEPENDENCIES})
"""Phases whose length depends on a network: a step without output ends, no deadline."""

BUILD_PHASES = frozenset(
    {Phase.PACKAGE, Phase.PULL, Phase.DEPENDENCIES, Phase.COMPILE, Phase.IMAGE}
)
_OWN_OUTPUT = frozenset({Phase.DEPENDENCIES, Phase.COMPILE, Phase.IMAGE, Phase.CREATE})
"""Phases whose failure is explained by their own output only, not by earlier lines."""


class PhaseTime(NamedTuple):
    """A finished phase."""

    phase: Phase
    seconds: float


class Event(NamedTuple):
    """What watchers of an attempt are told."""

    kind: Literal["phase", "phase-end", "output", "note", "over"]
    data: dict[str, Any]


Watch = Callable[[Event], None]
"""Takes the events of an attempt; quick, never raises."""
Stream = Literal["build", "stdout", "stderr"]


class Attempt:
    """The record of one build-and-launch try.

    `log` keeps the output beyond this process; None = keep the tail only. `tx_of` says
    which transaction a line of the run belongs to; None = it cannot. `echo` gets these
    lines, too.
    """

    def __init__(self, ccid: Ccid, log: OutputFile | None = None) -> None:
        self.id = uuid.uuid4().hex[:12]
        self.ccid = ccid
        self.tx_of: Callable[[str], str | None] | None = None
        self.echo: Echo | None = None
        self.phases: list[PhaseTime] = []
        self.reused: list[str] = []
        self._log = log
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._errors: list[tuple[int, str]] = []
        self._lines = 0
        self._watchers: list[Watch] = []
        self._phase: Phase | None = None
        self._began = time.monotonic()

    @property
    def phase(self) -> Phase | None:
        """The open phase; None before the first and after the last."""
        return self._phase

    def watch(self, watcher: Watch) -> None:
        """Call `watcher` for every later event; it must be quick and never raise."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Watch) -> None:
        """End what `watch` began. Idempotent."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def begin(self) -> None:
        """Keep the output from now on. Raises: StorageError when that cannot be."""
        if self._log is not None:
            self._log.begin()

    def enter(self, phase: Phase) -> None:
        """Open `phase`; the one that was open ends."""
        if phase == self._phase:
            return
        if phase is Phase.REGISTER and self._phase is Phase.START:
            # It connected before the engine had said that it runs.
            self.enter(Phase.CONNECT)
        if phase in _OWN_OUTPUT:
            self._tail.clear()
            self._errors.clear()
        self._close()
        self._phase, self._began = phase, time.monotonic()
        self._tell("phase", phase=str(phase))

    def note(self, text: str) -> None:
        """Tell people something, e.g. that an earlier build is reused."""
        self.reused.append(text)
        self._tell("note", text=text)

    def output(self, line: str, stream: Stream) -> None:
        """Take one line that the build or the chaincode wrote (no line end)."""
        if len(line) > LINE_BYTES // 4:  # a character has up to 4 bytes
            raw = line.encode()
            if len(raw) > LINE_BYTES:
                line = raw[:LINE_BYTES].decode(errors="ignore") + " [cut]"
        run = stream != "build"
        self._tail.append(line)
        self._lines += 1
        if looks_like_error(line):
            # Tools say first what was wrong; what runs says last why it ended.
            if run:
                del self._errors[: 1 - ERROR_LINES]
            if len(self._errors) < ERROR_LINES:
                self._errors.append((self._lines, line))
        tx = self.tx_of(line) if run and self.tx_of is not None else None
        if self._log is not None:
            self._log.write(line, stream, tx)
        if run and self.echo is not None:
            self.echo.line(line, stream, tx)
        if self._watchers:
            self._tell("output", line=line, stream=stream)

    def over(self) -> None:
        """End the last phase. Output of the run still arrives after it."""
        if self._phase is not None:
            self._close()
            self._phase = None
            self._tell("over")
            self._watchers.clear()

    def close(self) -> None:
        """End the attempt and its log file: the run has ended. Idempotent."""
        self.over()
        if self._log is not None:
            self._log.close()
            self._log = None
        if self.echo is not None:
            self.echo.close()

    def tail(self) -> list[str]:
        """Return the last lines of the phase (of the run), oldest first.

        Earlier lines that look like an error come before them, then SKIPPED.
        """
        first = self._lines - len(self._tail)
        oldest = self._lines - ERROR_AGE_LINES
        errors = [line for number, line in self._errors if oldest < number <= first]
        return shorten([*errors, *self._tail], TAIL_LINES)

    def seconds_since(self, phase: Phase) -> float:
        """Return how long ago `phase` began last; 0 if it never did."""
        seconds = time.monotonic() - self._began
        if self._phase is phase:
            return seconds
        for spent in reversed(self.phases):
            seconds += spent.seconds
            if spent.phase is phase:
                return seconds
        return 0.0

    def facts(self) -> dict[str, Any]:
        """Return `ccid`, `phase`, `phases`, `output` as a LaunchFailed carries them."""
        spent = list(self.phases)
        if self._phase is not None:
            spent.append(PhaseTime(self._phase, time.monotonic() - self._began))
        return {
            "ccid": self.ccid,
            "phase": str(self._phase) if self._phase else None,
            "phases": [{"phase": str(p.phase), "seconds": p.seconds} for p in spent],
            "output": self.tail(),
        }

    def _close(self) -> None:
        if self._phase is not None:
            spent = PhaseTime(self._phase, time.monotonic() - self._began)
            self.phases.append(spent)
            self._tell("phase-end", phase=str(spent.phase), seconds=spent.seconds)

    def _tell(self, kind: Any, **data: Any) -> None:
        for watcher in tuple(self._watchers):
            watcher(Event(kind, data))


def shorten(lines: Sequence[str], most: int) -> list[str]:
    """Return at most `most` lines: earlier ones that look like an error, then the last ones."""
    if len(lines) <= most:
        return list(lines)
    kept = most - ERROR_LINES - 1
    errors = [line for line in lines[:-kept] if looks_like_error(line)]
    if not errors:
        return list(lines[-most:])
    if len(errors) > ERROR_LINES:
        half = ERROR_LINES // 2
        errors = [*errors[:half], *errors[-half:]]
    return [*errors, SKIPPED, *lines[-kept:]]
