"""Proxies and virtual machines end connections on which nothing is said."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from support.doubles.idle_proxy import IdleProxy
from support.doubles.memory_state import invocation
from support.eventually import eventually
from support.shims.peer import ShimPeer
from support.shims.stream_node import CCID, StreamNode

if TYPE_CHECKING:
    from chaindock.chaincode.handler import Handler

IDLE_S = 1.0
NEVER_S = 3600.0


async def registered(node: StreamNode, address: str) -> tuple[ShimPeer, Handler]:
    """Return a ready chaincode that dialled `address`."""
    expected = node.expect()
    peer = await ShimPeer.dial(address)
    await peer.register(CCID)
    return peer, await expected.ready.wait()


async def test_a_chaincode_that_is_seldom_called_stays_connected():
    async with (
        StreamNode(ping_s=IDLE_S / 5) as node,
        IdleProxy(await node.listener.address_on("127.0.0.1"), IDLE_S) as proxy,
    ):
        peer, node.handler = await registered(node, proxy.address)
        async with peer:
            await asyncio.sleep(IDLE_S * 3)
            assert not node.handler.ended.settled
            call = node.call(invocation("f"))
            await peer.complete(await peer.receive(), b"still here")
            assert (await call).response.payload == b"still here"
        assert proxy.cut == 0


async def test_without_pings_it_would_not():
    """What the test above measures is there."""
    async with (
        StreamNode(ping_s=NEVER_S) as node,
        IdleProxy(await node.listener.address_on("127.0.0.1"), IDLE_S) as proxy,
    ):
        peer, handler = await registered(node, proxy.address)
        async with peer:
            await eventually(lambda: proxy.cut == 1)
            await eventually(lambda: handler.ended.settled)


def test_the_default_is_below_the_limits_that_people_meet():
    """60 s: load balancers and home routers; 300 s: virtual machines of engines."""
    assert StreamNode().options.ping_s < 60
