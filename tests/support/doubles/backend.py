"""What an implementation of the container contracts provides to be tried.

Owns:    Backend; the listener and the attempts that suites look at.
Not:     the trials themselves (conformance.py).
Entry:   Backend
Holds:   whatever differs between implementations is a method of Backend.
Source:  container/contracts.py
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import PeerConnection
from support.doubles.scripts import ScriptPackages

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from chaindock.container.attempt import Event
    from chaindock.container.contracts import Builder, Exit, Instance
    from chaindock.packaging.store import StoredPackage
    from support.doubles.scripts import Act


class CountingListener:
    """A CallbackListener that takes connections and counts them."""

    def __init__(self) -> None:
        self.connections = 0
        self._servers: dict[str, asyncio.Server] = {}
        self._called = asyncio.Event()

    async def address_on(self, host: str, *names: str) -> str:
        """Listen on `host` once and return host:port."""
        if host not in self._servers:
            # Cancelled while it begins to serve, it is known and will be closed.
            server = await asyncio.start_server(
                self._take, host, 0, start_serving=False
            )
            self._servers[host] = server
            await server.start_serving()
        return f"{host}:{self._servers[host].sockets[0].getsockname()[1]}"

    async def serve(self, listener: socket.socket, most: int, *names: str) -> None:
        """Take the connections to a socket that a sandbox has made."""
        async with await asyncio.start_server(self._take, sock=listener) as server:
            await server.serve_forever()

    async def called(self) -> None:
        """Wait for the first connection."""
        await self._called.wait()

    async def _take(
        self, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        self._called.set()
        writer.close()

    async def aclose(self) -> None:
        """Stop listening."""
        for server in self._servers.values():
            server.close()
            await server.wait_closed()


class WatchedAttempt(Attempt):
    """An Attempt that keeps everything it was told."""

    def __init__(self, package: StoredPackage) -> None:
        super().__init__(package.ccid)
        self.lines: list[tuple[str, str]] = []
        self.entered: list[str] = []
        self._heard = asyncio.Event()
        self.watch(self._keep)

    def _keep(self, event: Event) -> None:
        if event.kind == "phase":
            self.entered.append(event.data["phase"])
        if event.kind == "output" and len(self.lines) < 1000:
            self.lines.append((event.data["stream"], event.data["line"]))
        self._heard.set()

    def of(self, stream: str) -> list[str]:
        """Return the lines of `stream` (build, stdout, stderr)."""
        return [line for name, line in self.lines if name == stream]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after each event."""
        while not condition():
            self._heard.clear()
            await self._heard.wait()


class Backend(ABC):
    """One implementation, ready to be tried.

    Args:
        folder: private to this backend; builders of it share what is there.
    """

    patience_s: float = 20.0
    salt: str | None = None
    """What makes equal scripts of `built` equal packages; None = each is built anew."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node_id = uuid.uuid4().hex[:12]
        self.packages = ScriptPackages(folder / "packages")
        self.listener = CountingListener()
        self._open: list[Builder] = []

    @abstractmethod
    async def open_builder(self, node_id: str) -> Builder:
        """Return a builder of node `node_id`, entered; all share the same store."""

    @abstractmethod
    async def close_builder(self, builder: Builder) -> None:
        """Leave a builder as a node does that ends; nothing it ran goes on."""

    @abstractmethod
    async def abandon(self, builder: Builder) -> None:
        """Drop a builder as if its node had been killed: what it ran goes on."""

    @abstractmethod
    async def owned(self, node_id: str) -> set[str]:
        """Return what exists of a node now: everything that runs, or is half made.

        Not what a finished build leaves for reuse. The number of names must depend on
        the number of runs alone (not on how many processes one has just now).
        """

    @abstractmethod
    async def signal(self, instance: Instance, number: int) -> None:
        """Send a signal to the running chaincode, from outside."""

    @property
    def peer(self) -> PeerConnection:
        """What instances are told about the node: no TLS."""
        return PeerConnection(self.listener, "DevMSP")

    async def builder(self, node_id: str | None = None) -> Builder:
        """Open a builder that is closed at the end."""
        builder = await self.open_builder(node_id or self.node_id)
        self._open.append(builder)
        return builder

    async def lose(self, builder: Builder) -> None:
        """Abandon a builder that `builder` opened."""
        self._open.remove(builder)
        await self.abandon(builder)

    async def built(
        self, *acts: Act, builder: Builder | None = None, serves: bool = False
    ) -> tuple[Instance, StoredPackage]:
        """Build a package that does `acts` when it runs."""
        package = await self.packages.make(*acts, serves=serves, salt=self.salt)
        builder = builder or await self.builder()
        return await built(builder, package), package

    def within(self) -> asyncio.Timeout:
        """Return a time limit for one act."""
        return asyncio.timeout(self.patience_s)

    async def until_gone(self, node_id: str | None = None) -> None:
        """Wait until nothing of the node exists; fail when that takes too long."""
        left: set[str] = set()
        end = time.monotonic() + self.patience_s
        while time.monotonic() < end:
            left = await self.owned(node_id or self.node_id)
            if not left:
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"still there: {sorted(left)}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for builder in self._open:
            await self.close_builder(builder)
        await self.listener.aclose()


async def built(
    builder: Builder, package: StoredPackage, attempt: Attempt | None = None
) -> Instance:
    """Return the instance."""
    return await builder.build(package, attempt or Attempt(package.ccid))


def ended_by(result: Exit, signal: int) -> bool:
    """Tell whether a signal ended the run; engines report it as 128 + number."""
    return result.signal == signal or result.code == 128 + signal


@contextlib.asynccontextmanager
async def in_background(
    work: Coroutine[Any, Any, Any],
) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a coroutine beside the block; cancel it at the end, and wait for that."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
