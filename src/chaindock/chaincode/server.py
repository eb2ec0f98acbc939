"""Where chaincode dials the node.

Owns:    gRPC servers for protos.ChaincodeSupport, one per host address.
Not:     what is said on a stream (handler.py).
Entry:   ChaincodeListener
Holds:   one server per host; leaving it ends every stream.
Source:  shim-protocol.md §1.1, §1.2; launch.md §6.1
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_shim_pb2 as shim
from typing_extensions import override

from chaindock.chaincode.handler import Handler
from chaindock.chaincode.options import StreamOptions
from chaindock.container.contracts import CallbackListener
from chaindock.errors import StartFailed
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from types import TracebackType

    from chaindock.chaincode.registry import HandlerRegistry

_log = get_logger("chaincode.server")
_SERVING: Final = b"\x08\x01"
"""HealthCheckResponse{status: SERVING}."""
_TWO_HOURS_MS: Final = 2 * 60 * 60 * 1000


@dataclass(frozen=True)
class ListenOptions:
    """Args: port: on every host; 0 = a free one each."""

    port: int = 0


class ChaincodeListener(CallbackListener):
    """All listening addresses of a node; an async context manager."""

    def __init__(
        self,
        registry: HandlerRegistry,
        options: StreamOptions | None = None,
        listen: ListenOptions | None = None,
    ) -> None:
        self._registry = registry
        self._options = options or StreamOptions()
        self._listen = listen or ListenOptions()
        self._servers: dict[str, grpc.aio.Server] = {}
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
        server.add_generic_rpc_handlers((_services(self._register),))
        try:
            port = _bind(server, f"{name}:{self._listen.port}")
            await server.start()
        except RuntimeError as error:
            await server.stop(None)
            raise StartFailed(
                f"cannot listen for chaincode on {name}:{self._listen.port}: {error}",
                hint="another process may use the port, or the host lacks the address",
                host=host,
            ) from error
        self._servers[host] = server
        _log.info("listening for chaincode", address=f"{name}:{port}")
        return f"{name}:{port}"

    async def _register(
        self, _messages: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        handler = Handler(self._registry, self._options)
        end = await handler.run(context)
        if end.code is not grpc.StatusCode.OK:
            await context.abort(end.code, end.reason)


def server_options(options: StreamOptions) -> list[tuple[str, int]]:
    """Return the gRPC options of §1.2."""
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        # Shims ping every 60 s or more; 50 s leaves room for jitter.
        ("grpc.http2.min_ping_interval_without_data_ms", 50_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _TWO_HOURS_MS),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Two nodes must not share a port unnoticed.
        ("grpc.so_reuseport", 0),
    ]


def _bind(server: grpc.aio.Server, address: str) -> int:
    """Add the port: the only place that will know about TLS."""
    return server.add_insecure_port(address)


def _services(register: Any) -> grpc.GenericRpcHandler:
    support = grpc.stream_stream_rpc_method_handler(
        register,
        request_deserializer=shim.ChaincodeMessage.FromString,
        response_serializer=shim.ChaincodeMessage.SerializeToString,
    )
    return _Services(
        {
            "/protos.ChaincodeSupport/Register": support,
            "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(_check),
            "/grpc.health.v1.Health/Watch": grpc.unary_stream_rpc_method_handler(
                _watch
            ),
        }
    )


class _Services(grpc.GenericRpcHandler):
    def __init__(self, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._methods = methods

    @override
    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._methods.get(handler_call_details.method)


async def _check(_request: bytes, _context: Any) -> bytes:
    return _SERVING


async def _watch(_request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.write(_SERVING)
    await asyncio.Event().wait()  # until the client leaves: the state never changes
