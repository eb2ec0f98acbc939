"""Connections without a stream keep nobody from registering (docs/adr/0009)."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from chaindock.chaincode import crowd as under_test
from chaindock.chaincode.crowd import Crowd
from chaindock.errors import LaunchTimeout
from support.doubles.launch_fakes import never_registers
from support.doubles.launch_world import World, failure
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.faults import crowd as program
from support.shims.stream_node import CCID, OTHER
from support.shims.tls_node import Guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = "127.0.0.1"
LOCK = """
import fcntl, sys
fcntl.lockf(open(sys.argv[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB)
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "MAX_CONNECTIONS", 120)


@pytest.fixture
async def node(small: None, no_task_is_left: None) -> AsyncIterator[Guarded]:
    async with Guarded() as node:
        yield node


async def attack(node: Guarded, number: int, *user: str) -> asyncio.subprocess.Process:
    """Start a program that keeps idle connections; return when it has them."""
    host, _, port = (await node.listener.address_on(HERE)).partition(":")
    words = (program.__file__, host, port, str(number), "60", *user)
    attacker = await asyncio.create_subprocess_exec(
        sys.executable, *words, stdout=asyncio.subprocess.PIPE
    )
    assert attacker.stdout is not None
    assert await attacker.stdout.readline() == b"full\n"
    return attacker


async def registers(node: Guarded, tries: int = 20) -> None:
    """Launch another chaincode; it dials again when it is turned away, as shims do."""
    expected, pair = node.launch(OTHER)
    for _ in range(tries):
        try:
            peer = await node.dials(pair)
            await peer.register(OTHER)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.1)
            continue
        async with asyncio.timeout(5):
            await expected.ready.wait()
        await peer.leave()
        return
    raise AssertionError(f"turned away {tries} times")


@pytest.mark.parametrize("user", ["me", "another user"])
async def test_a_contract_registers_while_others_keep_idle_connections(
    node: Guarded, user: str
):
    """Issue 10, 5."""
    if user != "me" and os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    peer, _ = await node.runs()
    attacker = await attack(node, 110, *(() if user == "me" else ("65534",)))
    try:
        await eventually(node.registry.crowd.lasts)
        await registers(node)
        call = node.call(invocation("f"))
        await peer.complete(await peer.receive(), b"fine")
        assert (await call).response.payload == b"fine"
    finally:
        attacker.kill()
        await attacker.wait()


async def test_idle_connections_below_the_limit_stay(node: Guarded):
    host, _, port = (await node.listener.address_on(HERE)).partition(":")
    pairs = [await asyncio.open_connection(host, int(port)) for _ in range(80)]
    await asyncio.sleep(1.2)
    assert not any(reader.at_eof() for reader, _ in pairs)
    assert not node.registry.crowd.lasts()
    for _, writer in pairs:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, HERE), (socket.AF_INET6, "::1")]
)
def test_the_user_of_a_connection_from_this_machine_is_known(family, host):
    with socket.socket(family) as listener, socket.socket(family) as dialler:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        listener.listen()
        dialler.connect(listener.getsockname())
        port = listener.getsockname()[1]
        users = under_test._local_users({port})
        assert users[dialler.getsockname()[:2]] == f"local user {os.geteuid()}"


def test_without_ipv6_users_are_known_by_their_ipv4_connections(
    monkeypatch: pytest.MonkeyPatch,
):
    missing = {"tcp6": "none"}
    monkeypatch.setattr(
        under_test,
        "Path",
        lambda *words: Path(*(missing.get(one, one) for one in words)),
    )
    with socket.create_server((HERE, 0)) as listener, socket.socket() as dialler:
        dialler.connect(listener.getsockname())
        users = under_test._local_users({listener.getsockname()[1]})
        assert users == {dialler.getsockname(): f"local user {os.geteuid()}"}


