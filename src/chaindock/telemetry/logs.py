"""Structured logs.

Owns:    how a log line looks, where it goes, what is scrubbed, which are dropped.
Not:     when logging is configured: only `node` and `cli` call `configure`.
Entry:   get_logger, configure, activate
Holds:   a line that cannot be written is dropped and fails nobody; an event is a fixed
         lower-case phrase, the data are keys; private keys, values of keys that sound
         secret, and local variables of a trace never reach a line; what others made up
         is cut and cannot move a cursor.
Source:  launch.md §8.3, §9 W72
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO, cast

import structlog

from chaindock.telemetry.spec import LEVELS, LogSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

_SECRET_KEY = re.compile(
    r"(password|secret|token|credential|private_?key|_key_pem)", re.IGNORECASE
)
_PEM_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*KEY-----", re.DOTALL
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONGEST = 8000
"""Characters of one value: chaincode chooses some of them."""


class Stream(Protocol):
    """Where log lines go."""

    def write(self, text: str, /) -> object:
        """Write `text`. Raises: OSError when that cannot be done."""

    def flush(self) -> None:
        """Let nothing wait. Raises: OSError."""

    def isatty(self) -> bool:
        """Whether colours make sense."""


class LogCounts:
    """Lines of this process by level, as Fabric counts them.

    Attributes:
        checked: lines that somebody wanted to log.
        written: those of them that their level let through.
    """

    def __init__(self) -> None:
        self.checked: dict[str, int] = dict.fromkeys(_METHODS, 0)
        self.written: dict[str, int] = dict.fromkeys(_METHODS, 0)


_METHODS: Final = ("debug", "info", "warning", "error", "critical")


class _State:
    """What can be changed while the process runs."""

    def __init__(self) -> None:
        self.spec = LogSpec()
        self.counts = LogCounts()


_state = _State()
bound = structlog.contextvars.bound_contextvars
"""`with bound(ccid=…, attempt=…):` adds these to every line of the block, and of the
tasks that are started in it."""
bind = structlog.contextvars.bind_contextvars
"""`bind(ccid=…)` adds it to every later line of this task."""
unbind = structlog.contextvars.clear_contextvars
"""Forget what the task inherited: it works for somebody else than who started it."""


def get_logger(name: str) -> Any:
    """Return a logger whose lines carry `component=name`."""
    return structlog.get_logger(component=name)


def configure(
    *,
    level: str = "info",
    spec: str = "",
    stream: Stream | None = None,
    json: bool = False,
) -> None:
    """Set levels, target (default: standard error) and form of all log lines.

    Args:
        level: of all components that `spec` does not mention.
        spec: a logging specification.
        stream: where lines go.
        json: one object a line, instead of text.

    Raises: InvalidInput: a wrong `spec`; nothing was changed.
    """
    _state.spec = LogSpec.parse(spec, level)
    stream = stream or sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            # The other one shows local variables: keys, transient data, tokens.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            _pass,
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _scrub,
            renderer,
        ],
        # It lets everything through: levels differ by component (_pass).
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=structlog.WriteLoggerFactory(
            file=cast("TextIO", _Lossy(stream))
        ),
        cache_logger_on_first_use=False,
    )


def activate(spec: str) -> None:
    """Change which lines are logged from now on.

    Raises: InvalidInput with what was expected; nothing was changed.
    """
    _state.spec = LogSpec.parse(spec)


def active() -> str:
    """Return the logging specification in force."""
    return str(_state.spec)


def is_on(component: str, level: str) -> bool:
    """Whether a line of this level would be logged: for lines that cost something."""
    return LEVELS[level] >= _state.spec.level_of(component)


def counts() -> LogCounts:
    """Return the counters; they go on counting."""
    return _state.counts


class _Lossy:
    """A stream whose faults hurt nobody: a full disk must not fail who writes a log."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or drop what cannot be written."""
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, if that can be done."""
        with contextlib.suppress(OSError):
            self._stream.flush()


def _pass(
    _logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Drop the line unless its component logs this level."""
    counts, level = _state.counts, LEVELS.get(method, LEVELS["error"])
    counts.checked[method] = counts.checked.get(method, 0) + 1
    if level < _state.spec.level_of(str(event.get("component", ""))):
        raise structlog.DropEvent
    counts.written[method] = counts.written.get(method, 0) + 1
    return event


def _scrub(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> Mapping[str, Any]:
    for key, value in event.items():
        event[key] = _scrubbed(key, value)
    return event


def _scrubbed(key: Any, value: Any) -> Any:
    if isinstance(key, str) and _SECRET_KEY.search(key):
        return "[scrubbed]"
    if isinstance(value, dict):
        return {name: _scrubbed(name, one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_scrubbed(None, one) for one in value]
    return _harmless(value) if isinstance(value, str) else value


def _harmless(text: str) -> str:
    if "PRIVATE KEY" in text:
        text = _PEM_KEY.sub("[private key]", text)
    if len(text) > _LONGEST:
        half = _LONGEST // 2
        text = f"{text[:half]} [{len(text) - 2 * half} cut] {text[-half:]}"
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
