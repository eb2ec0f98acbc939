"""Settings of one chaincode: `chaindock.chaincodes.NAME` in core.yaml.

A changed file applies from the next launch on; a section with an error affects its own
chaincode only. Values of variables are never shown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta

from chaindock.config.files import FOLDER_VARIABLE, compose, find_file, plain
from chaindock.config.keys import Key, Setting, keys_of, look_up, nearest
from chaindock.container.contracts import RunSettings
from chaindock.errors import ConfigInvalid
from chaindock.ids import name_from_label, split_ccid
from chaindock.options import option
from chaindock.telemetry import get_logger
from chaindock.values import DURATION, WrongValueError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from chaindock.ids import Ccid

_log = get_logger("node")
PREFIX = "chaindock.chaincodes."
_SECTION = ("chaindock", "chaincodes")
_HIDDEN = "[secret]"


@dataclass(frozen=True)
class Own:
    """What is set for one chaincode."""

    run: RunSettings = field(default_factory=RunSettings)
    execute_timeout_s: (
        Annotated[float, Meta(ge=1, title="a duration"), DURATION] | None
    ) = option(
        None, "executeTimeout", "Longest time from sending a call to its answer."
    )


KEYS: tuple[Key, ...] = keys_of(Own())
"""The keys of a section."""
_BY_NAME = {key.name.lower(): key for key in KEYS}
_NAMES = [key.name for key in KEYS]


@dataclass(frozen=True)
class _Given:
    chaincode: str
    key: Key
    value: Any = field(repr=False)
    origin: str
    base: Path


@dataclass
class _Section:
    """The section of one chaincode as the file has it now.

    Args:
        given: what it sets, in order; empty if `problem` is set.
        own: the settings; None = it has never been correct.
        problem: why the file's text of it is not used; `own` is then older.
    """

    given: list[_Given] = field(default_factory=list)
    own: Own | None = None
    problem: ConfigInvalid | None = None


class ChaincodeSections:
    """The sections as they are in the file now; the command line comes before it.

    A section with an error affects its own chaincode only, which keeps its last correct
    settings until the file is corrected.

    Args:
        home: where core.yaml may be. None = there are no sections.
        env: for FABRIC_CFG_PATH.
        flags: keys below `chaindock.chaincodes.` from the command line.

    Raises: ConfigInvalid: a flag is wrong.
    """

    def __init__(
        self,
        home: Path | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, str] | None = None,
    ) -> None:
        self._home = home
        self._env = {
            name: value
            for name, value in (env or {}).items()
            if name == FOLDER_VARIABLE
        }
        base = Path.cwd()
        self._flags = [_flag(key, value, base) for key, value in (flags or {}).items()]
        _merged(self._flags)
        self._stamp: object = None
        self._sections: dict[str, _Section] = {}
        self._file_problem: ConfigInvalid | None = None
        self._launched: dict[Ccid, Own] = {}
        self._timeouts: dict[str, float | None] = {}

    def of(self, ccid: Ccid, names: Sequence[str]) -> Own:
        """Return what is set for a chaincode; reads the file if it has changed.

        Args:
            ccid: its label counts when no name has a section.
            names: under which it is deployed, or about to be.

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
        if found := next((one.problem for one in sections if one.problem), None):
            return found
        try:
            self._own(ccid, names)
        except ConfigInvalid as error:
            return error
        return None

    def problems(self) -> list[ConfigInvalid]:
        """Return what is wrong with the file's sections. Never raises."""
        self._read()
        return self._problems()

    def require_readable(self) -> None:
        """Raise ConfigInvalid when the sections cannot be told from each other."""
        self._read()
        if self._file_problem:
            raise self._file_problem

    def settings(self) -> Iterator[Setting]:
        """Yield what is set, for `config show`."""
        self._read()
        for chaincode, section in self._sections.items():
            last: dict[str, Setting] = {}
            for given in section.given:
                for name, value in _shown(given):
                    key = f"{PREFIX}{chaincode}.{name}"
                    last[key] = Setting(key, value, given.origin, given.key.help)
            yield from last.values()
            if problem := section.problem:
                key = f"{PREFIX}{chaincode}"
                where = str(problem.facts.get("origin", ""))
                yield Setting(key, "not used", where, problem.message)

    @property
    def has_variables(self) -> bool:
        """Whether some chaincode is given variables."""
        self._read()
        owns = [one.own for one in self._sections.values() if one.own]
        return any(own.run.env for own in owns)

    def _sections_of(self, ccid: Ccid, names: Sequence[str]) -> dict[str, _Section]:
        found = {name: self._sections[name] for name in names if name in self._sections}
        if found:
            return found
        label = split_ccid(ccid)[0]
        other = (label, name_from_label(label))
        return {n: self._sections[n] for n in other if n in self._sections}

    def _own(self, ccid: Ccid, names: Sequence[str]) -> Own:
        found = self._sections_of(ccid, names)
        owns = []
        for section in found.values():
            if section.own is None and section.problem is not None:
                raise section.problem
            owns.append(section.own or Own())
        if not owns:
            return Own()
        if not set(found) <= set(names):  # found by its label: the first counts
            return owns[0]
        if any(one != owns[0] for one in owns):
            raise ConfigInvalid(
                f"one package runs once: the sections of {' and '.join(found)} in "
                f"{PREFIX[:-1]} differ, and both are {ccid}",
                hint="make them equal, or deploy packages of different labels",
                key=PREFIX[:-1],
            )
        return owns[0]

    def _read(self) -> None:
        first = self._stamp is None
        known = {one.message for one in self._problems()}
        try:
            file = find_file(self._home, self._env) if self._home else None
            stamp = (file, _stamp(file))
            if self._stamp == stamp:
                return
            self._stamp = stamp
            self._sections = self._from(file)
            self._file_problem = None
        except ConfigInvalid as error:
            self._file_problem = error
        for problem in self._problems():
            if not first and problem.message not in known:  # the node logs the first
                _log.warning("settings ignored", problem=problem.message)

    def _problems(self) -> list[ConfigInvalid]:
        if self._file_problem:
            return [self._file_problem]
        return [one.problem for one in self._sections.values() if one.problem]

    def _from(self, file: Path | None) -> dict[str, _Section]:
        given: dict[str, list[_Given] | ConfigInvalid] = {}
        if file:
            given |= _of_file(file)
        flags: dict[str, list[_Given]] = {}
        for one in self._flags:
            flags.setdefault(one.chaincode, []).append(one)
        sections = {}
        for chaincode in (*given, *(name for name in flags if name not in given)):
            theirs = given.get(chaincode, [])
            try:
                if isinstance(theirs, ConfigInvalid):
                    raise theirs
                theirs = [*theirs, *flags.get(chaincode, [])]
                sections[chaincode] = _Section(theirs, _merged(theirs))
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
    return about.st_mtime_ns, about.st_size, about.st_ino


