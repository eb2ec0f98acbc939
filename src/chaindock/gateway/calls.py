"""Run the calls of clients: each within the limits of its service and of all together.

Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from chaindock.errors import ChaindockError
from chaindock.gateway.intake import SLOW_S, Intake
from chaindock.gateway.outlet import Outlet
from chaindock.gateway.statuses import Refusal, fitting
from chaindock.rpc.frames import Bundle
from chaindock.rpc.status import CallEnded, Status
from chaindock.rpc.stream import Stream as Incoming
from chaindock.telemetry import get_logger

_log = get_logger("gateway")


@dataclass
class Service:
    """One gRPC service of one peer.

    A method ends its call with a status by raising `Refusal` or a ChaindockError.

    Args:
        name: with its package, e.g. `gateway.Gateway`.
        unary, streams, feeds: its methods by name.
        limit: most calls at once; 0 = no limit.
    """

    name: str
    unary: Mapping[str, Unary] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)
    feeds: Mapping[str, Feed] = field(default_factory=dict)
    limit: int = 0
    running: int = 0

    def enter(self) -> None:
        """Count a call among those that run. Raises: Refusal: they are too many."""
        if self.limit and self.running >= self.limit:
            raise Refusal(
                Status.UNKNOWN,
                f"too many requests for /{self.name}, exceeding concurrency limit "
                f"({self.limit})",
            )
        self.running += 1


@dataclass(frozen=True)
class Desk:
    """What bounds the calls of all clients together."""

    intake: Intake = field(default_factory=Intake)
    outlet: Outlet = field(default_factory=Outlet)


class Call:
    """A call as methods see it.

    Only one that has sent a request counts: others would leave no place for it. It counts
    until its response has been sent, which is when its task is over.

    Attributes:
        certificate: what the client has shown, DER; None = nothing.
    """

    def __init__(
        self, service: Service, desk: Desk, stream: Incoming, limit_s: float | None
    ) -> None:
        self._service, self._desk, self._stream = service, desk, stream
        self._limit_s, self._counts = limit_s, False
        self._source = stream.connection.source
        self.certificate = stream.connection.certificate

    def over(self) -> None:
        """Count it no more."""
        if self._counts:
            self._service.running -= 1

    async def read(self) -> Any:
        """Return the next request, None at the end. Raises: CallEnded."""
        request = await self._desk.intake.read(
            self._stream, self._source, self._limit_s
        )
        if not self._counts:
            self._service.enter()
            self._counts = True
        return request

    async def write(self, message: bytes | Bundle) -> None:
        """Send a response, or several. Raises: CallEnded."""
        await self._desk.outlet.write(self._stream, message, self._source)

    async def answer(self, method: Unary | Feed) -> bytes | None:
        """Give a method the only request of the call, and return its response, if any."""
        requests = [await self.read()]
        if requests[0] is None:
            raise Refusal(Status.INTERNAL, "grpc: the request is missing")
        with self._desk.intake.held(len(requests[0])):
            # The method alone has the bytes, and drops them when it has read them.
            response = await method(requests.pop(), self)
        if response is not None:
            await self._desk.outlet.answer(len(response), self._source)
        return response


Unary: TypeAlias = Callable[[bytes, Call], Awaitable[bytes]]
"""Takes a serialised request and returns the response."""
Feed: TypeAlias = Callable[[bytes, Call], Awaitable[None]]
"""Takes a serialised request, and writes responses with `context.write()`."""
Stream: TypeAlias = Callable[[Call], Awaitable[None]]
"""Reads requests with `context.read()` (None at the end), writes responses with
`context.write()`; all are serialised."""
Methods: TypeAlias = Unary | Feed | Stream


async def run(
    service: Service, desk: Desk, method: Methods, stream: Incoming, *, reads: bool
) -> bytes | None:
    """Serve a call of a method; return the response that is left to send, if any.

    `reads`: the method reads the requests of its call itself. Raises: CallEnded.
    """
    call = Call(service, desk, stream, None if reads else SLOW_S)
    try:
        if reads:
            await cast("Callable[[Call], Awaitable[None]]", method)(call)
            return None
        return await call.answer(cast("Unary | Feed", method))
    except ChaindockError as error:
        code = getattr(Status, error.code.name)
        raise CallEnded(code, fitting(error.message)) from None
    except (asyncio.CancelledError, CallEnded):
        raise
    except Exception as error:  # noqa: BLE001  # a defect: others are served on
        _log.exception("call of a client failed", service=service.name)
        text = f"unexpected {type(error).__name__}; this is a defect of Chaindock"
        raise CallEnded(Status.INTERNAL, text) from None
    finally:
        call.over()
