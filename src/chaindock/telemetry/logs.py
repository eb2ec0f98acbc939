"""Log lines: Fabric's logging specification, form, and what is removed from a line.

structlog makes the events, and the standard library's handlers write them, together with
the lines of asyncio and aiohttp. Private keys, values of keys that look secret and
local variables of a traceback are never written.
Source: docs/fabric/operations.md#logging-specification
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final, TextIO

from typing_extensions import override

from chaindock.errors import InvalidInput
from chaindock.structured import structlog

LEVELS: Final[Mapping[str, int]] = {
    "payload": 5,
    "debug": 10,
    "info": 20,
    "notice": 20,
    "warning": 30,
    "warn": 30,
    "error": 40,
    "critical": 40,
    "dpanic": 50,
    "panic": 50,
    "fatal": 60,
}
"""By name, which is all in lower or all in upper case."""
FABRIC_NAMES: Final[Mapping[str, str]] = {
    "admin": "peer.operations",
    "chaincode.client": "extcc",
    "custodian": "lifecycle",
    "deployer": "lifecycle",
    "docker": "dockercontroller",
    "ledger": "kvledger",
    "node": "nodeCmd",
    "operations": "peer.operations",
    "router": "container",
}
"""Our component → Fabric's name for the logger of the same part, if it differs."""
_SHOWN: Final = {5: "payload", 10: "debug", 20: "info", 30: "warn", 40: "error"}
_LOGGER: Final = re.compile(r"[0-9A-Za-z_#-]+(\.[0-9A-Za-z_#-]+)*\.?")
_LONGEST: Final = 4096
_EXPECTED: Final = (
    "expected levels and LOGGER[,LOGGER]=LEVEL with : between, such as "
    "info:chaincode,endorser=debug; levels: fatal, panic, error, warning, info, debug"
)
_SECRET_KEY: Final = re.compile(
    r"(password|secret|token|credential|private_?key|_key_pem)", re.IGNORECASE
)
_PEM_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*KEY-----", re.DOTALL
)
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MAX_VALUE: Final = 8000
"""Characters of one value; the middle of a longer value is left out."""
MOST: Final = 10
EACH_S: Final = 60.0
"""Each cause gets `MOST` lines in these seconds; then one line says how many more there
were. A cause that floods takes no lines from the others."""
_MOST_CAUSES: Final = 100
"""Causes of one minute after these share one budget."""
_OTHERS: Final = ""
lines_checked: Final = dict.fromkeys(
    ("debug", "info", "warning", "error", "critical"), 0
)
"""By level: lines that some code wanted to log, as Fabric counts them."""
lines_written: Final = dict.fromkeys(lines_checked, 0)
"""By level: lines that the level of their component let through."""
bound = structlog.contextvars.bound_contextvars
"""`with bound(ccid=…, attempt=…):` adds these to every line of the block, and of the
tasks that are started in it."""
bind = structlog.contextvars.bind_contextvars
"""`bind(ccid=…)` adds it to every later line of this task."""
unbind = structlog.contextvars.clear_contextvars
"""Drop what the task inherited from the task that started it."""
get_logger: Final[Callable[[str], Any]] = structlog.stdlib.get_logger
"""Return a logger whose lines carry its name as `component`."""


class LogSpec:
    """Levels of all loggers.

    Args:
        terms: logger → level, as in the text; a name that ends with a dot means this
            logger only, a name without a dot also all loggers below it.
        default: level of all others.

    Attributes:
        lowest: level that no logger is below.
        level_of: the lowest level that a component logs; a number as in LEVELS.
    """

    def __init__(
        self, terms: Mapping[str, int] | None = None, default: int = LEVELS["info"]
    ) -> None:
        self._terms = dict(terms or {})
        self._default = default
        self.lowest = min([default, *self._terms.values()])
        # Bounded, because names of chaincodes come and go.
        self.level_of: Callable[[str], int] = lru_cache(_LONGEST)(self._find)

    @classmethod
    def parse(cls, text: str) -> LogSpec:
        """Return the specification that `text` means: terms with `:` between.

        The last bare level is that of all loggers without a term; an empty one is `info`.

        Raises: InvalidInput with what was expected.
        """
        if len(text) > _LONGEST:
            raise _invalid(text[:40] + "…", f"it has {len(text)} characters")
        terms: dict[str, int] = {}
        rest = LEVELS["info"]
        for segment in text.split(":"):
            names, equals, level = segment.partition("=")
            if not equals:
                rest = _level(segment or "info", text)
                continue
            if not names:
                raise _invalid(text, f"no logger specified in segment {segment!r}")
            number = _level(level, text, segment)
            for name in names.split(","):
                if not _LOGGER.fullmatch(name):
                    raise _invalid(text, f"bad logger name {name!r}")
                terms[name] = number
        return cls(terms, rest)

    def _find(self, component: str) -> int:
        for name in (component, *_aliases(component)):
            for candidate in _candidates(name):
                if candidate in self._terms:
                    return self._terms[candidate]
        return self._default

    def __str__(self) -> str:
        """Return the text that means the same, in Fabric's order."""
        terms = [f"{name}={_shown(n)}" for name, n in sorted(self._terms.items())]
        return ":".join([*terms, _shown(self._default)])


def _candidates(name: str) -> Iterator[str]:
    yield name + "."
    while name:
        yield name
        name = name.rpartition(".")[0]


