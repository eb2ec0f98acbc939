"""Calls of a real client library, beside a bare server that answers the same bytes.

The client is Fabric's for Node, with TLS; the contract is a small one in Go. The bare
server is a gRPC server of Python that verifies one signature of each request. A submit is
three requests: Endorse, Submit and CommitStatus. CPU is that of the server's process. Before
that, the first submit to a chaincode whose definition was committed just now.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bench.measure import in_turns, scratch
from bench.rows import Row
from support.clients import wire
from support.clients.driver import driver
from support.clients.network import CHANNEL, Network, network
from support.nodes.node import FIXTURES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from concurrent.futures import Future

    from support.clients.driver import Driver

ROUNDS = 3
SECONDS = 2.0
CALLERS = (1, 16, 64)
SOON_MS = 100.0
LEAST = 0.6
"""Goal: at least this part of the bare server's calls."""
_BARE = Path(__file__).parent / "bare_gateway.py"


async def record(net: Network, folder: Path) -> None:
    """Write what the node answers to each method."""
    who = wire.signer(net.identity("Org1"))
    folder.mkdir()
    async with wire.wire(net.place("Org1")) as node:

        async def ask(name: str, request: bytes) -> bytes:
            answer = await node.call(wire.UNARY[name], request)
            (folder / name).write_bytes(answer)
            return answer

        await ask("Evaluate", wire.evaluate(who, "plain", "get", "k"))
        tx_id, proposal = wire.proposal(who, "plain", "put", "k", "v" * 100)
        endorsed = await ask("Endorse", wire.endorse_of(tx_id, proposal))
        await ask("Submit", wire.submit(tx_id, wire.signed(who, endorsed)))
        await ask("CommitStatus", wire.commit_status(who, tx_id))
    tls = Path(net.place("Org1")["tls_ca"]).parent
    for name in ("server.crt", "server.key"):
        shutil.copy(tls / name, folder / name)


@contextlib.asynccontextmanager
async def bare(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Give the address and the process id of a bare server."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(_BARE), str(folder), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.kill()
        await process.wait()


def measured(
    client: Driver, who: str, pid: int, cpu: list[float], **load: Any
) -> Callable[[], Awaitable[float]]:
    """Return what measures calls per second, and adds the CPU of each, in µs, to `cpu`."""
    process = psutil.Process(pid)

    async def run() -> float:
        before = process.cpu_times()
        sent: Future[Any] = client.send(
            "load", who=who, contract="plain", seconds=SECONDS, **load
        )
        done = await asyncio.wrap_future(sent)
        after = process.cpu_times()
        assert done["faults"] == {}, done["faults"]
        spent = after.user + after.system - before.user - before.system
        cpu.append(spent / done["calls"] * 1e6)
        return float(done["calls"] / done["seconds"])

    return run


def first_submit(net: Network, client: Driver, who: str) -> Row:
    """Measure the first submit after the definition of its chaincode was committed."""
    first: list[float] = []
    again: list[float] = []
    sent = {"who": who, "fn": "put", "args": ["k", "v"]}
    client.ask("submit", contract="plain", **sent)  # now it is connected
    for number in range(ROUNDS):
        name = f"fresh{number}"
        net.node.cli("deploy", FIXTURES / "conformance" / "go", "--name", name)
        for times in (first, again):
            began = time.perf_counter()
            _ = client.ask("submit", contract=name, **sent)
            times.append((time.perf_counter() - began) * 1e3)
    what = "first submit after a commit"
    next_one = statistics.median(again)
    return Row(what, max(first), "ms", next_one, "the next submit", limit=SOON_MS)


async def run() -> AsyncIterator[Row]:
    """Measure evaluates and submits with 1, 16 and 64 callers."""
    with scratch() as folder, network(folder) as net, driver("node") as client:
        net.node.cli("deploy", FIXTURES / "conformance" / "go", "--name", "plain")
        await record(net, folder / "answers")
        async with bare(folder / "answers") as (address, pid):
            ours = net.connect(client)
            yield first_submit(net, client, ours)
            fields = {**net.identity("Org1"), **net.place("Org1"), "address": address}
            client.ask("connect", who="bare", channel=CHANNEL, **fields)
            loads: dict[str, dict[str, Any]] = {
                "evaluate": {"verb": "evaluateTransaction", "fn": "get", "args": ["k"]},
                "submit": {
                    "verb": "submitTransaction",
                    "fn": "put",
                    "args": ["v" * 100],
                    "prefix": "k",
                },
            }
            for verb, load in loads.items():
                for callers in CALLERS:
                    cpu: tuple[list[float], list[float]] = ([], [])
                    sides = [
                        measured(client, who, at, spent, callers=callers, **load)
                        for who, at, spent in (
                            (ours, net.node.status["pid"], cpu[0]),
                            ("bare", pid, cpu[1]),
                        )
                    ]
                    mine, floor = await in_turns(ROUNDS, *sides)
                    what = f"{verb}, {callers} callers"
                    yield Row(what, mine, "/s", floor, "a bare server", least=LEAST)
                    what = f"node CPU of {verb}, {callers} callers"
                    against = "CPU of the bare server"
                    yield Row(what, min(cpu[0]), "µs", min(cpu[1]), against)
