"""Where client applications reach the node: a gRPC server for each organisation's peer.

All services of a peer and of the orderer are on each of them. What clients can make the
node hold is bounded: connections, calls at once, bytes of a message, time to send it.
Source: docs/fabric/gateway.md#servers
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

import grpc
import grpc.aio

from chaindock.chaincode.crowd import most_connections
from chaindock.errors import ConfigInvalid, NodeError
from chaindock.gateway.calls import Desk, bound
from chaindock.gateway.statuses import Refusal, Status
from chaindock.telemetry import get_logger
from chaindock.values import show_address

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.gateway.options import GatewayOptions
    from chaindock.identity.organization import Organization

_log = get_logger("gateway")
DEFAULT: Final = ("127.0.0.1", 7051)
_APART: Final = 2000
"""Between the ports of two peers, as in Fabric's test network."""
_LOCAL: Final = "127.0.0.1"
_ALL: Final = ("0.0.0.0", "::")  # noqa: S104  # as a user may set it
_HANDSHAKE_MS: Final = 10_000
_STOP_S: Final = 5.0
_STREAMS: Final = 1000
"""Calls at once on one connection."""
_PENDING: Final = 10_000
"""Calls that the node has not looked at yet; above, gRPC drops some of anybody."""
_PING_MS: Final = 60_000
_KEEP_ALIVE_MS, _KEEP_ALIVE_TIMEOUT_MS = 2 * 3600 * 1000, 20_000

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Unary: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]
"""Takes a serialised request and returns the response."""
Feed: TypeAlias = Callable[[bytes, Context], Awaitable[None]]
"""Takes a serialised request, and writes responses with `context.write()`."""
Stream: TypeAlias = Callable[[Context], Awaitable[None]]
"""Reads requests with `context.read()` (`grpc.aio.EOF` at the end), writes responses with
`context.write()`; all are serialised."""


