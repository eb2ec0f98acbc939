"""Where client applications reach the node: a gRPC server for each organisation's peer.

All services of a peer and of the orderer are on each of them. What clients can make the
node hold is bounded: connections, calls at once, bytes of a message, time to send it.
Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Self

from chaindock.errors import ConfigInvalid, NodeError
from chaindock.gateway.calls import Desk, Methods, Service, run
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.seat import ALL, APART, DEFAULT, LOCAL, Seat
from chaindock.gateway.statuses import Refusal
from chaindock.identity.organization import Organization
from chaindock.rpc.connection import Limits
from chaindock.rpc.server import Server
from chaindock.rpc.status import Status
from chaindock.rpc.stream import Stream as Incoming
from chaindock.rpc.tls import server_context
from chaindock.telemetry import get_logger
from chaindock.values import show_address

_log = get_logger("gateway")
_STREAMS: Final = 1000
"""Calls at once on one connection."""
_PING_S: Final = 2 * 3600.0
"""Fabric's two hours of silence outlast every idle limit on the way."""


class ClientListener:
    """The servers of the node's organisations; an async context manager.

    Args:
        services: each makes one service for the peer of one server.
    """

    def __init__(
        self, options: GatewayOptions, services: Sequence[Callable[[Seat], Service]]
    ) -> None:
        self._options, self._services = options, services
        self._servers: dict[str, _Server] = {}
        self._addresses: dict[str, str] = {}
        self._desk = Desk()
        self._lock = asyncio.Lock()
        self._roots: list[bytes] = []
        """CA certificates that clients may show a certificate of, under mutual TLS."""
        self.warnings: list[str] = []

    async def __aenter__(self) -> Self:
        self._roots += await asyncio.to_thread(_read, self._options.client_roots)
        return self

    async def __aexit__(self, *_: object) -> None:
        servers, self._servers = list(self._servers.values()), {}
        await asyncio.gather(*(one.server.aclose() for one in servers))

    def connection(self, mspid: str) -> dict[str, str | None]:
        """Return what a client of an organisation's peer needs.

        `address` (host:port), `tls_name` and `ca` (a file); None = not served, or no TLS.
        """
        server = self._servers.get(mspid)
        facts = server.connection if server else {}
        return {key: facts.get(key) for key in ("address", "tls_name", "ca")}

    def connections(self) -> list[dict[str, str | None]]:
        """Return `mspid` and `connection` of every peer that serves, the first one first."""
        served = [one for one in self._servers if one in self._addresses]
        return [{"mspid": one, **self.connection(one)} for one in served]

    async def serve(self, organization: Organization) -> None:
        """Serve the clients of an organisation's peer, unless that is done already.

        Raises: NodeError: nothing can listen where the user has said. StorageError.
        """
        async with self._lock:
            if organization.mspid in self._servers:
                return
            host, port = self._options.listen or DEFAULT
            name = host if host.isascii() and host not in ALL else ""
            await asyncio.to_thread(organization.listen_at, name)
            self._roots.append(organization.tls[0])
            if port:
                port += APART * len(self._servers)
            await self._open(organization, host or LOCAL, port)

    async def close(self, mspid: str) -> None:
        """Close the server of an organisation's peer, until `reopen`; its calls end."""
        async with self._lock:
            del self._addresses[mspid]
            await self._servers[mspid].server.aclose()
            _log.info("not serving clients any more", mspid=mspid)

    async def reopen(self, mspid: str) -> None:
        """Serve clients again at the address where `close` ended that."""
        async with self._lock:
            if mspid in self._addresses:
                return
            former, host = self._servers[mspid], (self._options.listen or DEFAULT)[0]
            await self._open(former.organization, host or LOCAL, former.port)

    async def _open(self, organization: Organization, host: str, port: int) -> None:
        server = _Server(organization, self._options, self._roots, self._desk)
        self._bind(server, host, port)
        self._addresses[organization.mspid] = server.seat.address
        server.seat = replace(server.seat, addresses=self._addresses)
        server.offer([make(server.seat) for make in self._services])
        self._servers[organization.mspid] = server
        address = server.seat.address
        _log.info("serving clients", mspid=organization.mspid, address=address)

    def _bind(self, server: _Server, host: str, port: int) -> None:
        address = show_address((host, port))
        try:
            server.bind(host, port if port < 1 << 16 else 0)
        except OSError as error:
            if not port or (self._options.listen and not self._servers):
                raise NodeError(
                    f"cannot listen for client applications on {address}: {error}",
                    hint="another process may use the port, or the host lacks the "
                    "address; peer.listenAddress sets another one",
                    address=address,
                ) from error
            try:
                server.bind(host, 0)
            except OSError:
                raise NodeError(
                    f"cannot listen for client applications on {host}: {error}"
                ) from error
            self.warnings.append(
                f"{address} is taken by another program: client applications reach "
                f"{server.seat.mspid} at {server.seat.address}, until the node stops; "
                "peer.listenAddress chooses an address that stays"
            )


