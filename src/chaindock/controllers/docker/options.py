"""Options of the Docker back end; every default works without a configuration.

Source: docs/fabric/configuration.md
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from chaindock.container.contracts import RunSettings
from chaindock.controllers.docker.names import DEFAULT_REGISTRY
from chaindock.options import Option, option
from chaindock.platforms.base import LanguageImages, Pull
from chaindock.platforms.registry import PLATFORMS
from chaindock.values import (
    BOOLEAN,
    MIB,
    Bytes,
    BytesOrNone,
    Count,
    Hosts,
    Memory,
    Number,
    Seconds,
    Syntax,
    User,
    Whole,
    WrongValueError,
    all_of,
    is_address,
    matching,
    read_words,
)

_LIMITS = frozenset(
    {
        *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue"),
        *("nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
    }
)
_REGISTRY = re.compile(r"localhost(:|/|$)|[^/]*[.:]")
_PLACE = re.compile(r"[a-zA-Z0-9._-]+(:\d+)?(/[a-z0-9._-]+)*")
_PROFILES = re.compile(r"(apparmor|seccomp|label)[=:](?!.*(unconfined|disable)).+")
_NO_MORE = re.compile(r"no-new-privileges([:=]true)?")


@dataclass(frozen=True)
class Mirror:
    """Another place of images: what replaces the beginning `of` of their full names."""

    of: str
    place: str


@dataclass(frozen=True)
class Ulimit:
    """A limit per process, as setrlimit(2) takes it; `name` as engines do (nofile)."""

    name: str
    soft: int
    hard: int


def _read_security(value: Any, base: Path) -> tuple[str, ...]:
    # A seccomp profile is JSON: it has commas of its own.
    words = read_words(value if isinstance(value, list) else [value], base)
    for word in words:
        if not (_PROFILES.fullmatch(word) or _NO_MORE.fullmatch(word)):
            raise WrongValueError(
                "apparmor=, seccomp= or label= with a profile that is not unconfined or "
                "disable: isolation can be added, not taken away"
            )
    return tuple(word for word in words if not _NO_MORE.fullmatch(word))


def _read_ulimits(value: Any, base: Path) -> tuple[Ulimit, ...]:
    given = value if isinstance(value, list) else read_words(value, base)
    return tuple(_ulimit(one) for one in given)


def _ulimit(given: Any) -> Ulimit:
    if isinstance(given, dict):
        parts = {str(key).lower(): str(one) for key, one in given.items()}
        name, soft, hard = (parts.get(key, "") for key in ("name", "soft", "hard"))
    else:
        name, _, rest = str(given).partition("=")
        soft, _, hard = rest.partition(":")
    name, hard = name.strip().lower(), hard or soft
    if name not in _LIMITS or not (soft.isdecimal() and hard.isdecimal()):
        raise WrongValueError(
            "a list of Name, Soft and Hard, or such as nofile=1024:4096,core=0; names: "
            + ", ".join(sorted(_LIMITS))
        )
    if int(soft) > int(hard):
        raise WrongValueError(f"a soft limit of {name} that is not above the hard one")
    return Ulimit(name, int(soft), int(hard))


def _read_mirrors(value: Any, base: Path) -> tuple[Mirror, ...]:
    if isinstance(value, dict):
        pairs = [
            (of, one)
            for of, many in value.items()
            for one in read_words("" if many is None else many, base)
        ]
    else:
        words = (word.rpartition("=") for word in read_words(value, base))
        pairs = [(of or DEFAULT_REGISTRY, place) for of, _, place in words]
    pairs = [(str(of).rstrip("/"), place.rstrip("/")) for of, place in pairs]
    for part in itertools.chain.from_iterable(pairs):
        if not (_REGISTRY.match(part) and _PLACE.fullmatch(part)):
            raise WrongValueError(
                "host/path (a host has a dot or a port), more of them after commas or as "
                f"a list, for images of {DEFAULT_REGISTRY}; for others "
                "REGISTRY/PATH=host/path, or such keys with lists"
            )
    return tuple(Mirror(of, place) for of, place in pairs)


Addresses = Annotated[tuple[str, ...], all_of(is_address, "IP addresses")]
CpuSet = Annotated[str, matching(r"\d+(-\d+)?(,\d+(-\d+)?)*", "numbers such as 0-2,4")]
SecurityOptions = Annotated[tuple[str, ...], Syntax(_read_security, ",".join)]
Mirrors = Annotated[
    tuple[Mirror, ...],
    Syntax(_read_mirrors, lambda v: ",".join(f"{one.of}={one.place}" for one in v)),
]
Ulimits = Annotated[
    tuple[Ulimit, ...],
    Syntax(
        _read_ulimits,
        lambda v: ",".join(f"{one.name}={one.soft}:{one.hard}" for one in v),
    ),
]

_ALWAYS = Syntax(
    lambda value, base: "always" if BOOLEAN.parse(value, base) else "missing",
    lambda value: BOOLEAN.show(value == "always"),
)


@dataclass(frozen=True)
class EndpointOptions:
    """Where the container engine is."""

    endpoint: str = option("", "vm.endpoint")
    """Address of the container engine: unix, tcp, http or https; unset = look for one,
    empty = use none."""
    docker_host: str = ""
    """DOCKER_HOST of the user."""
    docker_context: str = ""
    """DOCKER_CONTEXT of the user."""
    docker_config: Path | None = None
    """Directory of the Docker CLI's config.json (DOCKER_CONFIG)."""
    auth_file: Path | None = None
    """Podman's file of logins (REGISTRY_AUTH_FILE)."""
    runtime_dir: Path | None = None
    """XDG_RUNTIME_DIR."""
    home: Path | None = None
    tls: bool = option(False, "vm.docker.tls.enabled")
    """Use TLS for an engine at tcp://."""
    ca_file: Path | None = option(None, "vm.docker.tls.ca.file")
    """CA certificates of the engine, PEM."""
    cert_file: Path | None = option(None, "vm.docker.tls.cert.file")
    """Client certificate for the engine, PEM."""
    key_file: Path | None = option(None, "vm.docker.tls.key.file")
    """Private key of the client certificate, PEM."""
    connect_s: float = 2.0
    """Seconds that one address has to answer."""

    @property
    def named(self) -> bool:
        """Whether the user named an engine, which is the only one that is tried."""
        context = self.docker_context not in {"", "default"}
        return bool(self.endpoint or self.docker_host or context)


