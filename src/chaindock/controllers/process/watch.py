"""Keep running processes within memory and disk, as far as watching them does.

Owns:    measuring sessions and private directories; ending what is over its limit.
Not:     limits that the system keeps by itself (child.py sets them).
Entry:   Watch.add, not_in_force
Holds:   memory is looked at four times a second, so a fast process is over its limit for
         a moment; one that leaves its session is not counted. This is no wall.
Source:  needs.md row 25; launch.md §9 W58
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
    from chaindock.controllers.process.child import Child, Program

_log = get_logger("process.watch")
PERIOD_S = 0.25
_FILES_EVERY = 8
_MOST_FILES = 100_000
_ROUNDED = 512  # a limit is set in blocks


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


class Watch:
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
            self._task = self._tasks.start(self._look_on(), "watch of limits")

    async def _look_on(self) -> None:
        unbind()  # begun in the launch of one run, it is about all
        turn = 0
        while True:
            await asyncio.sleep(PERIOD_S)  # the period itself, nothing is waited for
            self._runs = {c: b for c, b in self._runs.items() if c.running}
            if not self._runs:
                return
            runs, turn = dict(self._runs), turn + 1
            used = await asyncio.to_thread(memory_of, [c.pid for c in runs])
            for child, bounds in runs.items():
                self._judge_memory(child, bounds, used.get(child.pid, 0))
                if turn % _FILES_EVERY == 0 and bounds.tmp_bytes and child.running:
                    size = await asyncio.to_thread(
                        size_of, bounds.folder, bounds.tmp_bytes
                    )
                    self._judge_files(child, bounds, size)

    def _judge_memory(self, child: Child, bounds: Bounds, used: int) -> None:
        if 0 < bounds.memory_bytes < used:
            reason = f"it needed more than its {bounds.memory_bytes} bytes of memory"
            child.condemn(Exit(None, signal=9, oom=True, reason=reason))
            _log.warning("chaincode is over its memory", pid=child.pid, bytes=used)

    def _judge_files(self, child: Child, bounds: Bounds, size: int) -> None:
        if size > bounds.tmp_bytes:
            reason = f"it kept more than {bounds.tmp_bytes} bytes in its directory"
            child.condemn(Exit(None, signal=9, reason=reason, cause=Cause.SIGNAL))
            _log.warning("chaincode is over its files", pid=child.pid)


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


_GATE = "IFS= read -r go &&"
"""Stands in the command of who waits to become the program (child.py)."""


def not_in_force(child: Child) -> list[str]:
    """Return the limits of a running program that the system did not take.

    Nothing is missing yet while the gate still sets them, before the program runs.
    """
    program: Program = child.program
    asked = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": program.max_open_files}
    asked["RLIMIT_FSIZE"] = program.max_file_bytes or None
    try:
        process = psutil.Process(child.pid)
        if any(_GATE in word for word in process.cmdline()):
            return []
        return [
            f"no limit {name.removeprefix('RLIMIT_').lower()}"
            for name, most in asked.items()
            if most is not None and _hard(process, name) not in range(most + _ROUNDED)
        ]
    except (psutil.Error, OSError, AttributeError):  # gone, or a system that tells not
        return []


def _hard(process: psutil.Process, name: str) -> int:
    return int(process.rlimit(getattr(psutil, name))[1])
