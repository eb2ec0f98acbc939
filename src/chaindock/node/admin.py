"""Serve the admin API of a node on a Unix socket in its home.

A client that disconnects cancels its request. A client that reads slowly costs a bounded
amount of memory.
Source: docs/admin-api.md
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Self

import msgspec
from aiohttp import web

from chaindock import telemetry
from chaindock.aio import off_loop
from chaindock.durable import storing
from chaindock.endorser.caller import Answer
from chaindock.errors import InvalidInput
from chaindock.ids import Ccid, require_chaincode_name
from chaindock.lifecycle.terms import Said
from chaindock.node.channel_routes import ChannelRoutes, asked_channel, number_of
from chaindock.node.facade import Node
from chaindock.operations import wire
from chaindock.operations.address import opened_socket
from chaindock.operations.facade import Call
from chaindock.operations.serving import (
    AdminOptions,
    Inflight,
    Listener,
    change_levels,
    errors,
    read_json,
    reply,
    reply_in_pieces,
)
from chaindock.operations.stream import Tail, stream_lines, stream_work
from chaindock.values import MIB


class AdminServer:
    """The admin API while it is entered; the caller holds the lock of the home."""

    def __init__(
        self, home: Path, node: Node, options: AdminOptions | None = None
    ) -> None:
        self._home, self._node = home, node
        self._incoming = home / "incoming"
        self._options = options or AdminOptions()
        self._inflight = Inflight(self._options.close_s)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        shutil.rmtree(self._incoming, ignore_errors=True)
        async with AsyncExitStack() as stack:
            listener = stack.enter_context(opened_socket(self._home))
            await stack.enter_async_context(
                _Listener(self._application(), [listener], self._options.close_s)
            )
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _application(self) -> web.Application:
        app = web.Application(
            middlewares=[errors], client_max_size=self._options.max_call_bytes
        )

        async def close(_app: web.Application) -> None:
            await self._inflight.close()

        app.on_shutdown.append(close)
        one, node = "/chaincodes/{name}", self._node
        for method, path, handler in (
            ("GET", "/status", self._status),
            ("POST", "/shutdown", self._shutdown),
            ("POST", "/deploy", self._deploy),
            ("GET", "/chaincodes", self._ps),
            ("POST", "/chaincodes", self._deploy_dev),
            ("POST", one + "/invoke", partial(self._call, node.invoke)),
            ("POST", one + "/query", partial(self._call, node.query)),
            ("POST", one + "/compare", self._compare),
            ("POST", one + "/start", self._start),
            ("POST", one + "/stop", partial(self._end, node.stop)),
            ("DELETE", one, partial(self._end, node.remove)),
            ("GET", one + "/logs", self._logs),
            ("GET", "/packages", self._packages),
            ("DELETE", "/packages/{name}", partial(self._end, self._remove_package)),
            ("GET", "/logspec", self._logspec),
            ("PUT", "/logspec", self._logspec),
        ):
            app.router.add_route(method, path, handler)
        for method, path, look in ChannelRoutes(node, self._inflight).routes():
            app.router.add_route(method, path, look)
        return app

    async def _status(self, _request: web.Request) -> web.Response:
        return reply(self._node.status())

    async def _shutdown(self, _request: web.Request) -> web.Response:
        self._node.stopping.set()
        return reply({"stopping": True})

    async def _deploy(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("name") or None
        version = request.query.get("version") or None
        backend = request.query.get("backend") or "auto"
        init_required = _flag(request, "init")
        if name is not None:
            require_chaincode_name(name)
        said = await _said(request)
        terms = said.terms(version, init_required=init_required)
        channel = asked_channel(request)
        async with self._received(request) as package:
            return await stream_work(
                request,
                lambda watch: self._inflight.run(
                    self._node.deploy(
                        package,
                        name=name,
                        terms=terms,
                        backend=backend,
                        watch=watch,
                        channel=channel,
                    )
                ),
            )

    @asynccontextmanager
    async def _received(self, request: web.Request) -> AsyncIterator[Path]:
        """Write the body to a file that exists inside the block."""
        with ExitStack() as stack:
            with storing("cannot receive the package in", self._incoming):
                self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder = tempfile.TemporaryDirectory(dir=self._incoming)
                package = Path(stack.enter_context(folder)) / "package"
                with package.open("wb") as file:
                    await self._receive(request, file)
            yield package

    async def _receive(self, request: web.Request, file: BinaryIO) -> None:
        limit = self._options.max_package_bytes
        size = request.content_length or 0
        async for chunk in request.content.iter_chunked(1 << 20):
            size = max(size, file.tell() + len(chunk))
            if size > limit:
                raise InvalidInput(
                    f"the package has {size} bytes or more, the limit is {limit}",
                    hint="leave out what the chaincode does not need",
                )
            file.write(chunk)

    async def _ps(self, request: web.Request) -> web.Response:
        return reply({"chaincodes": self._node.ps(asked_channel(request))})

    async def _deploy_dev(self, request: web.Request) -> web.Response:
        asked = await read_json(request, _Dev, '{"dev": true, "name": NAME}')
        if not asked.dev:
            raise InvalidInput("`dev` is false: expected true, or POST /deploy")
        terms = asked.terms(asked.version, init_required=asked.init_required)
        name, channel = require_chaincode_name(asked.name), asked_channel(request)
        work = self._node.deploy_dev(name, terms, channel)
        return reply(await self._inflight.run(work))

    async def _call(
        self, act: Callable[[Call], Coroutine[Any, Any, Answer]], request: web.Request
    ) -> web.Response:
        answer = await self._inflight.run(act(await _asked(request)))
        size = answer.held.nbytes if answer.held else 0
        body = await off_loop(size, partial(wire.answer_json, answer))
        return reply_in_pieces(body, answer.held)

    async def _compare(self, request: web.Request) -> web.Response:
        work = self._node.compare(await _asked(request))
        body = msgspec.json.encode({"differences": await self._inflight.run(work)})
        return web.Response(body=body, content_type="application/json")

    async def _start(self, request: web.Request) -> web.StreamResponse:
        name, channel = _name(request), asked_channel(request)
        return await stream_work(
            request,
            lambda watch: self._inflight.run(
                self._node.start(name, watch=watch, channel=channel)
            ),
        )

    async def _end(
        self,
        act: Callable[[str, str | None], Coroutine[Any, Any, None]],
        request: web.Request,
    ) -> web.Response:
        await self._inflight.run(act(_name(request), asked_channel(request)))
        return reply({"name": _name(request)})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        name, channel = _name(request), asked_channel(request)
        self._node.log_files(name, channel)  # not found: an answer, not a stream
        await self._node.output.flush()
        tail = Tail(
            lambda: self._node.log_files(name, channel),
            previous=_flag(request, "previous"),
            over=lambda: self._inflight.closing,
        )
        return await stream_lines(
            request, tail.batches(follow=_flag(request, "follow"))
        )

    async def _packages(self, _request: web.Request) -> web.Response:
        return reply({"packages": self._node.packages.list()})

    async def _remove_package(self, package_id: str, _channel: str | None) -> None:
        await self._node.packages.remove(Ccid(package_id))

    async def _logspec(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            await change_levels(request)
        return reply({"spec": telemetry.active()})


_TERMS_BYTES: Final = MIB
"""Most bytes of the terms of a definition."""


class _Listener(Listener):
    most = most_of_source = 4096  # each call that is under way has a connection


class _CallBody(msgspec.Struct, forbid_unknown_fields=True):
    args: list[bytes] = []
    transient: dict[str, bytes] = {}
    user: str = "User1"
    attributes: dict[str, Any] = {}
    is_init: bool = False
    timeout_s: Annotated[float, msgspec.Meta(gt=0, lt=86_400)] | None = None
    org: str | None = None
    endorsers: list[str] = []


class _Dev(Said, kw_only=True, forbid_unknown_fields=False):
    name: str
    dev: bool
    version: str | None = None
    init_required: bool = False


async def _said(request: web.Request) -> Said:
    """Return the terms before the package in the body of a request."""
    length = number_of(request, "terms", 0)
    if length > _TERMS_BYTES:
        raise InvalidInput(f"terms {length}: expected 0 to {_TERMS_BYTES} bytes")
    try:
        terms = await request.content.readexactly(length)
        return msgspec.json.decode(terms or b"{}", type=Said)
    except (asyncio.IncompleteReadError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"the terms of the definition cannot be used: {error}"
        ) from error


async def _asked(request: web.Request) -> Call:
    body = await read_json(request, _CallBody, '{"args": [BASE64], …}')
    body.attributes = {key: str(one) for key, one in body.attributes.items()}
    told = msgspec.structs.asdict(body)
    return Call(_name(request), channel=asked_channel(request), **told)


def _name(request: web.Request) -> str:
    return request.match_info["name"]


def _flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in {"0", "1"}:
        raise InvalidInput(f"{name}={value!r}: expected 0 or 1")
    return value == "1"
