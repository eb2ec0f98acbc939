"""Try what Chaindock needs.

Owns:    the checks of `doctor`, each with what it found and the remedy.
Not:     printing them (doctor.py), where an engine may be (controllers/docker), the
         walls around chaincode (isolation.py).
Entry:   examine
Holds:   nothing is changed; each check ends by itself within seconds; a check that
         cannot be made is a finding, not an error.
Source:  needs.md rows 1, 5, 8
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.cli.down import find_process
from chaindock.cli.finding import Check, Findings, State
from chaindock.cli.isolation import examine_isolation
from chaindock.config.load import load
from chaindock.config.sections import Config, defaults
from chaindock.config.surroundings import redact
from chaindock.container.contracts import BuildEnvironment
from chaindock.controllers.docker.endpoints import Verdict, probe_all
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.controllers.process.environment import base_environment
from chaindock.controllers.process.toolbox import Toolbox
from chaindock.errors import ConfigInvalid, ToolMissing
from chaindock.operations.address import PATH_BYTES, find_socket, fits

if TYPE_CHECKING:
    from collections.abc import Mapping

LEAST_BYTES = 256 * 1024 * 1024
WANTED_BYTES = 2 * 1024 * 1024 * 1024
_ASK_S = 20.0
_GIB = 1024**3


_LANGUAGES: Mapping[str, tuple[str, ...]] = {
    "Go": ("go",),
    "Node": ("node", "npm"),
    "Python": ("python3",),
}


async def examine(home: Path) -> Findings:
    """Make all checks for the node of `home`."""
    config, checks = _configuration(home)
    checks += [*_home(home), _loopback(config, home)]
    engines, docker = await _engines(config)
    tools, languages = await _toolchains(config)
    walls = await examine_isolation(config, engine_answers=docker)
    checks += [*engines, *walls, *tools, *_builds(config)]
    return Findings(tuple(checks), docker, languages)


# --- settings ------------------------------------------------------------------------


def _configuration(home: Path) -> tuple[Config, list[Check]]:
    try:
        config = load(home)
    except ConfigInvalid as error:
        plain = defaults(
            home, home / "cache", os.defpath, EndpointOptions(), BuildEnvironment()
        )
        problem = Check(
            "home", "settings", State.FAIL, error.message, error.hint or "correct it"
        )
        return plain, [problem]
    changed = sum(one.origin != "default" for one in config.settings)
    found = f"{changed} set, {len(config.ignored)} not used (chaindock config show)"
    return config, [
        Check("home", "settings", State.OK, found),
        *(
            Check("home", "settings", State.WARN, text, "correct or unset it")
            for text in config.warnings
        ),
    ]


# --- the home ------------------------------------------------------------------------


def _home(home: Path) -> list[Check]:
    existing = next(p for p in (home, *home.parents) if _exists(p))
    return [
        _directory(home, existing),
        _disk(existing),
        _socket(home),
        _node(home),
    ]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a directory that we may not enter
        return False


def _directory(home: Path, existing: Path) -> Check:
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "home",
            "directory",
            State.FAIL,
            f"{home}: cannot be written",
            "choose another one with --home DIR or CHAINDOCK_HOME",
        )
    found = f"{home}" if existing == home else f"{home}, will be made"
    return Check("home", "directory", State.OK, found)


def _disk(existing: Path) -> Check:
    try:
        free = shutil.disk_usage(existing).free
    except OSError as error:
        return Check("home", "disk", State.WARN, f"not known: {error.strerror}")
    found = f"{free / _GIB:.1f} GiB free"
    remedy = "make room, or choose a home elsewhere with --home DIR"
    if free < LEAST_BYTES:
        return Check("home", "disk", State.FAIL, found, remedy)
    if free < WANTED_BYTES:
        return Check("home", "disk", State.WARN, found, remedy)
    return Check("home", "disk", State.OK, found)


def _socket(home: Path) -> Check:
    path = home / "admin.sock"
    if fits(path):
        return Check("home", "socket", State.OK, f"{path}")
    found = f"path is longer than {PATH_BYTES} bytes: a short one is made elsewhere"
    return Check("home", "socket", State.OK, found)


def _node(home: Path) -> Check:
    process = find_process(home)
    if process is not None:
        return Check("home", "node process", State.OK, f"runs as process {process.pid}")
    if _exists(find_socket(home)):
        found = "not running, and it did not end by itself"
        remedy = "chaindock up removes what it left"
        return Check("home", "node process", State.WARN, found, remedy)
    return Check("home", "node process", State.ABSENT, "not running")


def _loopback(config: Config, home: Path) -> Check:
    port = config.listen.port
    if port and find_process(home) is not None:
        return Check("home", "loopback", State.OK, f"port {port} is the node's")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(1)
    except OSError as error:
        what = f"127.0.0.1:{port}" if port else "127.0.0.1"
        return Check(
            "home",
            "loopback",
            State.FAIL,
            f"{what} cannot be listened on: {error.strerror}",
            "choose another peer.chaincodeListenAddress"
            if port
            else "bring the loopback interface up",
        )
    return Check("home", "loopback", State.OK, "127.0.0.1 can be listened on")


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
        # The only one tried is one that somebody asked for.
        quiet = probe.verdict is Verdict.MISSING and len(probes) > 1
        state = _engine_state(probe.verdict, quiet=quiet or answered)
        checks.append(Check("engine", probe.origin, state, found, probe.remedy))
    if origin != "default" and not answered:
        # Under a peer its health check would fail from then on (needs.md row 8).
        checks[0] = replace(
            checks[0],
            state=State.WARN,
            remedy=f"vm.endpoint is set ({origin}) and no engine is there: start it, "
            "or remove the setting",
        )
    return checks, answered


def _engine_state(verdict: Verdict, *, quiet: bool) -> State:
    if verdict is Verdict.ANSWERS:
        return State.OK
    return State.ABSENT if quiet else State.WARN


# --- toolchains ----------------------------------------------------------------------


async def _toolchains(config: Config) -> tuple[list[Check], tuple[str, ...]]:
    with tempfile.TemporaryDirectory(prefix="chaindock-doctor-") as folder:
        path = config.process.path
        # As builds see it: version managers that need the user's own home fail there.
        env = base_environment(Path(folder), path.split(":"))
        box = Toolbox(path, env)
        names = [tool for tools in _LANGUAGES.values() for tool in tools]
        found = await asyncio.gather(
            *(_tool(box, tool) for tool in names), _venv(box, env), _java(box)
        )
    checks = list(found)
    bad = {check.name for check in checks if check.state is not State.OK}
    languages = tuple(
        language
        for language, tools in _LANGUAGES.items()
        if not bad & {*tools, *(("venv",) if language == "Python" else ())}
    )
    return checks, languages


async def _tool(box: Toolbox, name: str) -> Check:
    try:
        version = (await box.versions([name], name))[name]
    except ToolMissing as error:
        found = "not on the PATH"
        remedy = (error.hint or "").partition(", or run")[0]
        return Check("toolchains", name, State.WARN, found, remedy)
    if version.startswith("("):
        return Check(
            "toolchains",
            name,
            State.WARN,
            f"{box.find(name, name)} does not say its version when run as in a build",
            "put the real program on the PATH before the one of a version manager",
        )
    first = version.splitlines()[0] if version else "no version"
    return Check("toolchains", name, State.OK, f"{first}  ({box.find(name, name)})")


async def _venv(box: Toolbox, env: Mapping[str, str]) -> Check:
    try:
        python = box.find("python3", "Python")
    except ToolMissing:
        return Check("toolchains", "venv", State.WARN, "there is no python3")
    if await _runs(python, "-c", "import venv, ensurepip", env=env):
        return Check("toolchains", "venv", State.OK, "python3 can make environments")
    return Check(
        "toolchains",
        "venv",
        State.WARN,
        "python3 has no venv with pip",
        "install it; on Debian and Ubuntu: the package python3-venv",
    )


async def _java(box: Toolbox) -> Check:
    try:
        path = box.find("java", "Java")
    except ToolMissing:
        path = "not on the PATH"
    return Check("toolchains", "java", State.ABSENT, f"{path}; Java is not built yet")


async def _runs(program: str, *args: str, env: Mapping[str, str]) -> bool:
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *args,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=env,
        )
    except OSError:
        return False
    try:
        async with asyncio.timeout(_ASK_S):
            return await process.wait() == 0
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# --- what builds need ----------------------------------------------------------------


def _builds(config: Config) -> list[Check]:
    bundle = config.build.ca_bundle
    if bundle is None:
        ca = Check("builds", "CA", State.ABSENT, "none besides the usual ones")
    else:
        count = bundle.read_bytes().count(b"-----BEGIN CERTIFICATE-----")
        what = "certificate" if count == 1 else "certificates"
        ca = Check("builds", "CA", State.OK, f"{bundle}, {count} {what}")
    variables = [
        Check("builds", name, State.OK, redact(name, value))
        for name, value in sorted(config.build.variables.items())
    ]
    none = Check("builds", "proxies", State.ABSENT, "no proxy or registry is set")
    return [ca, *(variables or [none])]
