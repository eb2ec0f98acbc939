"""gRPC health and reflection, asked by the clients of their own packages."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chaindock.gateway import probes
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.options import GatewayOptions

_V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"


@pytest.fixture
async def connection(org: Any) -> Any:
    services: list[Any] = [
        probes.health,
        *(partial(probes.reflection, version) for version in ("v1", "v1alpha")),
    ]
    options = GatewayOptions(listen=("127.0.0.1", 0), tls=False)
    async with ClientListener(options, services) as listener:
        await listener.serve(org)
        address = str(listener.connection(org.mspid)["address"])
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel


async def asked(connection: Any, *requests: Any, path: str = "") -> list[Any]:
    if path:
        call = connection.stream_stream(
            path,
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
    else:
        call = reflection_pb2_grpc.ServerReflectionStub(connection).ServerReflectionInfo
    return [one async for one in call(iter(requests), timeout=10)]


async def test_probes_learn_that_the_peer_serves(connection):
    stub = health_pb2_grpc.HealthStub(connection)
    for name in ("", "gateway.Gateway", "protos.Endorser"):
        request = health_pb2.HealthCheckRequest(service=name)
        assert (await stub.Check(request, timeout=10)).status == 1
    request = health_pb2.HealthCheckRequest(service="nobody.Knows")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(request, timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    for name, status in (("", 1), ("nobody.Knows", 3)):
        watched = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=10)
        async with asyncio.timeout(10):
            assert (await watched.read()).status == status
        watched.cancel()


@pytest.mark.parametrize("path", ["", _V1])
async def test_tools_find_every_service_with_its_messages(connection, path):
    request = reflection_pb2.ServerReflectionRequest
    (listed,) = await asked(connection, request(list_services=""), path=path)
    names = [one.name for one in listed.list_services_response.service]
    assert {"gateway.Gateway", "protos.Endorser", "orderer.AtomicBroadcast"} < {*names}
    known = [name for name in names if not name.startswith("grpc.reflection.v1.")]
    requests = [request(file_containing_symbol=name) for name in known]
    for name, answer in zip(
        known, await asked(connection, *requests, path=path), strict=True
    ):
        files = answer.file_descriptor_response.file_descriptor_proto
        package, _, service = name.rpartition(".")
        described = [FileDescriptorProto.FromString(one) for one in files]
        assert any(
            one.package == package and service in {s.name for s in one.service}
            for one in described
        ), name


async def test_odd_questions_get_an_answer_or_a_status(connection):
    request = reflection_pb2.ServerReflectionRequest
    answers = await asked(connection, request(file_by_filename="none.proto"), request())
    assert [one.error_response.error_code for one in answers] == [5, 3]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asked(connection, request(file_by_filename="x" * 5000))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_probe_asks_with_few_bytes(connection):
    stub = health_pb2_grpc.HealthStub(connection)
    request = health_pb2.HealthCheckRequest(service="x" * 5000)
    with pytest.raises(grpc.aio.AioRpcError, match="too long"):
        await stub.Check(request, timeout=10)
