"""The checks of `doctor` about containers: their isolation, and the images of builds.

Nothing is changed: the engine is asked and firewall rules are read. If isolation is not
complete, the check says what chaincode can reach.
"""

from __future__ import annotations

import contextlib
import platform
import socket
from typing import TYPE_CHECKING, Any

import psutil

from chaindock.cli.doctor import Check, State
from chaindock.controllers.docker.bridges import addresses, bridges_filtered
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import firewall_problems
from chaindock.controllers.docker.isolation import engine_lacks, is_rootless
from chaindock.controllers.docker.names import expand_image
from chaindock.controllers.docker.pulls import places
from chaindock.errors import ChaindockError, ImageNotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from chaindock.config.sections import Config

_GROUP = "isolation"
_ASK_S = 5.0
_MOST_TOLD = 6
_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104  # what others listen on


async def examine_containers(config: Config, *, engine_answers: bool) -> list[Check]:
    """Make the checks; those of containers only where an engine answers."""
    found = "limits and a cleaned environment, no isolation: they run as your user"
    processes = Check(_GROUP, "processes", State.ABSENT, found)
    if not engine_answers:
        return [processes]
    try:
        engine = await Engine.connect(config.docker.endpoint, _ASK_S)
        try:
            info = await engine.info()
            rootless = is_rootless(info)  # it has network interfaces of its own
            here = not rootless and await _is_here(engine, info)
            images = [check async for check in _images(config, engine)]
        finally:
            await engine.aclose()
    except (ChaindockError, KeyError, TypeError, ValueError) as error:
        found = f"not known: {error}"
        return [Check(_GROUP, "containers", State.WARN, found), processes]
    network = await _network(config, here=here, rootless=rootless)
    return [*images, _limits(info), network, processes]


async def _images(config: Config, engine: Engine) -> AsyncIterator[Check]:
    """Say of each image that builds start from whether the engine has it."""
    options = config.docker
    for language, images in options.images.items():
        pull = options.pull if images.pull == "default" else images.pull
        for text in dict.fromkeys((images.builder, images.runtime or images.builder)):
            image = expand_image(
                text,
                arch=engine.arch,
                docker_ns=options.docker_ns,
                version=options.fabric_version,
            )
            if await _has_any(engine, places(image, options.mirrors)):
                yield Check("images", language, State.OK, image)
            elif pull == "never":
                found = f"{image} is missing, and pulling is not allowed"
                remedy = f"docker pull {image}"
                yield Check("images", language, State.WARN, found, remedy)
            else:
                found = f"{image} is missing; the first build pulls it"
                yield Check("images", language, State.ABSENT, found)


async def _has_any(engine: Engine, images: Sequence[str]) -> bool:
    for image in images:
        with contextlib.suppress(ImageNotFound):
            await engine.inspect_image(image)
            return True
    return False


def _limits(info: dict[str, Any]) -> Check:
    kind = "rootless engine" if is_rootless(info) else "root engine"
    if lacks := engine_lacks(info):
        found = f"{kind}: {', '.join(lacks)}"
        remedy = "let the engine use control groups "
        remedy += "(for a rootless one: version 2, delegated)"
        return Check(_GROUP, "containers", State.WARN, found, remedy)
    found = f"{kind}: limits of memory, swap, CPU and processes, and seccomp"
    return Check(_GROUP, "containers", State.OK, found)


async def _is_here(engine: Engine, info: dict[str, Any]) -> bool:
    """Whether the engine's networks end on this machine, as far as can be told."""
    kernel, name = info.get("KernelVersion"), info.get("Name")
    if kernel == platform.release() and name == socket.gethostname():
        return True
    network = await engine.inspect_network("bridge")
    options = network.get("Options") or {}
    bridge = str(options.get("com.docker.network.bridge.name", ""))
    config = (network.get("IPAM") or {}).get("Config") or [{}]
    gateway = str(config[0].get("Gateway", "")).partition("/")[0]
    return bridge in psutil.net_if_addrs() or gateway in addresses()


async def _network(config: Config, *, here: bool, rootless: bool = False) -> Check:
    state, remedy = State.WARN, ""
    if not config.docker.sandbox.internal:
        found = "chaindock.sandbox.internal is false: chaincode reaches other machines"
        remedy = "remove the setting"
    elif rootless:
        found = (
            "the engine is rootless, so its networks are not on this machine: chaincode "
            "reaches other machines, and all services of this one, also on 127.0.0.1"
        )
        remedy = "run contracts that you do not trust on an engine that runs as root"
    elif not here:
        found = (
            "the engine's networks are not on this machine: the isolation is known "
            "after the first start; `chaindock ps` shows it"
        )
    else:
        state, found, remedy = await _firewall(config)
    return Check(_GROUP, "network", state, found, remedy)


async def _firewall(config: Config) -> tuple[State, str, str]:
    why, mixes = await firewall_problems(config.docker.path)
    found, remedy = "chaincode reaches the node and nothing else", ""
    if why:
        found = f"chaincode reaches these services of this machine: {_open()} ({why})"
        remedy = "run the node as root or with CAP_NET_ADMIN, or let these services "
        remedy += "listen on 127.0.0.1"
    elif not bridges_filtered():
        found = (
            "chaincode reaches the node, and perhaps other chaincode: packets within "
        )
        found += "a bridge are not filtered"
        remedy = "load the kernel module br_netfilter"
    elif mixes:
        found += ", but every user of this machine can connect to Python chaincode "
        found += f"({mixes})"
        remedy = "load the kernel module xt_owner"
    return State.WARN if remedy else State.OK, found, remedy


def _open() -> str:
    """Name what listens on all addresses of this machine now."""
    try:
        found = sorted(set(_listening()))
    except (psutil.Error, OSError):
        return "those that listen on all addresses"
    told = ", ".join(f"{kind} {port}" for port, kind in found[:_MOST_TOLD])
    if len(found) > _MOST_TOLD:
        told += f" and {len(found) - _MOST_TOLD} more"
    return told or "those that listen on all addresses (none at present)"


def _listening() -> Iterator[tuple[int, str]]:
    for one in psutil.net_connections("inet"):
        udp = one.type == socket.SOCK_DGRAM
        waits = one.status == psutil.CONN_LISTEN or (udp and not one.raddr)
        if waits and one.laddr and one.laddr.ip in _EVERYWHERE:
            yield one.laddr.port, "udp" if udp else "tcp"
