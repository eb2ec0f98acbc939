"""The real Java shim, dialled."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from chaindock.chaincode.client import serve_dialled
from chaindock.chaincode.handler import Handler
from chaindock.rpc.status import Status
from support.eventually import eventually
from support.shims.builds import JAVA, java_classes
from support.shims.stream_node import CCID, StreamNode
from support.shims.world import Program, ShimWorld, free_port

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]
_GOAWAY_S = 5.0
"""After so many seconds the server of the shim asks each connection to end."""


def serves() -> Program:
    folder = java_classes()
    env = {"CHAINCODE_SERVER_ADDRESS": "{listen}", "CORE_CHAINCODE_ID_NAME": "{ccid}"}
    argv = ("java", "-cp", f"{folder}:{folder}/lib/*", "Plain")
    return Program(argv, folder, dialled=True, env=env)


@pytest.mark.statement(18, by="java")
async def test_a_stream_outlives_the_goaway_of_its_server(tmp_path: Path):
    async with ShimWorld(serves(), tmp_path) as world:
        await world.value("put", "k", "v", commit=True)
        first = world.registry.find(CCID)
        await asyncio.sleep(_GOAWAY_S + 1.5)
        assert await world.value("get", "k") == b"v"
        assert world.registry.find(CCID) is first


def connections_to(port: int) -> int:
    """Return how many connections of this machine to `port` of it are open."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    there = f"0100007F:{port:04X}"
    return sum(remote == there and state == "01" for _, _, remote, state, *_ in rows)


@pytest.mark.statement(23, by="java")
async def test_a_stream_that_the_node_ends_leaves_no_call_open():
    """Its server never answers a half-close."""
    folder, port = java_classes(), free_port()
    address = f"127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        *("java", *JAVA, "-cp", f"{folder}:{folder}/lib/*", "Plain"),
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],  # noqa: TID251  # tests have no config
            "CHAINCODE_SERVER_ADDRESS": address,
            "CORE_CHAINCODE_ID_NAME": CCID,
            "CORE_PEER_TLS_ENABLED": "false",
        },
    )
    try:
        async with StreamNode("is dialled") as node:
            for _ in range(2):  # the server takes the next one as well
                expected = node.expect()
                handler = Handler(node.registry, node.options, dialled=expected)
                work = serve_dialled(address, handler, node.options)
                dial = node.tasks.start(work, "dial")
                await expected.ready.wait()
                assert connections_to(port) == 1
                handler.end(Status.UNAVAILABLE, "enough")
                assert (await dial).reason == "enough"
                await eventually(lambda: connections_to(port) == 0)
    finally:
        process.kill()
        await process.wait()