def _of_file(path: Path) -> dict[str, list[_Given] | ConfigInvalid]:
    """Return what each section sets, or what is wrong with it.

    Raises: ConfigInvalid: the file is not YAML, or has no sections where they belong.
    """
    found: dict[str, list[_Given] | ConfigInvalid] = {}
    with compose(path) as (loader, root):
        section = _below(root, _SECTION)
        if section is None:
            return found
        for name_node, body in _pairs(loader, section, path, PREFIX[:-1]):
            chaincode = str(name_node.value)
            try:
                found[chaincode] = list(_of_section(loader, body, path, chaincode))
            except ConfigInvalid as error:
                found[chaincode] = error
    return found


def _of_section(loader: Any, body: Any, path: Path, chaincode: str) -> Iterator[_Given]:
    where = f"{PREFIX}{chaincode}"
    for key_node, value in _pairs(loader, body, path, where):
        origin = f"{path}:{key_node.start_mark.line + 1}"
        key = _key(chaincode, str(key_node.value), origin)
        if key.is_mapping and str(value.tag).endswith(":map"):
            for variable, one in _pairs(loader, value, path, f"{where}.{key.name}"):
                held = {str(variable.value): plain(loader, one) or ""}
                line = f"{path}:{variable.start_mark.line + 1}"
                yield _Given(chaincode, key, held, line, path.parent)
        elif (found := plain(loader, value)) is not None:
            yield _Given(chaincode, key, found, origin, path.parent)


def _below(node: Any, names: Iterable[str]) -> Any:
    """Return the node at a path of keys, without regard to case; None = not there."""
    for name in names:
        inner = node.value if isinstance(getattr(node, "value", None), list) else ()
        pairs = [pair for pair in inner if isinstance(pair, tuple)]
        found = [v for k, v in pairs if str(k.value).lower() == name]
        node = found[-1] if found else None
        if node is None:
            return None
    return node


def _pairs(loader: Any, node: Any, path: Path, name: str) -> Iterator[tuple[Any, Any]]:
    if str(node.tag).endswith(":null"):
        return
    if not str(node.tag).endswith(":map"):
        origin = f"{path}:{node.start_mark.line + 1}"
        raise ConfigInvalid(
            f"setting {name!r} ({origin}) is no section: expected keys and values",
            hint="known keys: " + ", ".join(_NAMES),
            key=name,
            origin=origin,
        )
    loader.flatten_mapping(node)
    yield from node.value


def _flag(name: str, value: str, base: Path) -> _Given:
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
    return _Given(chaincode, _key(chaincode, word, "flag"), value, "flag", base)


def _key(chaincode: str, word: str, origin: str) -> Key:
    key = _BY_NAME.get(word.lower())
    if key is None:
        near = nearest(word, _NAMES)
        raise ConfigInvalid(
            f"unknown setting {f'{PREFIX}{chaincode}.{word}'!r} ({origin})",
            hint=f"did you mean {near!r}?"
            if near
            else f"known keys: {', '.join(_NAMES)}",
            key=f"{PREFIX}{chaincode}.{word}",
            origin=origin,
        )
    return key


def _merged(all_given: Iterable[_Given]) -> Own:
    own = Own()
    for given in all_given:
        own = _applied(own, given)
    return own


def _applied(own: Own, given: _Given) -> Own:
    key = given.key
    try:
        return key.apply(own, given.value, given.base)
    except WrongValueError as wrong:
        name = f"{PREFIX}{given.chaincode}.{key.name}"
        shown = "" if key.is_mapping else f" is {str(given.value)!r:.200}"
        raise ConfigInvalid(
            f"setting {name!r} ({given.origin}){shown}: expected {wrong}",
            hint=key.help,
            key=name,
            origin=given.origin,
        ) from wrong


def _shown(given: _Given) -> Iterator[tuple[str, str]]:
    value = look_up(_applied(Own(), given), given.key.path)
    if given.key.is_mapping:
        yield from ((f"{given.key.name}.{one}", _HIDDEN) for one in value)
    else:
        yield given.key.name, given.key.show(value)
