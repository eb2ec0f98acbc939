"""Structured logs.

Owns:    how a log line looks, where it goes, what is scrubbed.
Not:     when logging is configured: only `node` and `cli` call `configure`.
Entry:   get_logger, configure
Holds:   a line that cannot be written is dropped and fails nobody; an event is a fixed
         lower-case phrase, the data are keys; private keys, values of keys that sound
         secret, and local variables of a trace never reach a line; what others made up
         is cut and cannot move a cursor.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40}
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


def get_logger(name: str) -> Any:
    """Return a logger whose lines carry `component=name`."""
    return structlog.get_logger(component=name)


def configure(
    *, level: str = "info", stream: Stream | None = None, json: bool = False
) -> None:
    """Set level, target (default: standard error) and form of all log lines."""
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
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _scrub,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS.get(level, 20)),
        logger_factory=structlog.WriteLoggerFactory(
            file=cast("TextIO", _Lossy(stream))
        ),
        cache_logger_on_first_use=False,
    )


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


def _scrub(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
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
