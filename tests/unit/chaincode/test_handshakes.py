"""needs.md row 13: who connects and comes through TLS to no stream is seen."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import ssl
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from structlog.testing import capture_logs

from chaindock.chaincode import handshakes as under_test
from chaindock.chaincode.handshakes import Handshakes
from support.eventually import eventually
from support.shims.credentials import client
from support.shims.stream_node import StreamNode
from support.shims.tls_node import Guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HERE, BESIDE = "127.0.0.1", "127.0.0.2"
TAKE = """\
import fcntl, sys
fcntl.lockf(open(sys.argv[1], "w"), fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
TOLD = "connections came to no stream: they failed in TLS, or before"


@pytest.fixture
async def node(
    no_task_is_left: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Guarded]:
    """A node that looks at each handshake, however many come."""
    monkeypatch.setattr(under_test, "_LOOK_S", 0.0)
    monkeypatch.setattr(under_test, "_RESTS", 0)
    async with Guarded() as node:
        yield node


async def connect(
    node: Guarded, source: str = HERE, context: ssl.SSLContext | None = None
) -> asyncio.StreamWriter:
    host, _, port = (await node.listener.address_on(HERE)).partition(":")
    _, writer = await asyncio.open_connection(
        host, int(port), local_addr=(source, 0), ssl=context
    )
    return writer


def broken(node: Guarded, host: str | None = None, since: float = 0.0) -> int:
    return node.registry.handshakes.broken(host, since)


async def test_who_speaks_no_tls_is_counted_where_it_came_from(node: Guarded):
    writers = [await connect(node, source) for source in (HERE, BESIDE, BESIDE)]
    await eventually(lambda: broken(node) == 3)
    assert (broken(node, HERE), broken(node, BESIDE)) == (1, 2)
    for writer in writers:  # gone, they are still known
        writer.close()
        await writer.wait_closed()
    assert (broken(node, HERE), broken(node, BESIDE)) == (1, 2)
    later = asyncio.get_running_loop().time() + 1
    assert broken(node, None, later) == 0


async def test_who_trusts_another_root_is_counted(node: Guarded):
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(node, BESIDE, ssl.create_default_context())
    await eventually(lambda: broken(node, BESIDE) == 1)


async def test_who_shows_no_certificate_is_counted(node: Guarded):
    peer = await node.dials(None)
    code, _ = await peer.refusal()
    assert code is grpc.StatusCode.UNAVAILABLE
    await eventually(lambda: broken(node, HERE) >= 1)


async def test_who_comes_to_a_stream_is_not_counted(node: Guarded):
    for _ in range(3):
        peer, _ = await node.runs()
        assert broken(node) == 0
        await peer.leave()
        await node.handler.ended.wait()
    assert broken(node) == 0


async def test_who_asks_for_the_health_is_not_counted(node: Guarded):
    _, pair = node.launch()
    address = await node.listener.address_on(HERE)
    shown = client(node.root, pair)
    async with grpc.aio.secure_channel(address, shown) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert await check(b"") == b"\x08\x01"
        assert broken(node) == 0
        # Seen again while it is open, it is still known.
        writer = await connect(node, BESIDE)
        await eventually(lambda: broken(node, BESIDE) == 1)
        assert broken(node, HERE) == 0
        writer.close()
        await writer.wait_closed()


async def test_a_flood_is_remembered_in_bounded_number_and_told_in_one_line(
    node: Guarded, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(under_test, "_MOST", 30)
    monkeypatch.setattr(under_test, "_TELL_S", 0.2)
    with capture_logs() as lines:
        writers = [
            await connect(node, f"127.0.0.{number % 9 + 1}") for number in range(90)
        ]
        await eventually(lambda: broken(node) == 30)
        await eventually(lambda: [one for one in lines if one["event"] == TOLD])
    told = [one for one in lines if one["event"] == TOLD]
    assert len(told) < 5
    assert all(one["count"] <= 30 for one in told)
    assert all(one["sources"].count(", ") < 5 for one in told)
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    expected, pair = node.launch()
    await node.still_starts(expected, pair)


async def test_a_port_that_was_used_before_counts_anew(
    monkeypatch: pytest.MonkeyPatch,
):
    """Addresses of containers come again, and ports do."""
    peer, there = under_test.Peer("10.0.0.2", 4000), set[under_test.Peer]()
    monkeypatch.setattr(under_test, "_connected", lambda _: set(there))
    monkeypatch.setattr(under_test, "_LOOK_S", 0.0)
    monkeypatch.setattr(under_test, "_RESTS", 0)
    handshakes = Handshakes()
    handshakes.watch(4711)
    moments = []
    for now in ({peer}, {peer}, set(), {peer}):
        there = now
        moments.append(time.monotonic())
        handshakes.begins()
    assert handshakes.broken(peer.host, moments[0]) == 1
    assert handshakes.broken(peer.host, moments[3]) == 1
    handshakes.begins()
    assert handshakes.broken(peer.host, time.monotonic()) == 0, "it is the same one"
    handshakes.close()


async def test_many_at_once_cost_one_look(monkeypatch: pytest.MonkeyPatch):
    looks = []

    def look(ports: frozenset[int]) -> set[under_test.Peer]:
        looks.append(ports)
        return set()

    monkeypatch.setattr(under_test, "_connected", look)
    monkeypatch.setattr(under_test, "_LOOK_S", 60.0)
    handshakes = Handshakes()
    handshakes.watch(4711)
    await asyncio.gather(*(asyncio.to_thread(handshakes.begins) for _ in range(20)))
    assert looks == [{4711}]
    handshakes.close()


async def test_a_look_that_fails_breaks_no_handshake_and_is_made_again(
    node: Guarded, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as blind:
        blind.setattr(under_test, "_SOCKETS", under_test._SOCKETS / "none" / "such")
        await node.runs()
    writer = await connect(node, BESIDE)
    await eventually(lambda: broken(node, BESIDE) == 1)
    writer.close()
    await writer.wait_closed()


async def test_without_tls_nothing_is_kept(no_task_is_left: None):
    async with StreamNode() as plain:
        await plain.ready()
        assert plain.registry.handshakes._through == set()


def test_what_is_looked_at_stays_as_it_was(tmp_path: Path):
    """Every open file of the process is passed by: sockets of others, and SQLite's."""
    with (
        socket.create_server((HERE, 0)) as server,
        socket.create_connection(server.getsockname()) as near,
        server.accept()[0] as far,
        socket.socket(socket.AF_UNIX) as local,
        (tmp_path / "locked").open("w") as file,
    ):
        near.setblocking(False)
        fcntl.lockf(file, fcntl.LOCK_EX)
        all_ = [one.fileno() for one in (server, near, far, local, file)]

        def state() -> list[tuple[int, int]]:
            return [
                (fcntl.fcntl(one, fcntl.F_GETFL), fcntl.fcntl(one, fcntl.F_GETFD))
                for one in all_
            ]

        before, port = state(), server.getsockname()[1]
        for _ in range(100):
            assert under_test._connected(frozenset({port})) == {near.getsockname()}
        assert state() == before
        far.sendall(b"still here")
        assert near.recv(64) == b"still here"
        taken = subprocess.run(
            [sys.executable, "-c", TAKE, file.name], capture_output=True, check=False
        )
        assert b"BlockingIOError" in taken.stderr