def _aliases(component: str) -> Iterator[str]:
    for prefix in _candidates(component):
        if prefix in FABRIC_NAMES:
            yield FABRIC_NAMES[prefix] + component[len(prefix) :]


def _level(word: str, text: str, segment: str | None = None) -> int:
    number = LEVELS.get(word.lower())
    if number is None or word not in {word.lower(), word.upper()}:
        raise _invalid(text, f"bad segment {segment or word!r}")
    return number


def _shown(number: int) -> str:
    return _SHOWN.get(number, "fatal")


def _invalid(text: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"invalid logging specification {text!r}: {why}", hint=_EXPECTED
    )


class _State:
    """What can be changed while the process runs."""

    def __init__(self) -> None:
        self.spec = LogSpec()
        self.handler: logging.Handler = logging.NullHandler()


_state = _State()


def configure(*, spec: str = "", stream: Any = None, json: bool = False) -> None:
    """Set levels, target (default: standard error) and form of all log lines.

    `spec` is a logging specification. `write` of the text stream may raise OSError. `json`
    writes one object a line.

    Raises: InvalidInput: a wrong `spec`; nothing was changed.
    """
    activate(spec)
    stream = stream or sys.stderr
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if json
        else structlog.dev.ConsoleRenderer(
            colors=stream.isatty(),
            # The default formatter shows local variables: keys, transient data, tokens.
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    handler = _Handler(stream)
    handler.addFilter(_take_foreign)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.contextvars.merge_contextvars],
            processors=[
                lambda _log, _method, event: {
                    **event,
                    "component": event["_record"].name,
                },
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                lambda _log, _method, event: {
                    key: _scrubbed(key, value) for key, value in event.items()
                },
                renderer,
            ],
        )
    )
    logging.root.removeHandler(_state.handler)
    logging.root.addHandler(handler)
    _state.handler = handler
    structlog.configure(
        processors=[
            _take,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        # No level here: levels differ by component (_take).
        wrapper_class=structlog.make_filtering_bound_logger(0),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def activate(spec: str) -> None:
    """Change which lines are logged, as `configure`. Raises: InvalidInput: no change."""
    _state.spec = LogSpec.parse(spec)
    # The lowest level of any component; `_take` and `_take_foreign` know the others.
    logging.root.setLevel(_state.spec.lowest)


def active() -> str:
    """Return the logging specification in force."""
    return str(_state.spec)


def is_on(component: str, level: str) -> bool:
    """Whether a line of this level would be logged: for lines that cost something."""
    return LEVELS[level] >= _state.spec.level_of(component)


class _Handler(logging.StreamHandler[TextIO]):
    """Drop a line that cannot be written: a full disk must not fail the code that logs."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _is_taken(component: str, method: str) -> bool:
    lines_checked[method] += 1
    if not is_on(component, method):
        return False
    lines_written[method] += 1
    return True


def _take(
    logger: logging.Logger, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    if not _is_taken(logger.name, method):
        raise structlog.DropEvent
    return event


def _take_foreign(record: logging.LogRecord) -> bool:
    if hasattr(record, "_logger"):
        return True  # `_take` has decided
    method = record.levelname.lower()
    if not _is_taken(record.name, method if method in lines_checked else "debug"):
        return False
    said = str(record.msg).partition("\n")[0]
    try:
        return _foreign.admits(f"{record.name}: {said:.60}")
    except RuntimeError:
        return True  # a thread without an event loop


def _scrubbed(key: Any, value: Any) -> Any:
    if isinstance(key, str) and _SECRET_KEY.search(key):
        return "[scrubbed]"
    if isinstance(value, dict):
        return {name: _scrubbed(name, one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_scrubbed(None, one) for one in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else repr(value)
    if "PRIVATE KEY" in text:
        text = _PEM_KEY.sub("[private key]", text)
    if len(text) > _MAX_VALUE:
        half = _MAX_VALUE // 2
        text = f"{text[:half]} [{len(text) - 2 * half} cut] {text[-half:]}"
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class RateLimitedLog:
    """Lines that a client or a chaincode can cause without end; used in an event loop.

    `most` lines of one cause are written in `EACH_S`; `log` writes how many are
    missing.
    """

    def __init__(self, log: Any, most: int = MOST) -> None:
        self._log, self._most = log, most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._counts: dict[str, int] = {}

    def say(
        self, about: str | None, log: Callable[..., Any], event: str, **facts: Any
    ) -> None:
        """Write a line with `log`, or only count it if its cause had too many.

        `about` is the cause, by something it cannot forge; None = not known.
        """
        if self.admits(about):
            log(event, **facts)

    def admits(self, about: str | None) -> bool:
        """Whether a line may be written; it is counted."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._counts = loop, {}
        about = about or _OTHERS
        if about not in self._counts and len(self._counts) >= _MOST_CAUSES:
            about = _OTHERS
        if about not in self._counts:
            self._counts[about] = 0
            loop.call_later(EACH_S, self.sum_up, about)
        self._counts[about] += 1
        return self._counts[about] <= self._most

    def sum_up(self, about: str) -> None:
        """Write how many lines of a cause are missing by now, if any are."""
        missing = self._counts.pop(about, 0) - self._most
        if missing > 0:
            self._log.warning(
                "lines not logged: over the rate limit",
                lines=missing,
                about=about or "others",
            )


_foreign: Final = RateLimitedLog(get_logger("node"), most=3)
"""Lines of libraries, by logger and text without its data: clients can cause many."""
