"""Where chaincode dials the node: one gRPC server per address that it listens on.

With an authority, a connection gets no stream without a certificate of that authority.
Leaving the listener ends every stream.
Source: docs/fabric/shim-protocol.md#transport
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
import grpc.aio
from typing_extensions import override

from chaindock.chaincode.crowd import most_connections
from chaindock.chaincode.handler import Handler, StreamState
from chaindock.chaincode.options import ListenOptions, StreamOptions
from chaindock.container.contracts import CallbackListener, ClientTls
from chaindock.errors import StartFailed
from chaindock.identity.ca import certificate_hash
from chaindock.telemetry import get_logger, unbind
from chaindock.values import show_address

if TYPE_CHECKING:
    from chaindock.chaincode.registry import HandlerRegistry, Handshakes
    from chaindock.identity.ca import TlsAuthority

_log = get_logger("chaincode.server")
PROGRAMS: Final = ("127.0.0.1", 7052)
"""Where programs that a user starts dial, as Fabric has it, unless an address is set."""
_UNIX: Final = "unix:"
_ALL: Final = ("0.0.0.0", "::")  # noqa: S104  # as a user may set it
_HANDSHAKE_MS: Final = 20_000
"""Fabric gives 5 s; a machine that starts many chaincodes at once may need more."""
_IDLE_MS: Final = 60_000
_STOP_S: Final = 5.0
"""A connection without a stream is of no use to a chaincode."""
MAX_STREAMS: Final = 32
"""Per connection; a shim needs one."""
MAX_UNREGISTERED: Final = 256
"""Streams of all addresses that have not registered. They end after `silence_s`."""
MAX_UNREGISTERED_EACH: Final = 4
"""Unregistered streams per certificate, so that one chaincode cannot block the others."""


class ChaincodeListener(CallbackListener):
    """All listening addresses of a node; an async context manager.

    Args:
        registry: decides about registration.
        authority: issues the servers' certificates, and has issued those of the
            chaincode that may connect; None = without TLS.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        options: StreamOptions | None = None,
        listen: ListenOptions | None = None,
        authority: TlsAuthority | None = None,
    ) -> None:
        self._registry = registry
        self._options = options or StreamOptions()
        self._listen = listen or ListenOptions()
        self._authority = authority
        self._unregistered: set[Handler] = set()
        self._servers: dict[tuple[str, int], _Server] = {}
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        servers, self._servers = list(self._servers.values()), {}
        self._registry.crowd.stop()
        with contextlib.suppress(TimeoutError):  # contracts may have flooded it
            async with asyncio.timeout(_STOP_S):
                await asyncio.gather(*(server.grpc.stop(None) for server in servers))

    @property
    def addresses(self) -> list[str]:
        """Where chaincode dials it now, host:port each."""
        found = (server.address for server in self._servers.values())
        return sorted(one for one in found if not one.startswith(_UNIX))

    @override
    async def address_on(self, host: str, *names: str) -> str:
        if host.startswith(_UNIX):
            server = await self._listening(host, 0)
            server.answer_to(*names)
            return host
        bare = host.strip("[]")
        bound, port = self._listen.bind or ("", 0)
        server = await self._listening(bound or bare, port)
        return self._advertised(server, bare, *names)

    async def listen_for_programs(self) -> tuple[str, ClientTls | None]:
        """Listen for programs that a user starts (development mode).

        Returns: the address that they dial; what they show, None without TLS.
        """
        bound, port = self._listen.bind or PROGRAMS
        server = await self._listening(bound or PROGRAMS[0], port)
        address = self._advertised(server, PROGRAMS[0])
        if self._authority is None:
            return address, None
        pair = self._authority.issue_client(for_a_day=False)
        return address, ClientTls(pair.key_pem, pair.cert_pem, self._authority.root_pem)

    def _advertised(self, server: _Server, host: str, *names: str) -> str:
        """Return what to dial to get to `server`; its certificate holds for that."""
        told = (host if server.host in _ALL else server.host), 0
        told_host, told_port = self._listen.advertise or told
        server.answer_to(told_host, *names)
        return show_address((told_host, told_port or server.port))

    async def _listening(self, host: str, port: int) -> _Server:
        """Return the server that is bound there; start it unless it runs."""
        async with self._lock:
            server = self._servers.get((host, port))
            if server is None:
                handshakes = self._registry.handshakes
                server = _Server(
                    host, self._options, self._authority, handshakes, self._register
                )
                await server.start(port)
                self._servers[host, port] = server
                if not host.startswith(_UNIX):
                    self._registry.crowd.watch(server.port)
                tls = self._authority is not None
                _log.info("listening for chaincode", address=server.address, tls=tls)
            return server

    async def _register(
        self, _messages: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        # The server was started in the task of some launch: this is about another.
        unbind()
        self._registry.handshakes.through()
        certificate = _shown(context)
        handler = Handler(self._registry, self._options, certificate=certificate)
        if not self._takes(handler):
            what, refusals = "too many unregistered streams", self._registry.refusals
            refusals.say(handler.log_key, _log.warning, what, certificate=certificate)
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too many streams are open that have not registered",
            )
        crowd, source = self._registry.crowd, context.peer()
        crowd.stream(source, 1)
        try:
            end = await handler.run(context)
        finally:
            crowd.stream(source, -1)
            self._unregistered.discard(handler)
        if end.code is not grpc.StatusCode.OK:
            await context.abort(end.code, end.reason)

    def _takes(self, handler: Handler) -> bool:
        """Count `handler` among those that have not registered, if there is room."""
        still = {one for one in self._unregistered if one.state is StreamState.CREATED}
        self._unregistered = still
        owner = self._owner(handler)
        same = sum(self._owner(one) == owner for one in still)
        if len(still) >= MAX_UNREGISTERED or (
            owner is not None and same >= MAX_UNREGISTERED_EACH
        ):
            return False
        still.add(handler)
        return True

    def _owner(self, handler: Handler) -> str | None:
        """Return the key of the limit; all streams with outdated certificates share one."""
        certificate = handler.certificate
        if certificate is None or self._registry.knows(certificate):
            return certificate
        return "outdated"