class _Server:
    """The server of one organisation's peer."""

    def __init__(
        self,
        organization: Organization,
        options: GatewayOptions,
        roots: list[bytes],
        desk: Desk,
    ) -> None:
        self.organization, self._options, self._roots = organization, options, roots
        self._desk = desk
        self._services: set[str] = set()
        self._methods: dict[str, tuple[Service, Methods, bool]] = {}
        self._context: ssl.SSLContext | None = None
        self._known = -1
        """How many of the roots the certificates of clients are checked against."""
        self.port = 0
        self.seat = Seat(organization.mspid, "")
        most = options.message_bytes
        # As a peer, the node does not close the connection of an idle application.
        limits = Limits(most, most, _STREAMS, _PING_S, math.inf)
        self.server = Server(self._serve, limits, self._tls if options.tls else None)

    @property
    def connection(self) -> dict[str, str]:
        """As `ClientListener.connection`."""
        facts = {"address": self.seat.address}
        if self._options.tls:
            name = facts["tls_name"] = f"peer0.{self.organization.domain}"
            folder = self.organization.path / "peers" / name / "tls"
            facts["ca"] = str(folder / "ca.crt")
        return facts

    def bind(self, host: str, port: int) -> None:
        """Take an address. Raises: OSError."""
        self.port = self.server.listen(host, port)
        dialled = LOCAL if host in ALL else host
        address = show_address((dialled, self.port))
        self.seat = Seat(self.organization.mspid, address)

    def offer(self, services: Sequence[Service]) -> None:
        """Serve the methods of these services."""
        for one in services:
            self._services.add(one.name)
            for methods in (one.unary, one.feeds, one.streams):
                for name, method in methods.items():
                    found = one, method, methods is one.streams
                    self._methods[f"/{one.name}/{name}"] = found

    async def _serve(self, stream: Incoming) -> bytes | None:
        """Serve a call. Raises: CallEnded."""
        path = stream.request.get(":path", "")
        found = self._methods.get(path)
        if found is None:
            name, _, called = path.lstrip("/").rpartition("/")
            text = f"unknown service {name}"
            if name in self._services:
                text = f"unknown method {called} for service {name}"
            raise Refusal(Status.UNIMPLEMENTED, text)
        service, method, reads = found
        return await run(service, self._desk, method, stream, reads=reads)

    def _tls(self) -> ssl.SSLContext:
        asks = self._options.client_auth
        if self._context is None or (asks and self._known < len(self._roots)):
            self._known = len(self._roots)
            _, certificate, key = self.organization.tls
            roots = b"\n".join(self._roots).decode() if asks else None
            self._context = server_context(certificate.decode(), key.decode(), roots)
        return self._context


def _read(files: Sequence[Path]) -> list[bytes]:
    """Return the content of PEM files. Raises: ConfigInvalid."""
    try:
        return [path.read_bytes() for path in files]
    except OSError as error:
        raise ConfigInvalid(
            f"peer.tls.clientRootCAs.files: {str(error.filename)!r} cannot be read: "
            f"{error.strerror}",
            key="peer.tls.clientRootCAs.files",
            origin=str(error.filename),
        ) from error
