"""Clients that send half a request, nothing, or nonsense, at the operations endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import resource
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
import structlog

from chaindock import telemetry
from chaindock.operations import serving
from chaindock.operations.health import Health
from chaindock.operations.http import OperationsOptions, OperationsServer
from support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HALF = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"


class Clients:
    """Connections to one endpoint, closed at the end."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self, data: bytes, source: str = "127.0.0.1") -> Any:
        """Connect from `source`, send `data`; return the reader."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, local_addr=(source, 0)
        )
        self.open.append((reader, writer))
        writer.write(data)
        return reader

    async def healthz(self, source: str = "127.0.0.1") -> int:
        """Return the status of /healthz, asked from `source`."""
        reader = await self.send(HALF + b"Connection: close\r\n\r\n", source)
        async with asyncio.timeout(5):
            return int((await reader.read()).split()[1])

    @property
    def closed(self) -> int:
        """How many connections the endpoint has closed."""
        return sum(reader.at_eof() for reader, _ in self.open)


@pytest.fixture
def health() -> Health:
    return Health(check_s=1.0)


@contextlib.asynccontextmanager
async def served(health: Health, **options: Any) -> AsyncIterator[Clients]:
    """Serve the endpoint; its bounds are those of this moment."""
    asked = OperationsOptions(address=("127.0.0.1", 0), **options)
    async with OperationsServer(asked, health) as server:
        assert server.url is not None
        clients = Clients(int(server.url.rpartition(":")[2]))
        yield clients
        for _, writer in clients.open:
            writer.close()


@pytest.fixture
def log() -> Any:
    before = structlog.get_config()
    stream = io.StringIO()
    telemetry.configure(stream=stream, json=True)
    yield stream
    structlog.configure(**before)


def lines(log: io.StringIO, event: str) -> list[Any]:
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


# --- half a request -------------------------------------------------------------------


async def test_a_half_sent_request_is_closed(monkeypatch, health):
    monkeypatch.setattr(serving, "IDLE_S", 0.3)
    async with served(health) as clients, asyncio.timeout(5):
        for data in (b"", b"GE", HALF):
            await clients.send(data)
        await asyncio.sleep(0.15)
        clients.open[2][1].write(b"X-More: ")  # a byte now and then does not help
        for reader, writer in clients.open:
            assert await reader.read() == b""
            writer.close()


async def test_a_half_sent_body_is_a_408(monkeypatch, health: Health):
    monkeypatch.setattr(serving, "BODY_S", 0.2)
    async with served(health) as clients:
        head = (
            b"PUT /logspec HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20\r\n\r\n{"
        )
        reader = await clients.send(head)
        async with asyncio.timeout(5):
            assert b" 408 " in await reader.readline()


# --- many connections -----------------------------------------------------------------


async def test_one_source_has_a_bounded_number_of_connections(
    monkeypatch, health: Health
):
    monkeypatch.setattr(serving.Listener, "most_of_source", 8)
    async with served(health) as clients:
        for _ in range(50):
            await clients.send(HALF)
        await eventually(lambda: clients.closed == 42)
        # All loopback addresses are one source: the oldest idle connection makes room.
        assert await clients.healthz("127.0.0.2") == 200
        await eventually(lambda: clients.closed == 44)


async def test_all_sources_together_have_a_bounded_number(monkeypatch, health: Health):
    monkeypatch.setattr(serving.Listener, "most", 20)
    async with served(health) as clients:
        for number in range(100):
            await clients.send(HALF, f"127.0.0.{10 + number % 50}")
        await eventually(lambda: clients.closed == 80)
        assert await clients.healthz() == 200


async def test_bodies_that_do_not_come_make_room(monkeypatch, health: Health):
    monkeypatch.setattr(serving.Listener, "most", 4)
    head = b"PUT /logspec HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n"
    async with served(health) as clients:
        for _ in range(20):
            await clients.send(head)
        await eventually(lambda: clients.closed == 16)
        assert await clients.healthz() == 200


async def test_a_connection_is_good_for_one_request(health: Health):
    """Hundreds of requests in one packet are not queued."""
    request = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    async with served(health) as clients, asyncio.timeout(5):
        reader = await clients.send(request * 100)
        assert (await reader.read()).count(b"HTTP/1.1 200") == 1


async def test_a_request_in_progress_is_not_closed_for_others(
    monkeypatch, health: Health
):
    monkeypatch.setattr(serving.Listener, "most", 2)
    async with served(health) as clients:
        begun = asyncio.Event()

        class Parts:
            def checks(self) -> Any:
                return {"docker": self.hangs}

            async def hangs(self) -> None:
                begun.set()
                await asyncio.Event().wait()

        health.parts = cast("Any", Parts())
        asked = [asyncio.ensure_future(clients.healthz()) for _ in range(2)]
        await begun.wait()
        await asyncio.sleep(0.1)
        for _ in range(20):
            await clients.send(HALF)
        await eventually(lambda: clients.closed == 20)
        assert await asyncio.gather(*asked) == [503, 503]


# --- the log --------------------------------------------------------------------------


async def test_no_free_descriptor_is_logged_once_and_passes(
    monkeypatch, log: io.StringIO, health: Health
):
    monkeypatch.setattr(serving, "RETRY_S", 0.05)
    async with served(health) as clients:
        assert await clients.healthz() == 200
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        task = asyncio.ensure_future(clients.healthz())
        free = os.dup(0)
        os.close(free)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))
            await asyncio.sleep(0.5)
            assert not task.done()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert await task == 200
        (line,) = lines(log, "connections are not accepted")
        assert "Too many open files" in line["error"]


async def test_malformed_requests_write_kilobytes(log: io.StringIO, health: Health):
    async with served(health) as clients:

        async def send() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", clients.port)
            writer.write(b"GET / HTTP/9.x\r\nnonsense\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

        for _ in range(60):
            await asyncio.gather(*(send() for _ in range(50)))
        assert await clients.healthz() == 200
        assert 0 < len(log.getvalue()) < 64 * 1024


async def test_tls_handshakes_that_do_not_end_make_room(
    monkeypatch, tmp_path, health: Health
):
    from chaindock.identity.ca import TlsAuthority

    monkeypatch.setattr(serving.Listener, "most", 4)
    pair = TlsAuthority().issue_server("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text(pair.cert_pem)
    key.write_text(pair.key_pem)
    options = {"tls": True, "cert_file": cert, "key_file": key}
    async with served(health, **options) as clients:
        for _ in range(20):
            await clients.send(b"\x16\x03\x01")
        await eventually(lambda: clients.closed >= 16)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"https://127.0.0.1:{clients.port}/healthz", ssl=False) as got,
        ):
            assert got.status == 200
