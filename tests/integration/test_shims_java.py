"""The real Java shim, dialled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from support.shims.builds import java_classes
from support.shims.stream_node import CCID
from support.shims.world import Program, ShimWorld

if TYPE_CHECKING:
    from pathlib import Path

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