class _Server:
    """One address that is listened on, and the names its certificate holds for."""

    def __init__(
        self,
        host: str,
        options: StreamOptions,
        authority: TlsAuthority | None,
        handshakes: Handshakes,
        register: Any,
    ) -> None:
        self.host = host.strip("[]")
        self.port = 0
        self.grpc = grpc.aio.server(options=server_options(options))
        self._authority, self._handshakes = authority, handshakes
        self._names: tuple[str, ...] = ()
        self._reissued: deque[grpc.ServerCertificateConfiguration] = deque(maxlen=1)
        self._credentials: grpc.ServerCredentials | None = None
        """gRPC asks them for certificates, and does not keep them itself."""
        if authority is not None:
            self._credentials = grpc.dynamic_ssl_server_credentials(
                self._issued(*() if host.startswith(_UNIX) else (self.host,)),
                self._certificate,  # type: ignore[arg-type]  # the stub lacks None
                require_client_authentication=True,
            )
        method: Any = grpc.stream_stream_rpc_method_handler(register)
        service = grpc.method_handlers_generic_handler(
            "protos.ChaincodeSupport", {"Register": method}
        )
        self.grpc.add_generic_rpc_handlers((service,))

    @property
    def address(self) -> str:
        """Return what it is bound to, host:port."""
        if self.host.startswith(_UNIX):
            return self.host
        return show_address((self.host, self.port))

    def _certificate(self) -> grpc.ServerCertificateConfiguration | None:
        """Return a new certificate, None = the last one.

        gRPC calls this in threads of its own before each handshake.
        """
        self._handshakes.begins()
        try:
            return self._reissued.pop()
        except IndexError:
            return None

    async def start(self, port: int) -> None:
        """Listen. Raises: StartFailed when the address cannot be bound."""
        self.port = port
        address = self.address
        try:
            if self._credentials is None:
                self.port = self.grpc.add_insecure_port(address)
            else:
                self.port = self.grpc.add_secure_port(address, self._credentials)
            await self.grpc.start()
        except RuntimeError as error:
            await self.grpc.stop(None)
            raise StartFailed(
                f"cannot listen for chaincode on {address}: {error}",
                hint="another process may use the port, or the host lacks the address",
                host=self.host,
            ) from error

    def answer_to(self, *names: str) -> None:
        """Let the certificate hold for these names, too."""
        if self._authority is not None and not set(names) <= set(self._names):
            self._reissued.append(self._issued(*names))

    def _issued(self, *names: str) -> grpc.ServerCertificateConfiguration:
        assert self._authority is not None  # noqa: S101  # the caller has looked
        self._names = tuple(dict.fromkeys((*self._names, *names)))
        pair = self._authority.issue_server(*self._names)
        return grpc.ssl_server_certificate_configuration(
            [(pair.key_pem.encode(), pair.cert_pem.encode())],
            root_certificates=self._authority.root_pem.encode(),
        )


def server_options(options: StreamOptions) -> list[tuple[str, int]]:
    """Return the gRPC options of a listener."""
    return [
        ("grpc.max_receive_message_length", options.receive_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # Shims ping every 60 s or more; 50 s leaves room for jitter.
        ("grpc.http2.min_ping_interval_without_data_ms", 50_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Fabric's two hours outlast every idle limit on the way.
        ("grpc.keepalive_time_ms", int(options.ping_s * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_allowed_incoming_connections", most_connections()),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Two nodes must not share a port unnoticed.
        ("grpc.so_reuseport", 0),
    ]


def _shown(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """Return the hash of the certificate that the other side showed, if any."""
    shown = list(context.auth_context().get("x509_pem_cert", ()))
    return certificate_hash(shown[0]) if shown else None
