"""Structured logs.

Owns:    how a log line looks, where it goes, what is scrubbed.
Not:     when logging is configured: only `node` and `cli` call `configure`.
Entry:   get_logger, configure
Holds:   a line that cannot be written is dropped and fails nobody; an event is a fixed lower-case phrase, the data are keys; private keys and
         values of keys that sound secret never reach a line.
"""

from __future__ import annotations

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO, cast

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


def get_logger(name: str) -> Any:
    """Return a logger whose lines carry `component=name`."""
    return structlog.get_logger(component=name)


def configure(
    *, level: str = "info", stream: TextIO | None = None, json: bool = False
) -> None:
    """Set level, target (default: standard error) and form of all log lines."""
    stream = stream or sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(colors=stream.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _scrub,
            *([structlog.processors.format_exc_info] if json else []),
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

    def __init__(self, stream: TextIO) -> None:
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
        if _SECRET_KEY.search(key):
            event[key] = "[scrubbed]"
        elif isinstance(value, str) and "PRIVATE KEY" in value:
            event[key] = _PEM_KEY.sub("[private key]", value)
    return event
