"""Run the calls of clients: each within the limits of its service and of all together.

Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import grpc.aio

from chaindock.chaincode.crowd import Crowd
from chaindock.errors import ChaindockError
from chaindock.gateway.intake import SLOW_S, Intake
from chaindock.gateway.outlet import Outlet
from chaindock.gateway.statuses import Refusal, Status, fitting
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from chaindock.gateway.listener import Context, Feed, Service, Stream, Unary

_log = get_logger("gateway")


@dataclass(frozen=True)
class Desk:
    """What bounds the calls of all clients together."""

    crowd: Crowd = field(default_factory=Crowd)
    intake: Intake = field(default_factory=Intake)
    outlet: Outlet = field(default_factory=Outlet)


class _Call:
    """A call as methods see it: all they use of it.

    Only one that has sent a request counts: others would leave no place for it. It counts
    until its response has been sent, which is when its task is over.
    """

    def __init__(
        self, service: Service, desk: Desk, context: Context, limit_s: float | None
    ) -> None:
        self._service, self._desk, self._context = service, desk, context
        self._limit_s, self._counts = limit_s, False
        self.source, self.auth_context = context.peer(), context.auth_context
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # gRPC makes one for each call
        desk.crowd.stream(self.source, 1)
        task.add_done_callback(self._over)

    def _over(self, _: object) -> None:
        self._desk.crowd.stream(self.source, -1)
        if self._counts:
            self._service.running -= 1

    async def read(self) -> Any:
        request = await self._desk.intake.read(
            self._context, self.source, self._limit_s
        )
        if not self._counts:
            self._service.enter()
            self._counts = True
        return request

    async def write(self, message: bytes) -> None:
        await self._desk.outlet.write(self._context, message, self.source)

    async def answer(self, method: Unary | Feed) -> bytes | None:
        """Give a method the only request of the call, and return its response, if any."""
        requests = [await self.read()]
        if requests[0] is grpc.aio.EOF:
            raise Refusal(Status.INTERNAL, "grpc: the request is missing")
        with self._desk.intake.held(len(requests[0])):
            # The method alone has the bytes, and drops them when it has read them.
            response = await method(requests.pop(), cast("Context", self))
        if response is not None:
            await self._desk.outlet.answer(len(response), self.source)
        return response


def bound(
    service: Service, desk: Desk, method: Unary | Feed | Stream, *, reads: bool
) -> Any:
    """Return what gRPC runs for calls of a method: a coroutine function.

    `reads`: the method reads the requests of its call itself.
    """

    async def handle(_requests: Any, context: Context) -> Any:
        call = _Call(service, desk, context, None if reads else SLOW_S)
        try:
            if reads:
                return await cast("Stream", method)(cast("Context", call))
            return await call.answer(cast("Unary | Feed", method))
        except Refusal as refused:
            await context.abort(refused.code, refused.text, refused.trailers())
        except ChaindockError as error:
            code = getattr(Status, error.code.name)
            await context.abort(code, fitting(error.message))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001  # a defect: others are served on
            _log.exception("call of a client failed", service=service.name)
            text = f"unexpected {type(error).__name__}; this is a defect of Chaindock"
            await context.abort(Status.INTERNAL, text)

    return handle
