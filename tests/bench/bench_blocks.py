"""What a hundred subscribers of blocks cost the node.

They are another process, each on a TLS connection of its own. The first rows are the CPU of
the node for a submit of Fabric's client for Node; the last row is that for one block to
one subscriber, beside a bare `grpc.aio` server that sends the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
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
from support.clients.network import network
from support.gateways.delivering import open_place
from support.nodes.node import FIXTURES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

SUBSCRIBERS, ROUNDS, BLOCKS = 100, 3, 100
CALLERS = (1, 64)
MOST = 1.2
"""Goal: at most this many times the CPU without subscribers."""
_PROGRAM = Path(__file__).parent / "subscribers.py"
_METHODS = ("DeliverFiltered", "Deliver")
_APART_S = 0.03
"""Between two blocks: by then all subscribers have the first one."""


@contextlib.asynccontextmanager
async def subscribed(**asked: Any) -> AsyncIterator[None]:
    """Have clients follow, and see that they got blocks."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(_PROGRAM),
        json.dumps({"count": SUBSCRIBERS, **asked}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert await process.stdout.readline() == b"ready\n"
        yield
        process.stdin.close()
        assert int(await process.stdout.readline()) >= SUBSCRIBERS
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def submits() -> AsyncIterator[Row]:
    """CPU of a submit with 1 and 64 callers, with and without subscribers."""
    with scratch() as folder, network(folder) as net, driver("node") as client:
        net.node.cli("deploy", FIXTURES / "conformance" / "go", "--name", "plain")
        who, pid = net.connect(client), net.node.status["pid"]
        where = {"place": net.place("Org1"), "identity": net.identity("Org1")}
        load: dict[str, Any] = {
            "verb": "submitTransaction",
            "fn": "put",
            "args": ["v" * 100],
            "prefix": "k",
        }
        for callers in CALLERS:
            alone: list[float] = []
            submit = measured(client, who, pid, alone, callers=callers, **load)
            for method in _METHODS:
                spent: list[float] = []
                same = measured(client, who, pid, spent, callers=callers, **load)
                for _ in range(ROUNDS):
                    await submit()
                    async with subscribed(method=method, **where):
                        await same()
                what = f"submit, {callers} callers, {SUBSCRIBERS} {method}"
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
        for _round in range(2):  # what the program asks for before it follows
            await context.read()
            if not _round:
                await context.write(self.response)
                await context.write(b"\x08\xc8\x01")
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
    identity = {"mspid": org.mspid, "cert": str(cert), "key": str(key)}

    def at(address: str) -> dict[str, Any]:
        place = {"address": address, "tls_name": "localhost"}
        place["tls_ca"] = str(folder / "ca.pem")
        return {"method": "DeliverFiltered", "place": place, "identity": identity}

    async with AsyncExitStack() as stack:
        place = await open_place(stack, folder, org)
        options = GatewayOptions(listen=("127.0.0.1", 0))
        service = partial(deliver.service, place.channels, place.feeds, options)
        listener = ClientListener(options, [service])
        await stack.enter_async_context(listener)
        await listener.serve(org)
        bare = Bare()
        first = (await place.feeds.of(place.channel).blocks(0))[0]
        bare.response = first.filtered or b""
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((bare,))  # type: ignore[arg-type]
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(tls[2], tls[1])])
        )
        await server.start()
        stack.push_async_callback(server.stop, None)
        alone = await cpu(place.commit)()
        ours = str(listener.connection(org.mspid)["address"])
        async with subscribed(**at(ours)), subscribed(**at(f"127.0.0.1:{port}")):
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
