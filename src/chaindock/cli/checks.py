"""The checks of `doctor`: home, engines, images, isolation, toolchains, build settings.

Nothing is changed, and each check ends within seconds. A check that cannot be made is a
finding, not an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import socket
import tempfile
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from chaindock.cli.node import find_process
from chaindock.cli.show import count
from chaindock.config.keys import redact
from chaindock.config.load import load
from chaindock.controllers.docker.endpoints import Verdict, probe_all
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import firewall_problems
from chaindock.controllers.docker.images import BaseImages, places
from chaindock.controllers.docker.reach import addresses, bridges_filtered
from chaindock.controllers.docker.sandbox import engine_lacks, is_rootless
from chaindock.errors import ChaindockError, ConfigInvalid, ToolMissing
from chaindock.operations.address import find_socket
from chaindock.platforms.registry import PLATFORMS
from chaindock.processes.folders import base_environment
from chaindock.processes.sandbox import find_bwrap
from chaindock.processes.toolbox import Toolbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from chaindock.config.sections import Config
    from chaindock.platforms.base import Tool

LEAST_BYTES = 256 * 1024 * 1024
WANTED_BYTES = 2 * 1024 * 1024 * 1024
_ENGINE_S = 5.0
_GIB = 1024**3
_MOST_TOLD = 6
_EVERYWHERE = {"0.0.0.0", "::"}  # noqa: S104  # what others listen on


class State(StrEnum):
    """Result of a check. ABSENT: not installed or not set, which is no fault."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    ABSENT = "absent"


@dataclass(frozen=True)
class Check:
    """One finding below the heading `group`; `remedy` is "" when nothing is to be done."""

    group: str
    name: str
    state: State
    found: str
    remedy: str = ""


async def examine(
    home: Path, folder: Path | None = None
) -> tuple[list[Check], bool, list[str]]:
    """Make all checks for the node of `home`; if a setting is wrong, those of home alone.

    Returns: the checks, whether an engine answers, what local processes can run.
    """
    try:
        config = load(home, folder=folder)
    except ConfigInvalid as error:
        remedy = error.hint or "correct it"
        problem = Check("home", "settings", State.FAIL, error.message, remedy)
        return [problem, *_home(home)], False, []
    engines, docker = await _engines(config)
    tools, languages = await _toolchains(config)
    containers = await _containers(config, engine_answers=docker)
    checks = [*_settings(config), *_home(home), *engines, *containers, *tools]
    return [*checks, *_builds(config)], docker, languages


def _settings(config: Config) -> Iterator[Check]:
    changed = sum(one.origin != "default" for one in config.settings)
    found = f"{changed} set, {len(config.ignored)} not used (chaindock config show)"
    yield Check("home", "settings", State.OK, found)
    problems = [(text, "correct or unset it") for text in config.warnings]
    problems += [
        (p.message, p.hint or "correct it") for p in config.chaincodes.problems()
    ]
    for text, remedy in problems:
        yield Check("home", "settings", State.WARN, text, remedy)


# --- the home ------------------------------------------------------------------------


def _home(home: Path) -> Iterator[Check]:
    # Path.exists raises in a directory that we may not enter.
    existing = next(p for p in (home, *home.parents) if os.path.exists(p))  # noqa: PTH110
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        made = "" if existing == home else ", will be made"
        yield Check("home", "directory", State.OK, f"{home}{made}")
    else:
        remedy = "choose another one with --home DIR or CHAINDOCK_HOME"
        found = f"{home}: cannot be written"
        yield Check("home", "directory", State.FAIL, found, remedy)
    yield _disk(existing)
    if process := find_process(home):
        found = f"runs as process {process.pid}"
        yield Check("home", "node process", State.OK, found)
    elif os.path.exists(find_socket(home)):  # noqa: PTH110
        found = "not running; the last node of this home was killed"
        remedy = "chaindock up removes what it left"
        yield Check("home", "node process", State.WARN, found, remedy)
    else:
        yield Check("home", "node process", State.ABSENT, "not running")


