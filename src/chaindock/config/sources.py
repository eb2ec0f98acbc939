"""Read settings from core.yaml, from CORE_* variables and from the command line.

An unknown key in the section `chaindock` is an error that names the nearest known key; an
unknown key of Fabric is listed as not used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from chaindock.config.chaincodes import PREFIX
from chaindock.config.fabric import NOT_USED, REMOVED
from chaindock.config.files import compose, plain
from chaindock.config.keys import Ignored, nearest
from chaindock.config.sections import KEYS, KNOWN, VARIABLES
from chaindock.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from chaindock.config.keys import Key

_OUR_SECTION = "chaindock"
_CHAINCODES = PREFIX[:-1]
_VARIABLE = "CORE_"
_OUR_VARIABLE = f"{_VARIABLE}{_OUR_SECTION.upper()}_"


@dataclass(frozen=True)
class Found:
    """A value that was given.

    Args:
        value: as YAML made it, or text.
        base: directory that relative paths start at.
    """

    key: Key
    value: Any
    origin: str
    base: Path


@dataclass
class Layer:
    """All that one source gave."""

    found: list[Found] = field(default_factory=list)
    ignored: list[Ignored] = field(default_factory=list)


def read_file(path: Path) -> Layer:
    """Read a core.yaml, but for the sections of single chaincodes.

    Raises: ConfigInvalid: not readable, not YAML, an unknown key in our section.
    """
    layer = Layer()
    for name, value, line in _entries(path):
        origin = f"{path}:{line}"
        key = KNOWN.get(name.lower())
        if value is None:
            continue
        if key is not None:
            layer.found.append(Found(key, value, origin, path.parent))
        elif name.lower().split(".")[0] == _OUR_SECTION:
            raise _unknown(name, origin)
        else:
            layer.ignored.append(Ignored(name, origin, _reason(name)))
    return layer


def _reason(name: str) -> str:
    """Return why a key is not used: its own reason, or that of a section above it."""
    parts = name.lower().split(".")
    ways = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((NOT_USED[way] for way in ways if way in NOT_USED), "")


def _entries(path: Path) -> Iterator[tuple[str, Any, int]]:
    with compose(path) as (loader, node):
        yield from _walk(loader, node, "") if node is not None else ()


def _walk(loader: Any, node: Any, prefix: str) -> Iterator[tuple[str, Any, int]]:
    import yaml  # noqa: PLC0415

    if not isinstance(node, yaml.MappingNode):
        raise yaml.YAMLError("expected keys and values")
    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        name = prefix + str(loader.construct_object(key_node, deep=True))
        if name.lower() == _CHAINCODES:
            continue
        leaf = KNOWN.get(name.lower())
        if isinstance(value_node, yaml.MappingNode) and leaf is None:
            yield from _walk(loader, value_node, name + ".")
        else:
            yield name, plain(loader, value_node), key_node.start_mark.line + 1


def read_variables(env: Mapping[str, str], base: Path) -> Layer:
    """Read the CORE_* variables, and those of Fabric that have no key.

    Args:
        env: all variables.
        base: directory that relative paths start at.

    Raises: ConfigInvalid: an unknown CORE_CHAINDOCK_ variable.
    """
    layer = Layer()
    layer.found += [
        Found(key, env[name], f"env {name}", base)
        for name, key in VARIABLES.items()
        if name in env
    ]
    for name in sorted(env.keys() - VARIABLES.keys()):
        origin = f"env {name}"
        if name.startswith(f"{_OUR_VARIABLE}CHAINCODES_"):
            raise ConfigInvalid(
                f"unknown setting {name!r} ({origin}): settings of one chaincode cannot "
                "be variables",
                hint=f"write them to core.yaml, or give --set {PREFIX}NAME.KEY=VALUE",
                key=name,
                origin=origin,
            )
        if name.startswith(_OUR_VARIABLE):
            raise _unknown(name, origin)
        if name.startswith(_VARIABLE):
            layer.ignored.append(Ignored(name, origin))
    return layer


def read_flags(flags: Mapping[str, str], base: Path) -> Layer:
    """Read what the command line sets.

    Raises: ConfigInvalid: an unknown key, of ours or of Fabric.
    """
    layer = Layer()
    for name, value in flags.items():
        key = KNOWN.get(name.lower())
        if key is None:
            raise _unknown(name, "flag")
        layer.found.append(Found(key, value, "flag", base))
    return layer


def _unknown(name: str, origin: str) -> ConfigInvalid:
    """Return the error for a key, or a variable, that does not exist."""
    is_variable = name.startswith(_VARIABLE)
    removed = name.lower()
    if is_variable:
        removed = removed.removeprefix(_VARIABLE.lower()).replace("_", ".")
    if removed in REMOVED:
        return ConfigInvalid(
            f"setting {name!r} ({origin}) no longer exists",
            hint=REMOVED[removed] or "remove it: there is no replacement",
            key=name,
            origin=origin,
        )
    near = nearest(name, list(VARIABLES) if is_variable else [k.name for k in KEYS])
    return ConfigInvalid(
        f"unknown setting {name!r} ({origin})",
        hint=f"did you mean {near!r}?"
        if near
        else "all settings: chaindock config show",
        key=name,
        origin=origin,
    )
