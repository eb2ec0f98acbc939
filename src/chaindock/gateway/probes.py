"""gRPC health and reflection, for probes and for tools such as grpcurl.

The packages behind them are imported with the first call.
Source: docs/fabric/peer.md#health-and-reflection
"""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any, Final

from chaindock.gateway.calls import Call as Context
from chaindock.gateway.calls import Service
from chaindock.gateway.requests import unmarshalled
from chaindock.gateway.seat import Seat
from chaindock.gateway.statuses import Refusal
from chaindock.rpc.status import Status

_HEALTH: Final = "grpc.health.v1.Health"
_SERVED: Final = (
    *("discovery.Discovery", "gateway.Gateway", "orderer.AtomicBroadcast"),
    *("protos.Deliver", "protos.Endorser", _HEALTH),
)
_REFLECTION: Final = "grpc.reflection.{}.ServerReflection"
_LARGEST: Final = 4096
"""Bytes of a request; a larger one is refused. Anybody may send one."""
_LIMIT: Final = 100
"""Most calls at once, streams that watch included."""


def health(_seat: Seat) -> Service:
    """Return the health service of one peer, for `ClientListener`."""
    return Service(_HEALTH, {"Check": _check}, {"Watch": _watch}, limit=_LIMIT)


def reflection(version: str, _seat: Seat) -> Service:
    """Return the reflection service of one peer; `version`: v1 or v1alpha."""
    streams = {"ServerReflectionInfo": _reflect}
    return Service(_REFLECTION.format(version), {}, streams, limit=_LIMIT)


def _state(request: bytes) -> Any:
    """Return the HealthCheckResponse for a request; None = no such service."""
    from grpc_health.v1 import health_pb2 as messages  # noqa: PLC0415  # few need it

    name = _read(messages.HealthCheckRequest, request).service
    kind = messages.HealthCheckResponse
    return kind(status=kind.SERVING if name in {"", *_SERVED} else kind.SERVICE_UNKNOWN)


async def _check(request: bytes, _context: Context) -> bytes:
    found = _state(request)
    if found.status != found.SERVING:
        raise Refusal(Status.NOT_FOUND, "unknown service")
    return bytes(found.SerializeToString())


async def _watch(context: Context) -> None:
    """Tell the state once: it stays as it is until the server stops."""
    request = await context.read()
    if request is not None:
        await context.write(_state(request).SerializeToString())
        await asyncio.Event().wait()


@cache
def _described() -> Any:
    """Return what answers questions about the messages of the services."""
    # Their descriptors are known when they are imported.
    from fabric_protos.discovery import protocol_pb2  # noqa: F401, PLC0415
    from fabric_protos.gateway import gateway_pb2  # noqa: F401, PLC0415
    from fabric_protos.orderer import ab_pb2  # noqa: F401, PLC0415
    from fabric_protos.peer import events_pb2, peer_pb2  # noqa: F401, PLC0415
    from grpc_health.v1 import health_pb2  # noqa: F401, PLC0415
    from grpc_reflection.v1alpha.reflection import ReflectionServicer  # noqa: PLC0415

    names = (_REFLECTION.format(version) for version in ("v1", "v1alpha"))
    return ReflectionServicer([*_SERVED, *names])


async def _reflect(context: Context) -> None:
    from grpc_reflection.v1alpha import reflection_pb2 as messages  # noqa: PLC0415

    while (request := await context.read()) is not None:
        asked = iter([_read(messages.ServerReflectionRequest, request)])
        for answer in _described().ServerReflectionInfo(asked, None):
            await context.write(answer.SerializeToString())


def _read(kind: Any, request: bytes) -> Any:
    """Return a request of a message type. Raises: Refusal."""
    if len(request) > _LARGEST:
        raise Refusal(Status.INVALID_ARGUMENT, "the question is too long")
    return unmarshalled(kind, request)
