"""What both HTTP servers share: bounded connections, answers in JSON, running requests.

Every client gets an answer, also when the server stops. Beyond the bounds of a listener,
its oldest connection without a request in progress makes room for a new one; if there is
none, the new connection is closed.
Source: docs/security.md
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self, TypeVar

import msgspec
from aiohttp import web

from chaindock import telemetry
from chaindock.aio import Tasks, off_loop
from chaindock.errors import (
    ChaindockError,
    Code,
    Denied,
    InvalidInput,
    NodeStopping,
    NotFound,
    is_retryable,
)
from chaindock.operations import wire
from chaindock.options import option
from chaindock.values import MIB, Bytes

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

T = TypeVar("T")
BODY_S: Final = 30.0
"""Seconds after which a request whose body is not whole is answered with 408."""
IDLE_S: Final = 10.0
"""Seconds after which a TLS handshake, or a connection without a whole request, ends."""
RETRY_S: Final = 1.0
"""Seconds without accepting after the system had no descriptor or memory for one."""
AT_ONCE: Final = 8
"""Connections accepted before other work of the loop has its turn."""
BACKLOG: Final = 1024
"""Connections that wait to be accepted; a Unix socket refuses one more at once."""
_PIECE_BYTES: Final = 1 << 16
_ENCODE: Final = msgspec.json.encode
_SLICE: Final = 1000
"""Entries of a list that are encoded at once."""
_START: Final = "start it again: chaindock up"
_log = telemetry.get_logger("operations")
_limited = telemetry.RateLimitedLog(_log)
_dumps = partial(json.dumps, default=vars)
_STATUS: Final = {
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 412,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.ABORTED: 409,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
    Code.UNIMPLEMENTED: 501,
    Code.DATA_LOSS: 500,
    Code.INTERNAL: 500,
}


@dataclass(frozen=True)
class AdminOptions:
    """Limits of the admin API."""

    max_package_bytes: Bytes = option(100 * MIB, "chaindock.package.size")
    max_call_bytes: int = 160 * MIB
    """Bytes of the JSON body of a call; arguments are base64 in it."""
    close_s: float = 2.0
    """Seconds that open requests get when the node stops."""


def reply(body: Any, status: int = 200) -> web.Response:
    """Return `body` as JSON; values of dataclasses may be in it."""
    return web.json_response(body, status=status, dumps=_dumps)


def encoded(value: Any) -> bytes:
    """Return JSON; encoding all of a large answer at once would stop the event loop."""
    if isinstance(value, dict):
        if any(isinstance(one, list | dict) for one in value.values()):
            items = (_ENCODE(name) + b":" + encoded(one) for name, one in value.items())
            return b"{" + b",".join(items) + b"}"
    elif isinstance(value, list):
        if len(value) < _SLICE:
            return b"[" + b",".join(map(encoded, value)) + b"]"
        starts = range(0, len(value), _SLICE)
        slices = (_ENCODE(value[start : start + _SLICE])[1:-1] for start in starts)
        return b"[" + b",".join(slices) + b"]"
    return _ENCODE(value)


def reply_in_pieces(body: Any, held: object = None) -> web.Response:
    """Return `body` as JSON, encoded while it is sent; `held` is kept until then."""

    async def pieces(_held: object) -> AsyncIterator[bytes]:
        waiting = b""
        for piece in wire.pieces(body):
            waiting += piece
            if len(waiting) > _PIECE_BYTES:
                yield waiting
                waiting = b""
        yield waiting

    return web.Response(body=pieces(held), content_type="application/json")


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with `ChaindockError.as_dict()` when a handler raises.

    A web page of another site gets no answer: browsers name the site in `Origin`.
    """
    origin = request.headers.get("Origin")
    own = f"{request.scheme}://{request.headers.get('Host')}"
    if origin not in {None, own}:
        denied = Denied(f"the Origin of the request is {origin!r}: expected {own!r}")
        return reply(denied.as_dict(), _STATUS[denied.code])
    try:
        return await handler(request)
    except ChaindockError as error:
        return reply(error.as_dict(), _STATUS[error.code])
    except web.HTTPException as error:
        kind = NotFound if error.status == 404 else InvalidInput
        told = kind(f"{request.method} {request.path}: {error.reason}")
        return reply(told.as_dict(), error.status)
    except ConnectionError:
        raise
    except Exception as error:  # noqa: BLE001  # a defect gets an answer, too
        _log.exception("request failed", path=request.path)
        return reply(wire.internal_error(error), 500)


async def read_body(request: web.Request) -> bytes:
    """Return the body. Raises: HTTPRequestTimeout: part is missing after `BODY_S`."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None


async def read_json(request: web.Request, kind: type[T], expected: str) -> T:
    """Return the body as a `kind`; an empty body is {}.

    Raises: InvalidInput: it is not JSON, not UTF-8 throughout, or no `expected`.
        HTTPRequestTimeout.
    """
    body = await read_body(request) or b"{}"
    try:
        decode = partial(msgspec.json.decode, body, type=kind)
        return await off_loop(len(body), decode)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"the body of the request cannot be used: {error}",
            hint=f"expected {expected} in UTF-8, without half of a surrogate pair",
        ) from error


class _Levels(msgspec.Struct):
    spec: str


async def change_levels(request: web.Request) -> None:
    """Put the logging specification of the body, {"spec": "LEVELS"}, in force.

    Raises: InvalidInput with what was expected; nothing was changed.
    """
    levels = await read_json(request, _Levels, '{"spec": "LEVELS"}')
    telemetry.activate(levels.spec)
    event, spec = "logging specification changed", telemetry.active()
    _limited.say("logspec", _log.info, event, spec=spec)


class Inflight:
    """The running requests of one server; they get `close_s` when the server stops."""

    def __init__(self, close_s: float) -> None:
        self._close_s = close_s
        self.closing = False
        """Whether the server stops."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns.

        Raises: what `work` raises; NodeStopping if it was cancelled, or not begun,
            because the server stops.
        Cancelled: `work` is cancelled and has ended.
        """
        if self.closing:
            work.close()
            raise NodeStopping("the node is stopping", hint=_START)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            # Was this task cancelled, because its client left, or only the work?
            own = asyncio.current_task()
            client_left = own is not None and own.cancelling() > 0
            if client_left or not task.cancelled() or not self.closing:
                raise
            raise NodeStopping(
                f"the node is stopping: the request was cancelled after "
                f"{self._close_s:g} s",
                hint=f"{_START}; look at the ledger before you submit a transaction again",
            ) from None
        finally:
            del task  # its error keeps this frame, and all that is in those below

    async def close(self) -> None:
        """Refuse new requests, wait `close_s` for running ones, then cancel these."""
        self.closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._close_s)
        for task in tuple(self._tasks):
            task.cancel()


# --- connections ---------------------------------------------------------------------


@dataclass(eq=False)
class _Connection:
    sock: socket.socket
    source: str
    connecting: asyncio.Task[None] | None = None
    transport: asyncio.Transport | None = None

    def close(self) -> None:
        """Close the connection at once; a request that has not begun never does."""
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
        self._log = telemetry.RateLimitedLog(_log, most=1)

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
            address = peer[0] if peer else ""
            local = address.startswith("127.")  # all of this machine's own are one
            connection = _Connection(sock, "127" if local else address)
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
