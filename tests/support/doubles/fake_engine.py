"""A tiny HTTP server on a unix socket that plays a container engine's faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    Reply = Callable[["Request"], Awaitable[None]]

VERSION = {"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Arch": "amd64"}


class Request:
    """One request and the way to answer it."""

    def __init__(
        self, line: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.method, self.path, _ = line.split(" ", 2)
        self.reader, self.writer = reader, writer

    async def answer(
        self, status: int, body: bytes, content_type: str = "application/json"
    ) -> None:
        """Send a whole answer."""
        self.writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\n"
            f"Api-Version: 1.41\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
            + body
        )
        await self.writer.drain()

    async def go_on(self) -> None:
        """Ask for the body, as engines do once they read it."""
        self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await self.writer.drain()

    async def json(self, value: Any, status: int = 200) -> None:
        """Send a JSON answer."""
        await self.answer(status, json.dumps(value).encode())

    async def stream(self, *parts: bytes, open_after: bool = False) -> None:
        """Send an answer that ends with the connection, or never."""
        self.writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
        if open_after:
            await self.reader.read()


class FakeEngine:
    """Answers /_ping and /version; the rest is what a test says.

    `replies` maps "METHOD last-part-of-path" to what happens.
    """

    def __init__(self, replies: Mapping[str, Reply]) -> None:
        self._replies = {"GET version": _version, "GET _ping": _ping, **replies}
        self.seen: list[str] = []
        self._open: dict[asyncio.StreamWriter, asyncio.Task[Any] | None] = {}

    async def aclose(self) -> None:
        """Hang up on everybody."""
        tasks = [task for task in self._open.values() if task]
        for writer in list(self._open):
            writer.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def handle(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one connection: one request."""
        self._open[writer] = asyncio.current_task()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            request = Request(head.split("\r\n", 1)[0], reader, writer)
            self.seen.append(f"{request.method} {request.path}")
            name = request.path.partition("?")[0].rstrip("/").rpartition("/")[2]
            reply = self._replies.get(f"{request.method} {name}", _unknown)
            await reply(request)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        del self._open[writer]


async def _version(request: Request) -> None:
    await request.json(VERSION)


async def _ping(request: Request) -> None:
    await request.answer(200, b"OK", "text/plain")


async def _unknown(request: Request) -> None:
    await request.json({"message": f"no page {request.path}"}, 404)


@contextlib.asynccontextmanager
async def fake_engine(
    socket: Path, replies: Mapping[str, Reply] | None = None
) -> AsyncIterator[FakeEngine]:
    """Serve on `socket`."""
    engine = FakeEngine(replies or {})
    server = await asyncio.start_unix_server(engine.handle, socket)
    try:
        yield engine
    finally:
        server.close()
        await engine.aclose()
