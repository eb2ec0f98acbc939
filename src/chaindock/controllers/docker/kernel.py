"""Ask the kernel whether it ended a container for lack of memory.

Owns:    reading the kernel's log of this machine, where it may be read.
Not:     what the engine says about the end (containers.py, compile.py).
Entry:   ended_for_memory
Holds:   a container counts only when the kernel names it; who may not read the log, or
         runs beside another kernel, gets no for an answer.
Source:  launch.md §9 W7, W58; needs.md row 25

Podman's API service up to 4.3 does not notice: its monitor leaves the note in a directory
where the service does not look.
"""

from __future__ import annotations

import asyncio
import os

from chaindock.controllers.docker import host

_SAID = b"oom-kill:"
_RECORD, _MOST = 8192, 100_000


async def ended_for_memory(container: str) -> bool:
    """Whether the kernel's log says so of a container, by its id."""
    return await asyncio.to_thread(_named, container.encode())


def _named(container: bytes) -> bool:
    try:
        log = os.open(host.KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        for _ in range(_MOST):
            try:
                record = os.read(log, _RECORD)
            except BrokenPipeError:  # records were overwritten meanwhile
                continue
            if not record:
                return False
            if _SAID in record and container in record:
                return True
    except OSError:  # the end: it would wait for more
        return False
    finally:
        os.close(log)
    return False
