"""Keep running processes within memory and disk, as far as watching them does.

Memory is read four times a second, so a fast process exceeds its limit for a moment. A
process that leaves its session is not counted: this is no isolation.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from chaindock.container.contracts import Cause, Exit
from chaindock.telemetry import get_logger, unbind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from chaindock.aio import Tasks
    from chaindock.processes.child import Child

_log = get_logger("process.watch")
PERIOD_S = 0.25
_FILES_EVERY = 8
_MOST_FILES = 100_000


@dataclass(frozen=True)
class Bounds:
    """What one run may use.

    Args:
        memory_bytes: all its processes together; 0 = unlimited.
        tmp_bytes: in `folder`; 0 = unlimited.
        folder: its private directory.
    """

    memory_bytes: int
    tmp_bytes: int
    folder: Path


class LimitWatch:
    """Watches the runs of one node, in one task that ends with the last of them."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._runs: dict[Child, Bounds] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, child: Child, bounds: Bounds) -> None:
        """Watch a run until it ends."""
        if not (bounds.memory_bytes or bounds.tmp_bytes):
            return
        self._runs[child] = bounds
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._check_all(), "watch of limits")

    async def _check_all(self) -> None:
        unbind()  # started in the launch of one run, the task is about all of them
        turn = 0
        while True:
            await asyncio.sleep(PERIOD_S)  # the period itself, nothing is waited for
            self._runs = {c: b for c, b in self._runs.items() if c.running}
            if not self._runs:
                return
            runs, turn = dict(self._runs), turn + 1
            used = await asyncio.to_thread(memory_of, [c.pid for c in runs])
            for child, bounds in runs.items():
                self._check_memory(child, bounds, used.get(child.pid, 0))
                if turn % _FILES_EVERY == 0 and bounds.tmp_bytes and child.running:
                    size = await asyncio.to_thread(
                        size_of, bounds.folder, bounds.tmp_bytes
                    )
                    self._check_files(child, bounds, size)

    def _check_memory(self, child: Child, bounds: Bounds, used: int) -> None:
        if 0 < bounds.memory_bytes < used:
            reason = f"it exceeded its limit of {bounds.memory_bytes} bytes of memory"
            child.kill_as(Exit(None, signal=9, oom=True, reason=reason))
            _log.warning("chaincode exceeded its memory", pid=child.pid, bytes=used)

    def _check_files(self, child: Child, bounds: Bounds, size: int) -> None:
        if size > bounds.tmp_bytes:
            reason = f"its directory exceeded {bounds.tmp_bytes} bytes"
            child.kill_as(Exit(None, signal=9, reason=reason, cause=Cause.SIGNAL))
            _log.warning("chaincode exceeded its files", pid=child.pid)


def memory_of(sessions: Iterable[int]) -> dict[int, int]:
    """Return the bytes in memory of each session; what its processes share, once.

    Reads the process table: milliseconds; call it in a thread.
    """
    own: dict[int, int] = dict.fromkeys(sessions, 0)
    shared = dict(own)
    for pid in psutil.pids():
        try:
            session = os.getsid(pid)
            if session not in own:
                continue
            about = psutil.Process(pid).memory_info()
        except (psutil.Error, OSError):
            continue
        common = getattr(about, "shared", 0)
        own[session] += about.rss - common
        shared[session] = max(shared[session], common)
    return {session: own[session] + shared[session] for session in own}


def size_of(folder: Path, enough: int) -> int:
    """Return the bytes on disk below a directory; stops when there are `enough`."""
    total, seen, folders = 0, 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if total > enough or seen > _MOST_FILES:
                        return enough + 1
        except OSError:  # it is being changed
            continue
    return total
