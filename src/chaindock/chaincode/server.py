"""Where chaincode dials the node.

Owns:    gRPC servers for protos.ChaincodeSupport, one per host address; TLS on them; how
         many streams may be open that have not said who they are.
Not:     what is said on a stream (handler.py), who is admitted (registry.py),
         certificates (identity).
Entry:   ChaincodeListener
Holds:   one server per host; leaving it ends every stream; with an authority nobody gets
         as far as a stream without a certificate of it.
Source:  shim-protocol.md §1.1-1.3; launch.md §6.1, §6.3
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_shim_pb2 as shim
from typing_extensions import override

from chaindock.chaincode.handler import Handler, StreamState
from chaindock.chaincode.options import StreamOptions
from chaindock.container.contracts import CallbackListener
from chaindock.errors import StartFailed
from chaindock.identity.tls import certificate_hash
from chaindock.telemetry import get_logger, unbind

if TYPE_CHECKING:
    from types import TracebackType

    from chaindock.chaincode.handshakes import Handshakes
    from chaindock.chaincode.registry import HandlerRegistry
    from chaindock.identity.tls import TlsAuthority

_log = get_logger("chaincode.server")
_SERVING: Final = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}."""
_HANDSHAKE_MS: Final = 20_000
"""Fabric gives 5 s; a machine that starts many chaincodes at once may need more."""
_IDLE_MS: Final = 60_000
"""A connection without a stream is of no use to a chaincode."""
MAX_CONNECTIONS: Final = 1000
"""Per address. Each takes a file of this process, which the ledger needs too."""
MAX_STREAMS: Final = 32
"""Per connection; a shim needs one."""
MAX_UNREGISTERED: Final = 256
"""Streams of all addresses that have not registered. They end after `silence_s`."""
MAX_UNREGISTERED_EACH: Final = 4
"""The same of one certificate, so that a chaincode cannot take the place of others."""
MAX_WATCHING: Final = 64


@dataclass(frozen=True)
class ListenOptions:
    """How chaincode reaches the node.

    Args:
        port: on every host; 0 = a free one each.
        tls: mutual TLS with chaincode that dials.
    """

    port: int = 0
    tls: bool = True