FABRIC_MIRRORS = (Mirror("docker.io/hyperledger", "ghcr.io/hyperledger"),)
"""Fabric's own images are published in both places."""


@dataclass(frozen=True)
class SandboxOptions:
    """What a running chaincode may use."""

    user: User = option("501:501", "chaindock.sandbox.user")
    """uid:gid of chaincode; empty = as its image says."""
    read_only: bool = option(True, "vm.docker.hostConfig.ReadonlyRootfs")
    """The root file system of chaincode is read-only; /tmp is writable."""
    memory_bytes: Memory = option(2048 * MIB, "vm.docker.hostConfig.Memory")
    """Memory of a running chaincode, also of a process; there is no swap beyond it; 0 =
    unlimited."""
    cpus: Number = option(2.0, "chaindock.sandbox.cpus")
    """Processors of a chaincode; 0 = unlimited."""
    pids: Whole = option(512, "vm.docker.hostConfig.PidsLimit")
    """Processes and threads of a chaincode; 0 = unlimited."""
    tmp_bytes: Bytes = option(64 * MIB, "chaindock.sandbox.tmp")
    """Size of /tmp, and of /dev/shm."""
    open_files: int = 4096
    file_bytes: BytesOrNone = option(0, "chaindock.sandbox.fileSize")
    """Largest file that a chaincode may write; 0 = the size of /tmp."""
    ulimits: Ulimits = option((), "vm.docker.hostConfig.Ulimits")
    """Limits per process, such as nofile=1024:2048; they replace the default of the
    same name."""
    cpu_shares: Whole = option(0, "vm.docker.hostConfig.CpuShares")
    """Share of processor time when processors are busy; 0 = the default of the engine,
    1024."""
    cpu_quota: Whole = option(0, "vm.docker.hostConfig.CpuQuota")
    """Microseconds of processor time per CpuPeriod; replaces chaindock.sandbox.cpus; 0
    = unset."""
    cpu_period: Whole = option(0, "vm.docker.hostConfig.CpuPeriod")
    """Microseconds that CpuQuota is a share of; 0 = 100000."""
    cpuset_cpus: CpuSet = option("", "vm.docker.hostConfig.CpusetCPUs")
    """Processors that chaincode may use, such as 0-2,4; empty = all."""
    cpuset_mems: CpuSet = option("", "vm.docker.hostConfig.CpusetMEMs")
    """Memory nodes that chaincode may use; empty = all."""
    cgroup_parent: str = option("", "vm.docker.hostConfig.CgroupParent")
    """Parent control group of all containers."""
    security_opt: SecurityOptions = option((), "vm.docker.hostConfig.SecurityOpt")
    """Additional profiles of AppArmor, seccomp or SELinux."""
    log_max_bytes: Bytes = option(
        10 * MIB, "vm.docker.hostConfig.LogConfig.Config.max-size"
    )
    """Size of each file in which the engine keeps output."""
    log_files: Count = option(3, "vm.docker.hostConfig.LogConfig.Config.max-file")
    """Number of files in which the engine keeps output."""
    dns: Addresses = option((), "vm.docker.hostConfig.Dns")
    """Name servers of containers, by IP address."""
    dns_search: tuple[str, ...] = option((), "vm.docker.hostConfig.DnsSearch")
    """Search domains of containers."""
    extra_hosts: Hosts = option((), "vm.docker.hostConfig.ExtraHosts")
    """Additional lines of /etc/hosts, as host:IP."""
    internal: bool = option(True, "chaindock.sandbox.internal")
    """Chaincode can connect to the node only."""

    def with_settings(self, settings: RunSettings) -> SandboxOptions:
        """Return these options as one chaincode has them."""
        given = {
            name: value
            for name, value in vars(settings).items()
            if name in vars(self) and value is not None
        }
        if settings.cpus is not None:
            given["cpu_quota"] = 0
        given["extra_hosts"] = (*self.extra_hosts, *settings.extra_hosts)
        return replace(self, **given)


