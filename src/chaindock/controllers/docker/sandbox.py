"""What a container may use: its create body, and how much of it is really in force.

Source: docs/fabric/docker.md (command, environment, TLS files)
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import NodeLabels, PeerConnection, RunSettings
from chaindock.container.environment import peer_variables, server_variables
from chaindock.controllers.docker import names
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.images import BuiltImage
from chaindock.controllers.docker.options import DockerOptions, SandboxOptions, Ulimit
from chaindock.platforms.base import Connection, Places
from chaindock.telemetry import get_logger

_log = get_logger("docker.isolation")
TLS_FOLDER = "/etc/hyperledger/fabric"
_CPU_PERIOD_US = 100_000
_ALWAYS = (Ulimit("nofile", 4096, 4096), Ulimit("nproc", 4096, 4096))
"""Unset, Podman asks for its kernel's maximum, which it may not give everywhere.

`nproc` counts one user id over all containers, so it is far above `pids` of each.
"""


@dataclass(frozen=True)
class Attachment:
    """How one container is connected."""

    network: str
    peer: str
    """The node for the container, as host:port; "" = the node dials it, at a published
    port if it `publishes` one."""
    isolation: str
    """What the container can reach, for people."""
    dns: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    publishes: bool = False
    weaker: tuple[str, ...] = ()
    """What should not be open."""
    neighbours: bool = False
    """Other chaincode of the node may reach the container."""
    open_to_users: str = ""
    """Why every user of this machine can; "" = only the node's user."""


def own_labels(node: NodeLabels, attempt: Attempt, role: str) -> dict[str, str]:
    """Return the labels that name the node, the attempt and the role of a container."""
    return {
        names.NODE: node.node_id,
        names.CCID: attempt.ccid,
        names.ATTEMPT: attempt.id,
        names.ROLE: role,
    }


def limits(memory_bytes: int, pids: int, **more: int | str) -> dict[str, Any]:
    """Return limits as HostConfig fields; 0 = unlimited."""
    # Without swap: a container over its limit is killed instead of slowed down.
    found: dict[str, Any] = {"Memory": memory_bytes, "MemorySwap": memory_bytes}
    found |= {"PidsLimit": pids, **more}
    return {name: value for name, value in found.items() if value}


def ulimits(*ours: Ulimit, given: Sequence[Ulimit] = ()) -> list[dict[str, Any]]:
    """Return limits per process; `given` takes the place of ours by name."""
    merged = {one.name: one for one in (*_ALWAYS, *ours, *given)}.values()
    return [{"Name": one.name, "Soft": one.soft, "Hard": one.hard} for one in merged]


def host_config(sandbox: SandboxOptions) -> dict[str, Any]:
    """Return HostConfig of a sandboxed container, without its network."""
    files, bytes_ = sandbox.open_files, sandbox.file_bytes or sandbox.tmp_bytes
    log = {"max-size": str(sandbox.log_max_bytes), "max-file": str(sandbox.log_files)}
    period = sandbox.cpu_period or _CPU_PERIOD_US
    # Unlike NanoCpus, a quota may exceed what the machine has.
    quota = sandbox.cpu_quota or int(sandbox.cpus * period)
    found = limits(
        sandbox.memory_bytes,
        sandbox.pids,
        CpuPeriod=period if quota else 0,
        CpuQuota=quota,
        CpuShares=sandbox.cpu_shares,
        CpusetCpus=sandbox.cpuset_cpus,
        CpusetMems=sandbox.cpuset_mems,
        CgroupParent=sandbox.cgroup_parent,
    )
    return found | {
        "Init": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges", *sandbox.security_opt],
        "ReadonlyRootfs": sandbox.read_only,
        "Tmpfs": {"/tmp": f"rw,nosuid,nodev,size={sandbox.tmp_bytes},mode=1777"},  # noqa: S108
        "ShmSize": sandbox.tmp_bytes,
        "Ulimits": ulimits(
            Ulimit("core", 0, 0),
            Ulimit("nofile", files, files),
            Ulimit("fsize", bytes_, bytes_),
            given=sandbox.ulimits,
        ),
        "LogConfig": {"Type": "json-file", "Config": log},
        "Dns": list(sandbox.dns),
        "DnsSearch": list(sandbox.dns_search),
        "ExtraHosts": list(sandbox.extra_hosts),
    }


def idle_body(
    sandbox: SandboxOptions, node: NodeLabels, network: str, image: str, role: str
) -> dict[str, Any]:
    """Return the create body of a container of the node's own that does nothing."""
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": ["sleep", "infinity"],
        "Labels": {names.NODE: node.node_id, names.ROLE: role},
        "HostConfig": host_config(sandbox) | {"NetworkMode": network},
        **({"User": sandbox.user} if sandbox.user else {}),
    }