class ChaincodeListener(CallbackListener):
    """All listening addresses of a node; an async context manager.

    Args:
        registry: decides about registration.
        authority: issues the servers' certificates, and has issued those of whoever may
            connect; None = in plain.
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
        self._unregistered: list[Handler] = []
        self._servers: dict[str, grpc.aio.Server] = {}
        self._credentials: list[grpc.ServerCredentials] = []
        """gRPC asks them for certificates, and does not keep them itself."""
        self._addresses: dict[str, str] = {}
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._registry.handshakes.close()
        servers, self._servers = list(self._servers.values()), {}
        self._addresses.clear()
        await asyncio.gather(*(server.stop(None) for server in servers))

    @property
    def addresses(self) -> list[str]:
        """Where it listens now, host:port each."""
        return sorted(self._addresses.values())

    @override
    async def address_on(self, host: str) -> str:
        async with self._lock:
            if host not in self._addresses:
                self._addresses[host] = await self._listen_on(host)
            return self._addresses[host]

    async def _listen_on(self, host: str) -> str:
        bare = host.strip("[]")
        name = f"[{bare}]" if ":" in bare else bare
        server = grpc.aio.server(options=server_options(self._options))
        server.add_generic_rpc_handlers((self._services(),))
        try:
            port = self._bind(server, bare, f"{name}:{self._listen.port}")
            await server.start()
        except RuntimeError as error:
            await server.stop(None)
            raise StartFailed(
                f"cannot listen for chaincode on {name}:{self._listen.port}: {error}",
                hint="another process may use the port, or the host lacks the address",
                host=host,
            ) from error
        self._servers[host] = server
        tls = self._authority is not None
        _log.info("listening for chaincode", address=f"{name}:{port}", tls=tls)
        return f"{name}:{port}"

    def _bind(self, server: grpc.aio.Server, host: str, address: str) -> int:
        authority = self._authority
        if authority is None:
            return server.add_insecure_port(address)
        pair = authority.issue_server(host)
        handshakes = self._registry.handshakes
        credentials = grpc.dynamic_ssl_server_credentials(
            grpc.ssl_server_certificate_configuration(
                [(pair.key_pem.encode(), pair.cert_pem.encode())],
                root_certificates=authority.root_pem.encode(),
            ),
            # Before each handshake; None, which the stub does not know, changes nothing.
            handshakes.begins,  # type: ignore[arg-type]
            require_client_authentication=True,
        )
        self._credentials.append(credentials)
        port = server.add_secure_port(address, credentials)
        handshakes.watch(port)
        return port

    def _services(self) -> grpc.GenericRpcHandler:
        support = grpc.stream_stream_rpc_method_handler(
            self._register,
            request_deserializer=shim.ChaincodeMessage.FromString,
            response_serializer=shim.ChaincodeMessage.SerializeToString,
        )
        health = _Health(self._registry.handshakes)
        return _Services(
            {
                "/protos.ChaincodeSupport/Register": support,
                "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(
                    health.check
                ),
                "/grpc.health.v1.Health/Watch": grpc.unary_stream_rpc_method_handler(
                    health.watch
                ),
            }
        )

    async def _register(
        self, _messages: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        # The server was started in the task of some launch: this is about another.
        unbind()
        self._registry.handshakes.through(context.peer())
        certificate = _shown(context)
        handler = Handler(self._registry, self._options, certificate=certificate)
        if not self._takes(handler):
            self._registry.refusals.say(
                handler.who,
                _log.warning,
                "too many silent streams",
                certificate=certificate,
            )
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too many streams are open that have not registered",
            )
        end = await handler.run(context)
        if end.code is not grpc.StatusCode.OK:
            await context.abort(end.code, end.reason)

    def _takes(self, handler: Handler) -> bool:
        """Take `handler` among those that have not registered, if there is room."""
        still = [one for one in self._unregistered if one.state is StreamState.CREATED]
        self._unregistered = still
        who = self._known(handler)
        same = sum(self._known(one) == who for one in still)
        if len(still) >= MAX_UNREGISTERED or (
            who is not None and same >= MAX_UNREGISTERED_EACH
        ):
            return False
        still.append(handler)
        return True

    def _known(self, handler: Handler) -> str | None:
        """Return who `handler` counts as: all whose certificate is over are one."""
        certificate = handler.certificate
        if certificate is None or self._registry.knows(certificate):
            return certificate
        return "over"


def server_options(options: StreamOptions) -> list[tuple[str, int]]:
    """Return the gRPC options of §1.2."""
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # Shims ping every 60 s or more; 50 s leaves room for jitter.
        ("grpc.http2.min_ping_interval_without_data_ms", 50_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Fabric's two hours outlast every idle limit on the way.
        ("grpc.keepalive_time_ms", int(options.ping_s * 1000)),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.max_concurrent_streams", MAX_STREAMS),
        # Two nodes must not share a port unnoticed.
        ("grpc.so_reuseport", 0),
    ]


def _shown(context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
    """Return the hash of the certificate that the other side showed, if any."""
    shown = list(context.auth_context().get("x509_pem_cert", ()))
    return certificate_hash(shown[0]) if shown else None


class _Services(grpc.GenericRpcHandler):
    def __init__(self, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._methods = methods

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._methods.get(handler_call_details.method)


class _Health:
    """The health of one server, and who watches it, in bounded number."""

    def __init__(self, handshakes: Handshakes) -> None:
        self._handshakes = handshakes
        self._count = 0

    async def check(
        self, _request: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> bytes:
        self._handshakes.through(context.peer())
        return _SERVING

    async def watch(
        self, _request: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        self._handshakes.through(context.peer())
        if self._count >= MAX_WATCHING:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch")
        self._count += 1
        try:
            await context.write(_SERVING)
            await asyncio.Event().wait()  # until it leaves: the state never changes
        finally:
            self._count -= 1
