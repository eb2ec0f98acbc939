"""What the node is given: every package's own options, filled in.

Owns:    Config; NodeOptions and LogOptions, which belong to no package below.
Not:     what each option means (the package that declares it).
Entry:   Config, defaults
Holds:   frozen; no part of it is read from anywhere later, but the sections of single
         chaincodes, which every launch reads again.
Source:  style.md "Config"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from chaindock.chaincode.options import (
    CallOptions,
    LaunchOptions,
    ListenOptions,
    StreamOptions,
)
from chaindock.config.chaincodes import ChaincodeSections
from chaindock.container.contracts import BuildEnvironment
from chaindock.container.output import OutputOptions
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions
from chaindock.controllers.process.options import ProcessOptions
from chaindock.endorser.orderer import OrdererOptions
from chaindock.ledger.ledger import LedgerOptions
from chaindock.lifecycle.custodian import CustodianOptions
from chaindock.operations.admin import AdminOptions
from chaindock.operations.http import OperationsOptions
from chaindock.packaging.rules import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chaindock.config.settings import Ignored, Setting


@dataclass(frozen=True)
class NodeOptions:
    """The node as a member of its network of one.

    Args:
        backend: what runs chaincode: auto, or the name of a builder.
        engine: look for a container engine; an empty `vm.endpoint` turns it off.
        channel: the one channel.
        msp_id, domain: of the one organisation.
        peer_id, network_id: parts of the names of containers and images; peer_id "" =
            `peer0-` and the node's id.
        logging_level, logging_shim, logging_format: for the shims.
    """

    backend: str = "auto"
    engine: bool = True
    channel: str = "mychannel"
    msp_id: str = "Org1MSP"
    domain: str = "org1.example.com"
    peer_id: str = ""
    network_id: str = "dev"
    logging_level: str = "info"
    logging_shim: str = "warning"
    logging_format: str = (
        "%{color}%{time:2006-01-02 15:04:05.000 MST} [%{module}] %{shortfunc} -> "
        "%{level:.4s} %{id:03x}%{color:reset} %{message}"
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
    """The node's own log.

    Args:
        level: of what `spec` does not mention.
        spec: a logging specification as Fabric has it.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    spec: str = ""
    format: Literal["text", "json"] = "text"


@dataclass(frozen=True)
class Config:
    """Everything that was set, and where it was.

    Args:
        home: absolute.
        settings: every known key with value and origin, for `config show`.
        ignored: keys of Fabric that were found and mean nothing here.
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
