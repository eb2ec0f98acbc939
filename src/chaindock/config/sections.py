"""The configuration of a node: the options of all packages, read once at the start.

Only the sections of single chaincodes are read again, at each launch. Of the user's
environment, only named variables reach builds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from chaindock.chaincode.options import (
    CallOptions,
    LaunchOptions,
    ListenOptions,
    StreamOptions,
)
from chaindock.config.chaincodes import ChaincodeSections
from chaindock.config.keys import Ignored, Key, Setting, keys_of
from chaindock.container.contracts import BuildEnvironment
from chaindock.container.environment import CA_VARIABLES
from chaindock.container.output import OutputOptions
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions
from chaindock.controllers.process.options import ProcessOptions
from chaindock.endorser.cutting import OrdererOptions
from chaindock.gateway.options import GatewayOptions
from chaindock.ids import require_channel
from chaindock.lifecycle.states import CustodianOptions
from chaindock.operations.http import OperationsOptions
from chaindock.operations.serving import AdminOptions
from chaindock.options import option
from chaindock.packaging.rules import Limits
from chaindock.platforms.registry import PLATFORMS
from chaindock.telemetry.logs import LogSpec
from chaindock.values import Syntax, Whole, checked

_LOG_SPEC = checked(LogSpec.parse)
_CHANNEL = checked(
    require_channel, "a lower-case letter, then lower-case letters, digits, . or -"
)
_IS_SET = Syntax(lambda value, _base: bool(value))
_PATH = "/usr/local/bin:/usr/bin:/bin"
_PROXIES = "(?i:https?_proxy|no_proxy|all_proxy)"
_BUILD_VARIABLE = re.compile(
    "|".join([_PROXIES, *(platform.build_variables for platform in PLATFORMS)])
)


@dataclass(frozen=True)
class NodeOptions:
    """The node as the only member of its network."""

    backend: str = option("auto", "chaindock.backend")
    """What runs chaincode: auto, docker or process."""
    # Whether to look for an engine. Fabric's way to say no: the key is there and empty.
    engine: bool = option(True, "vm.endpoint", syntax=_IS_SET)
    channel: str = option("mychannel", "chaindock.channel", syntax=_CHANNEL)
    """Name of the channel."""
    msp_id: str = option("Org1MSP", "peer.localMspId")
    """MSP id of the organisation."""
    domain: str = option("org1.example.com", "chaindock.domain")
    """Domain of the organisation."""
    peer_id: str = option("", "peer.id")
    """Part of the names of containers and images; empty = peer0- and the id of the
    node."""
    network_id: str = option("dev", "peer.networkId")
    """Part of the names of containers and images."""
    proposals: Whole = option(2500, "peer.limits.concurrency.endorserService")
    """Largest number of proposals at once; 0 = as many as the limit of open files
    allows."""
    logging_level: str = option("info", "chaincode.logging.level")
    """Log level of the chaincode, for its shim."""
    logging_shim: str = option("warning", "chaincode.logging.shim")
    """Log level of the shim itself."""
    logging_format: str = option(
        "%{color}%{time:2006-01-02 15:04:05.000 MST} [%{module}] %{shortfunc} -> "
        "%{level:.4s} %{id:03x}%{color:reset} %{message}",
        "chaincode.logging.format",
    )
    """Log format of the chaincode, for its shim."""

    @property
    def chaincode_logging(self) -> Mapping[str, str]:
        """What PeerConnection.logging holds."""
        return {
            "CORE_CHAINCODE_LOGGING_LEVEL": self.logging_level,
            "CORE_CHAINCODE_LOGGING_SHIM": self.logging_shim,
            "CORE_CHAINCODE_LOGGING_FORMAT": self.logging_format,
        }


@dataclass(frozen=True)
class LogOptions:
    """The node's own log."""

    spec: str = option(
        "", "chaindock.log.spec", syntax=_LOG_SPEC, variable="FABRIC_LOGGING_SPEC"
    )
    """Levels, as FABRIC_LOGGING_SPEC: debug, or info:chaincode,endorser=debug."""
    format: Literal["text", "json"] = option("text", "chaindock.log.format")
    """Format of the log: text or json."""


