"""What our account-keeping adds to starting a process.

Compared in the same run: `ProcessInstance.start` (gate, record, private directory,
environment) and a bare spawn of the same script. Prints one line of JSON with the
medians in seconds and their ratio. Run: python -m tests.bench.bench_process_start
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaindock.container.attempt import Attempt
from chaindock.testing.scripts import leave
from support.process_backend import ProcessBackend

ROUNDS = 60


async def bare(script: Path) -> float:
    """Spawn the script without anything; return seconds until it is started."""
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
    return spent


async def main() -> None:
    """Take both in turns, so that noise meets both."""
    with tempfile.TemporaryDirectory() as folder:
        async with ProcessBackend(Path(folder)) as backend:
            instance, package = await backend.built(leave(0))
            script = Path(folder) / "main.sh"
            script.write_text("exit 0\n")
            ours, theirs = [], []
            for _ in range(ROUNDS):
                theirs.append(await bare(script))
                attempt = Attempt(package.ccid)
                began = time.perf_counter()
                await instance.start(backend.peer, attempt)
                ours.append(time.perf_counter() - began)
                await instance.wait()
    start, spawn = statistics.median(ours), statistics.median(theirs)
    result = {
        "bench": "process start",
        "start_s": round(start, 6),
        "spawn_s": round(spawn, 6),
        "added_s": round(start - spawn, 6),
        "ratio": round(start / spawn, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    asyncio.run(main())