def _disk(existing: Path) -> Check:
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check("home", "disk", State.WARN, f"not known: {error.strerror}")
    found = f"{free / _GIB:.1f} GiB free"
    if free >= WANTED_BYTES:
        return Check("home", "disk", State.OK, found)
    state = State.FAIL if free < LEAST_BYTES else State.WARN
    remedy = "make room, or choose a home elsewhere with --home DIR"
    return Check("home", "disk", state, found, remedy)


# --- engines -------------------------------------------------------------------------


async def _engines(config: Config) -> tuple[list[Check], bool]:
    if not config.node.engine:
        found = "turned off: vm.endpoint is empty"
        return [Check("engine", "engine", State.ABSENT, found)], False
    probes = await probe_all(config.docker.endpoint)
    answered = any(probe.verdict is Verdict.ANSWERS for probe in probes)
    checks = []
    for probe in probes:
        found = f"{redact('', probe.address)}  {probe.verdict}"
        if probe.detail and probe.verdict is not Verdict.MISSING:
            found += f": {redact('', probe.detail)}"
        state = State.WARN
        if probe.verdict is Verdict.ANSWERS:
            state = State.OK
        # When there is only one place, the user named it.
        elif len(probes) > 1 and (answered or probe.verdict is Verdict.MISSING):
            state = State.ABSENT
        checks.append(Check("engine", probe.origin, state, found, probe.remedy))
    if len(probes) == 1 and not answered:
        (origin,) = (s.origin for s in config.settings if s.key == "vm.endpoint")
        origin = "" if origin == "default" else f" (vm.endpoint: {origin})"
        remedy = f"this place was named{origin} and no engine answers there: start it, "
        remedy += "remove the setting, or use --backend process"
        checks[0] = replace(checks[0], remedy=remedy)
    return checks, answered


# --- containers ----------------------------------------------------------------------


def _processes(wanted: str) -> Check:
    words, why = find_bwrap(wanted)
    if words:
        found = "limits, and a sandbox: own files and processes, no network but the "
        found += "node; builds have no isolation"
        return Check("isolation", "processes", State.OK, found)
    found = "limits and a cleaned environment, no isolation: they run as your user "
    state = State.FAIL if wanted == "require" else State.ABSENT
    remedy = "" if wanted == "off" else "install bubblewrap, and allow user namespaces"
    return Check("isolation", "processes", state, f"{found}(sandbox: {why})", remedy)


async def _containers(config: Config, *, engine_answers: bool) -> list[Check]:
    """Check images and isolation, those of containers only where an engine answers."""
    processes = await asyncio.to_thread(_processes, config.process.sandbox)
    if not engine_answers:
        return [processes]
    try:
        engine = await Engine.connect(config.docker.endpoint, _ENGINE_S)
        async with contextlib.aclosing(engine):
            info = await engine.info()
            rootless = is_rootless(info)  # it has network interfaces of its own
            here = not rootless and await _is_here(engine, info)
            images = [check async for check in _images(config, engine)]
    except (ChaindockError, KeyError, TypeError, ValueError) as error:
        found = f"not known: {error}"
        return [Check("isolation", "containers", State.WARN, found), processes]
    network = await _network(config, here=here, rootless=rootless)
    return [*images, _limits(info), network, processes]


async def _images(config: Config, engine: Engine) -> AsyncIterator[Check]:
    """Say of each image that builds start from whether the engine has it."""
    options = config.docker
    bases = BaseImages(engine, options)
    for language, images in options.images.items():
        for text in dict.fromkeys((images.builder, images.runtime or images.builder)):
            image, *_ = where = places(text, engine.arch, options)
            if await bases.look(where):
                yield Check("images", language, State.OK, image)
            elif options.pull == "never":
                found = f"{image} is missing, and pulling is not allowed"
                remedy = f"docker pull {image}"
                yield Check("images", language, State.WARN, found, remedy)
            else:
                found = f"{image} is missing; the first build pulls it"
                yield Check("images", language, State.ABSENT, found)


