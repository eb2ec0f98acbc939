"""Blocks and envelopes over real connections: many, slow and vanished clients."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from fabric_protos.common import common_pb2
from fabric_protos.orderer import ab_pb2
from fabric_protos.peer import events_pb2

from chaindock.gateway import broadcast, deliver
from chaindock.gateway.blocks import BlockFeed, Follower
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.options import GatewayOptions
from support.eventually import eventually
from support.gateways.client import Client
from support.gateways.delivering import Place, seek, told
from support.ledgers.envelopes import rwset, transaction

FREE = ("127.0.0.1", 0)
PEER, ORDERER = "protos.Deliver", "orderer.AtomicBroadcast"


class Clients:
    """Connections to a server with the services of blocks."""

    def __init__(self, place: Place, listener: ClientListener) -> None:
        self.place, self.listener = place, listener
        self.stack = AsyncExitStack()

    async def connect(self, **how: Any) -> Client:
        address = self.listener.connection(self.place.org.mspid)["address"]
        client = Client(str(address), self.place.org.tls[0], **how)
        return await self.stack.enter_async_context(client)


@asynccontextmanager
async def served(place: Place, **options: Any) -> AsyncIterator[Clients]:
    chosen = GatewayOptions(**{"listen": FREE, **options})
    place.options = chosen
    services = [
        partial(one.service, place.channels, place.feeds, chosen)
        for one in (deliver, broadcast)
    ]
    async with ClientListener(chosen, services) as listener:
        await listener.serve(place.org)
        clients = Clients(place, listener)
        async with clients.stack:
            yield clients


async def read(call: Any) -> Any:
    async with asyncio.timeout(10):
        return events_pb2.DeliverResponse.FromString(await call.read())


async def numbers(call: Any, count: int) -> list[int | str]:
    return [told(await read(call)) for _ in range(count)]


async def admitted(client: Any, place: Any) -> bool:
    """Whether there is room for one more stream."""
    call = client.open(PEER, "Deliver")
    with suppress(grpc.aio.AioRpcError):
        await call.write(seek(place.user, 0, 0))
        return await numbers(call, 2) == [0, "SUCCESS"]
    return False


async def ended(call: Any) -> tuple[str, str]:
    async with asyncio.timeout(10):
        return (await call.code()).name, await call.details()


@pytest.mark.statement(49, 50, of="client")
@pytest.mark.parametrize(
    ("service", "method"),
    [
        (PEER, "Deliver"),
        (PEER, "DeliverFiltered"),
        (PEER, "DeliverWithPrivateData"),
        (ORDERER, "Deliver"),
    ],
)
async def test_every_stream_of_blocks_over_tls(place, service, method):
    async with served(place) as clients:
        call = (await clients.connect()).open(service, method)
        await call.write(seek(place.user, 1, 2))
        assert await numbers(call, 3) == [1, 2, "SUCCESS"]
        await call.write(seek(place.user, "newest"))
        assert await numbers(call, 1) == [4]
        await place.commit()
        assert await numbers(call, 1) == [5]
        call.cancel()
        other = (await clients.connect()).open(service, method)
        await other.write(b"\xff")
        assert await numbers(other, 1) == ["BAD_REQUEST"]
        assert await other.read() is grpc.aio.EOF
        assert await ended(other) == ("OK", "")


async def test_envelopes_over_tls(place):
    one = common_pb2.Envelope(payload=b"\xff").SerializeToString()
    async with served(place) as clients:
        call = (await clients.connect()).open(ORDERER, "Broadcast")
        await call.write(one)
        response = ab_pb2.BroadcastResponse.FromString(await call.read())
        assert response.status == common_pb2.BAD_REQUEST
        assert await call.read() is grpc.aio.EOF


async def test_a_client_that_does_not_read_is_held_up_alone(place, monkeypatch):
    """Its connection takes some blocks; the others stay where they are, on the disk."""
    followers: list[Follower] = []
    follow = BlockFeed.follow

    def noted(*how: Any) -> Follower:
        followers.append(follow(*how))
        return followers[-1]

    monkeypatch.setattr(BlockFeed, "follow", noted)
    large = rwset(writes={"k": bytes(200_000)})
    async with served(place) as clients:
        slow = (await clients.connect()).open(PEER, "Deliver")
        await slow.write(seek(place.user, 0))
        await eventually(lambda: len(followers) == 1)
        fast = (await clients.connect()).open(PEER, "Deliver")
        await fast.write(seek(place.user, 0))
        for number in range(105):
            if number > 4:
                envelope = transaction(large, channel="mychannel").envelope
                await place.commit_envelope(envelope, 11)
            assert await numbers(fast, 1) == [number]
        assert followers[1].position == 105
        assert followers[0].position < 70
        assert await numbers(slow, 105) == list(range(105))


async def test_a_client_that_vanishes_leaves_nothing_behind(place):
    async with served(place) as clients:
        for _ in range(3):
            client = await clients.connect()
            calls = [client.open(PEER, "Deliver") for _ in range(20)]
            for call in calls:
                await call.write(seek(place.user, "next_commit"))
            await eventually(lambda: len(place.ledger._blocks) == 1)
            await client._channel.close(None)
            await eventually(lambda: len(place.ledger._blocks) == 0)


async def test_more_streams_than_the_limit_are_refused_and_room_comes_again(place):
    async with served(place, deliver_calls=2) as clients:
        client = await clients.connect()
        held = [client.open(PEER, name) for name in ("Deliver", "DeliverFiltered")]
        for call in held:
            await call.write(seek(place.user, 0))
            await read(call)
        refused = client.open(PEER, "DeliverWithPrivateData")
        await refused.write(seek(place.user, 0))
        with pytest.raises(grpc.aio.AioRpcError):
            await refused.read()
        assert await ended(refused) == (
            "UNKNOWN",
            "too many requests for /protos.Deliver, exceeding concurrency limit (2)",
        )
        held[0].cancel()
        for _ in range(200):
            if await admitted(client, place):
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("there is no room again")
        held[1].cancel()


async def test_mutual_tls_binds_a_request_to_its_connection(place, org):
    folder = next(Path(org.path).glob("users/User1*/tls"))
    key, certificate = (
        (folder / f"client.{end}").read_bytes() for end in ("key", "crt")
    )
    right = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).digest()
    async with served(place, client_auth=True) as clients:
        for claimed, expected in (
            (right, [0, "SUCCESS"]),
            (bytes(32), ["BAD_REQUEST"]),
            (b"", ["BAD_REQUEST"]),
        ):
            client = await clients.connect(pair=(key, certificate))
            call = client.open(PEER, "Deliver")
            await call.write(seek(place.user, 0, 0, header={"tls_cert_hash": claimed}))
            assert await numbers(call, len(expected)) == expected
