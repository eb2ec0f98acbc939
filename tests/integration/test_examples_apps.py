"""The applications of examples/apps, started as their pages say."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from support.clients.network import Network, exports, network
from support.nodes.node import EXAMPLES, eventually
from support.shims import builds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
APPS = EXAMPLES / "apps"
LANGUAGES = ("node", "go", "java")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A node of two organisations whose addresses stay when it starts again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own = {"CORE_PEER_LISTENADDRESS": f"127.0.0.1:{probe.getsockname()[1]}"}
    with network(tmp_path_factory.mktemp("apps"), "Org2", **own) as net:
        yield net


def argv(language: str) -> Sequence[str | Path]:
    if language == "go":
        return (builds.go_program(APPS / "go"),)
    if language == "java":
        folder = builds.java_classes(APPS / "java")
        return ("java", *builds.JAVA, "-cp", f"{folder}:{folder}/lib/*", "Parcels")
    return ("node", builds.node_project(APPS / "node") / "app.js")


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_application_submits_reads_and_listens(
    net: Network, language: str, tmp_path: Path
):
    net.node.deploy(EXAMPLES / "node", "coldchain")
    words = ("env", "app", "coldchain", "--org", "Org2MSP", "--user", "carol")
    env = {**os.environ, **exports(net.node.cli(*words).out.decode())}  # noqa: TID251

    def start(*parcels: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*map(str, argv(language)), *parcels],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run(parcel: str) -> list[str]:
        done = start(parcel)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    first, second, other = (f"{language}-{n}" for n in (1, 2, 3))
    registered, parcel, breach = run(first)
    assert registered == f"registered {first}"
    assert json.loads(parcel.removeprefix("parcel "))["custodian"] == "Org2MSP"
    assert breach == f"breach {first} 12.5"
    # What happens meanwhile is told by the next run, and nothing twice.
    net.node.invoke("coldchain", "register", other, "2", "8")
    net.node.invoke("coldchain", "record", other, "20.5")
    assert run(second)[2:] == [f"breach {other} 20.5", f"breach {second} 12.5"]
    # A mistake is told in a few lines, not by a trace.
    for mistake, told in ((start(first), "registered already"), (start(), "PARCEL")):
        assert mistake.returncode in {1, 2}
        assert told in mistake.stderr
        assert len(mistake.stderr.splitlines()) <= 5


class Web:
    """The web application, and browsers that are logged in."""

    def __init__(self, folder: Path, files: Sequence[Path]) -> None:
        self.folder, self._files = folder, files
        self._project = builds.node_project(APPS / "web")
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        own = {"PORT": "0", "FOLDER": str(self.folder)}
        self._process = subprocess.Popen(
            ["node", self._project / "server.js", *self._files],
            env={**os.environ, **own},  # noqa: TID251  # tests have no config
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:")

    def stop(self, *, kill: bool) -> None:
        assert self._process is not None
        if kill:
            self._process.kill()
        else:
            self._process.terminate()
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def ask(self, method: str, path: str, cookie: str = "", **data: str) -> Any:
        """Return the answer; a refusal as its status."""
        return self.answer(method, path, cookie, **data)[0]

    def answer(
        self, method: str, path: str, cookie: str, **data: str
    ) -> tuple[Any, str]:
        body = json.dumps(data).encode() if method == "POST" else None
        request = urllib.request.Request(self.url + path, body, method=method)
        request.add_header("Cookie", cookie)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = answer.headers.get("Set-Cookie", "")
                return json.load(answer), found.partition(";")[0]
        except urllib.error.HTTPError as refused:
            return refused.code, ""

    def login(self, name: str) -> str:
        words = {"name": name, "password": f"password of {name}"}
        found, cookie = self.answer("POST", "/login", "", **words)
        assert found["name"] == name
        assert re.fullmatch(r"session=\w{48}", cookie)
        return cookie

    def is_noticed(self, cookie: str, *deals: str) -> None:
        """Wait until the page shows exactly these deals."""

        def same() -> bool:
            told = self.ask("GET", "/notices", cookie)
            return [one["id"] for one in told] == list(deals)

        eventually(same, f"the page shows {deals}")


@pytest.fixture
def web(net: Network, tmp_path: Path) -> Iterator[Web]:
    page = (APPS / "web" / "README.md").read_text().splitlines()
    (line,) = (one for one in page if one.startswith("$ chaindock deploy"))
    words = [re.sub("^examples", str(EXAMPLES), word) for word in shlex.split(line)]
    net.node.cli(*words[2:])
    files = []
    for name, mspid in (("alice", "Org1MSP"), ("bob", "Org2MSP")):
        words = ("env", "app", "deals", "--org", mspid, "--user", name)
        told = net.node.cli(*words).out.decode()
        files.append(tmp_path / f"{name}.env")
        files[-1].write_text(f"{told}PASSWORD=password of {name}\n")
    web = Web(tmp_path, files)
    web.start()
    try:
        yield web
    finally:
        web.stop(kill=True)


def test_the_web_application_outlives_restarts(net: Network, web: Web):
    assert web.ask("POST", "/login", name="alice", password="guess") == 403
    assert web.ask("GET", "/notices") == 401
    alice, bob = web.login("alice"), web.login("bob")
    assert web.ask("POST", "/deals", alice, id="D1", price="120") == {"id": "D1"}
    shown = web.ask("GET", "/deals/D1", alice)
    assert shown == {"id": "D1", "seller": "Org1MSP", "price": "120"}
    # A member of the other organisation sees the deal and not its price.
    assert web.ask("GET", "/deals/D1", bob)["price"] is None
    assert web.ask("POST", "/deals", bob, id="D2", price="1") == 502
    web.is_noticed(bob, "D1")

    def offered_behind(deal: str) -> None:
        net.node.cli("invoke", "deals", "offer", deal, "--transient", "price=7")

    net.node.kill()
    net.node.up()
    offered_behind("D3")
    shown = ["D1", "D3"]
    web.is_noticed(alice, *shown)
    for kill in (True, False):
        web.stop(kill=kill)
        shown.append(f"D4 {kill}")
        offered_behind(shown[-1])
        web.start()
        assert web.ask("GET", "/notices", alice) == 401
        alice = web.login("alice")
        web.is_noticed(alice, *shown)
    assert web.ask("GET", "/deals/D3", web.login("bob"))["seller"] == "Org1MSP"
