"""Settings of one chaincode: `chaindock.chaincodes.NAME` in core.yaml.

A changed file applies from the next launch on; a section with an error affects its own
chaincode only, which keeps its last correct settings. Values of variables are never shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from chaindock.config.environment import compose, entries, find_file, is_mapping, plain
from chaindock.config.keys import Given, Key, Setting, keys_of, look_up, unknown
from chaindock.container.contracts import RunSettings
from chaindock.errors import ConfigInvalid
from chaindock.ids import Ccid, name_from_label, split_ccid
from chaindock.options import option
from chaindock.telemetry import get_logger
from chaindock.values import DURATION

_log = get_logger("node")
PREFIX = "chaindock.chaincodes."
HIDDEN = "[secret]"


@dataclass(frozen=True)
class Own:
    """What is set for one chaincode."""

    run: RunSettings = field(default_factory=RunSettings)
    execute_timeout_s: (
        Annotated[float, Meta(ge=1, title="a duration"), DURATION] | None
    ) = option(None, "executeTimeout")
    """Longest time from sending a call to its answer."""


KEYS: tuple[Key, ...] = keys_of(Own())
"""The keys of a section."""
_BY_NAME = {key.name.lower(): key for key in KEYS}
_NAMES = [key.name for key in KEYS]


@dataclass
class _Section:
    """The section of one chaincode as the file has it now.

    If it has a `problem`, `given` is empty and `own` older; None = it was never correct.
    """

    given: list[Given] = field(default_factory=list)
    own: Own | None = None
    problem: ConfigInvalid | None = None


class ChaincodeSections:
    """The sections as they are in the file now; the command line comes before it.

    Without a home there are none. `folder` has the file if the home does not, `flags` are
    keys below `chaindock.chaincodes.`.

    Raises: ConfigInvalid: a flag is wrong.
    """

    def __init__(
        self,
        home: Path | None = None,
        folder: Path | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        self._home, self._folder = home, folder
        self._flags: dict[str, list[Given]] = {}
        for name, value in (flags or {}).items():
            chaincode, given = _flag(name, value)
            self._flags.setdefault(chaincode, []).append(given)
        for chaincode, all_given in self._flags.items():
            _merged(chaincode, all_given)
        self._stamp: object = None
        self._sections: dict[str, _Section] = {}
        self._file_problem: ConfigInvalid | None = None
        self._problems: list[ConfigInvalid] = []
        self._launched: dict[Ccid, Own] = {}
        self._timeouts: dict[str, float | None] = {}

    def of(self, ccid: Ccid, names: Sequence[str]) -> Own:
        """Return what is set for a chaincode; reads the file if it has changed.

        `names` are those under which it is, or is to be, deployed; if none of them has a
        section, the label of `ccid` counts.

        Raises: ConfigInvalid: its own section is wrong and it never had another.
        """
        self._read()
        try:
            own = self._own(ccid, names)
        except ConfigInvalid:
            if ccid not in self._launched:
                raise
            own = self._launched[ccid]
        self._launched[ccid] = own
        self._timeouts |= dict.fromkeys(names, own.execute_timeout_s)
        return own

    def timeout_of(self, name: str) -> float | None:
        """Return the execute timeout of a chaincode, as its last launch read it."""
        if name in self._timeouts:
            return self._timeouts[name]
        own = self._sections.get(name, _Section()).own
        return own.execute_timeout_s if own else None

    def problem_of(self, ccid: Ccid, names: Sequence[str]) -> ConfigInvalid | None:
        """Return why the file's settings of a chaincode are not used; None = they are.

        Reads the file if it has changed. Never raises.
        """
        self._read()
        sections = self._sections_of(ccid, names).values()
        if sections and self._file_problem:
            return self._file_problem
        try:
            self._own(ccid, names)
        except ConfigInvalid as error:
            return error
        return next((one.problem for one in sections if one.problem), None)

    def problems(self) -> list[ConfigInvalid]:
        """Return what is wrong with the file's sections. Never raises."""
        self._read()
        return self._problems

    def require_readable(self) -> None:
        """Raise ConfigInvalid when the sections cannot be told from each other."""
        self._read()
        if self._file_problem:
            raise self._file_problem

    def settings(self) -> Iterator[Setting]:
        """Yield what is set, for `config show`."""
        self._read()
        for chaincode, section in self._sections.items():
            prefix = f"{PREFIX}{chaincode}"
            last: dict[str, Setting] = {}
            for given in section.given:
                key = given.key
                value = look_up(given.apply(Own()), key.path)
                shown = {f"{prefix}.{key.name}": key.show(value)}
                if key.is_mapping:
                    shown = {f"{prefix}.{key.name}.{one}": HIDDEN for one in value}
                for name, text in shown.items():
                    last[name] = Setting(name, text, given.origin, key.help)
            yield from last.values()
            if problem := section.problem:
                where = str(problem.facts.get("origin", ""))
                yield Setting(prefix, "not used", where, problem.message)

    def _sections_of(self, ccid: Ccid, names: Sequence[str]) -> dict[str, _Section]:
        found = {name: self._sections[name] for name in names if name in self._sections}
        if found:
            return found
        label = split_ccid(ccid)[0]
        other = (label, name_from_label(label))
        return {n: self._sections[n] for n in other if n in self._sections}

    def _own(self, ccid: Ccid, names: Sequence[str]) -> Own:
        found = self._sections_of(ccid, names)
        for section in found.values():
            if section.own is None and section.problem is not None:
                raise section.problem
        owns = [section.own or Own() for section in found.values()] or [Own()]
        by_name = set(found) <= set(names)  # else by its label: the first counts
        if by_name and any(one != owns[0] for one in owns):
            raise ConfigInvalid(
                f"one package runs once: the sections of {' and '.join(found)} in "
                f"{PREFIX[:-1]} differ, and both are {ccid}",
                hint="make them equal, or deploy packages of different labels",
                key=PREFIX[:-1],
            )
        return owns[0]

    def _read(self) -> None:
        before, self._stamp = self._stamp, "not found"
        try:
            file = find_file(self._home, self._folder) if self._home else None
            self._stamp = (file, _stamp(file))
            if self._stamp == before:
                return
            self._sections = self._from(_of_file(file) if file else {})
            self._file_problem = None
        except ConfigInvalid as error:
            self._file_problem = error
        known = {one.message for one in self._problems}
        self._problems = [one.problem for one in self._sections.values() if one.problem]
        if self._file_problem:
            self._problems = [self._file_problem]
        for problem in self._problems:
            if before and problem.message not in known:  # the node logs the first
                _log.warning("settings ignored", problem=problem.message)

    def _from(
        self, of_file: Mapping[str, list[Given] | ConfigInvalid]
    ) -> dict[str, _Section]:
        sections = {}
        for chaincode in {**of_file, **self._flags}:
            try:
                given = of_file.get(chaincode, [])
                if isinstance(given, ConfigInvalid):
                    raise given
                given = [*given, *self._flags.get(chaincode, [])]
                sections[chaincode] = _Section(given, _merged(chaincode, given))
            except ConfigInvalid as error:
                last = self._sections.get(chaincode, _Section()).own
                sections[chaincode] = _Section(own=last, problem=error)
        return sections


