"""Serve the admin API of a node on a Unix socket in its home.

A client that disconnects cancels its request. A client that reads slowly costs a bounded
amount of memory.

Every body is JSON. An error is `{"error": slug, "code", "message", "hint", "facts"}`
with the HTTP status of its code. "(stream)" answers 200 and one JSON object a line
(application/x-ndjson), each with `event`.

    GET    /status                      → fields of facade.NodeStatus
    POST   /shutdown                    → {"stopping": true}; the node ends soon after
    POST   /deploy?name=&version=&backend=&init=1   body: the package file
           (stream) {"event": "phase", "phase"}
                    {"event": "phase-end", "phase", "seconds"}
                    {"event": "output", "stream", "line"}, {"event": "note", "text"}
                    {"event": "over"}
              last: {"event": "result", "result": fields of facade.Deployment}
                 or {"event": "error", "error": the error}
    GET    /chaincodes                  → {"chaincodes": [fields of facade.Running]}
    POST   /chaincodes  {"name", "version" or null, "init_required", "dev": true}
           → fields of facade.Deployment; for a program that is started by hand
    POST   /chaincodes/NAME/invoke      {"args": [base64], "transient": {K: base64},
    POST   /chaincodes/NAME/query        "user", "attributes": {K: V}, "is_init",
                                         "timeout_s"}; all optional
           → {"status", "message", "payload": base64, "tx_id", "block", "code",
              "code_name", "event": {"name", "payload": base64} or null, "refusals"}
    POST   /chaincodes/NAME/start       (stream) as /deploy
    POST   /chaincodes/NAME/stop        → {"name"}
    DELETE /chaincodes/NAME             → {"name"}
    GET    /chaincodes/NAME/logs?follow=1&previous=1
           (stream) {"event": "line", "time", "stream", "tx", "line"}
    GET    /logspec                     → {"spec"}
    PUT    /logspec                     {"spec"} → {"spec"} as it is now
    GET    /blocks                      → {"height"}
    GET    /blocks/NUMBER               → blocks.summarise
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from chaindock import telemetry
from chaindock.errors import (
    InvalidInput,
    StorageError,
)
from chaindock.ids import require_chaincode_name, require_version
from chaindock.operations import blocks, wire
from chaindock.operations.address import close_socket, open_socket
from chaindock.operations.answers import (
    change_levels,
    enter_server,
    errors,
    read_json,
    reply,
)
from chaindock.operations.inflight import Inflight
from chaindock.operations.stream import stream_lines, stream_work
from chaindock.operations.tail import Tail
from chaindock.options import option
from chaindock.values import MIB, Bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

    from chaindock.operations.facade import Answer, Call, NodeFacade

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


BACKLOG = 1024
"""Connections that wait to be accepted; a Unix socket refuses one more at once."""


@dataclasses.dataclass(frozen=True)
class AdminOptions:
    """Limits of the admin API.

    Args:
        max_call_bytes: of the JSON body of a call (arguments are base64 in it).
        close_s: seconds that open requests get when the node stops.
    """

    max_package_bytes: Bytes = option(100 * MIB, "chaindock.package.size")
    max_call_bytes: int = 160 * 1024 * 1024
    close_s: float = 2.0


class AdminServer:
    """The admin API while it is entered.

    Args:
        home: root of the home; the caller holds its lock.
        node: carries out the requests.
    """

    def __init__(
        self, home: Path, node: NodeFacade, options: AdminOptions | None = None
    ) -> None:
        self._home = home
        self._node = node
        self._options = options or AdminOptions()
        self._stack = AsyncExitStack()

    @property
    def application(self) -> web.Application:
        """A new aiohttp application with all routes."""
        app = web.Application(
            middlewares=[errors], client_max_size=self._options.max_call_bytes
        )
        inflight = Inflight(self._options.close_s)

        async def close(_app: web.Application) -> None:
            await inflight.close()

        routes = _Routes(self._node, self._home / "incoming", self._options, inflight)
        app.add_routes(routes.table())
        app.on_shutdown.append(close)
        return app

    async def __aenter__(self) -> Self:
        shutil.rmtree(self._home / "incoming", ignore_errors=True)
        async with AsyncExitStack() as stack:
            listener = open_socket(self._home)
            stack.callback(close_socket, self._home)
            close_s = self._options.close_s
            runner = await enter_server(stack, self.application, close_s)
            await web.SockSite(runner, listener, backlog=BACKLOG).start()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


class _Routes:
    def __init__(
        self,
        node: NodeFacade,
        incoming: Path,
        options: AdminOptions,
        inflight: Inflight,
    ) -> None:
        self._node = node
        self._incoming = incoming
        self._options = options
        self._inflight = inflight

    def table(self) -> list[web.RouteDef]:
        """Return all routes."""
        one = "/chaincodes/{name}"
        return [
            web.get("/status", self.status, allow_head=False),
            web.post("/shutdown", self.shutdown),
            web.post("/deploy", self.deploy),
            web.get("/chaincodes", self.ps, allow_head=False),
            web.post("/chaincodes", self.deploy_dev),
            web.post(one + "/invoke", self.invoke),
            web.post(one + "/query", self.query),
            web.post(one + "/start", self.start),
            web.post(one + "/stop", self.stop),
            web.delete(one, self.remove),
            web.get(one + "/logs", self.logs, allow_head=False),
            web.get("/logspec", self.logspec, allow_head=False),
            web.put("/logspec", self.logspec),
            web.get("/blocks", self.height, allow_head=False),
            web.get("/blocks/{number}", self.block, allow_head=False),
        ]

    async def status(self, _request: web.Request) -> web.Response:
        return reply(dataclasses.asdict(self._node.status()))

    async def shutdown(self, _request: web.Request) -> web.Response:
        self._node.shutdown()
        return reply({"stopping": True})

    async def deploy(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("name") or None
        version = request.query.get("version") or None
        backend = request.query.get("backend") or "auto"
        init_required = _flag(request, "init")
        if name is not None:
            require_chaincode_name(name)
        if version is not None:
            require_version(version)
        async with self._received(request) as package:
            return await stream_work(
                request,
                lambda watch: self._inflight.run(
                    self._node.deploy(
                        package,
                        name=name,
                        version=version,
                        backend=backend,
                        init_required=init_required,
                        watch=watch,
                    )
                ),
            )

    @asynccontextmanager
    async def _received(self, request: web.Request) -> AsyncIterator[Path]:
        """Write the body to a file that exists inside the block."""
        with ExitStack() as stack:
            try:
                self._incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder = stack.enter_context(
                    tempfile.TemporaryDirectory(dir=self._incoming)
                )
                package = Path(folder) / "package"
                await self._receive(request, package)
            except ConnectionError:
                raise
            except OSError as error:
                raise StorageError(
                    f"the package cannot be received in {str(self._incoming)!r}: "
                    f"{error.strerror}",
                    hint="check free space and permissions there",
                    path=str(self._incoming),
                ) from error
            yield package

    async def _receive(self, request: web.Request, package: Path) -> None:
        limit = self._options.max_package_bytes
        size = request.content_length or 0
        with package.open("wb") as file:
            async for chunk in request.content.iter_chunked(1 << 20):
                size = max(size, file.tell() + len(chunk))
                if size > limit:
                    break
                file.write(chunk)
        if size > limit:
            raise InvalidInput(
                f"the package has {size} bytes or more, the limit is {limit}",
                hint="leave out what the chaincode does not need",
            )

    async def ps(self, _request: web.Request) -> web.Response:
        found = [dataclasses.asdict(one) for one in await self._node.ps()]
        return reply({"chaincodes": found})

    async def deploy_dev(self, request: web.Request) -> web.Response:
        asked = wire.read_dev(await read_json(request))
        done = await self._inflight.run(
            self._node.deploy_dev(
                asked["name"], asked["version"], init_required=asked["init_required"]
            )
        )
        return reply(dataclasses.asdict(done))

    async def invoke(self, request: web.Request) -> web.Response:
        return await self._call(request, self._node.invoke)

    async def query(self, request: web.Request) -> web.Response:
        return await self._call(request, self._node.query)

    async def _call(
        self,
        request: web.Request,
        act: Callable[[Call], Coroutine[Any, Any, Answer]],
    ) -> web.Response:
        call = wire.read_call(_name(request), await read_json(request))
        answer = await self._inflight.run(act(call))
        return reply(wire.answer_json(answer))

    async def start(self, request: web.Request) -> web.StreamResponse:
        name = _name(request)
        return await stream_work(
            request,
            lambda watch: self._inflight.run(self._node.start(name, watch=watch)),
        )

    async def stop(self, request: web.Request) -> web.Response:
        await self._inflight.run(self._node.stop(_name(request)))
        return reply({"name": _name(request)})

    async def remove(self, request: web.Request) -> web.Response:
        await self._inflight.run(self._node.remove(_name(request)))
        return reply({"name": _name(request)})

    async def logs(self, request: web.Request) -> web.StreamResponse:
        name = _name(request)
        self._node.log_files(name)  # not found: an answer, not a stream
        await self._node.flush_output()
        tail = Tail(
            lambda: self._node.log_files(name),
            previous=_flag(request, "previous"),
            over=lambda: self._inflight.closing,
        )
        return await stream_lines(
            request, tail.batches(follow=_flag(request, "follow"))
        )

    async def logspec(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            await change_levels(request)
        return reply({"spec": telemetry.active()})

    async def height(self, _request: web.Request) -> web.Response:
        return reply({"height": self._node.height()})

    async def block(self, request: web.Request) -> web.Response:
        text = request.match_info["number"]
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise InvalidInput(f"block {text!r}: expected a number")
        return reply(blocks.summarise(await self._node.block(int(text))))


def _name(request: web.Request) -> str:
    return request.match_info["name"]


def _flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "0")
    if value not in {"0", "1"}:
        raise InvalidInput(f"{name}={value!r}: expected 0 or 1")
    return value == "1"
