"""Options of the Docker back end; every default works without a configuration.

Source: docs/fabric/configuration.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.container.value_types import Hosts, Memory, User
from chaindock.controllers.docker.value_types import (
    Addresses,
    CpuSet,
    Mirror,
    Mirrors,
    SecurityOptions,
    Ulimit,
    Ulimits,
)
from chaindock.options import Option, option
from chaindock.platforms.base import LanguageImages, Pull
from chaindock.platforms.registry import PLATFORMS
from chaindock.values import (
    BOOLEAN,
    MIB,
    Bytes,
    BytesOrNone,
    Count,
    Number,
    Seconds,
    Syntax,
    Whole,
)

if TYPE_CHECKING:
    from chaindock.container.contracts import RunSettings

__all__ = [
    "MIB",
    "CompileOptions",
    "DockerOptions",
    "EndpointOptions",
    "LanguageImages",
    "Mirror",
    "Pull",
    "SandboxOptions",
    "Ulimit",
]

_ALWAYS = Syntax(
    lambda value, base: "always" if BOOLEAN.parse(value, base) else "missing",
    lambda value: BOOLEAN.show(value == "always"),
)


@dataclass(frozen=True)
class EndpointOptions:
    """Where the container engine is.

    Args:
        docker_host: DOCKER_HOST as the user has it.
        docker_context: DOCKER_CONTEXT as the user has it.
        docker_config: directory of the Docker CLI's config.json (DOCKER_CONFIG).
        auth_file: Podman's file of logins (REGISTRY_AUTH_FILE).
        runtime_dir: XDG_RUNTIME_DIR.
        home: the user's home directory.
        connect_s: seconds that one address has to answer.
    """

    endpoint: str = option(
        "",
        "vm.endpoint",
        "Address of the container engine: unix, tcp, http or https; unset = look for one, empty = use none.",
    )
    docker_host: str = ""
    docker_context: str = ""
    docker_config: Path | None = None
    auth_file: Path | None = None
    runtime_dir: Path | None = None
    home: Path | None = None
    tls: bool = option(
        False, "vm.docker.tls.enabled", "Use TLS for an engine at tcp://."
    )
    ca_file: Path | None = option(
        None, "vm.docker.tls.ca.file", "CA certificates of the engine, PEM."
    )
    cert_file: Path | None = option(
        None, "vm.docker.tls.cert.file", "Client certificate for the engine, PEM."
    )
    key_file: Path | None = option(
        None, "vm.docker.tls.key.file", "Private key of the client certificate, PEM."
    )
    connect_s: float = 2.0

    def login_files(self) -> list[Path]:
        """Return the files that may hold logins to registries, first come first.

        The Docker CLI's, then those of Podman.
        """
        folder = self.docker_config or (self.home and self.home / ".docker")
        found = [folder / "config.json"] if folder else []
        if self.auth_file:
            found.append(self.auth_file)
        if self.runtime_dir:
            found.append(self.runtime_dir / "containers/auth.json")
        if self.home:
            found.append(self.home / ".config/containers/auth.json")
        return found


def default_images() -> dict[str, LanguageImages]:
    """Return the images that each language declares, by its name."""
    return {platform.name: platform.images for platform in PLATFORMS}


FABRIC_MIRRORS = (Mirror("docker.io/hyperledger", "ghcr.io/hyperledger"),)
"""Fabric's own images are published in both places."""