def is_section_key(name: str) -> bool:
    """Whether a key belongs to one chaincode."""
    return name.lower().startswith(PREFIX)


def _stamp(file: Path | None) -> object:
    if file is None:
        return "no file"
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino


def _of_file(path: Path) -> dict[str, list[Given] | ConfigInvalid]:
    """Return what each section sets, or what is wrong with it.

    Raises: ConfigInvalid: the file is not YAML, or has no sections where they belong.
    """
    found: dict[str, list[Given] | ConfigInvalid] = {}
    with compose(path) as (loader, node):
        for level in ("chaindock", "chaincodes"):
            inner = [v for k, v, _ in entries(loader, node) if k.lower() == level]
            node = inner[-1] if inner else None  # noqa: PLW2901
        for chaincode, body, _ in _pairs(loader, node, path, PREFIX[:-1]):
            try:
                found[chaincode] = list(_of_section(loader, body, path, chaincode))
            except ConfigInvalid as error:
                found[chaincode] = error
    return found


def _of_section(loader: Any, body: Any, path: Path, chaincode: str) -> Iterator[Given]:
    for word, value, line in _pairs(loader, body, path, f"{PREFIX}{chaincode}"):
        key = _key(chaincode, word, f"{path}:{line}")
        if key.is_mapping and is_mapping(value):
            for variable, one, its_line in entries(loader, value):
                held = {variable: plain(loader, one) or ""}
                yield Given(key, held, f"{path}:{its_line}", path.parent)
        elif (found := plain(loader, value)) is not None:
            yield Given(key, found, f"{path}:{line}", path.parent)


def _pairs(
    loader: Any, node: Any, path: Path, name: str
) -> Iterator[tuple[str, Any, int]]:
    if node is None or is_mapping(node) or plain(loader, node) is None:
        return entries(loader, node)
    origin = f"{path}:{node.start_mark.line + 1}"
    raise ConfigInvalid(
        f"setting {name!r} ({origin}) is no section: expected keys and values",
        hint="known keys: " + ", ".join(_NAMES),
        key=name,
        origin=origin,
    )


def _flag(name: str, value: str) -> tuple[str, Given]:
    """Return whom a setting of the command line is for, and what it sets."""
    chaincode, _, word = name[len(PREFIX) :].rpartition(".")
    for key in KEYS:
        if key.is_mapping and f".{key.name}." in f".{chaincode}.{word}.".lower():
            chaincode = chaincode.removesuffix(f".{key.name}")
            raise ConfigInvalid(
                f"variables of chaincode {chaincode!r} cannot be given on the command "
                "line, where every user of this machine could read them",
                hint=f"write them to core.yaml, below {PREFIX}{chaincode}.{key.name}",
                key=f"{PREFIX}{chaincode}.{key.name}",
                origin="flag",
            )
    return chaincode, Given(_key(chaincode, word, "flag"), value, "flag", Path.cwd())


def _key(chaincode: str, word: str, origin: str) -> Key:
    key = _BY_NAME.get(word.lower())
    if key is None:
        none = f"known keys: {', '.join(_NAMES)}"
        raise unknown(f"{PREFIX}{chaincode}.{word}", origin, word, _NAMES, none)
    return key


def _merged(chaincode: str, all_given: Iterable[Given]) -> Own:
    own = Own()
    for given in all_given:
        own = given.apply(own, f"{PREFIX}{chaincode}.")
    return own
