"""What both HTTP servers share: answers in JSON, errors as answers, the server itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from chaindock import telemetry
from chaindock.errors import ChaindockError, Code, InvalidInput, NotFound
from chaindock.operations import wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AsyncExitStack

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = telemetry.get_logger("operations")
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


def reply(body: Any, status: int = 200) -> web.Response:
    """Return `body` as JSON."""
    return web.json_response(body, status=status)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer with `ChaindockError.as_dict()` when a handler raises."""
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


async def enter_server(
    stack: AsyncExitStack, app: web.Application, close_s: float
) -> web.AppRunner:
    """Return a runner of `app`; when `stack` ends, requests get `close_s` to finish."""
    runner = web.AppRunner(
        app, access_log=None, handler_cancellation=True, shutdown_timeout=close_s
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    return runner


async def read_json(request: web.Request) -> Any:
    """Return the body; an empty body is {}. Raises: InvalidInput: not JSON."""
    try:
        return json.loads(await request.read() or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidInput("the body of the request is not JSON") from error


async def change_levels(request: web.Request) -> None:
    """Put the logging specification of the body, {"spec": "LEVELS"}, in force.

    Raises: InvalidInput with what was expected; nothing was changed.
    """
    try:
        spec = json.loads(await request.read())["spec"]
    except (ValueError, KeyError, TypeError, RecursionError):
        spec = None
    if not isinstance(spec, str):
        raise InvalidInput("the body has no `spec`", hint='expected {"spec": "LEVELS"}')
    telemetry.activate(spec)
    _log.info("logging specification changed", spec=telemetry.active())
