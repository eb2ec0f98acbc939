"""Types of options that end up in a container or process, and what they may be.

Nothing that would weaken the isolation is accepted; variables of Fabric and Chaindock
cannot be replaced.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from chaindock.values import (
    MIB,
    PAIRS,
    TEXT,
    BytesOrNone,
    Syntax,
    WrongValueError,
    all_of,
    matching,
    read_size,
    show_size,
)

LEAST_MEMORY = 6 * MIB
"""Engines refuse less."""
_NETWORK = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_OWN_NETWORKS = {"host", "none", "default"}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = ("CORE_", "CHAINCODE_", "CHAINDOCK_")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def _read_memory(value: Any, base: Path) -> int:
    found = read_size(value, base)
    if 0 < found < LEAST_MEMORY:
        raise WrongValueError("a size of 6m or more, or 0 for no limit")
    return found


def _read_network(value: Any, base: Path) -> str:
    name = str(TEXT.parse(value, base)).strip()
    if name in _OWN_NETWORKS or not _NETWORK.fullmatch(name):
        raise WrongValueError("the name of a network of the engine, not host or none")
    return name


def _read_variables(value: Any, base: Path) -> dict[str, str]:
    found: dict[str, str] = PAIRS.parse(value, base)
    for name, one in found.items():
        if not _VARIABLE.fullmatch(name):
            raise WrongValueError(f"{name!r} to be of letters, digits and _")
        if name.startswith(_RESERVED):
            starts = ", ".join(f"{one}*" for one in _RESERVED)
            raise WrongValueError(
                f"a name other than {name!r}: {starts} belong to Fabric and Chaindock"
            )
        if "\0" in one:
            raise WrongValueError(f"the value of {name!r} to be without NUL")
    return found


def is_address(text: str) -> bool:
    """Whether `text` is an IP address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _is_host_line(text: str) -> bool:
    host, _, address = text.partition(":")
    known = address == "host-gateway" or is_address(address.strip("[]"))
    return known and bool(_HOST.fullmatch(host))


Network = Annotated[str, Syntax(_read_network)]
Variables = Annotated[Mapping[str, str], Syntax(_read_variables, ", ".join)]
"""Shown by their names: the values may be secrets."""
User = Annotated[str, matching(r"\d+(:\d+)?", "numbers as uid or uid:gid")]
Memory = Annotated[BytesOrNone, Syntax(_read_memory, show_size)]
Hosts = Annotated[
    tuple[str, ...],
    all_of(_is_host_line, "host:IP, more of them after commas or as a list"),
]
