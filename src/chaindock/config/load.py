"""Put the configuration together: command line, environment, file, default.

The node is given exactly what `config show` prints.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.config.chaincodes import ChaincodeSections, is_section_key
from chaindock.config.environment import environment
from chaindock.config.files import find_file
from chaindock.config.keys import Setting, look_up, replaced
from chaindock.config.sections import KEYS, KNOWN, Config, defaults
from chaindock.config.sources import (
    Found,
    Layer,
    read_file,
    read_flags,
    read_variables,
)
from chaindock.config.surroundings import (
    build_environment,
    cache_folder,
    engine_inputs,
    problem_of,
    redact,
)
from chaindock.errors import ConfigInvalid
from chaindock.operations.http import is_loopback
from chaindock.values import WrongValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PATH = "/usr/local/bin:/usr/bin:/bin"


def load(
    home: Path,
    flags: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> Config:
    """Return the configuration of the node of `home`.

    Args:
        home: absolute.
        flags: key → text, from the command line.
        env: default: the environment of this process.

    Raises: ConfigInvalid: an unknown key, or a value that its key does not take.
    """
    env = environment() if env is None else env
    here = Path.cwd()
    build, ca_variable, warnings = build_environment(env)
    config = defaults(
        home,
        cache_folder(env, home),
        env.get("PATH") or _PATH,
        engine_inputs(env),
        build,
    )
    file = find_file(home, env)
    flags = flags or {}
    single = {name: flags[name] for name in flags if is_section_key(name)}
    chaincodes = ChaincodeSections(home, env, single)
    chaincodes.require_readable()
    layers = [
        read_file(file) if file else Layer(),
        read_variables(env, here),
        read_flags({k: v for k, v in flags.items() if k not in single}, here),
    ]
    origins = {"process.path": "env PATH"} if env.get("PATH") else {}
    if build.variables:
        origins["build.variables"] = "env"
    if ca_variable:
        origins["build.ca_bundle"] = f"env {ca_variable}"
    for found in (one for layer in layers for one in layer.found):
        config = _apply(config, found)
        origins |= {one.path: found.origin for one in found.key.targets}
    _check_ca(config, origins)
    _check_operations(config, origins)
    if file and chaincodes.has_variables and file.stat().st_mode & 0o077:
        warnings.append(
            f"{str(file)!r} holds variables of chaincode, and other users may read it: "
            "chmod 600"
        )
    if config.stream.admit_unlaunched and "listen.tls" not in origins:
        config = replaced(config, "listen.tls", False)
        origins["listen.tls"] = "chaincode.mode dev"
    return replace(
        config,
        chaincodes=chaincodes,
        settings=(*_settings(config, origins), *chaincodes.settings()),
        ignored=tuple(one for layer in layers for one in layer.ignored),
        warnings=tuple(warnings),
    )


def _apply(config: Config, found: Found) -> Config:
    key = found.key
    try:
        return key.apply(config, found.value, found.base)
    except WrongValueError as wrong:
        shown = f" is {redact(key.name, str(found.value))!r:.200}"
        raise ConfigInvalid(
            f"setting {key.name!r} ({found.origin}){'' if key.is_mapping else shown}: "
            f"expected {wrong}",
            hint=key.help,
            key=key.name,
            origin=found.origin,
        ) from wrong


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
