"""Find the processes of this node, also of its earlier runs; end them; limit their use.

A process is ours when it carries the marker of this node; or is the leader of a recorded
group and was created when the record says; or is in such a leader's group. Only what is
proved to be ours is signalled; a reused pid never is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

from chaindock.aio import Tasks
from chaindock.container.contracts import Exit
from chaindock.processes.child import Child, Record
from chaindock.telemetry import RateLimitedLog, get_logger, unbind

NODE_MARKER = "CHAINDOCK_NODE"
RUN_MARKER = "CHAINDOCK_RUN"
KILL_LIMIT_S = 5.0
_POLL_S = 0.01
_SAME_START_S = 0.05
_WATCH_S = 0.25
"""Seconds between two readings of memory. A process can exceed its limit for this long."""
_FILES_EVERY = 8
_MOST_FILES = 100_000
"""Files in the private directory of a run; a run that has more is killed."""
_ENVIRONMENT_BYTES = 128 * 1024
MOST_THREADS = 4096
"""Threads of one run in a sandbox; a run that has more is killed."""
_LEAST_NICE = 19
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
_log = get_logger("process")


def find(
    node_id: str, records: Sequence[Record], *, ended_at: float | None = None
) -> dict[str, list[psutil.Process]]:
    """Return the live processes of a node by run id: of `records`, and marked ones.

    `ended_at`: the leader of the only record ended just now; what is left of its
    session and was started before belongs to it.
    Reads the process table: milliseconds; call it in a thread.
    """
    groups = {record.pid: record for record in records}
    proved = {r.pid for r in records if ended_at is not None or _is_leader(r)}
    found: dict[str, list[psutil.Process]] = {}
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    for pid in set(psutil.pids()) - own:
        try:
            process = psutil.Process(pid)
            run_id = _marked_run(process, node_id)
            record = groups.get(os.getpgid(pid))
            if (
                run_id is None
                and record is not None
                and record.pid in proved
                and (ended_at is None or process.create_time() <= ended_at)
                and (ended_at is None or os.getsid(pid) == record.pid)
            ):
                run_id = record.run_id
        except (psutil.Error, OSError):
            continue
        if run_id is not None and is_alive(process):
            found.setdefault(run_id, []).append(process)
    return found


def end(look: Callable[[], list[psutil.Process]], grace_s: float) -> int:
    """End what `look` finds: SIGTERM, `grace_s`, SIGKILL until nothing is found.

    Blocks; call it in a thread. Returns how many processes were found at first.
    """
    first = look()
    if first and grace_s > 0:
        _send(first, signal.SIGTERM)
        have_ended(first, grace_s)
    limit = time.monotonic() + KILL_LIMIT_S
    left = _look_twice(look)
    while left and time.monotonic() < limit:
        _send(left, signal.SIGKILL)
        have_ended(left, 0.5)
        left = _look_twice(look)
    if left:
        _log.error("processes survive SIGKILL", pids=[p.pid for p in left])
    return len(first)


def _look_twice(look: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """Return [] only if two reads of the process table find nothing.

    A process shows no environment while it becomes another program, and one that was
    forked after the table was read is not in it.
    """
    if found := look():
        return found
    time.sleep(_POLL_S)
    return look()


def _is_leader(record: Record) -> bool:
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.created) < _SAME_START_S
        return same or _marked_run(process, record.node_id) == record.run_id
    except (psutil.Error, OSError):
        return False


def _marked_run(process: psutil.Process, node_id: str) -> str | None:
    try:
        environment = _environment(process)
    except (psutil.Error, OSError):
        return None
    own = environment.get(NODE_MARKER) == node_id
    return environment.get(RUN_MARKER, "") if own else None


def _environment(process: psutil.Process) -> Mapping[str, str]:
    """Return the variables of a process; on Linux only those that this module looks for.

    A program can declare any mapping of its own to be its environment, as large as it
    likes. So only the beginning is read, and nothing of what other users run.
    """
    if not sys.platform.startswith("linux"):
        return process.environ()
    folder = Path("/proc", str(process.pid))
    if folder.stat().st_uid != os.geteuid():
        return {}
    with (folder / "environ").open("rb", buffering=0) as file:
        found = file.read(_ENVIRONMENT_BYTES)
    return {
        name: text.partition(b"\0")[0].decode(errors="replace")
        for name in (NODE_MARKER, RUN_MARKER)
        for _, mark, text in [(b"\0" + found).partition(b"\0%s=" % name.encode())]
        if mark
    }


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)  # psutil refuses a reused pid


def have_ended(processes: Sequence[psutil.Process], limit_s: float) -> bool:
    """Wait for the end of all, or for `limit_s`; return whether they have ended."""
    # psutil.wait_procs would reap our own children behind the event loop's back.
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit and any(map(is_alive, processes)):
        time.sleep(_POLL_S)
    return not any(map(is_alive, processes))


def is_alive(process: psutil.Process) -> bool:
    """Whether the process is there and no zombie."""
    try:
        running: bool = process.is_running()
        return running and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@dataclass(frozen=True)
class Bounds:
    """What the processes of one run may use together; 0 = unlimited.

    `folder` is the private directory of the run, which holds at most `tmp_bytes`; that of
    a run in a sandbox lies in memory, and counts as memory, too.
    """

    memory_bytes: int
    tmp_bytes: int
    folder: Path
    processes: int = 0


class LimitWatch:
    """Keeps runs within memory and disk, in one task that ends with the last of them.

    One that left its session counts while its ancestors live: in a sandbox, always.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._runs: dict[Child, Bounds] = {}
        self._task: asyncio.Task[None] | None = None
        self._lines = RateLimitedLog(_log)

    def add(self, child: Child, bounds: Bounds) -> None:
        """Watch a run until it ends."""
        if not (bounds.memory_bytes or bounds.tmp_bytes or bounds.processes):
            return
        self._runs[child] = bounds
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._check_all(), "watch of limits")

    async def _check_all(self) -> None:
        unbind()  # started in the launch of one run, the task is about all of them
        turn = 0
        while True:
            await asyncio.sleep(_WATCH_S)  # the period itself, nothing is waited for
            self._runs = {c: b for c, b in self._runs.items() if c.running}
            if not self._runs:
                return
            runs, turn = dict(self._runs), turn + 1
            try:
                found = await asyncio.to_thread(_look, [c.pid for c in runs])
            except OSError as error:  # no descriptor is free
                self._lines.say(None, _log.warning, "limits not read", why=str(error))
                continue
            for child, bounds in runs.items():
                walk = not turn % _FILES_EVERY
                await self._check(child, bounds, found[child.pid], walk=walk)

    async def _check(
        self, child: Child, bounds: Bounds, used: Usage, *, walk: bool
    ) -> None:
        most, tmp = bounds.memory_bytes, bounds.tmp_bytes
        sandbox = child.program.sandbox
        size, files = sandbox.kept() if sandbox else (0, 0)
        memory = used.memory_bytes + size
        if 0 < most < memory:
            reason = f"it exceeded its limit of {most} bytes of memory"
            self._end(child, reason, memory, oom=True)
        if 0 < bounds.processes < used.processes:
            reason = f"it exceeded its limit of {bounds.processes} processes"
            self._end(child, reason, used.processes)
        if bounds.processes and used.threads > MOST_THREADS:
            reason = f"it exceeded its limit of {MOST_THREADS} threads"
            self._end(child, reason, used.threads)
        if not tmp or not child.running:
            return
        if walk and not sandbox:
            size = await asyncio.to_thread(size_of, bounds.folder, tmp)
        if size > tmp or files > _MOST_FILES:
            reason = f"its directory exceeded {tmp} bytes or {_MOST_FILES} files"
            self._end(child, reason, size)

    @staticmethod
    def _end(child: Child, reason: str, used: int, *, oom: bool = False) -> None:
        child.kill_as(Exit(None, signal=9, oom=oom, reason=reason))
        text = "chaincode exceeded a limit"
        _log.warning(text, pid=child.pid, reason=reason, used=used)


