"""The configuration of a node: the options of all packages, read once at the start.

Only the sections of single chaincodes are read again, at each launch.
"""

from __future__ import annotations

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
from chaindock.container.output import OutputOptions
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions
from chaindock.controllers.process.options import ProcessOptions
from chaindock.endorser.endorser import EndorserOptions
from chaindock.endorser.orderer import OrdererOptions
from chaindock.ids import require_channel
from chaindock.ledger.ledger import LedgerOptions
from chaindock.lifecycle.options import CustodianOptions
from chaindock.operations.admin import AdminOptions
from chaindock.operations.http import OperationsOptions
from chaindock.options import option
from chaindock.packaging.rules import Limits
from chaindock.telemetry.spec import LogSpec
from chaindock.values import Syntax, checked

_LOG_SPEC = checked(LogSpec.parse)
_CHANNEL = checked(
    require_channel, "a lower-case letter, then lower-case letters, digits, . or -"
)
_IS_SET = Syntax(lambda value, _base: bool(value))


@dataclass(frozen=True)
class NodeOptions:
    """The node as the only member of its network.

    Args:
        engine: look for a container engine.
    """

    backend: str = option(
        "auto", "chaindock.backend", "What runs chaincode: auto, docker or process."
    )
    # Fabric's way to say that there is no engine: the key is there and empty.
    engine: bool = option(True, "vm.endpoint", syntax=_IS_SET)
    channel: str = option(
        "mychannel", "chaindock.channel", "Name of the channel.", syntax=_CHANNEL
    )
    msp_id: str = option("Org1MSP", "peer.localMspId", "MSP id of the organisation.")
    domain: str = option(
        "org1.example.com", "chaindock.domain", "Domain of the organisation."
    )
    peer_id: str = option(
        "",
        "peer.id",
        "Part of the names of containers and images; empty = peer0- and the id of "
        "the node.",
    )
    network_id: str = option(
        "dev", "peer.networkId", "Part of the names of containers and images."
    )
    logging_level: str = option(
        "info", "chaincode.logging.level", "Log level of the chaincode, for its shim."
    )
    logging_shim: str = option(
        "warning", "chaincode.logging.shim", "Log level of the shim itself."
    )
    logging_format: str = option(
        "%{color}%{time:2006-01-02 15:04:05.000 MST} [%{module}] %{shortfunc} -> "
        "%{level:.4s} %{id:03x}%{color:reset} %{message}",
        "chaincode.logging.format",
        "Log format of the chaincode, for its shim.",
    )

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

    level: Literal["debug", "info", "warning", "error"] = option(
        "info", "chaindock.log.level", "Least severe level that the node logs."
    )
    spec: str = option(
        "",
        "chaindock.log.spec",
        "Levels by component, as FABRIC_LOGGING_SPEC: info:chaincode,endorser=debug.",
        syntax=_LOG_SPEC,
        variable="FABRIC_LOGGING_SPEC",
    )
    format: Literal["text", "json"] = option(
        "text", "chaindock.log.format", "Format of the log: text or json."
    )


@dataclass(frozen=True)
class Config:
    """Everything that was set, and where it was.

    Args:
        home: absolute.
        settings: every known key with value and origin, for `config show`.
        ignored: keys of Fabric that were found and have no effect here.
        warnings: sentences for the user.
    """

    home: Path
    process: ProcessOptions
    node: NodeOptions = field(default_factory=NodeOptions)
    log: LogOptions = field(default_factory=LogOptions)
    docker: DockerOptions = field(default_factory=DockerOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)
    calls: CallOptions = field(default_factory=CallOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    listen: ListenOptions = field(default_factory=ListenOptions)
    ledger: LedgerOptions = field(default_factory=LedgerOptions)
    endorser: EndorserOptions = field(default_factory=EndorserOptions)
    orderer: OrdererOptions = field(default_factory=OrdererOptions)
    custodian: CustodianOptions = field(default_factory=CustodianOptions)
    packages: Limits = field(default_factory=Limits)
    output: OutputOptions = field(default_factory=OutputOptions)
    admin: AdminOptions = field(default_factory=AdminOptions)
    operations: OperationsOptions = field(default_factory=OperationsOptions)
    build: BuildEnvironment = field(default_factory=BuildEnvironment)
    chaincodes: ChaincodeSections = field(default_factory=ChaincodeSections)
    settings: tuple[Setting, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()


def defaults(
    home: Path,
    cache: Path,
    path: str,
    endpoint: EndpointOptions,
    build: BuildEnvironment,
) -> Config:
    """Return the configuration in which nothing is set.

    Args:
        home: absolute.
        cache: where builds are kept for all nodes of the user.
        path: PATH of the user, where toolchains are looked for.
        endpoint: what the environment says about engines.
        build: proxies and registries as the user has them.
    """
    return Config(
        home=home,
        process=ProcessOptions(root=home / "process", cache_root=cache, path=path),
        # Programs for the network lie where a user's PATH seldom leads.
        docker=DockerOptions(endpoint=endpoint, path=f"{path}:/usr/sbin:/sbin"),
        build=build,
    )


KEYS: tuple[Key, ...] = keys_of(
    defaults(
        Path("~/.chaindock"),
        Path("~/.cache/chaindock"),
        "PATH",
        EndpointOptions(),
        BuildEnvironment(),
    )
)
"""Every setting, but for those of single chaincodes."""
KNOWN = {key.name.lower(): key for key in KEYS}
VARIABLES = {name: key for key in KEYS for name in key.variables}
