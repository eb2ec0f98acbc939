"""Put the configuration together: command line, CORE_* variables, core.yaml, default.

The node is given exactly what `config show` prints. An unknown key in the section
`chaindock` is an error that names the nearest key; one of Fabric is listed as not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaindock.config.chaincodes import (
    HIDDEN,
    PREFIX,
    ChaincodeSections,
    is_section_key,
)
from chaindock.config.environment import (
    compose,
    entries,
    environment,
    find_file,
    is_mapping,
    plain,
    require_own,
)
from chaindock.config.keys import (
    NOT_USED,
    OF_CLIENT,
    Given,
    Ignored,
    Setting,
    is_of_client,
    look_up,
    redact,
    replaced,
    unknown,
)
from chaindock.config.sections import (
    KEYS,
    KNOWN,
    VARIABLES,
    Config,
    defaults,
    problem_of,
)
from chaindock.errors import ConfigInvalid
from chaindock.operations.http import is_loopback

_OUR_SECTION = "chaindock"
_VARIABLE = "CORE_"
_OUR_VARIABLE = f"{_VARIABLE}{_OUR_SECTION.upper()}_"


def load(
    home: Path,
    flags: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Config:
    """Return the configuration of the node of `home`, an absolute path.

    `flags` are keys and texts of the command line; `env` is by default the environment of
    this process; `folder` has the core.yaml to read, None = the home.

    Raises: ConfigInvalid: an unknown key, or a value that its key does not take.
    """
    env = environment() if env is None else env
    require_own(home)
    flags = flags or {}
    single = {name: flags[name] for name in flags if is_section_key(name)}
    chaincodes = ChaincodeSections(home, folder, single)
    chaincodes.require_readable()
    file = find_file(home, folder)
    all_given = [
        *(_of_file(file) if file else ()),
        *_of_variables(env),
        *_of_flags({k: v for k, v in flags.items() if k not in single}),
    ]
    config, origins = defaults(home, env)
    for given in all_given:
        if isinstance(given, Given):
            config = given.apply(config)
            value = look_up(config, given.key.path)
            for path in value if isinstance(value, tuple) else (value,):
                # Others must not change keys and certificates.
                if isinstance(path, Path):
                    require_own(path, but_folders=True)
            origins |= {one.path: given.origin for one in given.key.targets}
    require_own(config.process.cache_root)
    _check_ca(config, origins)
    _check_operations(config, origins)
    sections = tuple(chaincodes.settings())
    has_variables = any(one.value == HIDDEN for one in sections)
    if file and has_variables and file.stat().st_mode & 0o077:
        warning = f"other users may read chaincode's variables: chmod 600 {str(file)!r}"
        config = replace(config, warnings=(*config.warnings, warning))
    if config.stream.mode == "dev" and "listen.tls" not in origins:
        config = replaced(config, "listen.tls", False)
        origins["listen.tls"] = "chaincode.mode dev"
    return replace(
        config,
        chaincodes=chaincodes,
        settings=(*_settings(config, origins), *sections),
        ignored=tuple(one for one in all_given if isinstance(one, Ignored)),
    )


def _of_file(path: Path) -> Iterator[Given | Ignored]:
    """Yield what a core.yaml sets, but for single chaincodes. Raises: ConfigInvalid."""
    for name, value, line in _walk(path):
        origin = f"{path}:{line}"
        key = KNOWN.get(name.lower())
        if value is None:
            continue
        if key is not None:
            yield Given(key, value, origin, path.parent)
        elif name.lower().split(".")[0] == _OUR_SECTION:
            raise _unknown(name, origin)
        else:
            yield Ignored(name, origin, _reason(name))


def _walk(path: Path) -> Iterator[tuple[str, Any, int]]:
    def below(node: Any, prefix: str) -> Iterator[tuple[str, Any, int]]:
        for word, value, line in entries(loader, node):
            name = prefix + word
            if is_section_key(f"{name}."):
                continue
            if is_mapping(value) and name.lower() not in KNOWN:
                yield from below(value, f"{name}.")
            else:
                yield name, plain(loader, value), line

    with compose(path) as (loader, root):
        if root is not None and not is_mapping(root):
            raise ValueError("expected keys and values")
        yield from below(root, "")


def _reason(name: str) -> str:
    """Return why a key is not used: its own reason, or that of a section above it."""
    parts = name.lower().split(".")
    ways = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((NOT_USED[way] for way in ways if way in NOT_USED), "")


def _of_variables(env: Mapping[str, str]) -> Iterator[Given | Ignored]:
    """Yield what CORE_* variables set. Raises: ConfigInvalid: an unknown one."""
    for name, key in VARIABLES.items():
        if name in env:
            yield Given(key, env[name], f"env {name}", Path.cwd())
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
        if is_of_client(name):
            yield Ignored(name, origin, OF_CLIENT)
        elif name.startswith(_VARIABLE):
            yield Ignored(name, origin)


def _of_flags(flags: Mapping[str, str]) -> Iterator[Given]:
    """Yield what the command line sets. Raises: ConfigInvalid: an unknown key."""
    for name, value in flags.items():
        key = KNOWN.get(name.lower())
        if key is None:
            raise _unknown(name, "flag")
        yield Given(key, value, "flag", Path.cwd())


def _unknown(name: str, origin: str) -> ConfigInvalid:
    """Return the error for a key, or a variable, that does not exist."""
    known = list(VARIABLES if name.startswith(_VARIABLE) else (k.name for k in KEYS))
    none = "all settings: chaindock config show"
    if any(one.startswith(f"{name}.") for one in known):
        known, none = [], f"{name!r} is a section: write its settings below it"
    return unknown(name, origin, name, known, none)


def _check_ca(config: Config, origins: Mapping[str, str]) -> None:
    bundle = config.build.ca_bundle
    if bundle is None:
        return
    if why := problem_of(bundle):
        origin = origins["build.ca_bundle"]
        raise ConfigInvalid(
            f"CA bundle {str(bundle)!r} ({origin}) {why}",
            hint="give a PEM file with --ca FILE",
            key="chaindock.ca",
            origin=origin,
        )


def _check_operations(config: Config, origins: Mapping[str, str]) -> None:
    address, tls = config.operations.address, config.operations.tls
    if address is None or tls or is_loopback(address[0]):
        return
    origin = origins.get("operations.address", "default")
    shown = KNOWN["operations.listenaddress"].show(address)
    raise ConfigInvalid(
        f"setting 'operations.listenAddress' ({origin}) is {shown!r}: expected a loopback "
        "address, because operations.tls.enabled is false",
        hint="use 127.0.0.1, or give the endpoint a certificate: operations.tls.*",
        key="operations.listenAddress",
        origin=origin,
    )


def _settings(config: Config, origins: Mapping[str, str]) -> Iterator[Setting]:
    for key in KEYS:
        value = look_up(config, key.path)
        if key.is_mapping:
            value = {name: redact(name, one) for name, one in value.items()}
        yield Setting(
            key=key.name,
            value=redact(key.name, key.show(value)),
            origin=origins.get(key.path, "default"),
            help=key.help,
        )