class Usage(NamedTuple):
    """What the processes of a session use, and one process of each session they made.

    Files that they share count once. Other memory that they share counts for each: that
    several of them map does not say that they map the same.
    """

    memory_bytes: int = 0
    processes: int = 0
    threads: int = 0
    apart: Sequence[int] = ()


def usage_of(sessions: Iterable[int]) -> dict[int, Usage]:
    """Return the usage of each session, with all descendants that left it.

    Reads the process table: milliseconds; call it in a thread.
    """
    used = dict.fromkeys(sessions, Usage())
    children: dict[int, list[int]] = {}
    session_of: dict[int, int] = {}
    for pid in psutil.pids():
        with contextlib.suppress(*_GONE):
            parent = session_of[pid] = os.getsid(pid)
            if parent not in used:
                status = Path(f"/proc/{pid}/stat").read_bytes()
                parent = int(status.rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    for leader in used:
        found, sizes, threads = children.pop(leader, []), [], 0
        for pid in found:
            found += children.pop(pid, [])  # pop: a reused pid makes no circle
            with contextlib.suppress(psutil.Error):
                one = psutil.Process(pid).memory_info()
                shmem, more = _status_of(pid)
                files = max(0, getattr(one, "shared", 0) - shmem)
                sizes.append((one.rss - files, files))
                threads += more
        memory = sum(own for own, _ in sizes)
        memory += max((files for _, files in sizes), default=0)
        apart = {session_of[pid]: pid for pid in found if session_of[pid] != leader}
        used[leader] = Usage(memory, len(sizes), threads, tuple(apart.values()))
    return used


def _status_of(pid: int) -> tuple[int, int]:
    """Return the resident bytes of shared memory of a process, and its threads."""
    with contextlib.suppress(*_GONE):
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        shmem = facts.get("RssShmem", "0").split()[0]
        return int(shmem) * 1024, int(facts.get("Threads", "1"))
    return 0, 1


def _look(sessions: Sequence[int]) -> dict[int, Usage]:
    """Return the usage of each session; those they made get what others leave.

    Linux shares processors out among sessions: with many, a run has many shares.
    """
    found = usage_of(sessions)
    for usage in found.values():
        for pid in usage.apart:
            share_less(pid, _LEAST_NICE)
    return found


def share_less(pid: int, nice: int) -> None:
    """Give the session of a process less of processors than others, where Linux can."""
    path = Path(f"/proc/{pid}/autogroup")
    with contextlib.suppress(OSError):
        # Of a user that is not root, Linux takes ten such writes a second.
        if not path.read_text().endswith(f" nice {nice}\n"):
            path.write_text(f"{nice}")


def size_of(folder: Path, enough: int) -> int:
    """Return the bytes on disk below a directory; more than `enough` if not countable."""
    total, seen, folders = 0, 0, [str(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        with contextlib.suppress(FileNotFoundError):
                            about = entry.stat(follow_symlinks=False)
                            total += about.st_blocks * 512
                    if total > enough or seen > _MOST_FILES:
                        return enough + 1
        except OSError as error:
            if error.errno in {errno.EACCES, errno.ENAMETOOLONG}:
                return enough + 1  # files can be hidden there
    return total
