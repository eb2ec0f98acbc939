"""A real node, used as people use it: through the command line.

`started` brings one up in a home of its own and, whatever happens, takes it down again
and looks whether anything is left of it: containers, networks, volumes, processes,
temporary files. Builds are shared between runs of the tests, so that the second run is
quick: those of processes below `$XDG_CACHE_HOME/chaindock-test`, those of containers as
images on the engine.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import psutil
import pytest

from chaindock.operations.address import find_socket
from support.need import need, need_docker, need_image
from support.nodes.remains import Remains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

PROCESS = "process"
DOCKER = pytest.param("docker", marks=pytest.mark.docker)
BACKENDS = (PROCESS, DOCKER)
EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
PATIENCE_S = 420
"""For one command: a Go build with nothing cached takes a while."""
FREE_PORTS = {"CORE_PEER_LISTENADDRESS": "127.0.0.1:0"}
"""Nodes of tests listen for clients at free ports: many run at once."""
SECRETS = {
    "PARCEL_SERVICE_TOKEN": "canary-of-the-user",
    "NPM_TOKEN": "canary-of-the-registry",
    "AWS_SECRET_ACCESS_KEY": "canary-of-the-cloud",
}
"""In the node's environment, and nowhere else."""
_IMAGES = {
    "CORE_CHAINCODE_BUILDER": "golang",
    "CORE_CHAINCODE_GOLANG_RUNTIME": "runtime",
    "CORE_CHAINCODE_NODE_RUNTIME": "node",
    "CORE_CHAINDOCK_PYTHON_BUILDER": "python",
}


