"""The list of settings, derived from the options that the packages declare."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from chaindock.options import Declared, declared_in

if TYPE_CHECKING:
    from pathlib import Path

T = TypeVar("T")
_SECTIONS = ("peer", "ledger", "chaincode", "vm", "operations", "metrics", "chaindock")


@dataclass(frozen=True)
class Target:
    """One place that a setting is put in.

    Args:
        path: fields from the root on, with dots; a part may be a key of a mapping.
    """

    path: str
    declared: Declared


@dataclass(frozen=True)
class Key:
    """One thing that can be set.

    Args:
        name: as in core.yaml, dots between levels; looked up without regard to case.
        targets: the first one describes it and has its default.
    """

    name: str
    targets: tuple[Target, ...]

    @property
    def help(self) -> str:
        """One sentence, with the unit if there is one."""
        return self.targets[0].declared.option.help

    @property
    def path(self) -> str:
        """Where its value is read for `config show`."""
        return self.targets[0].path

    @property
    def variables(self) -> list[str]:
        """The environment variables that set it; the last one takes precedence."""
        made = "CORE_" + self.name.upper().replace(".", "_").replace("-", "_")
        other = self.targets[0].declared.option.variable
        return [other, made] if other else [made]

    @property
    def is_mapping(self) -> bool:
        """Whether values of several origins are merged; they may hold secrets."""
        return self.targets[0].declared.is_mapping

    def show(self, value: Any) -> str:
        """Return a value as text that can be given again."""
        return self.targets[0].declared.show(value)

    def apply(self, root: T, value: Any, base: Path) -> T:
        """Return `root` with a value of a file, a variable or a flag in its places.

        Raises: WrongValueError.
        """
        for target in self.targets:
            found = target.declared.read(value, base)
            if self.is_mapping:
                found = {**look_up(root, target.path), **found}
            root = replaced(root, target.path, found)
        return root


def keys_of(root: Any) -> tuple[Key, ...]:
    """Return all settings that options below `root` declare, by section and name."""
    targets: dict[str, list[Target]] = {}
    for target in _targets(root, ""):
        targets.setdefault(target.declared.option.key, []).append(target)
    keys = [
        Key(name, tuple(sorted(found, key=lambda one: not one.declared.option.help)))
        for name, found in targets.items()
    ]
    return tuple(sorted(keys, key=_position))


def _position(key: Key) -> tuple[int, str]:
    section = key.name.partition(".")[0]
    known = section in _SECTIONS
    return (_SECTIONS.index(section), key.name.lower()) if known else (0, "")


def _targets(options: Any, path: str) -> Iterator[Target]:
    for declared in declared_in(options.__class__):
        yield Target(f"{path}{declared.field}", declared)
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        inner = value if isinstance(value, Mapping) else {"": value}
        for name, one in inner.items():
            if dataclasses.is_dataclass(one):
                where = f"{path}{field.name}.{name}".rstrip(".")
                yield from _targets(one, f"{where}.")


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
    """A key of Fabric that has no effect here."""

    key: str
    origin: str
    reason: str = ""


def nearest(name: str, names: list[str]) -> str | None:
    """Return the most similar name, without regard to case; None = none is similar."""
    by_lower = {one.lower(): one for one in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None
