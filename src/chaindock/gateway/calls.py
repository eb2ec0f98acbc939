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
    from functools import partial

    from chaindock.gateway.listener import Context, Feed, Service, Stream, Unary

    Work = partial[Any]
    """One of `answer`, `feed` and `talk` with its method; takes a `_Call`."""

_log = get_logger("gateway")


@dataclass(frozen=True)
class Desk:
    """What bounds the calls of all clients together."""

    crowd: Crowd = field(default_factory=Crowd)
    intake: Intake = field(default_factory=Intake)
    outlet: Outlet = field(default_factory=Outlet)


class _Call:
    """A call as methods see it: all they use of it. It has sent its first request."""

    def __init__(self, desk: Desk, context: Context, source: str) -> None:
        self.desk, self.source, self._context = desk, source, context
        self.auth_context = context.auth_context
        self._first: list[Any] = []

    async def begin(self, limit_s: float | None) -> None:
        self._first.append(
            await self.desk.intake.read(self._context, self.source, limit_s)
        )

    async def read(self) -> Any:
        if self._first:
            return self._first.pop()
        return await self.desk.intake.read(self._context, self.source)

    async def write(self, message: bytes) -> None:
        await self.desk.outlet.write(self._context, message, self.source)


async def answer(method: Unary, call: _Call) -> bytes:
    """Return the response to the request of a call."""
    response: bytes = await feed(method, call)
    await call.desk.outlet.answer(len(response), call.source)
    return response


async def feed(method: Unary | Feed, call: _Call) -> Any:
    """Give a method the only request of a call."""
    requests = [await call.read()]
    if requests[0] is grpc.aio.EOF:
        raise Refusal(Status.INTERNAL, "grpc: the request is missing")
    with call.desk.intake.held(len(requests[0])):
        # The method alone has the bytes, and drops them when it has read them.
        return await method(requests.pop(), cast("Context", call))


async def talk(method: Stream, call: _Call) -> None:
    """Let a method read the requests of a call."""
    await method(cast("Context", call))


def bound(service: Service, desk: Desk, work: Work) -> Any:
    """Return what gRPC runs for calls of a method: a coroutine function.

    Only a call that has sent a request counts: others would leave no place for it. It
    counts until its response has been sent, which is when its task is over.
    """
    limit_s = None if work.func is talk else SLOW_S

    async def handle(_requests: Any, context: Context) -> Any:
        task, source, counts = asyncio.current_task(), context.peer(), False

        def over(_: object) -> None:
            desk.crowd.stream(source, -1)
            if counts:
                service.leave()

        desk.crowd.stream(source, 1)
        assert task is not None  # noqa: S101  # gRPC makes one for each call
        task.add_done_callback(over)
        try:
            call = _Call(desk, context, source)
            await call.begin(limit_s)
            service.enter()
            counts = True
            return await work(call)
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
