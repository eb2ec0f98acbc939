"""The real curl, as people and probes use it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from support.need import need

LIMIT_S = 20


@dataclass(frozen=True)
class Reply:
    """What curl got; status 0 = no HTTP answer, and `error` says why."""

    status: int
    body: str
    headers: str
    error: str


async def curl(url: str, *options: str) -> Reply:
    """Ask `url`."""
    need("curl")
    process = await asyncio.create_subprocess_exec(
        *("curl", "--silent", "--show-error", "--max-time", str(LIMIT_S)),
        *("--noproxy", "*", "--dump-header", "/dev/stderr"),
        *("--write-out", "\n%{http_code}", *options, url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    body, _, status = out.decode().rpartition("\n")
    said = err.decode()
    return Reply(int(status), body, said, "" if process.returncode == 0 else said)
