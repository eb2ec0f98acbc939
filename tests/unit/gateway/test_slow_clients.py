"""Clients that send and take slowly: what the node holds of them is bounded for all."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from chaindock.gateway.calls import Service
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.options import GatewayOptions
from support.eventually import eventually
from support.gateways.client import Client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chaindock.gateway.calls import Call as Context
    from chaindock.gateway.seat import Seat
    from chaindock.identity.organization import Organization

LARGE = bytes(1 << 20)


class Pours:
    """A service that says hello, and sends as many large responses as it is asked for."""

    def __init__(self) -> None:
        self.made = Service("test.Pours")

    def service(self, _seat: Seat) -> Service:
        unary, streams = {"Say": self.say}, {"Pour": self.pour}
        self.made = Service("test.Pours", unary, streams, limit=4)
        return self.made

    async def say(self, request: bytes, _context: Context) -> bytes:
        return LARGE if request == b"large" else request

    async def pour(self, context: Context) -> None:
        while (count := await context.read()) is not None:
            for _ in range(int(count)):
                await context.write(LARGE)


@pytest.fixture
def pours(monkeypatch: pytest.MonkeyPatch) -> Pours:
    for name, value in (
        ("intake.QUICK_S", 0.05),
        ("intake.MOST_SLOW", 3),
        ("intake.FEW_SLOW", 1),
        ("outlet.MOST_BYTES", 3 << 20),
        ("outlet.PATIENT_S", 0.2),
    ):
        monkeypatch.setattr(f"chaindock.gateway.{name}", value)
    return Pours()


@asynccontextmanager
async def served(
    pours: Pours, org: Organization, clients: int
) -> AsyncIterator[list[Client]]:
    options = GatewayOptions(listen=("127.0.0.1", 0), tls=False)
    async with ClientListener(options, [pours.service]) as listener:
        await listener.serve(org)
        address = listener.connection(org.mspid)["address"] or ""
        found = [Client(address, None) for _ in range(clients)]
        try:
            yield found
        finally:
            for one in found:
                await one.__aexit__()


def opened(client: Client, method: str = "Pour") -> Any:
    return client._channel.stream_stream(f"/test.Pours/{method}")()


async def hello(client: Client) -> Any:
    return await client.raw("Say", b"hello", 5, "test.Pours")


def running(calls: list[Any]) -> list[bool]:
    return [not call.done() for call in calls]


async def test_calls_without_a_request_leave_the_service_to_others(
    org: Organization, pours: Pours
) -> None:
    async with served(pours, org, 2) as (idle, good):
        calls = [opened(idle) for _ in range(3)] + [opened(idle, "Say")]
        await asyncio.sleep(0.02)
        calls += [opened(idle) for _ in range(20)]
        assert await hello(good) == b"hello"
        await asyncio.sleep(0.2)
        assert await hello(good) == b"hello"
        await eventually(lambda: pours.made.running == 0)


async def test_of_idle_calls_those_of_the_largest_connection_end_first(
    org: Organization, pours: Pours
) -> None:
    async with served(pours, org, 2) as (bad, good):
        patient = opened(good)  # older than the others
        await asyncio.sleep(0.1)
        calls = [opened(bad) for _ in range(9)]
        await eventually(lambda: sum(running(calls)) == 2)
        await patient.write(b"1")
        assert await patient.read() == LARGE


async def test_few_calls_may_be_idle_when_the_memory_of_the_node_has_grown(
    org: Organization, pours: Pours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaindock.gateway.intake.GROWN_BYTES", -(1 << 40))
    async with served(pours, org, 1) as (client,):
        calls = [opened(client) for _ in range(3)]
        await eventually(lambda: sum(running(calls)) == 1)
        assert await hello(client) == b"hello"


async def test_clients_that_take_nothing_give_way_to_those_that_do(
    org: Organization, pours: Pours
) -> None:
    async with served(pours, org, 2) as (bad, good):
        calls = [opened(bad) for _ in range(3)]
        for call in calls:
            await call.write(b"90")  # more than the system's buffers hold
        await asyncio.sleep(0.1)
        stream = opened(good)
        await stream.write(b"5")
        async with asyncio.timeout(5):
            assert [await stream.read() for _ in range(5)] == [LARGE] * 5
        await stream.done_writing()
        await eventually(lambda: pours.made.running < 3)
        # CANCELLED would mean that the client has left: libraries pass over it in silence.
        await eventually(lambda: not all(running(calls)))
        codes = [await call.code() for call in calls if call.done()]
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED]


async def test_large_answers_that_nobody_takes_give_way(
    org: Organization, pours: Pours
) -> None:
    async with served(pours, org, 2) as (bad, good):
        calls = [opened(bad, "Say") for _ in range(4)]
        for call in calls:
            await call.write(b"large")
        await asyncio.sleep(0.1)
        async with asyncio.timeout(5):
            await eventually(lambda: pours.made.running < 4)
            assert await good.raw("Say", b"large", 5, "test.Pours") == LARGE


async def test_a_client_that_leaves_while_it_is_written_to_is_no_defect(
    org: Organization, pours: Pours, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served(pours, org, 2) as (bad, good):
        for _ in range(3):
            call = opened(bad)
            await call.write(b"90")
            await call.read()
        await bad.__aexit__()
        await eventually(lambda: pours.made.running == 0)
        assert await hello(good) == b"hello"
    assert "failed" not in "".join(capfd.readouterr())
