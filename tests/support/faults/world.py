"""A node that tests put faults on and judge from outside.

`CliWorld` starts the node with the command line; `ForkedWorld` forks a process that has
all modules imported. Tests use both through the admin socket.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from base64 import b64decode
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from chaindock.cli.client import AdminClient
from chaindock.errors import ChaindockError
from chaindock.operations.facade import Call
from support.faults import forked_node
from support.faults.packages import misbehaves
from support.nodes.killable import alive
from support.nodes.node import (
    FREE_PORTS,
    SECRETS,
    cache_folder,
    environment,
    eventually,
)
from support.nodes.remains import Remains, inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UP_S = 90.0
GONE_S = 30.0


class World(ABC):
    """One node, with its folders, processes and containers.

    Args:
        folder: for home, packages and temporary files; an empty one.
        backend: process or docker.
        flags: settings, KEY → VALUE.
    """

    def __init__(
        self, folder: Path, backend: str, flags: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.backend = folder, backend
        self.home, self.temp = folder / "home", folder / "tmp"
        self.packages = folder / "packages"
        self.packages.mkdir(parents=True)
        self.env: dict[str, str] = {}
        self.flags = dict(flags or {})
        self.pid = 0

    # --- the node ---------------------------------------------------------------------

    @abstractmethod
    def up(self) -> None:
        """Start the node; return when its admin API answers."""

    @abstractmethod
    def _gone(self) -> bool:
        """Wait for the end of the process; return whether the process ended in time."""

    def kill(self) -> None:
        """End the node as a power failure would."""
        os.kill(self.pid, signal.SIGKILL)
        assert self._gone(), f"node {self.pid} outlives SIGKILL"

    def down(self) -> None:
        """Ask the node to end, and wait until it has."""
        self.admin.shutdown()
        assert self._gone(), f"node {self.pid} does not end:\n{self.log_end()}"

    def take_down(self) -> None:
        """End the node in any state, and remove what is left. Never raises."""
        with contextlib.suppress(ChaindockError, AssertionError, OSError):
            if self.pid and alive(self.pid):
                self.down()
        with contextlib.suppress(ProcessLookupError, AssertionError):
            if self.pid and alive(self.pid):
                self.kill()
        if (self.home / "node.json").exists():
            self.remains.remove()

    @property
    def admin(self) -> AdminClient:
        return AdminClient(self.home)

    @property
    def node_id(self) -> str:
        return str(json.loads((self.home / "node.json").read_text())["node_id"])

    @property
    def remains(self) -> Remains:
        return Remains(self.node_id, self.home, self.temp, cache_folder(), self.backend)

    def log_end(self) -> str:
        """The last lines of the node's log."""
        try:
            text = (self.home / "node.log").read_text(errors="replace")
        except OSError:
            return "(no log)"
        return "\n".join(text.splitlines()[-25:])

    # --- what users do ----------------------------------------------------------------

    def deploy(self, name: str, label: str) -> dict[str, Any]:
        """Deploy `misbehaves` under a label; return the result."""
        return last(self.deploying(name, misbehaves(self.packages, label)))

    def deploying(self, name: str, package: Path) -> Iterator[dict[str, Any]]:
        """Deploy a package file; yield the events."""
        with package.open("rb") as file:
            yield from self.admin.deploy(file, {"name": name, "backend": "auto"}, {})

    def start(self, name: str) -> dict[str, Any]:
        return last(self.admin.start(name))

    def invoke(
        self, name: str, *args: str, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Submit; return the answer. Raises: ChaindockError."""
        call = Call(name, [one.encode() for one in args], timeout_s=timeout_s)
        return self.admin.call(call, "invoke")

    def query(self, name: str, *args: str, timeout_s: float | None = None) -> str:
        """Evaluate; return the payload. Raises: ChaindockError."""
        call = Call(name, [one.encode() for one in args], timeout_s=timeout_s)
        answer = self.admin.call(call, "query")
        assert answer["status"] < 400, answer
        return b64decode(answer["payload"]).decode()

    def line(self, name: str) -> dict[str, Any]:
        """What `ps` says of a chaincode."""
        return next(one for one in self.admin.ps() if one["name"] == name)

    # --- what the machine shows ----------------------------------------------------------

    def runs(self) -> Counter[str]:
        """Package id → how many instances of it run now."""
        if self.backend == "docker":
            labels = [
                found["Config"]["Labels"]
                for one, role in self.remains.containers().items()
                if role != "anchor"
                for found in _inspected(one)
            ]
            return Counter(one["org.chaindock.ccid"] for one in labels)
        remains = self.remains
        ccids = {one.run_id: one.ccid for one in remains.records()}
        marked = {run_of(process) for process in remains.processes()}
        return Counter(ccids.get(one, f"unknown run {one}") for one in marked)

    def place(self, name: str) -> str:
        """The pid or container of a chaincode; "" while the chaincode does not run."""
        details = self.line(name)["details"]
        if self.backend == "docker":
            container = details.get("container", "")
            return self.remains.container_of(container) if container else ""
        return str(details.get("pid", ""))

    def chaincode_pid(self, name: str) -> int:
        """The pid of a chaincode on the host; 0 = there is no process."""
        place = self.place(name)
        if not place:
            return 0
        if self.backend == "docker":
            return int(inspect(place)["State"]["Pid"])
        return int(place)

    def signal_chaincode(self, name: str, number: int) -> int:
        """Signal the processes of a chaincode; return the first, 0 when there is none."""
        pid = self.chaincode_pid(name)
        for one in self._together(pid) if pid else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, number)
                if number == signal.SIGSTOP:
                    # A thread may have to wait for a processor before it takes the signal.
                    eventually(functools.partial(_is_stopped, one), "it has stopped")
        return pid

    def _together(self, pid: int) -> list[int]:
        """All processes of a container or run: an init would stop alone."""
        if self.backend != "docker":
            return [one for one in psutil.pids() if _is_in_group(one, pid)]
        try:
            inside = Path(f"/proc/{pid}/ns/pid").readlink()
        except OSError:
            return []
        return [one for one in psutil.pids() if _is_inside(one, inside)]

    def held(self) -> Counter[str]:
        """What the node holds open, by kind: files by name, sockets, pipes and so on."""
        found: Counter[str] = Counter()
        for fd in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found[_kind(str(fd.readlink()), self.home)] += 1
        return found

    def tasks(self) -> int:
        """The number of tasks on the node's loop; 0 = not known."""
        return 0

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def filter_rules(self) -> list[str]:
        """The firewall rules of the host that carry the node's id."""
        program = shutil.which("iptables-save")
        if program is None or os.geteuid() != 0:
            return []
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        return [line for line in done.stdout.splitlines() if self.node_id in line]


class CliWorld(World):
    """A node that was started with `chaindock up -d`."""

    def __init__(
        self,
        folder: Path,
        backend: str,
        flags: Mapping[str, str] | None = None,
        **env: str,
    ) -> None:
        super().__init__(folder, backend, flags)
        self.env = {**environment(backend, self.temp), **env}

    def up(self) -> None:
        words = ["--home", str(self.home), "--json", "up", "-d"]
        words += ["--backend", self.backend]
        for key, value in self.flags.items():
            words += ["--set", f"{key}={value}"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "chaindock", *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UP_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log_end()}"
        self.pid = json.loads(done.stdout)["pid"]

    def _gone(self) -> bool:
        until = time.monotonic() + GONE_S
        while alive(self.pid):
            if time.monotonic() > until:
                return False
            time.sleep(0.005)
        return True


class ForkedWorld(World):
    """A node in a forked process; its chaincode runs as processes."""

    def __init__(self, folder: Path, flags: Mapping[str, str] | None = None) -> None:
        super().__init__(folder, "process", flags)
        self.flags = {"chaindock.backend": "process", **self.flags}
        self.temp.mkdir()
        kept = {
            name: value
            for name, value in os.environ.items()  # noqa: TID251  # tests have no config
            if not name.startswith(("CORE_", "CHAINDOCK_", "FABRIC_"))
        }
        self.env = {
            **kept,
            **SECRETS,
            **FREE_PORTS,
            "TMPDIR": str(self.temp),
            "XDG_CACHE_HOME": str(cache_folder()),
        }

    def up(self) -> None:
        self.pid = forked_node.fork(self.home, self.env, self.flags)

    def _gone(self) -> bool:
        return forked_node.join(self.pid, GONE_S)

    def tasks(self) -> int:
        return forked_node.tasks_of(self.pid)


def last(events: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Return the result of a deployment. Raises: ChaindockError."""
    found: dict[str, Any] = {}
    for event in events:
        found = event
    result: dict[str, Any] = found["result"]
    return result


def run_of(process: Any) -> str:
    """The run that a process of the process back end belongs to."""
    with contextlib.suppress(Exception):
        return str(process.environ()["CHAINDOCK_RUN"])
    return f"of process {process.pid}"


def _inspected(container: str) -> list[dict[str, Any]]:
    with contextlib.suppress(ChaindockError):
        return [inspect(container)]
    return []


def _is_stopped(pid: int) -> bool:
    """Whether all threads of a process are stopped or gone."""
    states = []
    for task in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            states.append(task.read_text().rpartition(") ")[2][0])
    return all(state in "TtZX" for state in states)


def _is_in_group(pid: int, group: int) -> bool:
    try:
        return os.getpgid(pid) == group
    except ProcessLookupError:
        return False


def _is_inside(pid: int, namespace: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() == namespace
    except OSError:
        return False


def _kind(target: str, home: Path) -> str:
    if target.startswith(str(home)):
        name = target.removeprefix(f"{home}/")
        return re.sub(r"[0-9a-f]{12,}|\d+", "N", name.split(" ")[0])
    if "/locks/" in target:  # in the cache
        return "lock of a build"
    return target.partition(":[")[0]
