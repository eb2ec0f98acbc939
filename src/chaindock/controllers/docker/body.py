"""The body of a create call, and the tars that a container is filled with.

Source: docs/fabric/docker.md (command, environment, TLS files)
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
from typing import TYPE_CHECKING, Any

from chaindock.container.environment import peer_variables, server_variables, tls_files
from chaindock.controllers.docker import names
from chaindock.controllers.docker.options import Ulimit
from chaindock.platforms.base import Connection, Places

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import (
        ClientTls,
        NodeLabels,
        PeerConnection,
        RunSettings,
    )
    from chaindock.controllers.docker.network import Attachment
    from chaindock.controllers.docker.options import DockerOptions, SandboxOptions
    from chaindock.platforms.base import LaunchCommand

_CPU_PERIOD_US = 100_000
_ALWAYS = (Ulimit("nofile", 4096, 4096), Ulimit("nproc", 4096, 4096))
"""Unset, Podman asks for its kernel's maximum, which it may not give everywhere.

`nproc` counts one user id over all containers, so it is far above `pids` of each.
"""


def own_labels(node: NodeLabels, attempt: Attempt, role: str) -> dict[str, str]:
    """Return the labels that name the node, the attempt and the role of a container."""
    return {
        names.NODE: node.node_id,
        names.CCID: attempt.ccid,
        names.ATTEMPT: attempt.id,
        names.ROLE: role,
    }


def limits(
    memory_bytes: int, cpus: float, pids: int, *, period_us: int = 0, quota_us: int = 0
) -> dict[str, Any]:
    """Return limits as HostConfig fields; 0 = unlimited. A quota overrides `cpus`."""
    found: dict[str, Any] = {}
    if memory_bytes:
        # Without swap: a container over its limit is killed instead of slowed down.
        found |= {"Memory": memory_bytes, "MemorySwap": memory_bytes}
    if cpus or quota_us:
        # Unlike NanoCpus, a quota may exceed what the machine has.
        period = period_us or _CPU_PERIOD_US
        found |= {"CpuPeriod": period, "CpuQuota": quota_us or int(cpus * period)}
    if pids:
        found["PidsLimit"] = pids
    return found


def ulimits(*ours: Ulimit, given: Sequence[Ulimit] = ()) -> list[dict[str, Any]]:
    """Return limits per process; `given` takes the place of ours by name."""
    merged = {one.name: one for one in (*_ALWAYS, *ours, *given)}
    return [
        {"Name": one.name, "Soft": one.soft, "Hard": one.hard}
        for one in merged.values()
    ]


def host_config(sandbox: SandboxOptions) -> dict[str, Any]:
    """Return HostConfig of a sandboxed container, without its network."""
    files, bytes_ = sandbox.open_files, sandbox.file_bytes or sandbox.tmp_bytes
    return _resources(sandbox) | {
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
        "LogConfig": {
            "Type": "json-file",
            "Config": {
                "max-size": str(sandbox.log_max_bytes),
                "max-file": str(sandbox.log_files),
            },
        },
        "Dns": list(sandbox.dns),
        "DnsSearch": list(sandbox.dns_search),
        "ExtraHosts": list(sandbox.extra_hosts),
    }


def _resources(sandbox: SandboxOptions) -> dict[str, Any]:
    found = limits(
        sandbox.memory_bytes,
        sandbox.cpus,
        sandbox.pids,
        period_us=sandbox.cpu_period,
        quota_us=sandbox.cpu_quota,
    )
    others = {
        "CpuShares": sandbox.cpu_shares,
        "CpusetCpus": sandbox.cpuset_cpus,
        "CpusetMems": sandbox.cpuset_mems,
        "CgroupParent": sandbox.cgroup_parent,
    }
    return found | {name: value for name, value in others.items() if value}


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
    image: str,
    output: str,
    launch: LaunchCommand,
    peer: PeerConnection,
    attempt: Attempt,
    attachment: Attachment,
) -> dict[str, Any]:
    """Return the create body of a chaincode container."""
    listen = f"0.0.0.0:{options.chaincode_port}"
    dialled = launch.connection is Connection.DIALLED
    tls = None if dialled else peer.tls
    places = Places(
        {
            "output": output,
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
        "Image": image,
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


def stream_of(
    body: Mapping[str, Any],
    attachment: Attachment,
    launch: LaunchCommand,
    settings: RunSettings,
) -> str:
    """Return who can connect to the stream of a container, in words for `ps`."""
    if launch.connection is Connection.CALLS_BACK:
        return "mutual TLS" if "Volumes" in body else "plain, on the node's network"
    if attachment.publishes:
        where = "through a loopback port of this machine"
    elif settings.network is not None:
        where = f"on network {settings.network!r} too, as set"
    elif attachment.neighbours:
        where = "on a network that other chaincode shares"
    else:
        where = "on a network of its own"
    open_ = attachment.open_to_users or settings.network is not None
    who = "every user" if open_ else "only the node's user"
    return f"plain, {where}; {who} of this machine can connect"


def assignments(variables: Mapping[str, str]) -> list[str]:
    """Return an environment as engines take it."""
    return [f"{name}={value}" for name, value in variables.items()]


CHUNK_BYTES = 256 * 1024
TLS_FOLDER = "/etc/hyperledger/fabric"


def pack_input(
    file: BinaryIO,
    tree: Path,
    *,
    under: str,
    owner: int,
    folders: Iterable[str],
    files: dict[str, bytes],
) -> None:
    """Write the tar that a build container is filled with, for its `/`. Blocking.

    Args:
        file: gets the tar.
        tree: what the package holds.
        under: where that goes, absolute.
        owner: uid and gid of everything.
        folders: absolute; exist afterwards and belong to `owner`.
        files: absolute name to content.
    """

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = owner
        entry.uname = entry.gname = ""
        entry.mode = 0o755 if entry.isdir() or entry.mode & 0o111 else 0o644
        return entry

    with _tar(file) as tar:
        for folder in folders:
            entry = tarfile.TarInfo(folder.strip("/"))
            entry.type = tarfile.DIRTYPE
            tar.addfile(owned(entry))
        for name, data in files.items():
            entry = tarfile.TarInfo(name.strip("/"))
            entry.size = len(data)
            tar.addfile(owned(entry), io.BytesIO(data))
        tar.add(tree, under.strip("/"), filter=owned)


def tls_archive(tls: ClientTls) -> bytes:
    """Return the tar of the TLS files, for TLS_FOLDER."""
    packed = io.BytesIO()
    with _tar(packed) as tar:
        for name, data in tls_files(tls).items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


@contextlib.contextmanager
def _tar(file: BinaryIO) -> Iterator[tarfile.TarFile]:
    # Podman reads up to the mark of the end, and may fail on what is written after it:
    # https://github.com/containers/buildah/issues/6573
    with tarfile.open(fileobj=file, mode="w") as tar:
        yield tar
        end = file.tell() + 2 * tarfile.BLOCKSIZE
    file.truncate(end)


async def chunks_of(file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield a file from its beginning, read in a thread.

    The pause before each chunk lets the loop see an answer that came early: an engine
    that refuses an upload answers, then hangs up, and writing on would lose the answer.
    """
    file.seek(0)
    while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
        await asyncio.sleep(0)
        yield chunk