@dataclass(frozen=True)
class SandboxOptions:
    """What a running chaincode may use."""

    user: User = option(
        "501:501",
        "chaindock.sandbox.user",
        "uid:gid of chaincode; empty = as its image says.",
    )
    read_only: bool = option(
        True,
        "vm.docker.hostConfig.ReadonlyRootfs",
        "The root file system of chaincode is read-only; /tmp is writable.",
    )
    memory_bytes: Memory = option(
        2048 * MIB,
        "vm.docker.hostConfig.Memory",
        "Memory of a running chaincode, also of a process; there is no swap beyond it; 0 = unlimited.",
    )
    cpus: Number = option(
        2.0, "chaindock.sandbox.cpus", "Processors of a chaincode; 0 = unlimited."
    )
    pids: Whole = option(
        512,
        "vm.docker.hostConfig.PidsLimit",
        "Processes and threads of a chaincode; 0 = unlimited.",
    )
    tmp_bytes: Bytes = option(
        64 * MIB, "chaindock.sandbox.tmp", "Size of /tmp, and of /dev/shm."
    )
    open_files: int = 4096
    file_bytes: BytesOrNone = option(
        0,
        "chaindock.sandbox.fileSize",
        "Largest file that a chaincode may write; 0 = the size of /tmp.",
    )
    ulimits: Ulimits = option(
        (),
        "vm.docker.hostConfig.Ulimits",
        "Limits per process, such as nofile=1024:2048; they replace the default of the same name.",
    )
    cpu_shares: Whole = option(
        0,
        "vm.docker.hostConfig.CpuShares",
        "Share of processor time when processors are busy; 0 = the default of the engine, 1024.",
    )
    cpu_quota: Whole = option(
        0,
        "vm.docker.hostConfig.CpuQuota",
        "Microseconds of processor time per CpuPeriod; replaces chaindock.sandbox.cpus; 0 = unset.",
    )
    cpu_period: Whole = option(
        0, "vm.docker.hostConfig.CpuPeriod", "Microseconds; 0 = 100000."
    )
    cpuset_cpus: CpuSet = option(
        "",
        "vm.docker.hostConfig.CpusetCPUs",
        "Processors that chaincode may use, such as 0-2,4; empty = all.",
    )
    cpuset_mems: CpuSet = option(
        "",
        "vm.docker.hostConfig.CpusetMEMs",
        "Memory nodes that chaincode may use; empty = all.",
    )
    cgroup_parent: str = option(
        "",
        "vm.docker.hostConfig.CgroupParent",
        "Parent control group of all containers.",
    )
    security_opt: SecurityOptions = option(
        (),
        "vm.docker.hostConfig.SecurityOpt",
        "Additional profiles of AppArmor, seccomp or SELinux.",
    )
    log_max_bytes: Bytes = option(
        10 * MIB,
        "vm.docker.hostConfig.LogConfig.Config.max-size",
        "Size of each file in which the engine keeps output.",
    )
    log_files: Count = option(
        3, "vm.docker.hostConfig.LogConfig.Config.max-file", "Number of log files."
    )
    dns: Addresses = option(
        (), "vm.docker.hostConfig.Dns", "Name servers of containers, by IP address."
    )
    dns_search: tuple[str, ...] = option(
        (), "vm.docker.hostConfig.DnsSearch", "Search domains of containers."
    )
    extra_hosts: Hosts = option(
        (),
        "vm.docker.hostConfig.ExtraHosts",
        "Additional lines of /etc/hosts, as host:IP.",
    )
    internal: bool = option(
        True, "chaindock.sandbox.internal", "Chaincode can connect to the node only."
    )

    def with_settings(self, settings: RunSettings) -> SandboxOptions:
        """Return these options as one chaincode has them."""
        limits = (
            "memory_bytes",
            "cpus",
            "pids",
            "tmp_bytes",
            "open_files",
            "file_bytes",
        )
        given = {
            name: value
            for name in (*limits, "user")
            if (value := getattr(settings, name)) is not None
        }
        if settings.cpus is not None:
            given["cpu_quota"] = 0
        hosts = (*self.extra_hosts, *settings.extra_hosts)
        return replace(self, **given, extra_hosts=hosts)


@dataclass(frozen=True)
class CompileOptions:
    """What a build may use.

    Args:
        user: numeric `uid:gid` of the build and of its result.
        pids: processes and threads; 0 = unlimited.
        cpu_shares: share of processor time when processors are busy; chaincode has 1024.
        limit_s: seconds after which a build container ends by itself, even if the node
            was killed; the launch's own limits are much shorter.
    """

    user: str = "500:500"
    network: str = option(
        "",
        "chaindock.build.network",
        "The network of the engine that builds use; empty = its default bridge.",
    )
    memory_bytes: BytesOrNone = option(
        4096 * MIB,
        "chaindock.build.memory",
        "Memory of a build container; 0 = unlimited.",
    )
    pids: int = 4096
    cpus: Number = option(
        0.0, "chaindock.build.cpus", "Processors of a build container; 0 = unlimited."
    )
    cpu_shares: int = 256
    silence_s: Seconds = option(
        600.0,
        "chaindock.build.silence",
        "Time without output after which a build step has failed.",
    )
    limit_s: float = 24 * 3600.0
    artifact_bytes: Bytes = option(
        2048 * MIB, "chaindock.build.size", "Largest result of a build."
    )
    dns: Addresses = option((), "vm.docker.hostConfig.Dns")
    extra_hosts: Hosts = option((), "vm.docker.hostConfig.ExtraHosts")
    cgroup_parent: str = option("", "vm.docker.hostConfig.CgroupParent")


@dataclass(frozen=True)
class DockerOptions:
    """Everything about the Docker back end.

    Args:
        images: by the name of the language.
        pull_silence_s: seconds without progress after which a pull has failed.
        call_s: longest time of one call to the engine, in seconds.
        docker_ns: what $(DOCKER_NS) stands for in names of images.
        chaincode_port: port in the container of chaincode that the node dials.
        path: where programs of this machine are looked for, as a PATH.
    """

    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    images: Mapping[str, LanguageImages] = field(default_factory=default_images)
    pull: Pull = option(
        "missing",
        "chaindock.docker.pull",
        "When base images are pulled: missing, never or always.",
        also=Option(
            "chaincode.pull", "Fetch base images before every build.", syntax=_ALWAYS
        ),
    )
    mirrors: Mirrors = option(
        FABRIC_MIRRORS,
        "chaindock.docker.mirrors",
        "Where images are fetched from if their registry fails, as OF=host/path, in order.",
    )
    pull_silence_s: float = 120.0
    call_s: float = 60.0
    sandbox: SandboxOptions = field(default_factory=SandboxOptions)
    compile: CompileOptions = field(default_factory=CompileOptions)
    docker_ns: str = "hyperledger"
    fabric_version: str = option(
        "latest",
        "chaindock.docker.fabricVersion",
        "What $(PROJECT_VERSION) stands for in names of images.",
    )
    chaincode_port: int = 9999
    path: str = "/usr/sbin:/sbin:/usr/bin:/bin"