def run_body(
    options: DockerOptions,
    node: NodeLabels,
    built: BuiltImage,
    peer: PeerConnection,
    attempt: Attempt,
    attachment: Attachment,
) -> dict[str, Any]:
    """Return the create body of a chaincode container."""
    listen, launch = f"0.0.0.0:{options.chaincode_port}", built.launch
    dialled = launch.connection is Connection.DIALLED
    tls = None if dialled else peer.tls
    places = Places(
        {
            "output": built.output,
            "ccid": attempt.ccid,
            **({"listen": listen} if dialled else {"peer": attachment.peer}),
        },
        tool=str,
    )
    settings, sandbox = peer.settings, options.sandbox.with_settings(peer.settings)
    host = host_config(sandbox)
    host["NetworkMode"] = attachment.network
    if attachment.dns and not host["Dns"] and settings.network is None:
        # No server answers there; limit how long a chaincode waits for a name.
        host["Dns"] = list(attachment.dns)
        host["DnsOptions"] = ["timeout:1", "attempts:1"]
    host["ExtraHosts"] += attachment.extra_hosts
    body: dict[str, Any] = {
        "Image": built.image,
        "Entrypoint": [],
        "Cmd": places.fill_all(launch.argv),
        "WorkingDir": places.fill(launch.cwd),
        "Env": [
            *assignments(
                peer_variables(attempt.ccid, peer, TLS_FOLDER if tls else None)
            ),
            *assignments(server_variables(attempt.ccid, listen) if dialled else {}),
            # Each name once: a program may take the first of two.
            *assignments(
                {"HOME": "/tmp"}  # noqa: S108
                | places.fill_values(launch.env)
                | dict(settings.env)
            ),
        ],
        "Labels": own_labels(node, attempt, "chaincode"),
        "AttachStdout": False,
        "AttachStderr": False,
        "HostConfig": host,
    }
    if sandbox.user:
        body["User"] = sandbox.user
    if tls is not None:
        # A read-only root takes no upload; a volume of its own does.
        body["Volumes"] = {TLS_FOLDER: {}}
    if dialled and attachment.publishes:
        port = f"{options.chaincode_port}/tcp"
        body["ExposedPorts"] = {port: {}}
        host["PortBindings"] = {port: [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    return body


def run_facts(
    body: Mapping[str, Any],
    attachment: Attachment,
    lacks: Sequence[str],
    connection: Connection,
    settings: RunSettings,
) -> dict[str, str]:
    """Return what `ps` says about the isolation of a run, and who reaches its stream."""
    joins = settings.network is not None
    weaker = [*attachment.weaker, *lacks]
    if joins:
        there = f"network {settings.network!r}, and is reached from there"
        weaker.append(f"by its settings it can connect to {there}")
    if connection is Connection.CALLS_BACK:
        stream = "mutual TLS" if "Volumes" in body else "plain, on the node's network"
    else:
        if attachment.publishes:
            where = "through a loopback port of this machine"
        elif joins:
            where = f"on network {settings.network!r} too, as set"
        elif attachment.neighbours:
            where = "on a network that other chaincode shares"
        else:
            where = "on a network of its own"
        everybody = attachment.open_to_users or joins
        who = "every user" if everybody else "only the node's user"
        stream = f"plain, {where}; {who} of this machine can connect"
    facts = {
        "isolation": attachment.isolation,
        "weaker": "; ".join(weaker),
        "settings": settings.words,
        "stream": stream,
    }
    return {name: value for name, value in facts.items() if value}


def assignments(variables: Mapping[str, str]) -> list[str]:
    """Return an environment as engines take it."""
    return [f"{name}={value}" for name, value in variables.items()]


# --- what is in force ----------------------------------------------------------------

_LIMITS = {
    "Memory": ("MemoryLimit", "no memory limit"),
    "MemorySwap": (
        "SwapLimit",
        "no swap limit: chaincode swaps before its memory limit kills it",
    ),
    "CpuQuota": ("CpuCfsQuota", "no CPU limit"),
    "PidsLimit": ("PidsLimit", "no limit of processes"),
    "CpuShares": ("CPUShares", "no CPU shares"),
    "CpusetCpus": ("CPUSet", "no limit to certain processors (CpusetCPUs)"),
    "CpusetMems": ("CPUSet", "no limit to certain memory nodes (CpusetMEMs)"),
}
"""Field of HostConfig: the field of `/info` that says whether the engine can limit it,
and what people are told when the limit is not in force. An engine drops limits that its
kernel lacks without an error."""
_NO_SECCOMP = "no seccomp filter of system calls"


class IsolationAudit:
    """Compares what containers were to have with what one engine gave them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._info: Mapping[str, Any] | None = None
        self._said: set[str] = set()

    async def missing(
        self, asked: Mapping[str, Any], found: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return what a container lacks (see `container_lacks`); log each thing once."""
        if self._info is None:
            self._info = await self._engine.info()
        lacks = tuple(container_lacks(asked, found, self._info))
        for phrase in lacks:
            if phrase not in self._said:
                self._said.add(phrase)
                _log.warning(
                    "a container is less isolated than asked",
                    lacks=phrase,
                    endpoint=self._engine.address,
                )
        return lacks


def container_lacks(
    asked: Mapping[str, Any], found: Mapping[str, Any], info: Mapping[str, Any]
) -> Iterator[str]:
    """Yield what a container lacks: its create body, how the engine shows it, `/info`."""
    host: Mapping[str, Any] = asked["HostConfig"]
    given: Mapping[str, Any] = found.get("HostConfig") or {}
    for field, (can, phrase) in _LIMITS.items():
        wanted = host.get(field)
        if wanted and not (_same(field, host, given) and info.get(can, True)):
            yield phrase
    yield from _missing_ulimits(host, given)
    options = [str(one) for one in given.get("SecurityOpt") or []]
    if not any(one.startswith("no-new-privileges") for one in options):
        yield "the chaincode may gain privileges (no-new-privileges is missing)"
    if not given.get("CapDrop") or given.get("CapAdd"):
        yield "the chaincode has capabilities"
    if host.get("ReadonlyRootfs") and not given.get("ReadonlyRootfs"):
        yield "the root file system is writable"
    if host.get("Init") and not given.get("Init"):
        yield "no init process: exited child processes stay as zombies"
    unconfined = any("seccomp" in one and "unconfined" in one for one in options)
    if given.get("Privileged") or unconfined or not _has_seccomp(info):
        yield _NO_SECCOMP
    user = str((found.get("Config") or {}).get("User") or "")
    if user.partition(":")[0] in {"", "0", "root"}:
        yield "the chaincode is root in its container"


def engine_lacks(info: Mapping[str, Any]) -> list[str]:
    """Return what no container of an engine can have, by its `/info`."""
    # A rootless engine under cgroup v1 drops all limits, whatever the kernel can do.
    drops = is_rootless(info) and str(info.get("CgroupVersion")) == "1"
    wanted = (_LIMITS[one] for one in ("Memory", "MemorySwap", "CpuQuota", "PidsLimit"))
    found = [phrase for can, phrase in wanted if drops or not info.get(can, True)]
    return found if _has_seccomp(info) else [*found, _NO_SECCOMP]


def is_rootless(info: Mapping[str, Any]) -> bool:
    """Whether the engine itself runs without root."""
    # Docker lists it among the security options, Podman has a field.
    options = info.get("SecurityOptions") or []
    return info.get("Rootless") is True or any("rootless" in str(o) for o in options)


def _same(field: str, host: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    if given.get(field) != host[field] and field == "CpuQuota":
        # Some engines keep one number instead of two.
        nanos = host["CpuQuota"] * 10**9 // host["CpuPeriod"]
        return bool(given.get("NanoCpus") == nanos)
    return bool(given.get(field) == host[field])


def _missing_ulimits(
    host: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[str]:
    there = {
        str(one["Name"]).lower().removeprefix("rlimit_"): one
        for one in given.get("Ulimits") or []
    }
    for one in host.get("Ulimits") or []:
        got = there.get(one["Name"])
        if got is None or int(got["Hard"]) > one["Hard"] >= 0:
            yield f"no limit {one['Name']}"


def _has_seccomp(info: Mapping[str, Any]) -> bool:
    options = info.get("SecurityOptions")
    if options is None:  # it does not say
        return True
    return any("seccomp" in str(o) and "unconfined" not in str(o) for o in options)


KERNEL_LOG = "/dev/kmsg"
_SAID = b"oom-kill:"
_RECORD, _MOST = 8192, 100_000


async def killed_for_memory(container: str) -> bool:
    """Whether this machine's kernel log says that a container ran out of memory.

    Podman's service up to 4.3 does not notice it. False where the log may not be read.
    """
    return await asyncio.to_thread(_named, container.encode())


def _named(container: bytes) -> bool:
    with contextlib.suppress(OSError):  # at the end it would wait for more
        log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
        try:
            for _ in range(_MOST):
                with contextlib.suppress(BrokenPipeError):  # records were overwritten
                    record = os.read(log, _RECORD)
                    if not record or (_SAID in record and container in record):
                        return bool(record)
        finally:
            os.close(log)
    return False
