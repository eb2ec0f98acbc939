"""The servers for client applications: addresses, TLS, limits, what is not served."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest

from chaindock.errors import Denied, NodeError
from chaindock.gateway.calls import Service
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.options import GatewayOptions
from chaindock.gateway.statuses import Refusal, detail
from chaindock.identity.ca import key_pem
from chaindock.rpc.status import Status
from support.clients.strangers import issued_by
from support.eventually import eventually
from support.gateways.client import Client, Ended

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chaindock.gateway.calls import Call as Context
    from chaindock.gateway.calls import Unary
    from chaindock.gateway.seat import Seat
    from chaindock.identity.organization import Organization

FREE = ("127.0.0.1", 0)


class Echo:
    """A service that answers with the request, or as the request says."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.go = asyncio.Event()
        self.left = 0

    def service(self, seat: Seat) -> Service:
        unary: dict[str, Unary] = {"Say": partial(self.say, seat), "Wait": self.wait}
        return Service("test.Echo", unary, {"Count": self.count}, limit=self.limit)

    async def say(self, seat: Seat, request: bytes, _context: Context) -> bytes:
        if request == b"refuse":
            raise Refusal(Status.ABORTED, "no: é", detail(seat, "not me"))
        if request == b"long":
            raise Refusal(Status.ABORTED, "é" * 9000, detail(seat, "x" * 90_000))
        if request == b"denied":
            raise Denied("you may not")
        if request == b"defect":
            raise KeyError("secret")
        return seat.mspid.encode() + b" " + request

    async def wait(self, request: bytes, _context: Context) -> bytes:
        try:
            await self.go.wait()
        finally:
            self.left += 1
        return request

    async def count(self, context: Context) -> None:
        for number in range(int(await context.read())):
            await context.write(b"%d" % number)


@asynccontextmanager
async def served(
    echo: Echo, *orgs: Organization, **options: Any
) -> AsyncIterator[ClientListener]:
    chosen = GatewayOptions(**{"listen": FREE, **options})
    async with ClientListener(chosen, [echo.service]) as listener:
        for org in orgs:
            await listener.serve(org)
        yield listener


def connected(listener: ClientListener, org: Organization, **how: Any) -> Client:
    address = listener.connection(org.mspid)["address"]
    assert address is not None
    return Client(address, org.tls[0], **how)


async def say(client: Client, text: bytes, method: str = "Say") -> Any:
    return await client.raw(method, text, 10, "test.Echo")


@pytest.mark.parametrize("name", ["", "localhost", "peer0.org1.example.com"])
async def test_each_organisation_has_a_server_with_its_own_certificate(
    org: Organization, other: Organization, name: str
) -> None:
    async with served(Echo(), org, other) as listener:
        async with connected(listener, org, name=name) as client:
            assert await say(client, b"hello") == b"Org1MSP hello"
        theirs = name.replace("org1", "org2")
        async with connected(listener, other, name=theirs) as client:
            assert await say(client, b"hello") == b"Org2MSP hello"
        found = listener.connection("Org1MSP")
        assert found["tls_name"] == "peer0.org1.example.com"
        assert Path(found["ca"] or "").read_bytes() == org.tls[0]
        assert listener.connection("Org3MSP")["address"] is None


async def test_a_client_dials_the_host_where_the_node_listens(
    org: Organization, other: Organization
) -> None:
    """Any address of 127.0.0.0/8 stands for one of a network."""
    async with served(Echo(), org, listen=("127.0.0.7", 0)) as listener:
        await listener.serve(other)
        for one in (org, other):
            assert (listener.connection(one.mspid)["address"] or "")[
                :10
            ] == "127.0.0.7:"
            async with connected(listener, one) as client:
                assert await say(client, b"hello") == one.mspid.encode() + b" hello"


async def test_a_client_that_trusts_another_authority_is_not_served(
    org: Organization, other: Organization
) -> None:
    async with served(Echo(), org) as listener:
        address = listener.connection("Org1MSP")["address"] or ""
        async with Client(address, other.tls[0]) as client:
            assert (await say(client, b"hello")).code == "UNAVAILABLE"


