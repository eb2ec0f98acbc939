"""The operations endpoint: health, readiness, metrics, log levels, version.

Without TLS the endpoint listens on loopback only and answers only requests whose Host is
a loopback address, so that no web page can read it. With TLS, metrics and log levels
need a client certificate.
Source: docs/fabric/operations.md
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self

from aiohttp import web
from yarl import URL

import chaindock
from chaindock import telemetry
from chaindock.aio import Tasks
from chaindock.errors import ChaindockError, ConfigInvalid, InvalidInput, NodeError
from chaindock.operations.serving import (
    Listener,
    bind,
    change_levels,
    errors,
    read_body,
    reply,
)
from chaindock.options import option
from chaindock.telemetry.metrics import CONTENT_TYPE
from chaindock.values import Address, show_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.operations.health import Health, Trouble
    from chaindock.operations.serving import Handler

_log = telemetry.get_logger("operations")
HEALTH_S: Final = 30.0
"""As in Fabric; each check has a shorter limit of its own."""
_BODY_BYTES: Final = 64 * 1024
_UNREAD_BYTES: Final = 16 * 1024
"""Bytes of a connection that the system takes before the node reads them. So a client
that sends many requests at once is answered once."""
_CLOSE_S: Final = 1.0
_NEED_CERTIFICATE: Final = frozenset({"/metrics", "/logspec"})


@dataclass(frozen=True)
class OperationsOptions:
    """The operations endpoint: health, metrics, log levels."""

    address: Address = option(("127.0.0.1", 0), "operations.listenAddress")
    """host:port that serves health and metrics; port 0 = a free one; without TLS a
    loopback address; empty = no endpoint."""
    tls: bool = option(False, "operations.tls.enabled")
    """Serve HTTPS; /metrics and /logspec then need a client certificate."""
    cert_file: Path | None = option(None, "operations.tls.cert.file")
    """Certificate of the endpoint, PEM."""
    key_file: Path | None = option(None, "operations.tls.key.file")
    """Private key of the endpoint, PEM."""
    client_auth_required: bool = option(False, "operations.tls.clientAuthRequired")
    """Refuse every request without a client certificate."""
    client_roots: tuple[Path, ...] = option((), "operations.tls.clientRootCAs.files")
    """CA certificates that sign client certificates, PEM."""
    metrics: Literal["prometheus", "disabled"] = option(
        "prometheus", "metrics.provider"
    )
    """disabled: the endpoint has no /metrics."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OperationsServer:
    """The endpoint while it is entered; `url` is where it answers, None = there is none."""

    def __init__(self, options: OperationsOptions, health: Health) -> None:
        self._options, self._health = options, health
        self._stack = AsyncExitStack()
        self._scraping = asyncio.Lock()
        self._tasks = Tasks("operations")
        self._checking: asyncio.Task[list[Trouble]] | None = None
        self.url: str | None = None

    async def __aenter__(self) -> Self:
        """Listen. Raises: NodeError: no address; ConfigInvalid: a wrong certificate."""
        if self._options.address is None:
            return self
        async with AsyncExitStack() as stack:
            self.url = await self._listen(stack, *self._options.address)
            self._stack = stack.pop_all()
        _log.info("operations endpoint listens", url=self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        await self._tasks.aclose()

    async def _listen(self, stack: AsyncExitStack, host: str, port: int) -> str:
        options, shown = self._options, show_address((host, port))
        context = await asyncio.to_thread(_context, options) if options.tls else None
        try:
            sockets = await bind(host, port)
            for sock in sockets:
                stack.callback(sock.close)
                # What a client has sent is parsed in one go; connections inherit it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD_BYTES)
            await stack.enter_async_context(
                Listener(self._application(), sockets, _CLOSE_S, context)
            )
        except (OSError, OverflowError) as error:
            raise NodeError(
                f"the operations endpoint cannot listen on {shown!r}: {error}",
                hint="choose another operations.listenAddress; port 0 is a free one",
                address=shown,
            ) from error
        bound = sockets[0].getsockname()[1]
        scheme = "http" if context is None else "https"
        return f"{scheme}://{show_address((host or '0.0.0.0', bound))}"  # noqa: S104  # as asked

    def _application(self) -> web.Application:
        app = web.Application(
            middlewares=[errors, self._guard], client_max_size=_BODY_BYTES
        )
        app.on_response_prepare.append(_add_headers)
        for path, handler in {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._scrape,
            "/logspec": self._logspec,
            "/version": self._version,
        }.items():
            app.router.add_route("*", path, handler)
        return app

    # --- who may ask ------------------------------------------------------------------

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        certified = bool(request.get_extra_info("peercert"))
        if not self._options.tls:
            if not _names_loopback(request.headers.get("Host", "")):
                return _error("the Host of the request is not this machine", 403)
        elif request.path in _NEED_CERTIFICATE and not certified:
            return web.Response(status=401)
        # Connections that wait here may be closed to make room: see Listener.
        await read_body(request)
        if request.path != "/metrics":
            return await handler(request)
        async with self._scraping:  # many at once must not hold up the event loop
            await asyncio.sleep(0)
            return await handler(request)

    # --- routes -----------------------------------------------------------------------

    async def _healthz(self, request: web.Request) -> web.Response:
        if request.method != "GET":
            return web.Response(status=405)
        # One look serves all who wait for it: many at once must not hold up the loop.
        if self._checking is None or self._checking.done():
            self._checking = self._tasks.start(self._health.failed(), "health")
        try:
            async with asyncio.timeout(HEALTH_S):
                troubles = await asyncio.shield(self._checking)
        except TimeoutError:
            return web.Response(status=408)
        return _told(troubles, "failed_checks")

    async def _readyz(self, request: web.Request) -> web.Response:
        if request.method != "GET":
            return web.Response(status=405)
        return _told(self._health.missing(), "missing")

    async def _scrape(self, request: web.Request) -> web.Response:
        if self._options.metrics == "disabled":
            return _error("metrics.provider is disabled", 404)
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405)
        return web.Response(
            body=self._health.scrape(), headers={"Content-Type": CONTENT_TYPE}
        )

    async def _logspec(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return reply({"spec": telemetry.active()})
        if request.method != "PUT":
            return _error(f"invalid request method: {request.method}", 400)
        try:
            await change_levels(request)
        except InvalidInput as error:
            return _error(f"{error.message}; {error.hint}", 400)
        return web.Response(status=204)

    async def _version(self, request: web.Request) -> web.Response:
        if request.method != "GET":
            return _error(f"invalid request method: {request.method}", 400)
        # As a peer that was not built from a commit; the version names a release.
        version = chaindock.__version__
        return reply({"CommitSHA": "development build", "Version": version})


def _told(troubles: Sequence[Trouble], key: str) -> web.Response:
    """Return Fabric's answer: `status`, `time`, and the troubles under `key`."""
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    if not troubles:
        return reply({"status": "OK", "time": now})
    return reply({"status": "Service Unavailable", "time": now, key: troubles}, 503)


def _error(text: str, status: int) -> web.Response:
    return reply({"error": text}, status)


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    response.force_close()  # one request each, so that nobody queues hundreds
    response.headers["Server"] = "chaindock"
    response.headers["X-Content-Type-Options"] = "nosniff"


def _names_loopback(host: str) -> bool:
    """Whether a Host header means this machine, with or without a port."""
    try:
        url = URL.build(scheme="http", authority=host)
    except ValueError:
        return False
    return url.user is None and is_loopback((url.host or "").rstrip("."))


def _context(options: OperationsOptions) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    cert, key = options.cert_file, options.key_file
    if cert is None or key is None:
        raise _unusable("operations.tls.cert.file and key.file", "one is not set")
    try:
        # An encrypted key must not make the node ask on a terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise _unusable(f"{str(cert)!r} with key {str(key)!r}", error) from error
    for roots in options.client_roots:
        try:
            context.load_verify_locations(roots)
        except (OSError, ssl.SSLError) as error:
            raise _unusable(repr(str(roots)), error) from error
    required = options.client_auth_required
    if required and not options.client_roots:
        raise _unusable("operations.tls.clientRootCAs.files", "it is empty")
    context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


def _unusable(what: str, why: object) -> ChaindockError:
    return ConfigInvalid(
        f"TLS of the operations endpoint: {what} cannot be used: {why}",
        hint="correct the settings below operations.tls, PEM files of certificate and key",
        key="operations.tls",
        origin="",
    )
