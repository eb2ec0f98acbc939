"""Which lines are logged: Fabric's logging specification.

Source: docs/fabric/operations.md#logging-specification
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from chaindock.errors import InvalidInput

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
}
"""Our component → Fabric's name for the logger of the same part, if it differs."""
_SHOWN: Final = {5: "payload", 10: "debug", 20: "info", 30: "warn", 40: "error"}
_LOGGER: Final = re.compile(r"[0-9A-Za-z_#-]+(\.[0-9A-Za-z_#-]+)*\.?")
_LONGEST: Final = 4096
_EXPECTED: Final = (
    "expected levels and LOGGER[,LOGGER]=LEVEL with : between, such as "
    "info:chaincode,endorser=debug; levels: fatal, panic, error, warning, info, debug"
)


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
