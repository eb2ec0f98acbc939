"""Real shims that nobody calls for ten minutes; only `make soak` takes that time.

The intervals of their pings are fixed in the shims, so nothing shorter would show it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from support.shims.builds import go_program, python_environment
from support.shims.stream_node import CCID
from support.shims.world import Program, ShimWorld

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = float(os.environ.get("CHAINDOCK_SOAK_S", "0"))  # noqa: TID251  # see Makefile
pytestmark = [
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(SECONDS + 300),
    pytest.mark.skipif(SECONDS < 600, reason="takes ten minutes: make soak"),
]


def go_dials() -> Program:
    """Pings every 60 s."""
    binary = go_program()
    return Program((str(binary), "-peer.address={peer}"), binary.parent)


def python_serves() -> Program:
    """Ends a connection on which it is pinged too often."""
    folder = python_environment()
    python = str(folder / "env" / "bin" / "python")
    address = {"CHAINCODE_SERVER_ADDRESS": "{listen}"}
    return Program((python, "plain.py"), folder, dialled=True, env=address)


@pytest.mark.statement(16, by="go")
@pytest.mark.statement(17, by="python")
async def test_chaincode_that_nobody_calls_keeps_its_stream(tmp_path: Path):
    async with AsyncExitStack() as stack:
        worlds: list[ShimWorld] = []
        for program in (go_dials(), python_serves()):
            folder = tmp_path / str(len(worlds))
            folder.mkdir()
            world = await stack.enter_async_context(ShimWorld(program, folder))
            await world.custodian.launch(CCID)
            worlds.append(world)
        first = [world.registry.find_ready(CCID) for world in worlds]
        assert None not in first
        await asyncio.sleep(SECONDS)
        assert [world.registry.find_ready(CCID) for world in worlds] == first
        for world in worlds:
            await world.value("put", "k", "v", commit=True)
            assert await world.value("get", "k") == b"v"
            assert world.exit is None
