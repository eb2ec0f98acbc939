"""What both HTTP servers share: answers in JSON, errors as answers, requests in progress.

Every client gets an answer, also when the server stops.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from aiohttp import web

from chaindock import telemetry
from chaindock.errors import (
    ChaindockError,
    Code,
    Denied,
    InvalidInput,
    NodeStopping,
    NotFound,
)
from chaindock.operations import wire
from chaindock.options import option
from chaindock.values import MIB, Bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

T = TypeVar("T")
BODY_S: Final = 30.0
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
    """Limits of the admin API.

    Args:
        max_call_bytes: of the JSON body of a call (arguments are base64 in it).
        close_s: seconds that open requests get when the node stops.
    """

    max_package_bytes: Bytes = option(100 * MIB, "chaindock.package.size")
    max_call_bytes: int = 160 * MIB
    close_s: float = 2.0


def reply(body: Any, status: int = 200) -> web.Response:
    """Return `body` as JSON; values of dataclasses may be in it."""
    return web.json_response(body, status=status, dumps=_dumps)


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
    body = await read_body(request)
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
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

    async def close(self) -> None:
        """Refuse new requests, wait `close_s` for running ones, then cancel these."""
        self.closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._close_s)
        for task in tuple(self._tasks):
            task.cancel()
