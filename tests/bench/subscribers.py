"""Clients that follow a channel's blocks, each on a connection of its own.

Usage: python subscribers.py JSON, with `place`, `identity`, `method` and `count`. Prints a
line when all have the newest block, and at the end of its input how many blocks came.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.clients import wire


async def follow(call: Any, counts: list[int]) -> None:
    while True:
        await call.read()
        counts[0] += 1


async def main(asked: dict[str, Any]) -> None:
    who, counts = wire.signer(asked["identity"]), [0]
    async with AsyncExitStack() as stack:
        calls = []
        for _ in range(asked["count"]):
            client = await stack.enter_async_context(wire.wire(asked["place"]))
            calls.append(client.open(wire.STREAMS[asked["method"]]))
            await calls[-1].write(wire.seek(who, 0, 0))
            await calls[-1].read()
            await calls[-1].read()
            await calls[-1].write(wire.seek(who, None))
        print("ready", flush=True)
        tasks = [asyncio.ensure_future(follow(call, counts)) for call in calls]
        await asyncio.to_thread(sys.stdin.read)
        print(counts[0], flush=True)
        for task in tasks:
            task.cancel()


asyncio.run(main(json.loads(sys.argv[1])))
