"""A node as users have it: a process of its own, driven through the command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PATIENCE_S = 120.0


class RealNode:
    """A running node."""

    def __init__(self, home: Path) -> None:
        self._home = home

    async def chaindock(self, *arguments: str) -> Any:
        """Run a command; return the JSON that it prints."""
        home = {
            "CHAINDOCK_HOME": str(self._home),
            "CORE_PEER_LISTENADDRESS": "127.0.0.1:0",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "chaindock",
            "--json",
            *arguments,
            env={**os.environ, **home},  # noqa: TID251  # tests have no config
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            output, errors = await process.communicate()
        assert process.returncode == 0, (arguments, output, errors)
        return json.loads(output or b"null")

    async def pid(self) -> int:
        """Return the number of the node's process."""
        return int((await self.chaindock("status"))["pid"])


@contextlib.asynccontextmanager
async def real_node(home: Path, backend: str) -> AsyncIterator[RealNode]:
    """Give a node that runs chaincode with `backend`, and take it down again."""
    node = RealNode(home)
    await node.chaindock("up", "-d", "--backend", backend)
    try:
        yield node
    finally:
        await node.chaindock("down")
