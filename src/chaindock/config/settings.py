"""A setting with its value and origin, and putting values where they belong.

Owns:    Key, Setting, Ignored; reading and replacing parts of the configuration by path.
Not:     the list of keys (table.py), files and variables (sources.py).
Entry:   Key, Setting, look_up, replaced
Holds:   a path names a field of the Config, through dataclasses and mappings.
Source:  style.md "Config"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from chaindock.config.kinds import Kind

T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """One thing that can be set.

    Args:
        name: as in core.yaml, dots between levels; looked up without regard to case.
        kind: of its value.
        targets: where it goes in Config; the default is that of the first.
        help: one line, with the unit if there is one.
    """

    name: str
    kind: Kind
    targets: tuple[str, ...]
    help: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "CORE_" + self.name.upper().replace(".", "_").replace("-", "_")


@dataclass(frozen=True)
class Setting:
    """The value that is in force.

    Args:
        value: as text.
        origin: `default`, `FILE:LINE`, `env VARIABLE` or `flag`.
    """

    key: str
    value: str
    origin: str
    help: str


@dataclass(frozen=True)
class Ignored:
    """A key of Fabric that means nothing here."""

    key: str
    origin: str
    reason: str = ""


def look_up(root: Any, path: str) -> Any:
    """Return the value at `path` below `root`."""
    for part in path.split("."):
        root = root[part] if isinstance(root, Mapping) else getattr(root, part)
    return root


def replaced(root: T, path: str, value: Any) -> T:
    """Return a copy of `root` that has `value` at `path`."""
    head, _, rest = path.partition(".")
    if isinstance(root, Mapping):
        inner = replaced(root[head], rest, value) if rest else value
        return cast(T, {**root, head: inner})
    inner = replaced(getattr(root, head), rest, value) if rest else value
    return cast(T, dataclasses.replace(cast(Any, root), **{head: inner}))
