"""Handshakes with the node that came to no stream are counted."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING

import grpc.aio
import pytest

from chaindock.rpc.server import MOST_FAILURES, Arrivals
from support.eventually import eventually
from support.shims.tls_node import Guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = "127.0.0.1"


@pytest.fixture
async def node(no_task_is_left: None) -> AsyncIterator[Guarded]:
    async with Guarded() as node:
        yield node


async def connect(
    node: Guarded, context: ssl.SSLContext | None = None
) -> asyncio.StreamWriter:
    host, _, port = (await node.listener.address_on(HERE)).partition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context)
    return writer


def in_vain(node: Guarded) -> int:
    return len(node.registry.arrivals.in_vain(0.0))


async def test_connections_without_tls_are_counted(node: Guarded):
    writers = [await connect(node) for _ in range(3)]
    for writer in writers:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    await eventually(lambda: in_vain(node) == 3)
    for writer in writers:  # also when they are gone
        writer.close()
        await writer.wait_closed()
    assert in_vain(node) == 3
    assert not node.registry.arrivals.in_vain(time.monotonic())


async def test_a_client_that_trusts_another_root_is_counted(node: Guarded):
    with pytest.raises(ssl.SSLCertVerificationError):
        await connect(node, ssl.create_default_context())
    await eventually(lambda: in_vain(node) == 1)


async def test_a_client_without_a_certificate_is_counted(node: Guarded):
    peer = await node.dials(None)
    code, _ = await peer.refusal()
    assert code is grpc.StatusCode.UNAVAILABLE
    await eventually(lambda: in_vain(node) >= 1)


async def test_a_client_that_gets_a_stream_is_not_counted(node: Guarded):
    for _ in range(3):
        peer, _ = await node.runs()
        assert in_vain(node) == 0
        await peer.leave()
        await node.handler.ended.wait()
    assert in_vain(node) == 0


def test_the_number_is_bounded():
    arrivals = Arrivals()
    for number in range(300):
        arrivals.failed(f"fault {number}")
    assert arrivals.in_vain(0.0)[-1] == "fault 299"
    assert len(arrivals.in_vain(0.0)) == MOST_FAILURES
    arrivals.clear()
    assert not arrivals.in_vain(0.0)
