"""Listen for connections, and run a coroutine for each call.

What strangers can make the node hold and do is bounded: connections, those that are new in
a second, and connections without a call once there are many.
Source: docs/fabric/gateway.md#servers, docs/adr/0011-own-transport.md
"""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from chaindock.aio import Tasks, readable
from chaindock.rpc.connection import Connection, Limits
from chaindock.rpc.status import CallEnded, Status
from chaindock.rpc.stream import Stream
from chaindock.rpc.tls import Channel
from chaindock.telemetry import get_logger, unbind

_log = get_logger("rpc")
MAX_CONNECTIONS: Final = 3000
"""Of a server; a quarter of the open files if that is less."""
_NEW: Final = 50
"""Connections that a server takes in `_NEW_S`: a handshake is 0.3 ms of work."""
_NEW_S: Final = 0.1
_HANDSHAKE_S: Final = 20.0
"""Fabric gives 5 s; a machine that starts many chaincodes at once may need more."""
_LOOK_S: Final = 5.0
_LOG_S: Final = 60.0
MOST_FAILURES: Final = 100
"""Handshakes that have failed of which a server remembers why."""
_CROWDED_S: Final = 15.0
"""How long a server counts as crowded after it has closed connections."""
_SOCK_DIAG, _BY_FAMILY = 4, 20
"""Of linux/netlink.h and linux/sock_diag.h."""
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
"""Of a deadline, as gRPC writes it."""


class Arrivals:
    """What servers have seen of connections that brought no call."""

    def __init__(self) -> None:
        self._failed: deque[tuple[float, str]] = deque(maxlen=MOST_FAILURES)
        self._closed_at = self._logged_at = float("-inf")

    def failed(self, why: str) -> None:
        """Take note of a handshake that failed."""
        self._failed.append((_now(), why))

    def in_vain(self, since: float) -> list[str]:
        """Return why handshakes have failed since then, in seconds, monotonic."""
        return [why for at, why in self._failed if at >= since]

    def clear(self) -> None:
        """Remove the failed handshakes that are recorded."""
        self._failed.clear()

    def crowded(self) -> bool:
        """Whether connections were closed for want of room a moment ago."""
        return _now() - self._closed_at < _CROWDED_S

    def closed(self, sources: Counter[str]) -> None:
        """Take note of connections that were closed for want of room."""
        self._closed_at = _now()
        if self._closed_at - self._logged_at > _LOG_S:
            self._logged_at = self._closed_at
            largest = dict(sources.most_common(3))
            _log.warning("closed connections without a stream, too many", of=largest)


@dataclass(frozen=True)
class _Guest:
    """Of an accepted connection; `source` is an address, or a user of this machine."""

    socket: socket.socket
    source: str