async def test_mutual_tls_asks_for_a_certificate_of_a_known_organisation(
    org: Organization, other: Organization, tmp_path: Path
) -> None:
    user = org.path / "users" / "User1@org1.example.com" / "tls"
    org.user("User1")
    pair = (user / "client.key").read_bytes(), (user / "client.crt").read_bytes()
    async with served(Echo(), other, client_auth=True) as listener:
        async with connected(listener, other) as client:
            assert (await say(client, b"hello")).code == "UNAVAILABLE"
        async with connected(listener, other, pair=pair) as client:
            assert (await say(client, b"hello")).code == "UNAVAILABLE"
        await listener.serve(org)  # it joins while the other is served
        async with connected(listener, other, pair=pair) as client:
            assert await say(client, b"hello") == b"Org2MSP hello"
        for expired in (False, True):
            made = issued_by(org.path / "tlsca", "Org1MSP", expired=expired)
            shown = key_pem(made._key), made.certificate_pem
            async with connected(listener, other, pair=shown) as client:
                told = await say(client, b"hello")
            refused = isinstance(told, Ended) and told.code == "UNAVAILABLE"
            assert refused if expired else told == b"Org2MSP hello"
    roots = tmp_path / "roots.pem"
    roots.write_bytes(org.tls[0])
    async with (
        served(Echo(), other, client_auth=True, client_roots=(roots,)) as listener,
        connected(listener, other, pair=pair) as client,
    ):
        assert await say(client, b"hello") == b"Org2MSP hello"


async def test_without_tls_a_client_needs_no_certificate(org: Organization) -> None:
    async with served(Echo(), org, tls=False) as listener:
        found = listener.connection("Org1MSP")
        assert (found["tls_name"], found["ca"]) == (None, None)
        async with Client(found["address"] or "", None) as client:
            assert await say(client, b"hello") == b"Org1MSP hello"


# --- addresses ----------------------------------------------------------------------


@pytest.fixture
def taken() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()


