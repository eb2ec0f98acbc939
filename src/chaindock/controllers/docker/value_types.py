"""Types of options for the container engine, and what they may be."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from chaindock.container.value_types import is_address
from chaindock.controllers.docker.names import DEFAULT_REGISTRY
from chaindock.values import Syntax, WrongValueError, all_of, matching, read_words

_LIMITS = frozenset(
    {
        *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue"),
        *("nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
    }
)
_REGISTRY = re.compile(r"localhost(:|/|$)|[^/]*[.:]")
_PLACE = re.compile(r"[a-zA-Z0-9._-]+(:\d+)?(/[a-z0-9._-]+)*")
_PROFILES = re.compile(r"(apparmor|seccomp|label)[=:](?!.*(unconfined|disable)).+")
_NO_MORE = re.compile(r"no-new-privileges([:=]true)?")


@dataclass(frozen=True)
class Mirror:
    """Another place of images.

    Args:
        of: how their full names begin: a registry (docker.io), or a path in it.
        place: what replaces that.
    """

    of: str
    place: str


@dataclass(frozen=True)
class Ulimit:
    """A limit per process, as setrlimit(2) takes it.

    Args:
        name: as in `ulimit` options of engines: nofile, fsize, core, stack, …
    """

    name: str
    soft: int
    hard: int


def _read_security(value: Any, base: Path) -> tuple[str, ...]:
    # A seccomp profile is JSON: it has commas of its own.
    words = read_words(value if isinstance(value, list) else [value], base)
    for word in words:
        if not (_PROFILES.fullmatch(word) or _NO_MORE.fullmatch(word)):
            raise WrongValueError(
                "apparmor=, seccomp= or label= with a profile that is not unconfined or "
                "disable: isolation can be added, not taken away"
            )
    return tuple(word for word in words if not _NO_MORE.fullmatch(word))


def _read_ulimits(value: Any, base: Path) -> tuple[Ulimit, ...]:
    given = value if isinstance(value, list) else read_words(value, base)
    return tuple(_ulimit(one) for one in given)


def _ulimit(given: Any) -> Ulimit:
    wrong = WrongValueError(
        "a list of Name, Soft and Hard, or such as nofile=1024:4096,core=0; names: "
        + ", ".join(sorted(_LIMITS))
    )
    if isinstance(given, dict):
        parts = {str(key).lower(): str(one) for key, one in given.items()}
        name, soft = parts.get("name", ""), parts.get("soft", "")
        hard = parts.get("hard", soft)
    else:
        name, _, rest = str(given).partition("=")
        soft, _, hard = rest.partition(":")
    hard = hard or soft
    name = name.strip().lower()
    if name not in _LIMITS or not (soft.isdecimal() and hard.isdecimal()):
        raise wrong
    if int(soft) > int(hard):
        raise WrongValueError(f"a soft limit of {name} that is not above the hard one")
    return Ulimit(name, int(soft), int(hard))


def _show_ulimits(value: tuple[Ulimit, ...]) -> str:
    return ",".join(f"{one.name}={one.soft}:{one.hard}" for one in value)


def _read_mirrors(value: Any, base: Path) -> tuple[Mirror, ...]:
    if isinstance(value, dict):
        pairs = [
            (of, one)
            for of, many in value.items()
            for one in read_words("" if many is None else many, base)
        ]
    else:
        words = (word.rpartition("=") for word in read_words(value, base))
        pairs = [(of or DEFAULT_REGISTRY, place) for of, _, place in words]
    pairs = [(str(of).rstrip("/"), place.rstrip("/")) for of, place in pairs]
    for part in itertools.chain.from_iterable(pairs):
        if not (_REGISTRY.match(part) and _PLACE.fullmatch(part)):
            raise WrongValueError(
                "host/path (a host has a dot or a port), more of them after commas or as "
                f"a list, for images of {DEFAULT_REGISTRY}; for others "
                "REGISTRY/PATH=host/path, or such keys with lists"
            )
    return tuple(Mirror(of, place) for of, place in pairs)


def _show_mirrors(value: tuple[Mirror, ...]) -> str:
    return ",".join(f"{one.of}={one.place}" for one in value)


Addresses = Annotated[tuple[str, ...], all_of(is_address, "IP addresses")]
CpuSet = Annotated[str, matching(r"\d+(-\d+)?(,\d+(-\d+)?)*", "numbers such as 0-2,4")]
SecurityOptions = Annotated[tuple[str, ...], Syntax(_read_security, ",".join)]
Mirrors = Annotated[tuple[Mirror, ...], Syntax(_read_mirrors, _show_mirrors)]
Ulimits = Annotated[tuple[Ulimit, ...], Syntax(_read_ulimits, _show_ulimits)]
