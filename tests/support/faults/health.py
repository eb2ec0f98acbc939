"""Check that a node is healthy: each contract runs once, and nothing is left over."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ChaindockError
from chaindock.processes.sandbox import find_bwrap
from support.nodes.remains import asking
from support.nodes.traces import files_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.faults.world import World

SETTLED_S = 30.0
RUNNING, STOPPED, CRASH_LOOP = "running", "stopped", "crash-loop"
_LOOK_S = 0.03
_POOLED = ("ledgers/", "desired.db", "node.log", "/dev/", "output/")
"""Files that are opened on demand, in bounded number (a ledger reader per thread)."""
_CHANGING = ("packages/", "process/runs/", "output/")
"""Paths below the home that exist per chaincode, or in bounded number."""
SANDBOX = "chaindock.process.sandbox"
_IDLE = {"process": 1, "docker": 10}
"""Sockets: that of the admin client, and idle connections to the engine."""
_MORE_THREADS = 24
"""Thread pools for files grow up to this number of threads."""


@dataclass(frozen=True)
class Healthy:
    """What a healthy node holds, apart from its chaincodes."""

    running: int
    held: Counter[str]
    threads: int
    tasks: int
    files: Counter[str]
    networks: list[str]
    volumes: list[str]
    rules: int
    per_chaincode: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def note(cls, world: World, running: int) -> Healthy:
        """Note what `world` holds while `running` chaincodes run."""
        docker = world.backend == "docker"
        # Attached output, waiting for the end, and the stream; pipes and the stream.
        # A sandbox has a listening socket, and two that pass its connection on. For it the
        # node holds its directory and the lock of its build.
        each = {"pipe": 2, "socket": 1}
        if find_bwrap(world.flags.get(SANDBOX, "auto"))[0]:
            each |= {"socket": 4, "process/runs/N/N": 1, "lock of a build": 1}
        each = {"socket": 3} if docker else each
        return cls(
            running,
            world.held(),
            world.threads(),
            _settled_tasks(world),
            _files(world),
            _networks(world) if docker else [],
            sorted(world.remains.volumes()),
            len(world.filter_rules()),
            each,
        )


def assert_healthy(
    world: World,
    expected: Mapping[str, str],
    healthy: Healthy | None = None,
    limit_s: float = SETTLED_S,
    *,
    busy: bool = False,
) -> None:
    """Wait until the node is healthy; fail with a list of what is wrong.

    Args:
        world: its node runs.
        expected: name → RUNNING, STOPPED or another state, of every chaincode there is.
        healthy: what the node held when it was healthy.
        limit_s: seconds to wait.
        busy: a deployment that will fail is under way.
    """
    until = time.monotonic() + limit_s
    while found := problems(world, expected, healthy, busy=busy):
        if time.monotonic() > until:
            text = "\n  ".join(found)
            pytest.fail(f"after {limit_s:g} s:\n  {text}\n{world.log_end()}")
        time.sleep(_LOOK_S)


def problems(
    world: World,
    expected: Mapping[str, str],
    healthy: Healthy | None = None,
    *,
    busy: bool = False,
) -> list[str]:
    """Return a sentence for each thing that is wrong."""
    docker = world.backend == "docker"
    try:
        with asking() if docker else contextlib.nullcontext():
            found = _chaincodes(world, expected, others=busy)
            if found or busy:
                return found
            return _leaks(world, expected, healthy)
    except (ChaindockError, OSError) as error:
        return [f"cannot be looked at: {error!r}"]


def _chaincodes(
    world: World, expected: Mapping[str, str], *, others: bool
) -> list[str]:
    lines = {one["name"]: one for one in world.admin.ps()}
    found = [
        f"{name} is {lines[name]['state'] if name in lines else 'not there'}, "
        f"expected {state}: {lines.get(name, {}).get('error')}"
        for name, state in expected.items()
        if name not in lines or lines[name]["state"] != state
    ]
    found += [f"{name} should not be there" for name in lines.keys() - expected.keys()]
    if found:
        return found
    wanted = {
        one["package_id"] for name, one in lines.items() if expected[name] == RUNNING
    }
    runs = world.runs()
    found += [
        f"{runs[ccid]} instances of {ccid}, expected {int(ccid in wanted)}"
        for ccid in (wanted if others else runs.keys() | wanted)
        if runs[ccid] != int(ccid in wanted)
    ]
    if others:
        return found
    kept = {one["package_id"] for one in lines.values()}
    return found + _packages(world, kept)


def _packages(world: World, kept: set[str]) -> list[str]:
    """Each deployed chaincode has a package on disk, and there is no other."""
    there = len(list((world.home / "packages").iterdir()))
    if there != len(kept):
        return [f"{there} packages are kept, {len(kept)} are deployed"]
    return []


def _leaks(
    world: World, expected: Mapping[str, str], healthy: Healthy | None
) -> list[str]:
    running = {one["package_id"] for one in world.admin.ps() if one["state"] == RUNNING}
    found = world.remains.beside(running)
    found += [f"temporary {path}" for path in _scratch(world)]
    if healthy is None:
        return found
    more = sum(state == RUNNING for state in expected.values()) - healthy.running
    allowed = dict(healthy.held)
    for kind, count in healthy.per_chaincode.items():
        allowed[kind] = allowed.get(kind, 0) + more * count
    allowed["socket"] = allowed.get("socket", 0) + _IDLE[world.backend]
    for kind, count in world.held().items():
        if not kind.startswith(_POOLED) and count > allowed.get(kind, 0):
            found.append(f"{count} {kind} held, expected {allowed.get(kind, 0)}")
    if world.threads() > healthy.threads + _MORE_THREADS:
        found.append(f"{world.threads()} threads, there were {healthy.threads}")
    if more == 0 and world.tasks() > healthy.tasks:
        found.append(f"{world.tasks()} tasks, there were {healthy.tasks}")
    files = _files(world)
    found += [f"file {path}" for path in files - healthy.files]
    found += [f"file {path} is missing" for path in healthy.files - files]
    rules = world.filter_rules()
    if len(rules) != healthy.rules:
        found.append(f"{len(rules)} filter rules, expected {healthy.rules}: {rules}")
    if world.backend == "docker":
        found += _on_engine(world, healthy)
    return found


def _networks(world: World) -> list[str]:
    """Return the networks but that of builds, which is there from the first build on."""
    found = world.remains.networks()
    return sorted(one for one in found if not one.endswith("-build"))


def _on_engine(world: World, healthy: Healthy) -> list[str]:
    found = []
    networks, volumes = _networks(world), world.remains.volumes()
    if networks != healthy.networks:
        found.append(f"networks {networks}, expected {healthy.networks}")
    if sorted(volumes) != healthy.volumes:
        found.append(f"volumes {volumes}, expected {healthy.volumes}")
    anchors = [r for r in world.remains.containers().values() if r == "anchor"]
    if len(anchors) > len(networks):
        found.append(f"{len(anchors)} anchors for {len(networks)} networks")
    return found


def _settled_tasks(world: World) -> int:
    """The smallest number of tasks within 0.25 s: those that stay."""
    found = []
    for _ in range(8):
        found.append(world.tasks())
        time.sleep(_LOOK_S)
    return min(found)


def _scratch(world: World) -> list[str]:
    return [str(path) for path in world.temp.iterdir() if path.name != "pymp"]


def _files(world: World) -> Counter[str]:
    """The files in the home, except for those of single chaincodes."""
    return Counter(
        path for path in files_of(world.home) if not path.startswith(_CHANGING)
    )