async def test_the_next_organisation_is_2000_ports_further(
    org: Organization, other: Organization
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    if port + 2000 > 65_535:
        pytest.skip("the port that the system gave has no such neighbour")
    async with served(Echo(), org, other, listen=("127.0.0.1", port)) as listener:
        assert listener.connection("Org1MSP")["address"] == f"127.0.0.1:{port}"
        second = listener.connection("Org2MSP")["address"]
        assert second == f"127.0.0.1:{port + 2000}" or listener.warnings


async def test_an_address_that_the_user_set_and_that_is_taken_is_an_error(
    org: Organization, taken: Any
) -> None:
    with pytest.raises(NodeError, match="cannot listen for client applications"):
        async with served(Echo(), org, listen=taken):
            pass


async def test_the_usual_port_may_be_taken(
    org: Organization, taken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaindock.gateway.listener.DEFAULT", taken)
    async with served(Echo(), org, listen=None) as listener:
        (warning,) = listener.warnings
        assert f"127.0.0.1:{taken[1]} is taken" in warning
        assert "peer.listenAddress" in warning
        async with connected(listener, org) as client:
            assert await say(client, b"hello") == b"Org1MSP hello"


# --- how calls end ------------------------------------------------------------------


async def test_what_is_not_served_is_unimplemented(org: Organization) -> None:
    async with served(Echo(), org) as listener, connected(listener, org) as client:
        unknown = await client.raw("Say", b"", 10, "test.Other")
        assert unknown == Ended("UNIMPLEMENTED", "unknown service test.Other")
        text = "unknown method Shout for service test.Echo"
        assert await say(client, b"", "Shout") == Ended("UNIMPLEMENTED", text)


async def test_refusals_reach_the_client_with_their_details(org: Organization) -> None:
    async with served(Echo(), org) as listener, connected(listener, org) as client:
        address = listener.connection("Org1MSP")["address"]
        refused = Ended("ABORTED", "no: é", ((address or "", "Org1MSP", "not me"),))
        assert await say(client, b"refuse") == refused
        assert await say(client, b"denied") == Ended("PERMISSION_DENIED", "you may not")
        defect = await say(client, b"defect")
        assert defect.code == "INTERNAL"
        assert "secret" not in defect.text


async def test_long_texts_are_cut_so_that_clients_take_the_trailers(
    org: Organization,
) -> None:
    async with served(Echo(), org) as listener, connected(listener, org) as client:
        ended = await say(client, b"long")
    assert ended.code == "ABORTED"
    assert ended.text.startswith("ééé")
    assert ended.text.endswith("é…")
    assert ended.details[0][2].startswith("xxx" * 100)


async def test_calls_above_the_limit_of_a_service_are_refused(
    org: Organization,
) -> None:
    echo = Echo(limit=2)
    text = "too many requests for /test.Echo, exceeding concurrency limit (2)"
    async with served(echo, org) as listener, connected(listener, org) as client:
        calls = [asyncio.ensure_future(say(client, b"x", "Wait")) for _ in range(3)]
        done, waiting = await asyncio.wait(
            calls, return_when=asyncio.FIRST_COMPLETED, timeout=10
        )
        assert [one.result() for one in done] == [Ended("UNKNOWN", text)]
        echo.go.set()
        assert await asyncio.gather(*waiting) == [b"x", b"x"]
        assert await say(client, b"hello") == b"Org1MSP hello"


async def test_a_client_that_leaves_ends_its_call(org: Organization) -> None:
    echo = Echo(limit=1)
    async with served(echo, org) as listener, connected(listener, org) as client:
        ended = await client.raw("Wait", b"", 0.2, "test.Echo")
        assert isinstance(ended, Ended)
        assert ended.code == "DEADLINE_EXCEEDED"
        await eventually(lambda: echo.left == 1)
        assert await say(client, b"hello") == b"Org1MSP hello"


async def stalled(client: Client) -> Ended:
    """Open a call, send no request, and return how the call ends."""

    async def requests() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    call: Any = client._channel.stream_unary("/test.Echo/Say")
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call(requests(), timeout=5)
    return Ended.of(ended.value)


async def test_only_so_many_requests_may_arrive_slowly(
    org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("intake.QUICK_S", 0.1),
        ("calls.SLOW_S", 0.8),
        ("intake.MOST_SLOW", 2),
        ("intake.FEW_SLOW", 1),
    ):
        monkeypatch.setattr(f"chaindock.gateway.{name}", value)
    async with served(Echo(), org) as listener, connected(listener, org) as client:
        calls = [asyncio.ensure_future(stalled(client)) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert await say(client, b"hello") == b"Org1MSP hello"
        codes = sorted(one.code for one in await asyncio.gather(*calls))
        assert codes == ["DEADLINE_EXCEEDED"] * 2 + ["RESOURCE_EXHAUSTED"]
        assert (await stalled(client)).code == "DEADLINE_EXCEEDED"


async def test_large_requests_are_worked_on_up_to_a_limit(
    org: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaindock.gateway.intake.MOST_BYTES", 3 << 20)
    echo, large = Echo(), bytes(2 << 20)
    async with served(echo, org) as listener, connected(listener, org) as client:
        calls = [asyncio.ensure_future(say(client, large, "Wait")) for _ in range(2)]
        done, _ = await asyncio.wait(
            calls, return_when=asyncio.FIRST_COMPLETED, timeout=5
        )
        assert [one.result().code for one in done] == ["RESOURCE_EXHAUSTED"]
        assert await say(client, b"hello") == b"Org1MSP hello"
        echo.go.set()
        await asyncio.gather(*calls)
        assert await say(client, large, "Wait") == large


async def test_a_message_above_the_limit_is_refused(org: Organization) -> None:
    async with (
        served(Echo(), org, message_bytes=1 << 20) as listener,
        connected(listener, org) as client,
    ):
        assert (await say(client, bytes(1 << 21))).code == "RESOURCE_EXHAUSTED"
        assert await say(client, b"hello") == b"Org1MSP hello"


async def test_a_burst_of_calls_is_answered(org: Organization) -> None:
    async with served(Echo(), org) as listener, AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(connected(listener, org)) for _ in range(4)
        ]
        calls = [say(one, b"x") for one in clients for _ in range(750)]
        assert set(await asyncio.gather(*calls)) == {b"Org1MSP x"}
