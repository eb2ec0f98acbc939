"""Which parts of a container's isolation are really in force."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from chaindock.container.contracts import RunSettings
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.network import Attachment

_log = get_logger("docker.isolation")
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
    """Compares what containers were to have with what one engine gave them.

    Everything that is missing is logged once.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._info: Mapping[str, Any] | None = None
        self._said: set[str] = set()

    async def missing(
        self, asked: Mapping[str, Any], found: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return what a container lacks of what was asked for, a phrase for each.

        Args:
            asked: its create body.
            found: what the engine shows of it.

        Raises: EngineError.
        """
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
    """Yield what a container lacks of what was asked for."""
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


def isolation_facts(
    attachment: Attachment, lacks: Sequence[str], settings: RunSettings
) -> dict[str, str]:
    """Return what `ps` says about the isolation of a run."""
    isolation, weaker = attachment.isolation, [*attachment.weaker, *lacks]
    if settings.network is not None:
        there = f"network {settings.network!r}, and is reached from there"
        weaker.append(f"by its settings it can connect to {there}")
    return {
        "isolation": isolation,
        **({"weaker": "; ".join(weaker)} if weaker else {}),
        **({"settings": settings.words} if settings.words else {}),
    }


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
    if given.get(field) == host[field]:
        return True
    if field != "CpuQuota":
        return False
    # Some engines keep one number instead of two.
    nanos = host["CpuQuota"] * 10**9 // host["CpuPeriod"]
    return bool(given.get("NanoCpus") == nanos)


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
    try:
        log = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        for _ in range(_MOST):
            try:
                record = os.read(log, _RECORD)
            except BrokenPipeError:  # records were overwritten meanwhile
                continue
            if not record:
                return False
            if _SAID in record and container in record:
                return True
    except OSError:  # the end: it would wait for more
        return False
    finally:
        os.close(log)
    return False
