"""The kinds of values that end in a container: users, networks, limits, variables.

Owns:    what each may be.
Not:     general kinds (kinds.py), which setting has which kind (table.py).
Entry:   the constants below
Holds:   nothing that takes a wall away is accepted; a variable of ours or of Fabric
         cannot be replaced.
Source:  launch.md §3.7, §3.8; needs.md rows 25, 26
"""

from __future__ import annotations

import ipaddress
import itertools
import re
from typing import TYPE_CHECKING, Any

from chaindock.config.kinds import (
    SIZE,
    TEXT,
    WORDS,
    Kind,
    WrongValueError,
)
from chaindock.controllers.docker.names import DEFAULT_REGISTRY
from chaindock.controllers.docker.options import MIB, Mirror, Ulimit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LEAST_MEMORY = 6 * MIB
"""Engines refuse less."""
_USER = re.compile(r"\d+(:\d+)?")
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_OWN_NETWORKS = {"host", "none", "default"}
_SET = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("CORE_", "CHAINCODE_", "CHAINDOCK_")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
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


def _matching(rule: re.Pattern[str], expected: str) -> Kind:
    def read(value: Any, base: Path) -> str:
        text = str(TEXT.read(value, base)).strip()
        if text and not rule.fullmatch(text):
            raise WrongValueError(expected)
        return text

    return Kind(read, str)


def _read_memory(value: Any, base: Path) -> int:
    found = int(SIZE.read(value, base))
    if 0 < found < LEAST_MEMORY:
        raise WrongValueError("a size of 6m or more, or 0 for no limit")
    return found


def _read_network(value: Any, base: Path) -> str:
    name = str(TEXT.read(value, base)).strip()
    if name in _OWN_NETWORKS or not _NETWORK.fullmatch(name):
        raise WrongValueError("the name of a network of the engine, not host or none")
    return name


def _read_addresses(value: Any, base: Path) -> tuple[str, ...]:
    words: tuple[str, ...] = WORDS.read(value, base)
    if not all(_is_address(word) for word in words):
        raise WrongValueError("IP addresses")
    return words


def _read_hosts(value: Any, base: Path) -> tuple[str, ...]:
    words: tuple[str, ...] = WORDS.read(value, base)
    for word in words:
        host, _, address = word.partition(":")
        known = address == "host-gateway" or _is_address(address.strip("[]"))
        if not _HOST.fullmatch(host) or not known:
            raise WrongValueError("host:IP, more of them after commas or as a list")
    return words


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _read_options(value: Any, base: Path) -> tuple[str, ...]:
    # A seccomp profile is JSON: it has commas of its own.
    words = WORDS.read(value if isinstance(value, list) else [value], base)
    for word in words:
        if not (_PROFILES.fullmatch(word) or _NO_MORE.fullmatch(word)):
            raise WrongValueError(
                "apparmor=, seccomp= or label= with a profile that is not unconfined or "
                "disable: walls are added here, not taken away"
            )
    return tuple(word for word in words if not _NO_MORE.fullmatch(word))


def _read_ulimits(value: Any, base: Path) -> tuple[Ulimit, ...]:
    given = value if isinstance(value, list) else WORDS.read(value, base)
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
            for one in WORDS.read("" if many is None else many, base)
        ]
    else:
        words = (word.rpartition("=") for word in WORDS.read(value, base))
        pairs = [(of or DEFAULT_REGISTRY, place) for of, _, place in words]
    pairs = [(str(of).rstrip("/"), place.rstrip("/")) for of, place in pairs]
    for part in itertools.chain.from_iterable(pairs):
        if not (_REGISTRY.match(part) and _PLACE.fullmatch(part)):
            raise WrongValueError(
                "host/path (a host has a dot or a port), more of them after commas or as a list, for images of "
                f"{DEFAULT_REGISTRY}; for others REGISTRY/PATH=host/path, or such keys "
                "with lists"
            )
    return tuple(Mirror(of, place) for of, place in pairs)


def _show_mirrors(value: tuple[Mirror, ...]) -> str:
    return ",".join(f"{one.of}={one.place}" for one in value)


def check_variable(name: str, value: str) -> None:
    """Refuse a variable that chaincode cannot be given. Raises: WrongValueError."""
    if not _VARIABLE.fullmatch(name):
        raise WrongValueError("a name of letters, digits and _")
    if name.startswith(_RESERVED):
        starts = ", ".join(f"{one}*" for one in _RESERVED)
        raise WrongValueError(f"a name that is not one of {starts}: these are ours")
    if "\0" in value:
        raise WrongValueError("a value without NUL")


def show_nothing(value: Mapping[str, str]) -> str:
    """Return the names of variables; what they hold is nobody's business."""
    return ", ".join(value)


USER = _matching(_USER, "numbers as uid or uid:gid")
CPU_SET = _matching(_SET, "numbers such as 0-2,4")
MEMORY = Kind(_read_memory, SIZE.show)
NETWORK = Kind(_read_network, str)
ADDRESSES = Kind(_read_addresses, ",".join)
HOSTS = Kind(_read_hosts, ",".join)
SECURITY = Kind(_read_options, ",".join)
MIRRORS = Kind(_read_mirrors, _show_mirrors)
ULIMITS = Kind(_read_ulimits, _show_ulimits)