def test_a_connection_whose_stream_began_during_the_look_is_not_closed(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(under_test, "MAX_CONNECTIONS", 4)
    crowd = Crowd()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((HERE, 0)))
        address = listener.getsockname()
        crowd._ports.add(address[1])
        dialled = []
        for _ in range(4):
            dialled.append(stack.enter_context(socket.create_connection(address)))
            stack.enter_context(listener.accept()[0])
        host, port = dialled[0].getsockname()

        def surplus(idle: Any, *_: Any) -> Any:
            crowd.stream(f"ipv4:{host}:{port}", 1)
            return [(HERE, one) for one in idle]

        monkeypatch.setattr(under_test, "_surplus", surplus)
        crowd._look()
        for connection in dialled[1:]:
            assert connection.recv(1) == b""
        dialled[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            dialled[0].recv(1)


def test_what_was_closed_last_is_logged_when_the_crowd_is_gone(
    monkeypatch: pytest.MonkeyPatch,
):
    crowd, lines = Crowd(), []
    log = SimpleNamespace(warning=lambda _, **facts: lines.append(facts))
    monkeypatch.setattr(under_test, "_log", log)
    crowd._closed["172.18.0.5"] = 7
    crowd._look()
    assert lines == [{"of": {"172.18.0.5": 7}}]


def test_each_source_keeps_as_many_connections_as_the_others(
    monkeypatch: pytest.MonkeyPatch,
):
    flood = [under_test._Idle(True, 9.0, n, (HERE, n)) for n in range(1, 3000)]
    container = [under_test._Idle(True, 1.0, n, ("172.18.0.5", n)) for n in range(9)]
    mine = [under_test._Idle(True, 2.0, n, (HERE, n)) for n in range(3000, 3010)]
    users = {one.peer: "local user 1001" for one in flood}
    users |= {one.peer: "local user 0" for one in mine}
    monkeypatch.setattr(under_test, "_local_users", lambda _: users)
    closed = under_test._surplus([*flood, *container, *mine], {7052}, 100)
    assert {source for source, _ in closed} == {"local user 1001"}
    assert len(closed) == 2999 + 9 + 10 - 100


def test_those_that_never_said_a_word_go_before_those_that_did(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(under_test, "_local_users", lambda _: {})
    speaks = under_test._Idle(True, 1.0, 1, (HERE, 1))
    silent = [under_test._Idle(False, 2.0 + n, n, (HERE, n)) for n in range(2, 6)]
    closed = [one for _, one in under_test._surplus([speaks, *silent], {1}, 2)]
    assert closed == silent[:3][::-1]


async def test_a_launch_that_fails_in_a_crowd_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
):
    """Issue 10, 5: it is tried again as long as the crowd lasts."""
    async with World(startup_timeout_s=0.3) as world:
        world.builder.prepare(CCID, never_registers)
        assert not (await failure(world, LaunchTimeout)).retryable
        monkeypatch.setattr(Crowd, "lasts", lambda _: True)
        error = await failure(world, LaunchTimeout)
        assert error.retryable
        assert "other programs hold too many connections" in (error.hint or "")


def test_without_a_table_of_sockets_nothing_is_closed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(under_test, "Path", lambda *_: Path("/nowhere"))
    crowd = Crowd()
    crowd.watch(1)
    crowd.stop()
    assert not crowd.lasts()


@pytest.mark.parametrize("moment", ["it looks", "it closes"])
def test_locks_of_this_process_on_files_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, moment: str
):
    """Closing any descriptor of a file releases them: SQLite's, too."""
    monkeypatch.setattr(under_test, "MAX_CONNECTIONS", 4)
    path = tmp_path / "file"
    with path.open("w+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        if moment == "it closes":  # a connection ended, and the file got its number
            one = under_test._Idle(True, 0.0, file.fileno(), (HERE, 1))
            monkeypatch.setattr(Crowd, "_idle", lambda *_: one)
            monkeypatch.setattr(under_test, "_surplus", lambda *_: [(HERE, one)])
        Crowd()._look()
        done = subprocess.run(
            [sys.executable, "-c", LOCK, path], check=False, stderr=subprocess.PIPE
        )
    assert b"BlockingIOError" in done.stderr
