"""How long `chaindock --help` keeps a user waiting."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from bench.measure import in_turns
from bench.rows import Row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GOAL_MS = 250.0
ROUNDS = 15


async def spent_ms(*arguments: str) -> float:
    """Run Python to its end; return how long that took."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    return (time.perf_counter() - began) * 1e3


async def run() -> AsyncIterator[Row]:
    ours, nothing, click = await in_turns(
        ROUNDS,
        lambda: spent_ms("-m", "chaindock", "--help"),
        lambda: spent_ms("-c", "pass"),
        lambda: spent_ms("-c", "import click"),
    )
    yield Row(
        "chaindock --help", ours, "ms", click, "python, import click", limit=GOAL_MS
    )
    yield Row("chaindock --help", ours, "ms", nothing, "python, nothing")
