"""The command line of a user without rights, whose Podman is the user's own.

What such an engine cannot do is told, and what is told is what a contract finds.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from support.engines.rootless import PATH, RootlessPodman, rootless_podman
from support.faults.own_engine import using
from support.need import need, need_image
from support.nodes.node import SECRETS, Node, eventually
from support.nodes.prying import NAME, SOURCE, details, pry
from support.nodes.remains import ask, inspect
from support.nodes.targets import elsewhere, listener, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.engines.unprivileged import User

pytestmark = [
    pytest.mark.docker,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
REPOSITORY = Path(__file__).resolve().parents[2]
SEES = (REPOSITORY, Path(sys.prefix), Path(sys.base_prefix))
ENGINE = {"podman", "catatonit", "conmon"}
"""Its service; what holds its namespaces; what keeps the end of an exec for 5 minutes."""
LIMITS = {
    "Memory": "no memory limit",
    "CpuQuota": "no CPU limit",
    "PidsLimit": "no limit of processes",
}
"""Field of HostConfig → what is said when it is not there."""
NO_LIMIT = 2**64 - 1


@dataclass
class UsersNode(Node):
    """A node that belongs to a user without rights."""

    user: User | None = None

    def argv(self, *args: str | Path) -> list[str]:
        assert self.user is not None
        return self.user.argv(*super().argv(*args))


@dataclass
class Place:
    """A user's node and engine.

    Args:
        doctor: what `doctor` said before the node came up, by name of the check.
        told: what `deploy` said.
    """

    node: UsersNode
    engine: RootlessPodman
    doctor: dict[str, dict[str, str]]
    told: dict[str, Any]

    @property
    def lacks(self) -> list[str]:
        """What `ps` names after its "but"."""
        return details(self.node)["weaker"].split("; ")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    need("go")
    with rootless_podman("golang", "runtime", sees=SEES) as engine:
        temp = engine.user.give(engine.folder / "tmp")
        env = {
            **engine.user.env,
            **SECRETS,
            "PATH": PATH,
            "TMPDIR": str(temp),
            "CORE_CHAINCODE_BUILDER": need_image("golang"),
            "CORE_CHAINCODE_GOLANG_RUNTIME": need_image("runtime"),
            "CORE_CHAINDOCK_DOCKER_PULL": "never",
        }
        node = UsersNode("docker", engine.user.home / "node", env, user=engine.user)
        with using(engine), ending(node):
            checks = node.ask("doctor")["checks"]
            node.up()
            told = node.deploy(vendored(engine.folder / NAME), NAME)
            yield Place(node, engine, {one["name"]: one for one in checks}, told)


@contextlib.contextmanager
def ending(node: UsersNode) -> Iterator[None]:
    try:
        yield
    finally:
        node.cli("down", "--timeout", "20", "--force", code=None)
        if (node.home / "node.json").exists():
            node.remains.remove()
        for folder in (node.home, node.temp):
            shutil.rmtree(folder, ignore_errors=True)


def vendored(folder: Path) -> Path:
    """Copy the contract that pries, with all it needs: nothing is downloaded inside."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCE, folder)
    subprocess.run(["go", "mod", "vendor"], cwd=folder, check=True, capture_output=True)
    return folder


def processes(user: User) -> set[str]:
    """Return the names of what the user, or a container of the user, runs."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            zombie = process.status() == psutil.STATUS_ZOMBIE
            if process.uids().real in user.ids and not zombie:
                found.add(process.name())
    return found


def test_the_engine_is_found_and_a_contract_answers(place: Place):
    node, engine = place.node, place.engine
    assert f"an engine answers at {engine.endpoint}" in node.cli("status").out.decode()
    assert psutil.Process(node.status["pid"]).uids().effective == engine.user.ids[0]
    assert details(node)["engine"] == engine.endpoint
    assert details(node)["stream"] == "mutual TLS"
    # It dials the node: as user 501 of its container, who is nobody here.
    assert pry(node, "self")["uid"] == 501
    assert node.invoke(NAME, "write", "/tmp")["status"] == 200
    secrets = "\n".join(pry(node, "env"))
    assert [value for value in SECRETS.values() if value in secrets] == []


def test_the_walls_that_need_no_rights_are_there(place: Place):
    seen, said = pry(place.node, "self"), "; ".join(place.lacks)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(seen["status"][kind], 16) == 0, kind
    assert (seen["status"]["NoNewPrivs"], seen["status"]["Seccomp"]) == ("1", "2")
    assert [name for name, why in pry(place.node, "rights").items() if not why] == []
    written = pry(place.node, "write", "/", "/etc", "/tmp")
    assert [folder for folder, why in written.items() if not why] == ["/tmp"]
    for phrase in (
        "privileges",
        "capabilities",
        "file system",
        "seccomp",
        "it is root",
    ):
        assert phrase not in said


def test_what_is_said_to_be_open_is_what_a_contract_finds(place: Place):
    node, said = place.node, place.lacks
    doctor, network = place.doctor["containers"], place.doctor["network"]
    host = inspect(node.where(NAME))["HostConfig"]
    given = {phrase: bool(host.get(field)) for field, phrase in LIMITS.items()}
    for phrase, there in given.items():
        assert (phrase in said) is not there, phrase
        assert (phrase in doctor["found"]) is not there, phrase
    limits = pry(node, "self")["limits"]
    assert ("no limit core" in said) is (limits["core"] != 0)
    assert ("no limit fsize" in said) is (limits["fsize"] == NO_LIMIT)
    assert ("no limit nofile" in said) is (limits["nofile"] > 4096)
    more = 600  # than a contract may have
    started = pry(node, "forks", more)["started"]
    assert ("no limit of processes" in said) is (started == more)

    assert doctor["found"].startswith("rootless engine: ")
    assert "other machines, and all services of this one" in network["found"]
    with listener("127.0.0.1") as (loopback, _), elsewhere() as other:
        wait_for(other)
        here = f"tcp:10.0.2.2:{loopback.rpartition(':')[2]}"
        assert pry(node, "dial", here, other) == {here: "", other: ""}
    assert any(
        one.startswith("it reaches other machines: the engine is") for one in said
    )
    assert "it reaches all services of this machine, also those on 127.0.0.1" in said


def test_down_leaves_nothing_but_the_engine_and_up_brings_all_back(place: Place):
    node, user = place.node, place.engine.user
    assert processes(user) - ENGINE
    assert ask(lambda engine: engine.find_containers("org.chaindock.node"))
    node.end()
    assert ask(lambda engine: engine.find_containers("org.chaindock.node")) == []
    eventually(lambda: processes(user) <= ENGINE, "processes of the user end", 10)
    assert "podman" in processes(user)
    node.up()
    assert pry(node, "self")["uid"] == 501
