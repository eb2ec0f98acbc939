"""What account-keeping adds to starting a process: gate, record, private directory."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from bench.measure import in_turns, scratch
from bench.rows import Row
from chaindock.container.attempt import Attempt
from support.doubles.scripts import leave
from support.nodes.process_backend import ProcessBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROUNDS = 60


async def run() -> AsyncIterator[Row]:
    with scratch() as folder:
        script = folder / "main.sh"
        script.write_text("exit 0\n")

        async def bare() -> float:
            began = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                str(script),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            spent = time.perf_counter() - began
            await process.communicate()
            return spent * 1e3

        async with ProcessBackend(folder / "backend") as backend:
            instance, package = await backend.built(leave(0))

            async def ours() -> float:
                attempt = Attempt(package.ccid)
                began = time.perf_counter()
                await instance.start(backend.peer, attempt)
                spent = time.perf_counter() - began
                await instance.wait()
                return spent * 1e3

            value, reference = await in_turns(ROUNDS, ours, bare)
            yield Row("start of a process", value, "ms", reference, "bare subprocess")
