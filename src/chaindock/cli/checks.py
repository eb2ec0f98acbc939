"""The checks of `doctor`: home, engines, toolchains, and what builds need.

Nothing is changed. Each check ends within seconds; a check that cannot be made is a
finding, not an error.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.cli.doctor import Check, Findings, State
from chaindock.cli.down import find_process
from chaindock.cli.isolation import examine_containers
from chaindock.cli.show import count
from chaindock.config.keys import redact
from chaindock.config.load import load
from chaindock.controllers.docker.endpoints import Verdict, probe_all
from chaindock.errors import ConfigInvalid, ToolMissing
from chaindock.operations.address import find_socket
from chaindock.platforms.registry import PLATFORMS
from chaindock.processes.folders import base_environment
from chaindock.processes.toolbox import Toolbox

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chaindock.config.sections import Config
    from chaindock.platforms.base import Platform, Tool, ToolCheck

LEAST_BYTES = 256 * 1024 * 1024
WANTED_BYTES = 2 * 1024 * 1024 * 1024
_ASK_S = 20.0
_GIB = 1024**3


async def examine(home: Path) -> Findings:
    """Make all checks for the node of `home`; wrong settings leave only those of home."""
    try:
        config = load(home)
    except ConfigInvalid as error:
        remedy = error.hint or "correct it"
        problem = Check("home", "settings", State.FAIL, error.message, remedy)
        return Findings((problem, *_home(home)), docker=False)
    engines, docker = await _engines(config)
    tools, languages = await _toolchains(config)
    containers = await examine_containers(config, engine_answers=docker)
    checks = [*_settings(config), *_home(home), *engines, *containers, *tools]
    return Findings((*checks, *_builds(config)), docker, languages)


def _settings(config: Config) -> Iterator[Check]:
    changed = sum(one.origin != "default" for one in config.settings)
    found = f"{changed} set, {len(config.ignored)} not used (chaindock config show)"
    yield Check("home", "settings", State.OK, found)
    for text in config.warnings:
        yield Check("home", "settings", State.WARN, text, "correct or unset it")
    for problem in config.chaincodes.problems():
        remedy = problem.hint or "correct it"
        yield Check("home", "settings", State.WARN, problem.message, remedy)


# --- the home ------------------------------------------------------------------------


def _home(home: Path) -> list[Check]:
    existing = next(p for p in (home, *home.parents) if _exists(p))
    return [
        Check("home", *_directory(home, existing)),
        Check("home", *_disk(existing)),
        Check("home", "node process", *_node(home)),
    ]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a directory that we may not enter
        return False


def _directory(home: Path, existing: Path) -> tuple[str, State, str, str]:
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        remedy = "choose another one with --home DIR or CHAINDOCK_HOME"
        return "directory", State.FAIL, f"{home}: cannot be written", remedy
    found = f"{home}" if existing == home else f"{home}, will be made"
    return "directory", State.OK, found, ""


def _disk(existing: Path) -> tuple[str, State, str, str]:
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return "disk", State.WARN, f"not known: {error.strerror}", ""
    found = f"{free / _GIB:.1f} GiB free"
    if free >= WANTED_BYTES:
        return "disk", State.OK, found, ""
    state = State.FAIL if free < LEAST_BYTES else State.WARN
    return "disk", state, found, "make room, or choose a home elsewhere with --home DIR"


def _node(home: Path) -> tuple[State, str, str]:
    process = find_process(home)
    if process is not None:
        return State.OK, f"runs as process {process.pid}", ""
    if _exists(find_socket(home)):
        found = "not running; the last node of this home was killed"
        return State.WARN, found, "chaindock up removes what it left"
    return State.ABSENT, "not running", ""


# --- engines -------------------------------------------------------------------------


async def _engines(config: Config) -> tuple[list[Check], bool]:
    if not config.node.engine:
        found = "turned off: vm.endpoint is empty"
        return [Check("engine", "engine", State.ABSENT, found)], False
    origins = {one.key: one.origin for one in config.settings}
    origin = origins.get("vm.endpoint", "default")
    probes = await probe_all(config.docker.endpoint)
    answered = any(probe.verdict is Verdict.ANSWERS for probe in probes)
    checks = []
    for probe in probes:
        found = f"{redact('', probe.address)}  {probe.verdict}"
        if probe.detail and probe.verdict is not Verdict.MISSING:
            found += f": {redact('', probe.detail)}"
        state = State.OK if probe.verdict is Verdict.ANSWERS else State.WARN
        # When there is only one place, the user named it.
        if state is State.WARN and len(probes) > 1:
            quiet = answered or probe.verdict is Verdict.MISSING
            state = State.ABSENT if quiet else State.WARN
        checks.append(Check("engine", probe.origin, state, found, probe.remedy))
    if len(probes) == 1 and not answered:
        origin = "" if origin == "default" else f" (vm.endpoint: {origin})"
        remedy = f"this place was named{origin} and no engine answers there: start it, "
        remedy += "remove the setting, or use --backend process"
        checks[0] = replace(checks[0], remedy=remedy)
    return checks, answered


# --- toolchains ----------------------------------------------------------------------


async def _toolchains(config: Config) -> tuple[list[Check], tuple[str, ...]]:
    with tempfile.TemporaryDirectory(prefix="chaindock-doctor-") as folder:
        path = config.process.path
        # As builds see it: version managers that need the user's own home fail there.
        env = base_environment(Path(folder), path.split(":"))
        box = Toolbox(path, env)
        tools = [tool for platform in PLATFORMS for tool in platform.tools]
        checks = await asyncio.gather(
            *(_tool(box, tool.name) for tool in tools),
            *(
                _tool_check(box, tool, one, env)
                for tool in tools
                for one in tool.checks
            ),
        )
    bad = {check.name for check in checks if check.state is not State.OK}
    languages = tuple(one.title for one in PLATFORMS if not bad & _needs(one))
    return checks, languages


def _needs(platform: Platform) -> set[str]:
    tools = platform.tools
    checks = {check.name for tool in tools for check in tool.checks}
    return checks | {tool.name for tool in tools}


async def _tool(box: Toolbox, name: str) -> Check:
    try:
        version = await box.version(name, name)
        path = box.find(name, name)
    except ToolMissing as error:
        remedy = (error.hint or "").partition(", or run")[0]
        return Check("toolchains", name, State.WARN, "not on the PATH", remedy)
    if version is None:
        found = f"{path} does not say its version when run as in a build"
        remedy = "put the real program on the PATH before the one of a version manager"
        return Check("toolchains", name, State.WARN, found, remedy)
    first = version.splitlines()[0] if version else "no version"
    return Check("toolchains", name, State.OK, f"{first}  ({path})")


async def _tool_check(
    box: Toolbox, tool: Tool, check: ToolCheck, env: Mapping[str, str]
) -> Check:
    try:
        words = [box.find(tool.name, tool.name), *check.arguments]
    except ToolMissing:
        return Check("toolchains", check.name, State.WARN, f"there is no {tool.name}")
    try:
        done = await asyncio.to_thread(
            subprocess.run, words, env=env, capture_output=True, timeout=_ASK_S
        )
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is not None and done.returncode == 0:
        return Check("toolchains", check.name, State.OK, check.good)
    return Check("toolchains", check.name, State.WARN, check.bad, check.remedy)


# --- what builds need ----------------------------------------------------------------


def _builds(config: Config) -> list[Check]:
    bundle = config.build.ca_bundle
    if bundle is None:
        ca = Check("builds", "CA", State.ABSENT, "none besides the usual ones")
    else:
        number = bundle.read_bytes().count(b"-----BEGIN CERTIFICATE-----")
        found = f"{bundle}, {count(number, 'certificate')}"
        ca = Check("builds", "CA", State.OK, found)
    variables = [
        Check("builds", name, State.OK, redact(name, value))
        for name, value in sorted(config.build.variables.items())
    ]
    none = Check("builds", "proxies", State.ABSENT, "no proxy or registry is set")
    return [ca, *(variables or [none])]