@dataclass(frozen=True)
class Config:
    """Everything that was set, and where it was."""

    home: Path
    """Absolute."""
    process: ProcessOptions
    node: NodeOptions = field(default_factory=NodeOptions)
    log: LogOptions = field(default_factory=LogOptions)
    docker: DockerOptions = field(default_factory=DockerOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    calls: CallOptions = field(default_factory=CallOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    listen: ListenOptions = field(default_factory=ListenOptions)
    gateway: GatewayOptions = field(default_factory=GatewayOptions)
    orderer: OrdererOptions = field(default_factory=OrdererOptions)
    custodian: CustodianOptions = field(default_factory=CustodianOptions)
    packages: Limits = field(default_factory=Limits)
    output: OutputOptions = field(default_factory=OutputOptions)
    admin: AdminOptions = field(default_factory=AdminOptions)
    operations: OperationsOptions = field(default_factory=OperationsOptions)
    build: BuildEnvironment = field(default_factory=BuildEnvironment)
    chaincodes: ChaincodeSections = field(default_factory=ChaincodeSections)
    settings: tuple[Setting, ...] = ()
    """Every known key with value and origin, for `config show`."""
    ignored: tuple[Ignored, ...] = ()
    """Keys of Fabric that were found and have no effect here."""
    warnings: tuple[str, ...] = ()
    """Sentences for the user."""


def defaults(home: Path, env: Mapping[str, str]) -> tuple[Config, dict[str, str]]:
    """Return the configuration in which nothing is set, and origins by path.

    `env` says where engines, the user's programs, proxies and registries are.
    """
    build, ca_variable, warnings = build_environment(env)
    origins = {}
    if build.variables:
        origins["build.variables"] = "env"
    if ca_variable:
        origins["build.ca_bundle"] = f"env {ca_variable}"
    path = env.get("PATH") or _PATH
    user = _path(env, "HOME")
    cache = home / "cache"  # where the user has no home directory
    if user is not None:
        cache = (_path(env, "XDG_CACHE_HOME") or user / ".cache") / "chaindock"
    config = Config(
        home=home,
        process=ProcessOptions(home / "process", cache, path),
        # Programs for the network lie where a user's PATH seldom leads.
        docker=DockerOptions(endpoint=_endpoint(env), path=f"{path}:/usr/sbin:/sbin"),
        build=build,
        warnings=tuple(warnings),
    )
    return config, origins


def build_environment(
    env: Mapping[str, str],
) -> tuple[BuildEnvironment, str, list[str]]:
    """Return what builds get, which variable named the CA bundle, and warnings."""
    named = (name for name in env if _BUILD_VARIABLE.fullmatch(name))
    variables = {name: env[name] for name in named if env[name]}
    warnings: list[str] = []
    for name in CA_VARIABLES:
        if not (value := env.get(name)):
            continue
        bundle = Path(value).absolute()
        if not (why := problem_of(bundle)):
            return BuildEnvironment(variables, bundle), name, warnings
        warnings.append(f"{name} is not used: {value!r} {why}")
    return BuildEnvironment(variables), "", warnings


def problem_of(bundle: Path) -> str:
    """Return why a CA bundle cannot be used, or nothing."""
    try:
        good = b"-----BEGIN CERTIFICATE-----" in bundle.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if good else "holds no PEM certificate"


def _endpoint(env: Mapping[str, str]) -> EndpointOptions:
    certificates = _path(env, "DOCKER_CERT_PATH")
    return EndpointOptions(
        docker_host=env.get("DOCKER_HOST", ""),
        docker_context=env.get("DOCKER_CONTEXT", ""),
        docker_config=_path(env, "DOCKER_CONFIG"),
        auth_file=_path(env, "REGISTRY_AUTH_FILE"),
        runtime_dir=_path(env, "XDG_RUNTIME_DIR"),
        home=_path(env, "HOME"),
        tls=bool(env.get("DOCKER_TLS_VERIFY") or env.get("DOCKER_TLS")),
        ca_file=certificates and certificates / "ca.pem",
        cert_file=certificates and certificates / "cert.pem",
        key_file=certificates and certificates / "key.pem",
    )


def _path(env: Mapping[str, str], name: str) -> Path | None:
    value = env.get(name)
    return Path(value) if value else None


KEYS: tuple[Key, ...] = keys_of(defaults(Path("~/.chaindock"), {"HOME": "~"})[0])
"""Every setting, but for those of single chaincodes."""
KNOWN = {key.name.lower(): key for key in KEYS}
VARIABLES = {name: key for key in KEYS for name in key.variables}