def _limits(info: dict[str, Any]) -> Check:
    kind = "rootless engine" if is_rootless(info) else "root engine"
    if lacks := engine_lacks(info):
        found = f"{kind}: {', '.join(lacks)}"
        remedy = "let the engine use control groups "
        remedy += "(for a rootless one: version 2, delegated)"
        return Check("isolation", "containers", State.WARN, found, remedy)
    found = f"{kind}: limits of memory, swap, CPU and processes, and seccomp"
    return Check("isolation", "containers", State.OK, found)


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
    found, remedy = "chaincode reaches the node and nothing else", ""
    if not config.docker.sandbox.internal:
        found = "chaindock.sandbox.internal is false: chaincode reaches other machines"
        remedy = "remove the setting"
    elif rootless:
        found = "the engine is rootless, so its networks are not on this machine: "
        found += "chaincode reaches other machines, and all services of this one, also "
        found += "on 127.0.0.1"
        remedy = "run contracts that you do not trust on an engine that runs as root"
    elif not here:
        found = "the engine's networks are not on this machine: the isolation is known "
        found += "after the first start; `chaindock ps` shows it"
        return Check("isolation", "network", State.WARN, found)
    else:
        why, mixes = await firewall_problems(config.docker.path)
        if why:
            found = f"chaincode reaches services of this machine: {_open()} ({why})"
            remedy = "run the node as root or with CAP_NET_ADMIN, or let these "
            remedy += "services listen on 127.0.0.1"
        elif not bridges_filtered():
            found = "chaincode reaches the node, and perhaps other chaincode: packets "
            found += "within a bridge are not filtered"
            remedy = "load the kernel module br_netfilter"
        elif mixes:
            found += ", but every user of this machine can connect to Python chaincode "
            found += f"({mixes})"
            remedy = "load the kernel module xt_owner"
    state = State.WARN if remedy else State.OK
    return Check("isolation", "network", state, found, remedy)


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


# --- toolchains ----------------------------------------------------------------------


async def _toolchains(config: Config) -> tuple[list[Check], list[str]]:
    with tempfile.TemporaryDirectory(prefix="chaindock-doctor-") as folder:
        path = config.process.path
        # As builds see it: version managers that need the user's own home fail there.
        env = base_environment(Path(folder), path.split(":"))
        box = Toolbox(path, env)
        tools = [tool for one in PLATFORMS for tool in one.tools]
        checks = await asyncio.gather(*(_tool(box, tool) for tool in tools))
    found = dict(zip(tools, checks, strict=True))
    languages = [
        one.title
        for one in PLATFORMS
        if all(found[tool].state is State.OK for tool in one.tools)
    ]
    return checks, languages


async def _tool(box: Toolbox, tool: Tool) -> Check:
    name, state = tool.name, State.WARN
    try:
        version = await box.version(name, name)
        path = box.find(name, name)
    except ToolMissing as error:
        remedy = (error.hint or "").partition(", or run")[0]
        return Check("toolchains", name, state, "not on the PATH", remedy)
    if version is None:
        text = f"{path} prints no version in the environment of a build"
        remedy = "put the real program on the PATH before the one of a version manager"
        return Check("toolchains", name, state, text, remedy)
    if tool.probe and await box.ask(path, *tool.probe) is None:
        return Check("toolchains", name, state, *tool.lacks)
    first = (version or "no version").partition("\n")[0]
    return Check("toolchains", name, State.OK, f"{first}  ({path})")


# --- what builds need ----------------------------------------------------------------


def _builds(config: Config) -> list[Check]:
    ca = Check("builds", "CA", State.ABSENT, "none besides the usual ones")
    if bundle := config.build.ca_bundle:
        number = bundle.read_bytes().count(b"-----BEGIN CERTIFICATE-----")
        found = f"{bundle}, {count(number, 'certificate')}"
        ca = replace(ca, state=State.OK, found=found)
    variables = [
        Check("builds", name, State.OK, redact(name, value))
        for name, value in sorted(config.build.variables.items())
    ]
    none = Check("builds", "proxies", State.ABSENT, "no proxy or registry is set")
    return [ca, *(variables or [none])]
