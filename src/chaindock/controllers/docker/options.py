"""What can be set about containers, and the defaults.

Owns:    DockerOptions and its parts.
Not:     reading files and variables (config), using the values.
Entry:   DockerOptions
Holds:   every default works without a configuration; Fabric's own keys are the origin
         of what Fabric has too.
Source:  launch.md §3.2, §3.8, §7.2
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from chaindock.container.contracts import RunSettings

MIB = 1024 * 1024
Pull = Literal["missing", "never", "always"]


@dataclass(frozen=True)
class EndpointOptions:
    """Where the engine may be.

    Args:
        endpoint: `vm.endpoint`: unix://, tcp://, http://, https:// or npipe://; "" =
            look for one.
        docker_host: DOCKER_HOST as the user has it.
        docker_context: DOCKER_CONTEXT as the user has it.
        docker_config: directory of the Docker CLI's config.json (DOCKER_CONFIG).
        auth_file: Podman's file of logins (REGISTRY_AUTH_FILE).
        runtime_dir: XDG_RUNTIME_DIR.
        home: the user's home directory.
        tls: use TLS for tcp:// (`vm.docker.tls.enabled`, DOCKER_TLS_VERIFY).
        ca_file, cert_file, key_file: PEM (`vm.docker.tls.*`, DOCKER_CERT_PATH).
        connect_s: how long one candidate may take to answer.
    """

    endpoint: str = ""
    docker_host: str = ""
    docker_context: str = ""
    docker_config: Path | None = None
    auth_file: Path | None = None
    runtime_dir: Path | None = None
    home: Path | None = None
    tls: bool = False
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
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


@dataclass(frozen=True)
class LanguageImages:
    """The two images of a language.

    Args:
        builder: the build runs in it.
        runtime: the chaincode image is made from it; "" = the same.
        pull: when these are fetched; `default` = as DockerOptions.pull says.
    """

    builder: str
    runtime: str = ""
    pull: Pull | Literal["default"] = "default"


def default_images() -> dict[str, LanguageImages]:
    """Return the images per platform name.

    Origins: `chaincode.builder`, `chaincode.golang.runtime`, `chaincode.node.runtime`
    and our own `chaincode.python.runtime`.
    """
    return {
        "golang": LanguageImages("golang:1.24-bookworm", "debian:bookworm-slim"),
        "node": LanguageImages("node:20-bookworm-slim"),
        "python": LanguageImages("python:3.12-slim-bookworm"),
    }


@dataclass(frozen=True)
class Mirror:
    """Where images may be, too.

    Args:
        of: how their full names begin: a registry (docker.io), or a path in it.
        place: what stands there in its stead.
    """

    of: str
    place: str


FABRIC_MIRRORS = (Mirror("docker.io/hyperledger", "ghcr.io/hyperledger"),)
"""Fabric's own images are published in both places (needs.md row 27)."""


@dataclass(frozen=True)
class Ulimit:
    """One limit per process, as setrlimit(2) takes it.

    Args:
        name: as in `ulimit` options of engines: nofile, fsize, core, stack, …
    """

    name: str
    soft: int
    hard: int


@dataclass(frozen=True)
class SandboxOptions:
    """What a running chaincode may use.

    Args:
        user: numeric `uid:gid`, not that of builds; "" = as the image says.
        read_only: the root file system; /tmp stays writable (in memory).
        memory_bytes: `vm.docker.hostConfig.Memory`; 0 = unlimited. No swap beyond it.
        cpus: processors' worth of time; 0 = unlimited.
        pids: processes and threads; 0 = unlimited.
        tmp_bytes: size of /tmp, and of /dev/shm.
        open_files: descriptors of one process.
        file_bytes: largest file; 0 = the size of /tmp.
        ulimits: in place of ours, by name.
        cpu_shares, cpu_quota, cpu_period: `vm.docker.hostConfig`; a quota takes the
            place of `cpus`; 0 = unset.
        cpuset_cpus, cpuset_mems, cgroup_parent: likewise; "" = unset.
        security_opt: more of them; none that takes a wall away.
        log_max_bytes, log_files: what the engine keeps of the output.
        dns, dns_search, extra_hosts: as in `vm.docker.hostConfig`.
        internal: keep the chaincode from reaching anything but the node.
    """

    user: str = "501:501"
    read_only: bool = True
    memory_bytes: int = 2048 * MIB
    cpus: float = 2.0
    pids: int = 512
    tmp_bytes: int = 64 * MIB
    open_files: int = 4096
    file_bytes: int = 0
    ulimits: tuple[Ulimit, ...] = ()
    cpu_shares: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    cgroup_parent: str = ""
    security_opt: tuple[str, ...] = ()
    log_max_bytes: int = 10 * MIB
    log_files: int = 3
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    internal: bool = True

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
        user: numeric `uid:gid` of the build and of what it makes.
        network: the engine's network for builds; "" = its default bridge.
        memory_bytes, pids, cpus: limits; 0 = unlimited.
        cpu_shares: its part where processors are short; 1024 is usual.
        silence_s: a step that prints nothing for so long has failed.
        limit_s: a build container ends by itself after this, whoever forgot it; the
            clocks of its phases are the launch's.
        artifact_bytes: what a build may leave behind, and its largest file.
        dns, extra_hosts: as for running chaincode.
        cgroup_parent: as for running chaincode.
    """

    user: str = "500:500"
    network: str = ""
    memory_bytes: int = 4096 * MIB
    pids: int = 4096
    cpus: float = 0.0
    cpu_shares: int = 256
    silence_s: float = 600.0
    limit_s: float = 24 * 3600.0
    artifact_bytes: int = 2048 * MIB
    dns: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    cgroup_parent: str = ""


@dataclass(frozen=True)
class DockerOptions:
    """Everything about the Docker back end.

    Args:
        images: per platform name.
        pull: when base images are fetched: `missing`, `never`, `always`.
        mirrors: where else base images are taken from, in order, when the place that
            their name says does not give them.
        pull_silence_s: a pull without progress for so long has failed.
        call_s: one plain call to the engine may take so long.
        docker_ns, fabric_version: $(DOCKER_NS), and $(PROJECT_VERSION) with its
            $(TWO_DIGIT_VERSION), in names of images.
        chaincode_port: where chaincode that is dialled listens in its container.
        path: where programs of this machine are looked for, as a PATH.
    """

    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    images: Mapping[str, LanguageImages] = field(default_factory=default_images)
    pull: Pull = "missing"
    mirrors: tuple[Mirror, ...] = FABRIC_MIRRORS
    pull_silence_s: float = 120.0
    call_s: float = 60.0
    sandbox: SandboxOptions = field(default_factory=SandboxOptions)
    compile: CompileOptions = field(default_factory=CompileOptions)
    docker_ns: str = "hyperledger"
    fabric_version: str = "latest"
    chaincode_port: int = 9999
    path: str = "/usr/sbin:/sbin:/usr/bin:/bin"
