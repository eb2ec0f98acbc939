"""What a hundred subscribers of blocks and events cost the node.

They are connections of Fabric's client for Go, with TLS, in a process of their own. The
first rows are the CPU of the node for a submit of Fabric's client for Node; the last row
is that for one block to one subscriber, beside a bare `grpc.aio` server that sends the
same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from bench.bench_gateway import measured
from bench.measure import in_turns, scratch
from bench.rows import Row
from chaindock.gateway import deliver
from chaindock.gateway.listener import ClientListener
from chaindock.gateway.options import GatewayOptions
from chaindock.identity.organization import Organization
from support.clients.driver import driver
from support.clients.network import CHANNEL, network
from support.gateways.delivering import open_place
from support.nodes.node import FIXTURES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from support.clients.driver import Driver

SUBSCRIBERS, ROUNDS, BLOCKS = 100, 3, 100
CALLERS = (1, 64)
MOST = 1.2
"""Goal: at most this many times the CPU without subscribers."""
_PUT: dict[str, Any] = {"fn": "put", "args": ["v" * 100]}
_LOADS = {
    "filtered": _PUT,
    "block": _PUT,
    "chaincode": {"fn": "event", "args": ["v" * 100]},
}
"""What is submitted, by the kind of listener."""
_APART_S = 0.03
"""Between two blocks: by then all subscribers have the first one."""


class Subscribers:
    """A hundred connections of a client for Go, which all follow one channel.

    Args:
        fields: the place, and who asks.
    """

    def __init__(self, client: Driver, **fields: str) -> None:
        self._client = client
        self._names = [f"{fields['address']} {at}" for at in range(SUBSCRIBERS)]
        self._all("connect", channel=CHANNEL, **fields)

    def _all(self, op: str, **fields: Any) -> list[Any]:
        asked = [
            self._client.send(op, stream=name, **{"who": name, **fields})
            for name in self._names
        ]
        return [one.result(30) for one in asked]

    def _counted(self) -> int:
        return sum(one["count"] for one in self._all("counted"))

    @contextlib.asynccontextmanager
    async def following(self, kind: str) -> AsyncIterator[None]:
        """Have them follow from the next block on, and see that each got some."""
        listen = {"kind": kind, "contract": "plain", "counts": True}
        before = self._counted()
        await asyncio.to_thread(self._all, "listen", **listen)
        yield
        await asyncio.to_thread(self._all, "close")
        assert self._counted() - before >= SUBSCRIBERS


async def submits() -> AsyncIterator[Row]:
    """CPU of a submit with 1 and 64 callers, with and without subscribers."""
    with (
        scratch() as folder,
        network(folder) as net,
        driver("node") as client,
        driver("go") as followers,
    ):
        net.node.cli("deploy", FIXTURES / "conformance" / "go", "--name", "plain")
        who, pid = net.connect(client), net.node.status["pid"]
        fields = {**net.place("Org1"), **net.identity("Org1")}
        subscribers = Subscribers(followers, **fields)
        for callers in CALLERS:
            for kind, load in _LOADS.items():
                alone: list[float] = []
                spent: list[float] = []
                how = {"verb": "submitTransaction", "prefix": "k", "callers": callers}
                submit = measured(client, who, pid, alone, **how, **load)
                same = measured(client, who, pid, spent, **how, **load)
                for _ in range(ROUNDS):
                    await submit()
                    async with subscribers.following(kind):
                        await same()
                what = f"submit, {callers} callers, {SUBSCRIBERS} for {kind} events"
                against = "without subscribers"
                yield Row(what, min(spent), "µs", min(alone), against, most=MOST)


class Bare:
    """Sends the same bytes to every subscriber, whenever there is a block."""

    def __init__(self) -> None:
        self.response = b""
        self._next = asyncio.Event()

    async def commit(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def stream(self, _: Any, context: Any) -> None:
        await context.read()
        while True:
            await self._next.wait()
            await context.write(self.response)

    def service(self, _: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(self.stream)


def cpu(commit: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[float]]:
    """Return what measures the CPU of this process for one block, in µs."""

    async def side() -> float:
        began = time.process_time()
        for _ in range(BLOCKS):
            await commit()
            await asyncio.sleep(_APART_S)
        return (time.process_time() - began) / BLOCKS * 1e6

    return side


async def messages(folder: Path) -> Row:
    """CPU of one block to one subscriber."""
    org = Organization.open(folder / "organizations", "Org1MSP", "org1.example.com")
    org.user("User1")
    tls, users = org.tls, org.path / "users"
    (folder / "ca.pem").write_bytes(tls[0])
    (cert,), (key,) = (
        users.glob(f"User1*/msp/{kind}/*") for kind in ("signcerts", "keystore")
    )
    fields = {"mspid": org.mspid, "cert": str(cert), "key": str(key)}
    fields |= {"tls_name": "localhost", "tls_ca": str(folder / "ca.pem")}
    async with AsyncExitStack() as stack:
        place = await open_place(stack, folder, org)
        options = GatewayOptions(listen=("127.0.0.1", 0))
        service = partial(deliver.service, place.channels, place.feeds, options)
        listener = ClientListener(options, [service])
        await stack.enter_async_context(listener)
        await listener.serve(org)
        bare = Bare()
        first = (await place.feeds.of(place.channel).blocks(0)).blocks[0]
        bare.response = first.contents.filtered or b""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((bare,))  # type: ignore[arg-type]
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(tls[2], tls[1])])
        )
        await server.start()
        stack.push_async_callback(server.stop, None)
        alone = await cpu(place.commit)()
        ours = str(listener.connection(org.mspid)["address"])
        client = stack.enter_context(driver("go"))
        both = [
            await asyncio.to_thread(partial(Subscribers, client, **fields, address=at))
            for at in (ours, f"127.0.0.1:{port}")
        ]
        async with both[0].following("filtered"), both[1].following("filtered"):
            sides = cpu(place.commit), cpu(bare.commit)
            value, floor = await in_turns(ROUNDS, *sides, pick=min)
        await server.stop(None)
    each = (value - alone) / SUBSCRIBERS
    return Row(
        "a block to one subscriber", each, "µs", floor / SUBSCRIBERS, "bare server"
    )


async def run() -> AsyncIterator[Row]:
    """Measure both."""
    async for row in submits():
        yield row
    with scratch() as folder:
        yield await messages(folder)
