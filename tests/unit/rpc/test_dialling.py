"""Calls that the node makes, of a server of Python's gRPC and of one that misbehaves."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from hpack import Encoder

from chaindock.identity.ca import TlsAuthority
from chaindock.rpc.connection import Limits
from chaindock.rpc.dial import connect
from chaindock.rpc.status import CallEnded, Status
from chaindock.rpc.tls import Channel, client_context, server_context
from chaindock.values import MIB
from support.rpc import raw as h
from support.rpc.raw import frame
from support.shims.credentials import server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.rpc.connection import Connection

LIMITS = Limits(100 * MIB, 100 * MIB)


class Handler(grpc.GenericRpcHandler):
    def service(self, handler_call_details: Any) -> Any:
        async def each(requests: Any, context: Any) -> Any:
            async for one in requests:
                if one == b"fail":
                    await context.abort(grpc.StatusCode.ABORTED, "100 % über")
                yield one

        if handler_call_details.method == "/test.Calls/Each":
            return grpc.stream_stream_rpc_method_handler(each)
        return None


@asynccontextmanager
async def served(tls: grpc.ServerCredentials | None = None) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Handler(),))
    address = "localhost:0"
    yield_port = (
        server.add_secure_port(address, tls)
        if tls
        else server.add_insecure_port(address)
    )
    await server.start()
    yield yield_port
    await server.stop(None)


@pytest.fixture
async def connection() -> AsyncIterator[Connection]:
    async with served() as port:
        connection = await connect(f"localhost:{port}", LIMITS)
        yield connection
        connection.close()
        await asyncio.sleep(0.01)


async def test_messages_go_both_ways(connection: Connection):
    stream = connection.request("/test.Calls/Each")
    for size in (0, 5, 16_379, 16_380, 40 * MIB):
        sent = bytes(size)
        await stream.write(sent)
        await stream.begun()
        assert await stream.read() == sent
    stream.cancel()
    assert not connection.streams


async def test_a_status_ends_the_call_which_is_forgotten(connection: Connection):
    stream = connection.request("/test.Calls/Each")
    await stream.write(b"fail")
    with pytest.raises(CallEnded, match="100 % über") as raised:
        await stream.read()
    assert raised.value.code is Status.ABORTED
    stream.cancel()
    for _ in range(3):
        stream = connection.request("/test.Calls/None", empty=True)
        with pytest.raises(CallEnded, match="UNIMPLEMENTED"):
            await stream.read()
        stream.cancel()
    assert not connection.streams


async def test_a_call_on_a_connection_that_is_gone_fails(connection: Connection):
    connection.abort()
    await asyncio.sleep(0)
    stream = connection.request("/test.Calls/Each")
    with pytest.raises(CallEnded, match="UNAVAILABLE"):
        await stream.read()
    with pytest.raises(CallEnded, match="UNAVAILABLE"):
        await stream.write(b"")
    with pytest.raises(CallEnded, match="UNAVAILABLE"):
        await stream.begun()


@pytest.mark.parametrize("wrong", ["", "root", "name", "own"])
async def test_both_sides_show_certificates(wrong: str):
    authority, other = TlsAuthority(), TlsAuthority()
    pair = authority.issue_server("localhost")
    root = (other if wrong == "root" else authority).root_pem
    own = (other if wrong == "own" else authority).issue_client()
    context = client_context(own.cert_pem, own.key_pem, root)
    name = "elsewhere" if wrong == "name" else None
    async with served(server(authority, pair)) as port:
        address = f"localhost:{port}"
        if wrong in {"root", "name"}:
            with pytest.raises(OSError, match="certificate verify failed"):
                await connect(address, LIMITS, context, name)
            return
        connection = await connect(address, LIMITS, context)
        stream = connection.request("/test.Calls/Each")
        if wrong:
            with pytest.raises(CallEnded, match="UNAVAILABLE"):
                await stream.read()
        else:
            await stream.write(bytes(3 * MIB))
            assert await stream.read() == bytes(3 * MIB)
        connection.close()
        await asyncio.sleep(0.01)


async def test_an_open_call_is_told_why_tls_broke():
    authority, gone = TlsAuthority(), asyncio.Event()
    pair = authority.issue_server("localhost")
    tls = Channel(server_context(pair.cert_pem, pair.key_pem, None), None)

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while not tls.shaken:
            writer.write(tls.begin(await reader.read(MIB)))
        writer.write(b"\x17\x03\x03\0\x20" + bytes(32))  # a record that nobody sealed
        with contextlib.suppress(ConnectionError):
            while await reader.read(MIB):
                pass
            writer.close()
            await writer.wait_closed()
        gone.set()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    context = client_context(None, None, authority.root_pem)
    connection = await connect(f"127.0.0.1:{port}", LIMITS, context, "localhost")
    stream = connection.request("/test.Calls/Each")
    with pytest.raises(CallEnded, match=r"connection lost: .*record mac"):
        await stream.read()
    assert not connection.streams
    await gone.wait()
    listener.close()
    await listener.wait_closed()


def answer(*pairs: tuple[str, str], end: bool = True) -> bytes:
    return frame(h.HEADERS, h.END_HEADERS | end, 1, Encoder().encode(pairs))


BEGUN = answer((":status", "200"), end=False)
ODD = {
    "a code of many digits": (answer(("grpc-status", "9" * 6000)), "UNKNOWN"),
    "a code that is none": (answer(("grpc-status", "17")), "UNKNOWN"),
    "digits of others": (answer(("grpc-status", "٣")), "UNKNOWN"),
    "no code": (BEGUN + answer(("a", "b")), "UNKNOWN"),
    "HTTP 503": (answer((":status", "503"), end=False), "HTTP status 503"),
    "a reset": (frame(h.RST, 0, 1, b"\0\0\0\x07"), "UNAVAILABLE"),
    "it goes": (frame(h.GOAWAY, 0, 0, bytes(7) + b"\x0bcalm"), "left: calm"),
    "a call of its own": (frame(h.HEADERS, 4, 2, b""), "connection lost"),
    "a push": (frame(h.PUSH, 4, 1, bytes(4)), "connection lost"),
    "half a message": (
        BEGUN + frame(h.DATA, h.END, 1, b"\0\0\0\0\x09abc"),
        "not complete",
    ),
    "more than the window": (
        BEGUN + frame(h.DATA, 0, 1, b"\0\5\0\0\0" + bytes(16_000)) * 70,
        "connection lost|larger",
    ),
}


@pytest.mark.parametrize(("sent", "told"), ODD.values(), ids=list(ODD))
async def test_an_odd_answer_ends_the_call(sent: bytes, told: str):
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, what: faults.append(what)
    )

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readexactly(24)
            writer.write(frame(h.SETTINGS, 0, 0) + sent)
            await reader.read()
            writer.close()
            await writer.wait_closed()
        gone.set()

    gone = asyncio.Event()
    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    connection = await connect(f"127.0.0.1:{port}", Limits(MIB, MIB))
    stream = connection.request("/test.Calls/Each")
    async with asyncio.timeout(2):
        with pytest.raises(CallEnded, match=told):
            await stream.read()
    stream.cancel()
    connection.close()
    listener.close()
    await listener.wait_closed()
    await gone.wait()
    assert not connection.streams
    assert not faults


@pytest.mark.parametrize("path", [False, True])
async def test_a_call_names_its_server(path: bool, tmp_path: Path):
    """As gRPC does: Node.js resets a call whose authority holds a path."""
    heard = asyncio.Event()
    found: dict[str, str] = {}

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        sent = await reader.readuntil(b"application/grpc")
        at = sent.index(b":authority") + len(b":authority")
        found["name"] = sent[at + 1 : at + 1 + sent[at]].decode()
        writer.close()
        heard.set()

    if path:
        address = f"unix:{tmp_path}/cc.sock"
        listener = await asyncio.start_unix_server(accept, f"{tmp_path}/cc.sock")
    else:
        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
        address = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    connection = await connect(address, LIMITS)
    connection.request("/test.Calls/Each")
    await heard.wait()
    assert found["name"] == ("localhost" if path else address)
    connection.close()
    listener.close()
    await listener.wait_closed()
