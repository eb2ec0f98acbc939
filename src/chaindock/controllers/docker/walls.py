"""See which walls of a container are really there.

Owns:    comparing what was asked with what the engine took and says it can do.
Not:     asking for it (body.py), the network (network.py).
Entry:   Walls.missing, engine_lacks
Holds:   an engine drops limits that its kernel lacks without an error; each one that is
         not in force is named, to people and in the log.
Source:  launch.md §3.8, §9 W57-W59; needs.md rows 25, 43
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from chaindock.container.contracts import RunSettings
    from chaindock.controllers.docker.attachment import Attachment
    from chaindock.controllers.docker.engine import Engine

_log = get_logger("docker.walls")
_CAN = {
    "Memory": "MemoryLimit",
    "MemorySwap": "SwapLimit",
    "CpuQuota": "CpuCfsQuota",
    "PidsLimit": "PidsLimit",
    "CpuShares": "CPUShares",
    "CpusetCpus": "CPUSet",
    "CpusetMems": "CPUSet",
}
"""Field of HostConfig → what `/info` says about it."""
_LACKS = {
    "Memory": "no memory limit",
    "MemorySwap": "no swap limit: too much memory is slow before it is an OOM",
    "CpuQuota": "no CPU limit",
    "PidsLimit": "no limit of processes",
    "CpuShares": "no CPU shares",
    "CpusetCpus": "no choice of processors",
    "CpusetMems": "no choice of memory nodes",
}
_NO_SECCOMP = "no seccomp filter of system calls"


class Walls:
    """What one engine gives; says each thing once in the log."""

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
    for field, phrase in _LACKS.items():
        wanted = host.get(field)
        if wanted and not (_same(field, host, given) and info.get(_CAN[field], True)):
            yield phrase
    yield from _limits(host, given)
    options = [str(one) for one in given.get("SecurityOpt") or []]
    if not any(one.startswith("no-new-privileges") for one in options):
        yield "it may gain privileges"
    if not given.get("CapDrop") or given.get("CapAdd"):
        yield "it has capabilities"
    if host.get("ReadonlyRootfs") and not given.get("ReadonlyRootfs"):
        yield "its root file system can be written"
    if host.get("Init") and not given.get("Init"):
        yield "no init process: what it leaves behind is not waited for"
    unconfined = any("seccomp" in one and "unconfined" in one for one in options)
    if given.get("Privileged") or unconfined or not _has_seccomp(info):
        yield _NO_SECCOMP
    user = str((found.get("Config") or {}).get("User") or "")
    if user.partition(":")[0] in {"", "0", "root"}:
        yield "it is root in its container"


def told(
    attachment: Attachment, lacks: Sequence[str], settings: RunSettings
) -> dict[str, str]:
    """Return what `ps` says about the isolation of a run."""
    isolation, weaker = attachment.isolation, [*attachment.weaker, *lacks]
    if settings.network is not None:
        there = f"what network {settings.network!r} does"
        weaker.append(f"as set, it reaches {there}, and is reached from there")
    return {
        "isolation": isolation,
        **({"weaker": "; ".join(weaker)} if weaker else {}),
        **({"settings": settings.words} if settings.words else {}),
    }


def engine_lacks(info: Mapping[str, Any]) -> list[str]:
    """Return what no container of an engine can have, by its `/info`."""
    wanted = ("Memory", "MemorySwap", "CpuQuota", "PidsLimit")
    # Such a one tells what the kernel can, and drops all limits.
    drops = is_rootless(info) and str(info.get("CgroupVersion")) == "1"
    found = [_LACKS[one] for one in wanted if drops or not info.get(_CAN[one], True)]
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


def _limits(host: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[str]:
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
