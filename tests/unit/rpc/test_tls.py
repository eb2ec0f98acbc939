"""What the other side can do to a connection by TLS alone."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from chaindock.identity.ca import TlsAuthority
from chaindock.rpc.tls import client_context, server_context
from support.eventually import eventually
from support.need import need
from support.rpc import raw as h
from support.rpc.calls import Calls
from support.rpc.raw import Raw, frame, message, request

PIECE = 16_384


async def test_what_comes_after_the_end_of_tls_is_not_kept():
    authority = TlsAuthority()
    pair, root = authority.issue_server("localhost"), authority.root_pem
    context = server_context(pair.cert_pem, pair.key_pem, None)
    async with Calls(tls=lambda: context) as calls:
        ends = await asyncio.open_connection("127.0.0.1", calls.port)
        raw = Raw(*ends)
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = client_context(None, None, root).wrap_bio(
            received, to_send, server_hostname="localhost"
        )
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                raw.send(to_send.read())
                received.write(await ends[0].read(PIECE))
        tls.write(h.PREFACE + frame(h.SETTINGS, 0, 0) + request(1, "Wait", b"x"))
        raw.send(to_send.read())
        await eventually(lambda: calls.begun)
        with contextlib.suppress(ssl.SSLError):
            tls.unwrap()
        raw.send(to_send.read() + bytes(1000))
        await eventually(lambda: calls.cancelled == 1)
        await eventually(lambda: not calls.server._guests)
        await raw.close()


async def test_a_client_may_change_its_keys_but_not_without_end(
    monkeypatch: pytest.MonkeyPatch,
):
    need("openssl")
    pair = TlsAuthority().issue_server("localhost")
    context = server_context(pair.cert_pem, pair.key_pem, None)
    async with Calls(tls=lambda: context) as calls:
        client = await asyncio.create_subprocess_exec(
            *("openssl", "s_client", "-connect", f"127.0.0.1:{calls.port}"),
            *("-tls1_3", "-alpn", "h2", "-brief"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        keyboard = client.stdin
        assert keyboard is not None
        await eventually(lambda: any(one.shaken for one in calls.server._guests), 5)
        (connection,) = calls.server._guests
        tls = connection._tls
        assert tls is not None

        async def change() -> None:
            """Change the client's keys, and ask for those of the other side."""
            heard = connection._heard
            keyboard.write(b"K\n")
            await eventually(lambda: connection._heard > heard, 5)

        await change()
        await change()  # TLS answers the change before
        assert not tls._out.pending
        keyboard.write(h.PREFACE + request(1, "Echo", b"said"))
        assert client.stdout is not None
        async with asyncio.timeout(5):
            await client.stdout.readuntil(b"said")
        await change()
        monkeypatch.setattr("chaindock.rpc.tls._MOST_SAID", 0)
        await change()
        await eventually(lambda: not calls.server._guests, 5)
        await client.communicate()


async def test_a_handshake_may_come_byte_by_byte_and_break_anywhere(
    monkeypatch: pytest.MonkeyPatch,
):
    authority = TlsAuthority()
    pair, root = authority.issue_server("localhost"), authority.root_pem
    context = server_context(pair.cert_pem, pair.key_pem, None)
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(None, None, root).wrap_bio(
        received, to_send, server_hostname="localhost"
    )
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = to_send.read()
    monkeypatch.setattr("chaindock.rpc.server._HANDSHAKE_S", 0.1)
    async with Calls(tls=lambda: context) as calls:
        for sent, goes in (
            (hello[:50], False),
            (hello, True),
            (hello[:-3] + b"xyz", True),
            (b"GET / HTTP/1.1\r\n\r\n", True),
            (hello * 3, True),
            (b"", False),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", calls.port)
            for byte in sent:
                writer.write(bytes((byte,)))
            if goes:
                writer.close()
            else:
                await reader.read()  # the node ends it
                writer.close()
        await eventually(lambda: not calls.server._guests)
        assert len(calls.server.arrivals.in_vain(0)) == 6
        raw = await Raw.dial(
            calls.port, request(1, "Echo", b"on"), client_context(None, None, root)
        )
        assert (await raw.answer(1))[0] == message(b"on")
        await raw.close()