@dataclass
class Server:
    """Serves the calls of others, until `aclose`."""

    call: Callable[[Stream], Awaitable[bytes | None]]
    """Serves one call, and returns the last message of the answer, if any; it may end
    the call by raising CallEnded. Cancelled when the other side has left."""
    limits: Limits
    tls: Callable[[], ssl.SSLContext] | None = None
    """Returns the context for the next connection; None = without TLS."""
    arrivals: Arrivals = field(default_factory=Arrivals)

    def __post_init__(self) -> None:
        self._tasks = Tasks("server")
        self._guests: dict[Connection, _Guest] = {}
        _ = self._tasks.start(self._look(), "look")

    async def aclose(self) -> None:
        """End everything. Idempotent."""
        for connection in list(self._guests):
            for stream in list(connection.streams.values()):
                stream.finish(CallEnded(Status.UNAVAILABLE, "the server has stopped"))
            connection.close()
        await self._tasks.aclose()
        for connection, guest in list(self._guests.items()):
            connection.close()
            if connection.transport is None:  # it had only just come
                guest.socket.close()
        self._guests.clear()

    # --- connections ------------------------------------------------------------------

    def listen(self, host: str, port: int) -> int:
        """Take the connections to an address; return its port. Raises: OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
        _ = self.adopt(listener)
        bound: int = listener.getsockname()[1]
        return bound

    def adopt(self, listener: socket.socket, most: int = 0) -> asyncio.Task[None]:
        """Take the connections to a listening socket until the task is cancelled.

        `most`: connections at once, further ones wait; 0 = many, the idle ones give way.
        """
        listener.setblocking(False)
        task = self._tasks.start(self._accept(listener, most), "accept")
        task.add_done_callback(lambda _: listener.close())
        return task

    async def _accept(self, listener: socket.socket, most: int) -> None:
        loop = asyncio.get_running_loop()
        free = asyncio.Semaphore(most or sys.maxsize)
        new, pause = (most, 1.0) if most else (_NEW, _NEW_S)
        while True:
            begun = loop.time()
            for _ in range(new):
                await free.acquire()
                await readable(listener)
                try:
                    accepted, address = listener.accept()
                except OSError:  # no descriptor is free
                    free.release()
                    await asyncio.sleep(1)
                    continue
                if not most and not self._has_room():
                    accepted.close()
                    free.release()
                    continue
                connection = self._new(accepted, address)
                work = self._welcome(connection, accepted)
                task = self._tasks.start(work, "connection")
                task.add_done_callback(lambda _: free.release())
            await asyncio.sleep(max(0, begun + pause - loop.time()))

    def _new(self, accepted: socket.socket, address: object) -> Connection:
        accepted.setblocking(False)
        channel = Channel(self.tls(), None) if self.tls else None
        connection = Connection(self.limits, self._called, channel)
        if isinstance(address, tuple):
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._guests[connection] = _Guest(accepted, source_of(accepted, address))
        return connection

    async def _welcome(self, connection: Connection, accepted: socket.socket) -> None:
        """Serve a connection until it ends."""
        unbind()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted
            )
            async with asyncio.timeout(_HANDSHAKE_S):
                await connection.ready
        except (OSError, TimeoutError) as error:
            self.arrivals.failed(str(error) or "it took too long")
            connection.close()
        await connection.gone.wait()
        del self._guests[connection]

    def _has_room(self) -> bool:
        """Say whether one more has room; close idle ones but a quarter if need be.

        Each source keeps as many as the others: its newest, above all those that are
        through with their handshake.
        """
        most = most_connections()
        if len(self._guests) < most:
            return True
        kept: Counter[str] = Counter()
        ranked = []
        newest = reversed(self._guests)
        for connection in sorted(newest, key=lambda one: not one.ready.done()):
            if not connection.streams:
                source = self._guests[connection].source
                kept[source] += 1
                ranked.append((kept[source], source, connection))
        ranked.sort(key=lambda one: one[0])
        closed: Counter[str] = Counter()
        for _, source, connection in ranked[most // 4 :]:
            closed[source] += 1
            connection.abort()
        if closed:
            self.arrivals.closed(closed)
        return bool(closed)

    async def _look(self) -> None:
        """Ping who is silent, and close what is of no use any more."""
        pause = min(_LOOK_S, self.limits.ping_s / 4 or _LOOK_S)
        while True:
            await asyncio.sleep(pause)
            now = _now()
            for connection in list(self._guests):
                connection.look(now)

    # --- calls ------------------------------------------------------------------------

    def _called(self, stream: Stream) -> None:
        stream.task = self._tasks.start(self._serve(stream), "call")

    async def _serve(self, stream: Stream) -> None:
        timer = None
        try:
            if limit := stream.request.get("grpc-timeout"):
                loop = asyncio.get_running_loop()
                timer = loop.call_later(_seconds(limit), _expire, stream)
            last = await self.call(stream)
            if last is None:
                stream.finish()
            else:
                await stream.reply(last)
        except CallEnded as ended:
            stream.finish(ended)
        except Exception:
            stream.finish(CallEnded(Status.UNKNOWN, "this is a defect of Chaindock"))
            raise
        finally:
            stream.cancel()
            if timer is not None:
                timer.cancel()


def most_connections() -> int:
    """Return how many connections a server has at once."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = files == resource.RLIM_INFINITY
    return MAX_CONNECTIONS if unlimited else min(MAX_CONNECTIONS, files // 4)


def _now() -> float:
    return time.monotonic()


def _seconds(limit: str) -> float:
    """Return a deadline in seconds. Raises: CallEnded."""
    unit = _UNITS.get(limit[-1:])
    if unit is None or not limit[:-1].isdecimal() or len(limit) > 9:
        raise CallEnded(Status.INTERNAL, f"grpc-timeout {limit[:20]!r} is no time")
    return int(limit[:-1]) * unit


def _expire(stream: Stream) -> None:
    stream.finish(CallEnded(Status.DEADLINE_EXCEEDED, "Deadline Exceeded"))
    if stream.task is not None:
        stream.task.cancel()


def source_of(accepted: socket.socket, address: object) -> str:
    """Return whose connection it is: an address, or a user of this machine."""
    if not isinstance(address, tuple):
        return "unix"
    host: str = address[0]
    if host not in {"127.0.0.1", "::1"} or sys.platform != "linux":
        return host
    # Linux tells the owner of the other end of a connection by sock_diag(7).
    try:
        ends = [
            (socket.inet_pton(accepted.family, end[0]), end[1])
            for end in (accepted.getpeername(), accepted.getsockname())
        ]
        ports = struct.pack(">HH", ends[0][1], ends[1][1])
        places = b"".join(raw.ljust(16, b"\0") for raw, _ in ends)
        asked = struct.pack("BBBBI", accepted.family, socket.IPPROTO_TCP, 0, 0, 0xFFFF)
        asked += ports + places + struct.pack("III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        head = struct.pack("IHHII", 16 + len(asked), _BY_FAMILY, 1, 0, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
            kernel.send(head + asked)
            told = kernel.recv(1024)
        kind = struct.unpack_from("H", told, 4)[0]
        if kind == _BY_FAMILY:
            return f"local user {struct.unpack_from('I', told, 80)[0]}"
    except (OSError, struct.error):  # a system that forbids it
        pass
    return host
