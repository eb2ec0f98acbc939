"""Memory of a node that has nothing to do, and of one with a chaincode.

The reference is a Python process that has imported the same libraries of others, holds a
gRPC server, and does nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bench.measure import scratch
from bench.real_node import real_node
from bench.rows import Row, Skipped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOAL_MB = 90.0
SETTLE_S = 5.0
"""A node that has just started still allocates; "idle" means after this."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LIBRARIES = """\
import asyncio, sqlite3, psutil, structlog, click, yaml, cryptography.x509, aiohttp.web
import grpc.aio, fabric_protos.peer.chaincode_shim_pb2

async def main():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Usage:
    """Memory of a process in MB (10^6 bytes)."""

    def __init__(self, pid: int) -> None:
        found = psutil.Process(pid).memory_full_info()
        self.resident, self.own = found.rss / 1e6, found.uss / 1e6


async def libraries() -> Usage:
    """Measure the process of the reference."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LIBRARIES, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    await asyncio.sleep(SETTLE_S)
    usage = Usage(process.pid)
    process.kill()
    await process.wait()
    return usage


def rows(what: str, usage: Usage, bare: Usage, limit: float | None = None) -> list[Row]:
    against = "its libraries, imported"
    return [
        Row(
            f"{what}, resident",
            usage.resident,
            "MB",
            bare.resident,
            against,
            limit=limit,
        ),
        Row(f"{what}, its own", usage.own, "MB", bare.own, against),
    ]


async def run() -> AsyncIterator[Row | Skipped]:
    bare = await libraries()
    with scratch() as folder:
        async with real_node(folder / "process", "process") as node:
            await asyncio.sleep(SETTLE_S)
            pid = await node.pid()
            for row in rows("idle node", Usage(pid), bare, GOAL_MB):
                yield row
            if shutil.which("go") is None:
                yield Skipped("node with a chaincode", "go is not on the PATH")
            else:
                await node.chaindock("deploy", str(EXAMPLES / "go"), "--name", "bench")
                await node.chaindock("query", "bench", "holdings", "Org1MSP")
                await asyncio.sleep(SETTLE_S)
                for row in rows("node with a chaincode", Usage(pid), bare):
                    yield row
        if not os.environ.get("DOCKER_HOST"):  # noqa: TID251  # tests have no config
            yield Skipped("idle node beside an engine", "no engine: set DOCKER_HOST")
            return
        async with real_node(folder / "docker", "docker") as node:
            await asyncio.sleep(SETTLE_S)
            usage = Usage(await node.pid())
            for row in rows("idle node beside an engine", usage, bare, GOAL_MB):
                yield row