@dataclass(frozen=True)
class CompileOptions:
    """What a build may use; `user` is numeric.

    After `limit_s` its container ends by itself, even if the node was killed; the limits
    of a launch are much shorter. `cpu_shares` counts when processors are busy.
    """

    user: str = "500:500"
    network: str = option("", "chaindock.build.network")
    """The network of the engine that builds use; empty = one of the node's own, or the
    engine's default bridge if none can be made or the engine is not on this machine."""
    memory_bytes: BytesOrNone = option(4096 * MIB, "chaindock.build.memory")
    """Memory of a build container; 0 = unlimited."""
    pids: int = 4096
    cpu_shares: int = 256
    silence_s: Seconds = option(600.0, "chaindock.build.silence")
    """Time without output after which a build step has failed."""
    limit_s: float = 24 * 3600.0
    artifact_bytes: int = 2048 * MIB


@dataclass(frozen=True)
class DockerOptions:
    """Everything about the Docker back end."""

    endpoint: EndpointOptions = field(default_factory=EndpointOptions)
    images: Mapping[str, LanguageImages] = field(
        default_factory=lambda: {one.name: one.images for one in PLATFORMS}
    )
    """By the name of the language."""
    pull: Pull = option(
        "missing",
        "chaindock.docker.pull",
        also=Option(
            "chaincode.pull", _ALWAYS, help="Fetch base images before every build."
        ),
    )
    """When base images are pulled: missing, never or always."""
    mirrors: Mirrors = option(FABRIC_MIRRORS, "chaindock.docker.mirrors")
    """Where images are fetched from if their registry fails, as OF=host/path, in
    order."""
    pull_silence_s: float = 120.0
    call_s: float = 60.0
    sandbox: SandboxOptions = field(default_factory=SandboxOptions)
    compile: CompileOptions = field(default_factory=CompileOptions)
    chaincode_port: int = 9999
    """Port in the container of chaincode that the node dials."""
    path: str = "/usr/sbin:/sbin:/usr/bin:/bin"
    """Where programs of this machine are looked for, as a PATH."""
