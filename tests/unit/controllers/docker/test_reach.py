"""needs.md row 13: what a container says that dialled the node."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest

from chaindock.controllers.docker import reach
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.reach import HOST, find_name, try_address
from chaindock.errors import NameUnresolved, NodeUnreachable
from chaindock.identity.ca import EVERYWHERE
from support.eventually import eventually
from support.need import need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


UNKNOWN = "no-such-host.invalid"
NO_NAME, NO_ANSWER, NO_TOOL, FIRST = 1, 2, 99, 10
WAYS = (["bash", "timeout", "getent"], ["bash", "timeout"], ["python3"])
NC = {
    "nc: bad address 'node'": NO_NAME,
    'nc: getaddrinfo for host "node" port 1: Name or service not known': NO_NAME,
    'Ncat: Could not resolve hostname "node": Try again. QUITTING.': NO_NAME,
    "nc: connect to node port 1 (tcp) failed: Connection refused": NO_ANSWER,
    "nc: connect to ::1 port 1 (tcp) failed: Cannot assign requested address": NO_ANSWER,
    "Ncat: TIMEOUT.": NO_ANSWER,
    "nc: invalid option -- 'z'": NO_TOOL,
}
"""What such programs say, and what it means."""


class Container:
    """An engine in which every container ends with one exit code."""

    container = Engine.container

    address = "unix:///engine.sock"

    def __init__(self, code: int | None, *, rootless: bool = False) -> None:
        self.code, self.rootless = code, rootless
        self.there: list[str] = []
        self.ran: list[list[str]] = []

    async def create_container(self, _name: None, body: dict[str, Any]) -> str:
        self.ran.append(body["Cmd"])
        self.there.append("probe")
        return "probe"

    async def start_container(self, container: str) -> None:
        assert container in self.there

    async def wait_container(self, _container: str) -> int:
        if self.code is None:
            await asyncio.Event().wait()
        assert self.code is not None
        return self.code

    async def remove_container(self, container: str) -> None:
        self.there.remove(container)


def body() -> dict[str, Any]:
    return {"HostConfig": {"NetworkMode": "chaindock-net"}}


async def found(engine: Container) -> str:
    rootless = engine.rootless
    return await find_name(cast("Engine", engine), body(), "7052", rootless=rootless)


async def tried(engine: Container) -> None:
    error = await try_address(cast("Engine", engine), body(), "10.0.0.1", "7052")
    if error is not None:
        raise error


# --- what is made of it -----------------------------------------------------------------


async def test_the_name_that_answers_is_used():
    assert await found(Container(FIRST)) == HOST
    assert await found(Container(FIRST + 1)) == "host.containers.internal"


async def test_names_that_do_not_resolve_are_told_apart_from_no_answer():
    with pytest.raises(NameUnresolved, match=f"{HOST}.*resolves inside") as unresolved:
        await found(Container(NO_NAME))
    with pytest.raises(NodeUnreachable, match="answers at port 7052") as unreachable:
        await found(Container(NO_ANSWER))
    for caught in (unresolved, unreachable):
        assert caught.value.port == "7052"
        assert HOST in caught.value.hosts
    with pytest.raises(NameUnresolved, match="does not resolve"):
        await tried(Container(NO_NAME))
    with pytest.raises(NodeUnreachable, match="'chaindock-net' cannot connect"):
        await tried(Container(NO_ANSWER))


async def test_a_rootless_engine_is_tried_with_its_own_addresses_and_has_a_hint():
    engine = Container(NO_ANSWER, rootless=True)
    with pytest.raises(NodeUnreachable) as caught:
        await found(engine)
    assert "10.0.2.2" in engine.ran[0]
    assert "allow_host_loopback" in (caught.value.hint or "")


def test_every_name_that_is_tried_is_one_of_the_nodes_certificate():
    assert {*reach._NAMES, *reach._ROOTLESS} <= set(EVERYWHERE)


@pytest.mark.parametrize("code", [NO_TOOL, 125, 137])
async def test_what_cannot_be_tried_is_not_told_as_a_failure(code: int):
    await tried(Container(code))


async def test_a_container_that_does_not_end_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(reach, "_TRY_S", 0.1)
    engine = Container(None)
    async with asyncio.timeout(10):
        await tried(engine)
    assert engine.there == []


async def test_cancelled_it_leaves_no_container():
    engine = Container(None)
    task = asyncio.ensure_future(tried(engine))
    await eventually(lambda: engine.there)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.there == []


# --- what is run there: the real one, with the tools that images have -------------------


@pytest.fixture
def port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


@pytest.fixture
def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def dial(folder: Path, tools: list[str], port: str, *hosts: str) -> int:
    """Run it where there are these tools alone."""
    need(*tools)
    for tool in tools:
        # Python's may be a script that needs others.
        real = sys.executable if tool == "python3" else shutil.which(tool)
        (folder / tool).write_text(f'#!/bin/sh\nexec {real} "$@"\n')
        (folder / tool).chmod(0o755)
    return run(folder, port, *hosts)


def run(folder: Path, port: str, *hosts: str) -> int:
    argv = ["/bin/sh", "-c", reach._DIAL, port, *hosts]
    env = {"PATH": str(folder)}
    return subprocess.run(argv, env=env, timeout=30, check=False).returncode


@pytest.mark.parametrize("tools", WAYS, ids=" ".join)
def test_the_first_that_answers_is_told(tmp_path: Path, tools: list[str], port: str):
    assert dial(tmp_path, tools, port, UNKNOWN, "127.0.0.1") == FIRST + 1


@pytest.mark.parametrize("tools", WAYS, ids=" ".join)
def test_a_port_that_refuses_is_no_matter_of_names(
    tmp_path: Path, tools: list[str], closed: str
):
    assert dial(tmp_path, tools, closed, UNKNOWN, "127.0.0.1") == NO_ANSWER


@pytest.mark.parametrize("tools", WAYS, ids=" ".join)
def test_a_name_that_resolves_and_refuses_is_no_matter_of_names(
    tmp_path: Path, tools: list[str], closed: str
):
    assert dial(tmp_path, tools, closed, UNKNOWN, "localhost") == NO_ANSWER


@pytest.mark.parametrize("tools", WAYS, ids=" ".join)
def test_names_that_nobody_knows_are_told(tmp_path: Path, tools: list[str], port: str):
    assert dial(tmp_path, tools, port, UNKNOWN, f"other.{UNKNOWN}") == NO_NAME


@pytest.mark.parametrize(("said", "code"), NC.items())
def test_what_nc_says_is_understood(tmp_path: Path, said: str, code: int):
    (tmp_path / "nc").write_text(f"#!/bin/sh\ncat >&2 <<'EOF'\n{said}\nEOF\nexit 1\n")
    (tmp_path / "nc").chmod(0o755)
    (tmp_path / "cat").symlink_to("/bin/cat")
    assert run(tmp_path, "1", "node") == code


@pytest.mark.parametrize("tools", [[], ["bash", "getent"], ["timeout", "getent"]])
def test_an_image_without_the_tools_says_nothing(
    tmp_path: Path, tools: list[str], port: str
):
    assert dial(tmp_path, tools, port, "127.0.0.1") == NO_TOOL
