"""Run the calls of clients: each within the limits of its service and of all together.

Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from chaindock.errors import ChaindockError
from chaindock.gateway.intake import SLOW_S, Intake
from chaindock.gateway.outlet import Outlet
from chaindock.gateway.statuses import Refusal, fitting
from chaindock.rpc.status import CallEnded, Status
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chaindock.gateway.listener import Feed, Methods, Service, Unary
    from chaindock.rpc.stream import Stream

_log = get_logger("gateway")


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
        self, service: Service, desk: Desk, stream: Stream, limit_s: float | None
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

    async def write(self, *messages: bytes) -> None:
        """Send responses. Raises: CallEnded."""
        await self._desk.outlet.write(self._stream, messages, self._source)

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


async def run(
    service: Service, desk: Desk, method: Methods, stream: Stream, *, reads: bool
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
