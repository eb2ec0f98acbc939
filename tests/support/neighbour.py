"""A program of another local user that attacks both ports of a node, for a minute.

Usage: python -m support.neighbour OPERATIONS CHAINCODE, each host:port.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from typing import Final

HALF: Final = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
MALFORMED: Final = b"GET /\x00\x01 HTTP/9.9\r\n\r\n"
SILENT, IDLE, PER_S, LIMIT_S = 1100, 500, 300, 60.0


async def hold(address: str, first: bytes) -> None:
    """Open connections again and again, send `first`, and wait until each is closed."""
    host, _, port = address.rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(first)
            await reader.read()
            writer.close()
        await asyncio.sleep(1)


async def ask_nonsense(address: str) -> None:
    """Send malformed requests, each on a connection of its own."""
    host, _, port = address.rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(MALFORMED)
            writer.close()
        await asyncio.sleep(1 / PER_S)


async def main(operations: str, chaincode: str) -> None:
    os.nice(10)  # its own work is not what is measured
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, most), most))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
            for _ in range(SILENT):
                _ = group.create_task(hold(operations, HALF))
            for _ in range(IDLE):
                _ = group.create_task(hold(chaincode, b""))
            _ = group.create_task(ask_nonsense(operations))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
