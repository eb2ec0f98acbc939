"""A server of some calls, each of which does one thing that a transport can get wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from chaindock.rpc.connection import Limits
from chaindock.rpc.frames import Bundle
from chaindock.rpc.server import Server
from chaindock.rpc.status import CallEnded, Status
from chaindock.values import MIB

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from chaindock.rpc.stream import Stream

LIMITS = Limits(100 * MIB, 100 * MIB, streams=1000)
DETAILS = (("grpc-status-details-bin", b"\0\xff details"), ("x-plain", b"plain"))


class Calls:
    """An async context manager; `port` is where it listens.

    Attributes:
        begun, cancelled: calls of `Wait` so far.
        heard: headers of the last call.
    """

    def __init__(
        self, limits: Limits = LIMITS, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        self._limits, self._tls = limits, tls
        self.begun = self.cancelled = 0
        self.heard: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        self.server = Server(self._serve, self._limits, self._tls)
        self.port = self.server.listen("127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.aclose()

    @property
    def open(self) -> int:
        """How many calls run."""
        guests = self.server._guests
        return sum(len(connection.streams) for connection in guests)

    async def _serve(self, stream: Stream) -> bytes | None:
        self.heard = dict(stream.request)
        name = stream.request[":path"].rpartition("/")[2]
        called = {
            "Echo": _echo,
            "Each": _each,
            "Pour": _pour,
            "Fail": _fail,
            "Break": _break,
            "Wait": self._wait,
            "Rest": _rest,
        }
        if name not in called:
            raise CallEnded(Status.UNIMPLEMENTED, f"unknown method {name}")
        return await called[name](stream)

    async def _wait(self, _stream: Stream) -> bytes | None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return None


async def _echo(stream: Stream) -> bytes | None:
    message = await stream.read()
    return b"nothing" if message is None else bytes(message)


async def _each(stream: Stream) -> bytes | None:
    while (message := await stream.read()) is not None:
        await stream.write(bytes(message))
    return None


async def _pour(stream: Stream) -> bytes | None:
    """Send as many messages of as many bytes as asked for, in words; or bundles of some."""
    count, size, *some = map(int, bytes(await stream.read() or b"0 0").split())
    message = Bundle([bytes(size)] * some[0]) if some else bytes(size)
    for _ in range(count):
        await stream.write(message)
    return None


async def _fail(stream: Stream) -> bytes | None:
    await stream.read()
    raise CallEnded(Status.ABORTED, "100 % über\nlines", DETAILS)


async def _break(stream: Stream) -> bytes | None:
    """Be cancelled, by this side."""
    await stream.read()
    assert stream.task is not None
    stream.task.cancel()
    await asyncio.sleep(1)
    return None


async def _rest(stream: Stream) -> bytes | None:
    """Answer at once; more of the request follows."""
    await stream.read()
    return b"enough"