def named(address: str) -> str:
    """Return an address whose host may be the TLS name, too, also for old clients."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host == _LOCAL else address


def configured(options: GatewayOptions) -> str:
    """Return the address of the first peer, host:port; "" = another one each time."""
    host, port = options.listen or DEFAULT
    dialled = _LOCAL if host in {"", *_ALL} else host
    return named(show_address((dialled, port))) if port else ""


@dataclass(frozen=True)
class Seat:
    """Whose peer a server is, and the address that its clients dial.

    Args:
        addresses: those of the peers of all organisations, by MSP id; grows.
    """

    mspid: str
    address: str
    addresses: Mapping[str, str] = field(default_factory=dict, repr=False)

    def of(self, mspid: str) -> Seat:
        """Return the seat of another peer of the node."""
        return Seat(mspid, self.addresses.get(mspid, self.address), self.addresses)


@dataclass
class Service:
    """One gRPC service of one peer.

    A method ends its call with a status by raising `Refusal` or a ChaindockError.

    Args:
        name: with its package, e.g. `gateway.Gateway`.
        unary, streams, feeds: its methods by name.
        limit: most calls at once; 0 = no limit.
    """

    name: str
    unary: Mapping[str, Unary] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)
    feeds: Mapping[str, Feed] = field(default_factory=dict)
    limit: int = 0
    running: int = 0

    def enter(self) -> None:
        """Count a call among those that run. Raises: Refusal: they are too many."""
        if self.limit and self.running >= self.limit:
            raise Refusal(
                Status.UNKNOWN,
                f"too many requests for /{self.name}, exceeding concurrency limit "
                f"({self.limit})",
            )
        self.running += 1


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
        self._desk.crowd.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*(one.grpc.stop(None) for one in servers))

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
            name = host if host.isascii() and host not in _ALL else ""
            await asyncio.to_thread(organization.listen_at, name)
            self._roots.append(organization.tls[0])
            if port:
                port += _APART * len(self._servers)
            await self._open(organization, host or _LOCAL, port)

    async def close(self, mspid: str) -> None:
        """Close the server of an organisation's peer, until `reopen`; its calls end."""
        async with self._lock:
            del self._addresses[mspid]
            await self._servers[mspid].grpc.stop(None)
            _log.info("not serving clients any more", mspid=mspid)

    async def reopen(self, mspid: str) -> None:
        """Serve clients again at the address where `close` ended that."""
        async with self._lock:
            if mspid in self._addresses:
                return
            former, host = self._servers[mspid], (self._options.listen or DEFAULT)[0]
            await self._open(former.organization, host or _LOCAL, former.port)

    async def _open(self, organization: Organization, host: str, port: int) -> None:
        server = _Server(organization, self._options, self._roots)
        self._bind(server, host, port)
        self._addresses[organization.mspid] = server.seat.address
        server.seat = replace(server.seat, addresses=self._addresses)
        services = [make(server.seat) for make in self._services]
        server.grpc.add_generic_rpc_handlers((_Methods(services, self._desk),))
        await server.grpc.start()
        self._desk.crowd.watch(server.port)
        self._servers[organization.mspid] = server
        address = server.seat.address
        _log.info("serving clients", mspid=organization.mspid, address=address)

    def _bind(self, server: _Server, host: str, port: int) -> None:
        address = show_address((host, port))
        try:
            server.bind(host, port if port < 1 << 16 else 0)
        except RuntimeError as error:
            if not port or (self._options.listen and not self._servers):
                raise NodeError(
                    f"cannot listen for client applications on {address}: {error}",
                    hint="another process may use the port, or the host lacks the "
                    "address; peer.listenAddress sets another one",
                    address=address,
                ) from error
            try:
                server.bind(host, 0)
            except RuntimeError:
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
        self, organization: Organization, options: GatewayOptions, roots: list[bytes]
    ) -> None:
        self.organization, self._options, self._roots = organization, options, roots
        self._known = 0
        """How many of the roots the certificates of clients are checked against."""
        self.port = 0
        self.seat = Seat(organization.mspid, "")
        self.grpc = grpc.aio.server(options=_channel_options(options))
        self._credentials = self._new_credentials() if options.tls else None
        """gRPC asks them for certificates, and does not keep them itself."""

    @property
    def connection(self) -> dict[str, str]:
        """As `ClientListener.connection`."""
        facts = {"address": self.seat.address}
        if self._credentials is not None:
            name = facts["tls_name"] = f"peer0.{self.organization.domain}"
            folder = self.organization.path / "peers" / name / "tls"
            facts["ca"] = str(folder / "ca.crt")
        return facts

    def bind(self, host: str, port: int) -> None:
        """Take an address. Raises: RuntimeError."""
        address = show_address((host, port))
        if self._credentials is None:
            self.port = self.grpc.add_insecure_port(address)
        else:
            self.port = self.grpc.add_secure_port(address, self._credentials)
        dialled = _LOCAL if host in _ALL else host
        address = show_address((dialled, self.port))
        self.seat = Seat(self.organization.mspid, address)

    def _new_credentials(self) -> grpc.ServerCredentials:
        _, certificate, key = self.organization.tls
        if not self._options.client_auth:
            return grpc.ssl_server_credentials([(key, certificate)])
        return grpc.dynamic_ssl_server_credentials(
            self._certificates(),
            self._newer_certificates,  # type: ignore[arg-type]  # the stub lacks None
            require_client_authentication=True,
        )

    def _newer_certificates(self) -> grpc.ServerCertificateConfiguration | None:
        return self._certificates() if self._known < len(self._roots) else None

    def _certificates(self) -> grpc.ServerCertificateConfiguration:
        """Return what is shown and what is accepted. In threads of gRPC, too."""
        roots, (_, certificate, key) = list(self._roots), self.organization.tls
        self._known = len(roots)
        return grpc.ssl_server_certificate_configuration(
            [(key, certificate)], root_certificates=b"\n".join(roots)
        )


def _channel_options(options: GatewayOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.message_bytes),
        ("grpc.max_send_message_length", options.message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", _PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _KEEP_ALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEP_ALIVE_TIMEOUT_MS),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_allowed_incoming_connections", most_connections()),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.server.max_pending_requests", _PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _PENDING),
        # Two nodes must not share a port unnoticed.
        ("grpc.so_reuseport", 0),
    ]


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


# --- calls --------------------------------------------------------------------------


class _Methods(grpc.GenericRpcHandler):
    """The methods of all services of a server."""

    def __init__(self, services: Sequence[Service], desk: Desk) -> None:
        self._names = {service.name for service in services}
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        streamed = grpc.stream_stream_rpc_method_handler
        for one in services:
            ways: Sequence[tuple[Any, Mapping[str, Any]]] = (
                # A request is read by us, so that it can be bounded.
                (grpc.stream_unary_rpc_method_handler, one.unary),
                (streamed, one.feeds),
                (streamed, one.streams),
            )
            for handler, methods in ways:
                for name, method in methods.items():
                    run = bound(one, desk, method, reads=methods is one.streams)
                    self._handlers[f"/{one.name}/{name}"] = handler(run)

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what serves a call."""
        path = handler_call_details.method
        return self._handlers.get(path) or self._unknown(path)

    def _unknown(self, path: str) -> grpc.RpcMethodHandler[Any, Any]:
        service, _, method = path.lstrip("/").rpartition("/")
        text = f"unknown service {service}"
        if service in self._names:
            text = f"unknown method {method} for service {service}"

        async def refuse(_requests: Any, context: Context) -> None:
            await context.abort(Status.UNIMPLEMENTED, text)

        return grpc.stream_stream_rpc_method_handler(refuse)
