"""Calls of Python's gRPC, whose core is that of C++, C#, Ruby and PHP, too."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import grpc
import grpc.aio
import pytest

from chaindock.identity.ca import TlsAuthority
from chaindock.rpc.connection import Limits
from chaindock.rpc.tls import server_context
from chaindock.values import MIB
from support.eventually import eventually
from support.rpc.calls import DETAILS, Calls
from support.shims.credentials import client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

UNLIMITED = [("grpc.max_receive_message_length", -1)]
LARGE = bytes(range(256)) * (50 * MIB // 256)
CODE = grpc.StatusCode


@pytest.fixture
async def channel(calls: Calls) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{calls.port}", UNLIMITED
    ) as channel:
        yield channel


def unary(channel: Any, name: str) -> Any:
    return channel.unary_unary(f"/test.Calls/{name}")


def streams(channel: Any, name: str) -> Any:
    return channel.stream_stream(f"/test.Calls/{name}")


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code()


async def test_requests_with_metadata(calls: Calls, channel: grpc.aio.Channel):
    metadata = (("name", "value"), ("some-bin", b"\0\xff"))
    for size in (0, 1, 16_379, 16_380, 65_536, 3 * MIB):
        sent = LARGE[:size]
        assert await unary(channel, "Echo")(sent, metadata=metadata) == sent
    assert calls.heard["name"] == "value"
    assert calls.heard[":path"] == "/test.Calls/Echo"


async def test_large_messages_in_both_directions(channel: grpc.aio.Channel):
    assert await unary(channel, "Echo")(LARGE) == LARGE


async def test_many_calls_at_once(calls: Calls, channel: grpc.aio.Channel):
    sent = [b"%d" % n * (n * 37) for n in range(500)]
    call = unary(channel, "Echo")
    assert await asyncio.gather(*(call(one) for one in sent)) == sent
    await eventually(lambda: not calls.open)


async def test_streams_in_both_directions(channel: grpc.aio.Channel):
    call = streams(channel, "Each")()
    for size in (1, 0, 100_000, 5):
        await call.write(LARGE[:size])
        assert await call.read() == LARGE[:size]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is CODE.OK


async def test_a_stream_of_many_messages(channel: grpc.aio.Channel):
    call: Any = cast("Any", channel).unary_stream("/test.Calls/Pour")(b"3000 3000")
    assert [len(one) async for one in call] == [3000] * 3000


@pytest.mark.parametrize(("count", "size", "some"), [(40, 3000, 80), (200, 10, 50)])
async def test_a_stream_of_many_messages_that_go_together(
    channel: grpc.aio.Channel, count: int, size: int, some: int
):
    """Of some calls on a connection, each with a window that may be smaller."""
    asked = b"%d %d %d" % (count, size, some)
    pour: Any = cast("Any", channel).unary_stream("/test.Calls/Pour")

    async def sizes() -> list[int]:
        return [len(one) async for one in pour(asked)]

    found = await asyncio.gather(*(sizes() for _ in range(3)))
    assert found == [[size] * count * some] * 3


async def test_an_error_with_details(channel: grpc.aio.Channel):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "Fail")(b"")
    error = raised.value
    assert (error.code(), error.details()) == (CODE.ABORTED, "100 % über\nlines")
    trailers: Any = error.trailing_metadata()
    binary, plain = DETAILS
    assert dict(trailers) == {binary[0]: binary[1], plain[0]: plain[1].decode()}
    assert await code_of(unary(channel, "Missing")(b"")) is CODE.UNIMPLEMENTED


async def test_an_answer_before_the_end_of_the_request(channel: grpc.aio.Channel):
    call = streams(channel, "Rest")()
    await call.write(b"x")
    assert await call.read() == b"enough"
    assert await call.code() is CODE.OK


async def test_deadlines_and_leaving(calls: Calls, channel: grpc.aio.Channel):
    call = unary(channel, "Wait")
    assert await code_of(call(b"", timeout=0.05)) is CODE.DEADLINE_EXCEEDED
    await eventually(lambda: calls.cancelled == 1)
    # Without a deadline of the client's own, the server's decides.
    late = (("grpc-timeout", "20m"),)
    assert await code_of(call(b"", metadata=late)) is CODE.DEADLINE_EXCEEDED
    await eventually(lambda: calls.cancelled == 2)
    left = call(b"")
    await eventually(lambda: calls.begun == 3)
    left.cancel()
    await eventually(lambda: calls.cancelled == 3)
    assert await unary(channel, "Echo")(b"on") == b"on"


async def test_a_call_that_the_node_cancels_ends_for_the_client(
    channel: grpc.aio.Channel,
):
    assert await code_of(unary(channel, "Break")(b"")) is CODE.RESOURCE_EXHAUSTED
    call = streams(channel, "Break")()
    await call.write(b"")
    assert await call.code() is CODE.RESOURCE_EXHAUSTED


async def test_the_end_of_the_server_ends_calls(calls: Calls, channel: Any):
    """Not as if the client had left: applications listen to events no more then."""
    call = unary(channel, "Wait")(b"")
    await eventually(lambda: calls.begun)
    await calls.server.aclose()
    assert await code_of(call) is CODE.UNAVAILABLE
    assert await call.details() == "the server has stopped"  # the node may go on


async def test_messages_beyond_the_limit_are_refused():
    async with Calls(Limits(1000, 2000, 10)) as calls:
        address = f"127.0.0.1:{calls.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            echo, pour = unary(channel, "Echo"), unary(channel, "Pour")
            assert await echo(bytes(1000)) == bytes(1000)
            assert await code_of(echo(bytes(1001))) is CODE.RESOURCE_EXHAUSTED
            assert await code_of(pour(b"1 2001")) is CODE.RESOURCE_EXHAUSTED
            assert await code_of(echo(bytes(MIB))) is CODE.RESOURCE_EXHAUSTED
        options = [("grpc.default_compression_algorithm", 2)]
        async with grpc.aio.insecure_channel(address, options) as channel:
            assert await code_of(unary(channel, "Echo")(bytes(900))) in {
                CODE.UNIMPLEMENTED,
                CODE.INTERNAL,
            }


async def test_pings_keep_a_connection(calls: Calls, monkeypatch: pytest.MonkeyPatch):
    options = [
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_timeout_ms", 500),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    address = f"127.0.0.1:{calls.port}"
    async with grpc.aio.insecure_channel(address, options) as channel:
        call = unary(channel, "Wait")(b"")
        await asyncio.sleep(0.4)
        assert not call.done()
        assert await unary(channel, "Echo")(b"on") == b"on"
        call.cancel()


async def test_a_silent_client_is_pinged_and_stays():
    async with Calls(Limits(1000, 1000, 10, ping_s=0.05)) as calls:
        address = f"127.0.0.1:{calls.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            call = unary(channel, "Wait")(b"")
            await eventually(lambda: calls.begun)
            (connection,) = calls.server._guests
            await eventually(lambda: connection._pinged_at is not None)
            pinged = connection._pinged_at or 0
            await eventually(lambda: connection._heard >= pinged)
            assert not call.done()
            call.cancel()


async def test_a_client_of_a_connection_that_was_idle_is_served_on():
    async with Calls(Limits(1000, 1000, 10, ping_s=0.04, idle_s=0.05)) as calls:
        address = f"127.0.0.1:{calls.port}"
        async with grpc.aio.insecure_channel(address) as channel:
            echo, connections = unary(channel, "Echo"), set()
            for n in range(24):
                assert await echo(b"on") == b"on"
                connections |= set(calls.server._guests)
                await asyncio.sleep(0.045 + n % 6 * 0.005)
            assert len(connections) > 1


async def test_blocking_clients(calls: Calls):
    def run() -> list[bytes]:
        with grpc.insecure_channel(f"127.0.0.1:{calls.port}") as channel:
            each = streams(channel, "Each")(iter([b"a", b"b"]), timeout=5)
            return [unary(channel, "Echo")(b"x", timeout=5), *each]

    assert await asyncio.to_thread(run) == [b"x", b"a", b"b"]


# --- TLS ------------------------------------------------------------------------------


@pytest.mark.parametrize("shown", ["good", "none", "another's"])
async def test_clients_show_certificates(shown: str):
    authority = TlsAuthority()
    pair, root = authority.issue_server("localhost"), authority.root_pem
    context = server_context(pair.cert_pem, pair.key_pem, root)
    other = TlsAuthority() if shown == "another's" else authority
    credentials = client(root, None if shown == "none" else other.issue_client())
    async with Calls(tls=lambda: context) as calls:
        address = f"localhost:{calls.port}"
        async with grpc.aio.secure_channel(address, credentials) as channel:
            call = unary(channel, "Echo")(LARGE[: 3 * MIB])
            if shown == "good":
                assert await call == LARGE[: 3 * MIB]
            else:
                assert await code_of(call) is CODE.UNAVAILABLE
                assert calls.server.arrivals.in_vain(0)
