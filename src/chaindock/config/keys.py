"""The list of settings, derived from the options that the packages declare.

What may hold a password is never shown.
Source: docs/fabric/configuration.md
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from chaindock.errors import ConfigInvalid
from chaindock.options import Declared, declared_in
from chaindock.values import WrongValueError

T = TypeVar("T")
_SECTIONS = ("peer", "ledger", "chaincode", "vm", "operations", "metrics", "chaindock")
_PASSWORD = re.compile(r"(?<=://)[^/\s]+@")
_OF_CLIENT = re.compile(
    "FABRIC_CFG_PATH|CORE_PEER_(ADDRESS|LOCALMSPID|LOCALMSPTYPE|MSPCONFIGPATH|TLS_.*)"
)
_SECRET_NAME = re.compile(
    r"token|auth(?!Required|entication\.)|passw|secret|_key$", re.IGNORECASE
)


@dataclass(frozen=True)
class Key(Declared):
    """One thing that can be set, as declared in the first of its `targets`.

    Its name is that in core.yaml, and looked up without regard to case.
    """

    targets: tuple[Declared, ...]

    @property
    def name(self) -> str:
        """With dots between levels."""
        return self.option.key

    @property
    def help(self) -> str:
        """One sentence, with the unit if there is one."""
        return self.option.help

    @property
    def variables(self) -> list[str]:
        """The environment variables that set it; the last one takes precedence."""
        made = "CORE_" + self.name.upper().replace(".", "_").replace("-", "_")
        names = (self.option.variable, made)
        return [one for one in names if one and not is_of_client(one)]


def keys_of(root: Any) -> tuple[Key, ...]:
    """Return all settings that options below `root` declare, by section and name."""
    targets: dict[str, list[Declared]] = {}
    for target in _targets(root, ""):
        targets.setdefault(target.option.key, []).append(target)
    keys = []
    for name in sorted(targets, key=_position):
        first, *others = sorted(targets[name], key=lambda one: not one.option.help)
        keys.append(Key(first.path, first.option, first.type, (first, *others)))
    return tuple(keys)


def _position(name: str) -> tuple[int, str]:
    section = name.partition(".")[0]
    return (_SECTIONS.index(section), name.lower()) if section in _SECTIONS else (0, "")


def _targets(options: Any, path: str) -> Iterator[Declared]:
    for declared in declared_in(options.__class__):
        yield dataclasses.replace(declared, path=f"{path}{declared.path}")
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
    inner = replaced(look_up(root, head), rest, value) if rest else value
    if isinstance(root, Mapping):
        return cast(T, {**root, head: inner})
    return cast(T, dataclasses.replace(cast(Any, root), **{head: inner}))


@dataclass(frozen=True)
class Given:
    """A value that was given for a key: text, or lists and mappings of text.

    `origin` is `FILE:LINE`, `env VARIABLE` or `flag`; relative paths start at `base`.
    """

    key: Key
    value: Any = dataclasses.field(repr=False)
    origin: str
    base: Path

    def apply(self, root: T, prefix: str = "") -> T:
        """Return `root` with this value; `prefix` stands before the key in the error.

        Raises: ConfigInvalid.
        """
        key = self.key
        try:
            for target in key.targets:
                found = target.read(self.value, self.base)
                if key.is_mapping:
                    found = {**look_up(root, target.path), **found}
                root = replaced(root, target.path, found)
        except WrongValueError as wrong:
            shown = f" is {redact(key.name, str(self.value))!r:.200}"
            raise ConfigInvalid(
                f"setting {prefix + key.name!r} ({self.origin})"
                f"{'' if key.is_mapping else shown}: expected {wrong}",
                hint=key.help,
                key=prefix + key.name,
                origin=self.origin,
            ) from wrong
        return root


@dataclass(frozen=True)
class Setting:
    """The value that is in force, and its origin: as for Given, or `default`."""

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


def unknown(
    name: str, origin: str, word: str, known: list[str], none: str
) -> ConfigInvalid:
    """Return the error for a key that does not exist, with the most similar one.

    `word`, the part of `name` that is to be in `known`, may differ in case. `none` is the
    hint if nothing is similar.
    """
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return ConfigInvalid(
        f"unknown setting {name!r} ({origin})",
        hint=f"did you mean {by_lower[near[0]]!r}?" if near else none,
        key=name,
        origin=origin,
    )


def is_of_client(variable: str) -> bool:
    """Whether a variable is one that users set for the `peer` command.

    The node does not read it: started in such a shell, it would be another one.
    """
    return bool(_OF_CLIENT.fullmatch(variable))


def redact(name: str, value: str) -> str:
    """Return `value` as it may be shown: without passwords."""
    if _SECRET_NAME.search(name):
        return "[secret]"
    return _PASSWORD.sub("[secret]@", value)


# --- keys that are not settings ------------------------------------------------------

OF_CLIENT = (
    "for the `peer` command; the node takes it from core.yaml, --set or --config"
)
"""Why `is_of_client` variables have no effect."""

NOT_USED = {
    "metrics.statsd": "metrics are read at /metrics, not sent",
    "chaincode.externalbuilders": "external builders are not supported yet",
    "chaincode.id.name": "Fabric does not read it either",
    "chaincode.id.path": "Fabric does not read it either",
    "chaincode.system": "system chaincodes are part of the node",
    "chaincode.golang.dynamiclink": "the build of Go chaincode decides how it is linked",
    "chaincode.java.runtime": "Java chaincode cannot be built yet",
    "chaincode.keepalive": "the node pings the streams by itself",
    "peer.address": "the peer is at peer.listenAddress",
    "peer.gateway.enabled": "client applications need it",
    "peer.gateway.dialtimeout": "all peers are in the node: none is dialled",
    "peer.tls.cert": "the TLS CA of the organisation issues it",
    "peer.tls.key": "it is made with the organisation",
    "peer.tls.rootcert": "the TLS CA is made with the organisation",
    "peer.filesystempath": "everything is in the home (--home)",
    "peer.maxsendmsgsize": "peer.maxRecvMsgSize limits what is sent to chaincode, too",
    "vm.docker.hostconfig.networkmode": "chaincode gets a network of its own",
    "vm.docker.hostconfig.privileged": "chaincode is never privileged",
    "vm.docker.hostconfig.capadd": "chaincode has no capabilities",
    "vm.docker.hostconfig.capdrop": "all capabilities are dropped",
    "vm.docker.hostconfig.ipcmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.pidmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.utsmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.usernsmode": "chaincode shares no namespace with others",
    "vm.docker.hostconfig.memoryswap": "chaincode has no swap: beyond Memory it is killed",
    "vm.docker.hostconfig.memoryswappiness": "chaincode has no swap",
    "vm.docker.hostconfig.oomkilldisable": "chaincode that exceeds Memory is killed",
    "vm.docker.hostconfig.blkioweight": "Fabric does not read it either",
    "vm.docker.hostconfig.nanocpus": "use chaindock.sandbox.cpus",
    "vm.docker.hostconfig.tmpfs": "use chaindock.sandbox.tmp",
    "vm.docker.hostconfig.binds": "no directory of this machine is mounted",
    "vm.docker.hostconfig.mounts": "no directory of this machine is mounted",
    "vm.docker.hostconfig.links": "chaincode reaches no other container",
    "vm.docker.hostconfig.portbindings": "no port of chaincode is published",
    "vm.docker.hostconfig.groupadd": "chaincode has only the group of its user",
    "vm.docker.hostconfig.restartpolicy": "the node restarts chaincode",
    "vm.docker.hostconfig.runtime": "the engine's default runtime is used",
    "vm.docker.hostconfig.logconfig.type": "the engine's own log is read",
}
"""Why Fabric's key, or all below it, has no effect; in lower case."""
