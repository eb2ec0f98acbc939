"""Run the calls of clients: each within the limits of its service and of all together.

Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import grpc.aio

from chaindock.chaincode.crowd import Crowd
from chaindock.errors import ChaindockError
from chaindock.gateway.intake import SLOW_S, Intake
from chaindock.gateway.outlet import Outlet
from chaindock.gateway.statuses import Refusal, Status, fitting
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """A call whose first request has arrived, as methods see it: all they use of it."""

    def __init__(self, desk: Desk, context: Context, first: Any) -> None:
        self._desk, self._context, self._first = desk, context, [first]
        self.source = context.peer()
        self.auth_context = context.auth_context

    @property
    def desk(self) -> Desk:
        return self._desk

    async def read(self) -> Any:
        if self._first:
            return self._first.pop()
        return await self._desk.intake.read(self._context)

    async def write(self, message: bytes) -> None:
        await self._desk.outlet.write(self._context, message, self.source)


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


def _until_over(leave: Callable[[], object]) -> None:
    """Do something when the current call is over, and its response has been sent."""
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(lambda _: leave())


def bound(service: Service, desk: Desk, work: Work) -> Any:
    """Return what gRPC runs for calls of a method: a coroutine function."""
    limit_s = None if work.func is talk else SLOW_S

    async def handle(_requests: Any, context: Context) -> Any:
        return await _run(service, desk, work, limit_s, context)

    return handle


async def _run(
    service: Service,
    desk: Desk,
    work: Work,
    limit_s: float | None,
    context: Context,
) -> Any:
    """Do the work of a call within the limits of its service.

    Only a call that has sent a request counts: others would leave no place for it.
    """
    source = context.peer()
    desk.crowd.stream(source, 1)
    _until_over(partial(desk.crowd.stream, source, -1))
    try:
        call = _Call(desk, context, await desk.intake.read(context, limit_s))
        service.enter()
        _until_over(service.leave)
        return await work(call)
    except Refusal as refused:
        await context.abort(refused.code, refused.text, refused.trailers())
    except ChaindockError as error:
        await context.abort(getattr(Status, error.code.name), fitting(error.message))
    except (asyncio.CancelledError, grpc.aio.AbortError):
        raise
    except Exception as error:  # noqa: BLE001  # a defect: others are served on
        _log.exception("call of a client failed", service=service.name)
        text = f"unexpected {type(error).__name__}; this is a defect of Chaindock"
        await context.abort(Status.INTERNAL, text)
