"""Where settings come from: core.yaml, CORE_* variables, the command line.

Owns:    finding and reading the file; matching names to keys; the nearest known key.
Not:     what values mean (kinds.py), putting them in place (load.py).
Entry:   read_file, read_variables, read_flags
Holds:   an unknown key of ours is an error that names the nearest one; an unknown key of
         Fabric is listed.
Source:  launch.md §7
"""

from __future__ import annotations

import contextlib
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaindock.config.settings import Ignored
from chaindock.config.table import (
    KEYS,
    KNOWN,
    MORE_VARIABLES,
    OUR_SECTION,
    REASONS,
    VARIABLES,
)
from chaindock.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chaindock.config.settings import Key

FILE_NAME = "core.yaml"
FOLDER_VARIABLE = "FABRIC_CFG_PATH"
_PREFIX = "CORE_"
CHAINCODES = f"{OUR_SECTION}.chaincodes"
_OUR_PREFIX = f"{_PREFIX}{OUR_SECTION.upper()}_"
_LARGEST = 1024 * 1024
_QUOTED = re.compile(r"""(['"])(?!<|\\)[^'"]{2,}\1""")
"""What somebody wrote, in an error of the parser; not names of tokens, nor characters."""


@dataclass(frozen=True)
class Found:
    """A value somebody gave.

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


def find_file(home: Path, env: Mapping[str, str]) -> Path | None:
    """Return the core.yaml to read: in FABRIC_CFG_PATH, else in the home.

    Raises: ConfigInvalid when FABRIC_CFG_PATH names a directory without one, or it
        cannot be told whether there is one.
    """
    if folder := env.get(FOLDER_VARIABLE):
        path = Path(folder).absolute() / FILE_NAME
        if not _is_file(path):
            raise ConfigInvalid(
                f"there is no {FILE_NAME} in {folder!r}",
                hint=f"correct {FOLDER_VARIABLE}, or unset it",
                key=FOLDER_VARIABLE,
                origin=f"env {FOLDER_VARIABLE}",
            )
        return path
    path = home / FILE_NAME
    return path if _is_file(path) else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ConfigInvalid:
    return ConfigInvalid(
        f"{str(path)!r} cannot be read: {error.strerror}",
        hint="check its permissions and those of its directories",
        key="",
        origin=str(path),
    )


def read_file(path: Path) -> Layer:
    """Read a core.yaml.

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
        elif name.lower().split(".")[0] == OUR_SECTION:
            raise unknown(name, origin)
        else:
            layer.ignored.append(Ignored(name, origin, _reason(name)))
    return layer


def _reason(name: str) -> str:
    """Return why a key is not used: its own reason, or that of what it lies in."""
    parts = name.lower().split(".")
    ways = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((REASONS[way] for way in ways if way in REASONS), "")


def _entries(path: Path) -> Iterator[tuple[str, Any, int]]:
    with compose(path) as (loader, node):
        yield from _walk(loader, node, "") if node is not None else ()


@contextlib.contextmanager
def compose(path: Path) -> Iterator[tuple[Any, Any]]:
    """Give a loader, and the root node of a file; None = it is empty.

    Raises: ConfigInvalid: not readable, too large, not YAML, here or in the block.
    """
    import yaml  # noqa: PLC0415  # most homes have no file

    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ConfigInvalid(
                f"{str(path)!r} is larger than {_LARGEST} bytes",
                key="",
                origin=str(path),
            )
        # Not the one in C: deep nesting ends the process there.
        loader = yaml.SafeLoader(text)
        try:
            yield loader, loader.get_single_node()
        finally:
            loader.dispose()
    except OSError as error:
        raise _unreadable(path, error) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigInvalid(
            f"{str(path)!r} is not YAML: {_told(error)}",
            key="",
            origin=str(path),
        ) from error


def _told(error: Exception) -> str:
    """Return what is wrong and where, without the text: it may be a secret."""
    mark = getattr(error, "problem_mark", None)
    what = str(getattr(error, "problem", None) or error) if mark else str(error)
    told = _QUOTED.sub("…", " ".join(what.split()))
    return f"{told} in line {mark.line + 1}, column {mark.column + 1}" if mark else told


def _walk(loader: Any, node: Any, prefix: str) -> Iterator[tuple[str, Any, int]]:
    import yaml  # noqa: PLC0415

    if not isinstance(node, yaml.MappingNode):
        raise yaml.YAMLError("expected keys and values")
    loader.flatten_mapping(node)
    for key_node, value_node in node.value:
        name = prefix + str(loader.construct_object(key_node, deep=True))
        if name.lower() == CHAINCODES:  # read by chaincodes.py
            continue
        leaf = KNOWN.get(name.lower())
        if isinstance(value_node, yaml.MappingNode) and leaf is None:
            yield from _walk(loader, value_node, name + ".")
        else:
            yield name, plain(loader, value_node), key_node.start_mark.line + 1


def plain(loader: Any, node: Any) -> Any:
    """Return scalars as they are written: `007` and `1:30` are not numbers to us."""
    import yaml  # noqa: PLC0415

    if isinstance(node, yaml.ScalarNode):
        return None if node.tag.endswith(":null") else str(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [plain(loader, one) for one in node.value]
    loader.flatten_mapping(node)
    return {str(key.value): plain(loader, one) or "" for key, one in node.value}


def read_variables(env: Mapping[str, str], base: Path) -> Layer:
    """Read the CORE_* variables, and FABRIC_LOGGING_SPEC.

    Args:
        env: all variables.
        base: directory that relative paths start at.

    Raises: ConfigInvalid: an unknown CORE_CHAINDOCK_ variable.
    """
    layer = Layer()
    layer.found += [
        Found(key, env[name], f"env {name}", base)
        for name, key in MORE_VARIABLES.items()
        if name in env
    ]
    for name in sorted(env):
        if not name.startswith(_PREFIX):
            continue
        origin = f"env {name}"
        key = VARIABLES.get(name)
        if key is not None:
            layer.found.append(Found(key, env[name], origin, base))
        elif name.startswith(f"{_OUR_PREFIX}CHAINCODES_"):
            raise ConfigInvalid(
                f"unknown setting {name!r} ({origin}): settings of one chaincode cannot "
                "be variables",
                hint=f"write them to core.yaml, or give --set {CHAINCODES}.NAME.KEY=VALUE",
                key=name,
                origin=origin,
            )
        elif name.startswith(_OUR_PREFIX):
            near = _nearest(name, list(VARIABLES))
            raise _unknown(name, origin, near)
        else:
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
            raise unknown(name, "flag")
        layer.found.append(Found(key, value, "flag", base))
    return layer


def unknown(name: str, origin: str) -> ConfigInvalid:
    """Return the error for a key that does not exist."""
    return _unknown(name, origin, _nearest(name, [key.name for key in KEYS]))


def _unknown(name: str, origin: str, near: str | None) -> ConfigInvalid:
    return ConfigInvalid(
        f"unknown setting {name!r} ({origin})",
        hint=f"did you mean {near!r}?"
        if near
        else "all settings: chaindock config show",
        key=name,
        origin=origin,
    )


def _nearest(name: str, names: list[str]) -> str | None:
    by_lower = {one.lower(): one for one in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None