@dataclass(frozen=True)
class Result:
    """How one command ended."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Node:
    """A node that runs; see `started`."""

    backend: str
    home: Path
    env: Mapping[str, str]
    status: dict[str, Any] = field(default_factory=dict)
    _deployed: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def id(self) -> str:
        found: str = json.loads((self.home / "node.json").read_text())["node_id"]
        return found

    @property
    def temp(self) -> Path:
        """Where the node, and only it, keeps temporary files."""
        return Path(self.env["TMPDIR"])

    @property
    def remains(self) -> Remains:
        return Remains(self.id, self.home, self.temp, cache_folder(), self.backend)

    # --- commands -------------------------------------------------------------------

    def cli(self, *args: str | Path, code: int | None = 0) -> Result:
        """Run a command; it must end with `code` (None = any)."""
        done = subprocess.run(
            self.argv(*args),
            env=self.env,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        result = Result(done.returncode, done.stdout, done.stderr.decode())
        words = " ".join(map(str, args))
        if code is not None and result.code != code:
            said = f"{result.out.decode(errors='replace')}\n{result.err}"
            pytest.fail(f"`{words}` ended with {result.code}, not {code}:\n{said}")
        return result

    def ask(self, *args: str | Path, code: int | None = 0) -> Any:
        """Run a command with --json; return what it printed."""
        return self.cli("--json", *args, code=code).json

    def spawn(self, *args: str | Path) -> subprocess.Popen[str]:
        """Start a command whose output is read while it runs."""
        return subprocess.Popen(
            self.argv(*args),
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def argv(self, *args: str | Path) -> list[str]:
        program = (sys.executable, "-P", "-m", "chaindock", "--home", str(self.home))
        return [*program, *map(str, args)]

    def up(self, *args: str) -> dict[str, Any]:
        self.status = self.ask("up", "-d", "--backend", self.backend, *args)
        return self.status

    def deploy(self, source: Path, name: str | None = None) -> dict[str, Any]:
        """Deploy a directory, once for all tests that use this node."""
        key = f"{source} {name}"
        if key not in self._deployed:
            named = () if name is None else ("--name", name)
            self._deployed[key] = self.ask("deploy", source, *named)
        return self._deployed[key]

    def invoke(self, name: str, *args: str, code: int | None = 0) -> Any:
        return self.ask("invoke", name, *args, code=code)

    def query(self, name: str, *args: str) -> bytes:
        """Return what a plain query wrote to standard output."""
        return self.cli("query", name, *args).out

    def ps(self, name: str) -> dict[str, Any] | None:
        found: list[dict[str, Any]] = self.ask("ps")
        return next((one for one in found if one["name"] == name), None)

    def where(self, name: str) -> str:
        """Return what tells one run of a chaincode from another: pid or container.

        Nothing while it does not run.
        """
        line = self.ps(name)
        assert line is not None
        if self.backend == PROCESS:
            return str(line["details"].get("pid", ""))
        return self.remains.container_of(line["details"]["container"])

    def runs(self, place: str) -> bool:
        """Whether the run that `where` told still exists."""
        if self.backend == PROCESS:
            return is_there(int(place))
        return place in self.remains.containers()

    # --- many calls at once -----------------------------------------------------------

    def call_all(
        self, verb: str, name: str, calls: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        """Send all calls at once from one client; return the answers in order."""
        return asyncio.run(self._call_all(verb, name, calls))

    async def _call_all(
        self, verb: str, name: str, calls: Sequence[Sequence[str]]
    ) -> list[dict[str, Any]]:
        connector = aiohttp.UnixConnector(str(find_socket(self.home)), limit=0)
        url = f"http://node/chaincodes/{name}/{verb}"
        async with aiohttp.ClientSession(connector=connector) as client:

            async def call(words: Sequence[str]) -> dict[str, Any]:
                args = [base64.b64encode(word.encode()).decode() for word in words]
                async with client.post(url, json={"args": args}) as response:
                    found: dict[str, Any] = await response.json()
                    return found

            return await asyncio.gather(*map(call, calls))

    # --- the end ----------------------------------------------------------------------

    def kill(self) -> None:
        """End the node as a power failure would."""
        pid: int = self.status["pid"]
        psutil.Process(pid).kill()
        eventually(lambda: not is_there(pid), "the killed node is gone")

    def end(self) -> None:
        """Take the node down; nothing may be left of it."""
        volumes = self.remains.anonymous_volumes()
        self.cli("down", "--timeout", "60")
        assert not is_there(self.status["pid"])
        left = self.remains.all()
        assert left == [], left
        assert self.remains.volumes(volumes) == []


@contextlib.contextmanager
def started(backend: str, folder: Path, *flags: str, **settings: str) -> Iterator[Node]:
    """Yield a node that is up; afterwards nothing is left of it.

    Args:
        backend: process or docker; skips (in CI: fails) where there is none.
        folder: an empty one, for home and temporary files.
        flags: of `chaindock up`.
        settings: CORE_… variables.
    """
    node = Node(backend, folder / "home", environment(backend, folder / "tmp"))
    node.env = {**node.env, **settings}
    try:
        node.up(*flags)
        yield node
        node.end()
    finally:
        node.cli("down", "--timeout", "20", "--force", code=None)
        if (node.home / "node.json").exists():
            node.remains.remove()


def environment(backend: str, temp: Path) -> dict[str, str]:
    """Return the environment of a user who has secrets in it."""
    temp.mkdir(parents=True)
    kept = {
        name: value
        for name, value in os.environ.items()  # noqa: TID251  # tests have no config
        if not name.startswith(("CORE_", "CHAINDOCK_", "FABRIC_"))
    }
    found = {**kept, **SECRETS, **FREE_PORTS, "TMPDIR": str(temp)}
    found["XDG_CACHE_HOME"] = str(cache_folder())
    if backend == "docker":
        need_docker()
        found |= {name: need_image(image) for name, image in _IMAGES.items()}
        found["CORE_CHAINDOCK_DOCKER_PULL"] = "never"
    else:
        need("go", "node", "npm")
    return found


def cache_folder() -> Path:
    """Return where builds of the tests are kept between runs."""
    named = os.environ.get("XDG_CACHE_HOME")  # noqa: TID251  # tests have no config
    base = Path(named) if named else Path.home() / ".cache"
    return base / "chaindock-test" / "nodes"


def eventually(check: Callable[[], Any], what: str, limit_s: float = 20.0) -> Any:
    """Return the first true answer of `check`; there must be one in time."""
    until, began = time.monotonic() + limit_s, time.monotonic()
    while not (found := check()):
        now = time.monotonic()
        if now > until:
            pytest.fail(f"not within {limit_s:g} s: {what}")
        # A look by the command line takes a processor, which is better left to the node.
        time.sleep(max(0.05, now - began))
        began = time.monotonic()
    return found


def is_there(pid: int) -> bool:
    """Whether a process lives; one that only waits to be collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
