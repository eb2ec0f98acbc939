"""Listen with bounds on how many connections there are and how long each may be idle.

Beyond the bounds, the oldest connection without a request in progress makes room for a
new one; if there is none, the new connection is closed.
Source: docs/security.md
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from aiohttp import web

from chaindock.aio import Tasks
from chaindock.errors import is_retryable
from chaindock.telemetry import RateLimitedLog, get_logger

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence

    from chaindock.operations.answers import Handler

_log = get_logger("operations")
IDLE_S: Final = 10.0
"""Seconds after which a TLS handshake, or a connection without a whole request, ends."""
RETRY_S: Final = 1.0
"""Seconds without accepting after the system had no descriptor or memory for one."""
AT_ONCE: Final = 8
"""Connections accepted before other work of the loop has its turn."""
BACKLOG: Final = 1024
"""Connections that wait to be accepted; a Unix socket refuses one more at once."""


@dataclass(eq=False)
class _Connection:
    sock: socket.socket
    source: str
    connecting: asyncio.Task[None] | None = None
    transport: asyncio.Transport | None = None

    def close(self) -> None:
        """Close it at once; a request that is not in progress yet never will be."""
        if self.transport is not None:
            self.transport.abort()
        elif self.connecting is not None:
            self.connecting.cancel()

    def ended(self, _connecting: asyncio.Task[None]) -> None:
        """Close the socket if it was not connected to the server."""
        if self.transport is None:
            self.sock.close()


class Listener:
    """Serves `app` on bound sockets while it is entered, and closes them then.

    Requests in progress get `close_s` at the end; `context` is for TLS.
    """

    most, most_of_source = 256, 64
    """Bounds of connections, in all and of one client address."""

    def __init__(
        self,
        app: web.Application,
        sockets: Sequence[socket.socket],
        close_s: float,
        context: ssl.SSLContext | None = None,
    ) -> None:
        app.middlewares.append(self._note)  # what others await is not in progress
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=close_s,
            keepalive_timeout=IDLE_S,
        )
        self._sockets, self._context = sockets, context
        self._open: list[_Connection] = []
        self._busy: set[object] = set()
        self._tasks = Tasks("listener")
        self._log = RateLimitedLog(_log, most=1)

    async def __aenter__(self) -> Self:
        for sock in self._sockets:
            sock.setblocking(False)
            sock.listen(BACKLOG)
        await self._runner.setup()
        for sock in self._sockets:
            _ = self._tasks.start(self._accept(sock), "accept")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.aclose()
        for sock in self._sockets:
            sock.close()
        await self._runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Note that a request is in progress."""
        transport = request.transport or request
        self._busy.add(transport)
        try:
            return await handler(request)
        finally:
            self._busy.discard(transport)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)  # sock_accept does not wait while clients do
            try:
                sock, peer = await loop.sock_accept(listening)
            except OSError as error:
                event = "connections are not accepted"
                self._log.say("accept", _log.error, event, error=str(error))
                await asyncio.sleep(RETRY_S if is_retryable(error) else 0)
                continue
            connection = _Connection(sock, peer[0] if peer else "")
            if self._has_room(connection.source):
                self._open.append(connection)
                task = self._tasks.start(self._connect(connection), "connect")
                task.add_done_callback(connection.ended)
                connection.connecting = task
            else:
                sock.close()

    async def _connect(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        server = self._runner.server
        assert server is not None  # noqa: S101  # it is set up
        with contextlib.suppress(OSError):  # the client left, or does not speak TLS
            connection.transport, _ = await loop.connect_accepted_socket(
                server,
                connection.sock,
                ssl=self._context,
                ssl_handshake_timeout=None if self._context is None else IDLE_S,
            )

    def _has_room(self, source: str) -> bool:
        self._open = [one for one in self._open if one.sock.fileno() >= 0]
        crowd = [one for one in self._open if one.source == source]
        if len(crowd) < self.most_of_source:
            crowd = self._open
            if len(crowd) < self.most:
                return True
        idle = next((one for one in crowd if one.transport not in self._busy), None)
        if idle is None:
            return False
        self._open.remove(idle)
        idle.close()
        return True


async def bind(host: str, port: int) -> list[socket.socket]:
    """Return a bound socket for each address of `host`; "" = all of this machine.

    Raises: OSError. OverflowError.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        asyncio.Protocol, host or None, port, start_serving=False
    )
    try:
        return [sock.dup() for sock in server.sockets]
    finally:
        server.close()
