"""The node dials with TLS, and makes sure of the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode.client import serve_dialled
from chaindock.chaincode.handler import Handler
from chaindock.container.contracts import DialTls
from chaindock.identity.ca import TlsAuthority
from chaindock.rpc.status import Status
from support.shims.credentials import server
from support.shims.peer import PATIENCE_S, ShimServer
from support.shims.stream_node import CCID, StreamNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chaindock.chaincode.handler import StreamEnd


@pytest.fixture
def authority() -> TlsAuthority:
    return TlsAuthority()


@pytest.fixture
async def chaincode(
    authority: TlsAuthority, no_task_is_left: None
) -> AsyncIterator[ShimServer]:
    """It serves with TLS, and wants a certificate of the same authority."""
    credentials = server(authority, authority.issue_server("127.0.0.1"))
    async with ShimServer(credentials=credentials) as chaincode:
        yield chaincode


def shows(authority: TlsAuthority, root: str = "", name: str | None = None) -> DialTls:
    pair = authority.issue_client()
    return DialTls(root or authority.root_pem, pair.key_pem, pair.cert_pem, name)


async def ended(address: str, tls: DialTls) -> StreamEnd:
    """Return how a dial ends that must not succeed."""
    async with StreamNode("is dialled") as node:
        expected = node.expect()
        handler = Handler(node.registry, node.options, dialled=expected)
        async with asyncio.timeout(PATIENCE_S):
            end = await serve_dialled(address, handler, node.options, tls)
        assert not expected.ready.settled
        return end


async def registers(chaincode: ShimServer, tls: DialTls) -> None:
    """Check that a dial succeeds."""
    async with StreamNode("is dialled") as node:
        expected = node.expect()
        handler = Handler(node.registry, node.options, dialled=expected)
        dial = node.tasks.start(
            serve_dialled(chaincode.address, handler, node.options, tls), "dial"
        )
        peer = await chaincode.stream()
        await peer.register(CCID)
        assert await expected.ready.wait() is handler
        await peer.leave()
        await dial


@pytest.mark.parametrize("name", [None, "host.docker.internal"])
async def test_both_sides_show_a_certificate(
    chaincode: ShimServer, authority: TlsAuthority, name: str | None
):
    await registers(chaincode, shows(authority, name=name))


async def test_the_node_need_not_show_one_when_nobody_asks(
    authority: TlsAuthority, no_task_is_left: None
):
    pair = authority.issue_server("127.0.0.1")
    async with ShimServer(credentials=server(authority, pair, asks=False)) as chaincode:
        await registers(chaincode, DialTls(authority.root_pem))


def expects(name: str, address: str) -> str:
    return f"no TLS with the server at {address}: expected a certificate for {name!r} "


async def test_a_foreign_root_is_told_soon(
    chaincode: ShimServer, authority: TlsAuthority
):
    other = TlsAuthority()
    end = await ended(chaincode.address, shows(authority, root=other.root_pem))
    assert end.code is Status.UNAUTHENTICATED
    assert end.reason.startswith(expects("127.0.0.1", chaincode.address))
    assert "CERTIFICATE_VERIFY_FAILED" in end.reason


async def test_a_wrong_name_is_told_soon(
    chaincode: ShimServer, authority: TlsAuthority
):
    name = "basic.org1.example.com"
    end = await ended(chaincode.address, shows(authority, name=name))
    assert end.reason.startswith(expects(name, chaincode.address))
    assert "Hostname mismatch" in end.reason


async def test_a_server_without_tls_is_told_soon(
    authority: TlsAuthority, no_task_is_left: None
):
    async with ShimServer() as chaincode:
        end = await ended(chaincode.address, shows(authority))
    assert end.reason.startswith(expects("127.0.0.1", chaincode.address))


async def test_a_server_that_refuses_the_node_is_told_soon(
    chaincode: ShimServer, authority: TlsAuthority
):
    foreign = TlsAuthority()
    pair = foreign.issue_client()
    for tls in (
        DialTls(authority.root_pem, pair.key_pem, pair.cert_pem),
        DialTls(authority.root_pem),
    ):
        end = await ended(chaincode.address, tls)
        assert "refuses the node's certificate" in end.reason


async def test_a_root_that_is_no_certificate_is_told(chaincode: ShimServer):
    end = await ended(chaincode.address, DialTls("no PEM"))
    assert "that the given root signed" in end.reason


async def test_dialling_with_tls_waits_for_a_server_that_boots(
    authority: TlsAuthority, no_task_is_left: None
):
    credentials = server(authority, authority.issue_server("127.0.0.1"))
    async with ShimServer() as free:
        port = int(free.address.rpartition(":")[2])
    async with StreamNode("is dialled") as node:
        expected = node.expect()
        handler = Handler(node.registry, node.options, dialled=expected)
        dial = node.tasks.start(
            serve_dialled(f"127.0.0.1:{port}", handler, node.options, shows(authority)),
            "dial",
        )
        await asyncio.sleep(0.1)
        async with ShimServer(port, credentials) as chaincode:
            peer = await chaincode.stream()
            await peer.register(CCID)
            assert await expected.ready.wait() is handler
            await peer.leave()
            await dial


def test_no_key_is_shown_by_chance(authority: TlsAuthority):
    tls = shows(authority)
    assert tls.key_pem is not None
    assert tls.key_pem.splitlines()[1] not in repr(tls)
