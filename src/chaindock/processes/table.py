"""Find the processes that this node started, even by an earlier run of the node.

A process is ours when it carries the marker of this node; or is the leader of a recorded
group and was created when the record says; or is in such a leader's group. Only what is
proved to be ours is signalled; a reused pid never is.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import psutil

from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chaindock.processes.spawner import Record

NODE_MARKER = "CHAINDOCK_NODE"
RUN_MARKER = "CHAINDOCK_RUN"
KILL_LIMIT_S = 5.0
_POLL_S = 0.01
_SAME_START_S = 0.05
_log = get_logger("process")


def find(
    node_id: str, records: Sequence[Record], *, ended_at: float | None = None
) -> dict[str, list[psutil.Process]]:
    """Return the live processes of a node by run id: of `records`, and marked ones.

    Args:
        node_id: marker to look for.
        records: groups to look for.
        ended_at: the leader of the only record ended just now; what is left of its
            session and was started before belongs to it.
    Reads the process table: milliseconds; call it in a thread.
    """
    groups = {record.pid: record for record in records}
    proved = {r.pid for r in records if ended_at is not None or _is_leader(r)}
    found: dict[str, list[psutil.Process]] = {}
    for pid in _others():
        try:
            process = psutil.Process(pid)
            run_id = _marked_run(process, node_id)
            record = groups.get(os.getpgid(pid))
            if run_id is None and record is not None and record.pid in proved:
                run_id = _run_of_member(process, record, ended_at)
        except (psutil.Error, OSError):
            continue
        if run_id is not None and _alive(process):
            found.setdefault(run_id, []).append(process)
    return found


def end(look: Callable[[], list[psutil.Process]], grace_s: float) -> int:
    """End what `look` finds: SIGTERM, `grace_s`, SIGKILL until nothing is found.

    Blocks; call it in a thread.

    Returns: how many processes were found at first.
    """
    first = look()
    if first and grace_s > 0:
        _send(first, signal.SIGTERM)
        _wait(first, grace_s)
    limit = time.monotonic() + KILL_LIMIT_S
    left = _look_twice(look)
    while left and time.monotonic() < limit:
        _send(left, signal.SIGKILL)
        _wait(left, 0.5)
        left = _look_twice(look)
    if left:
        _log.error("processes survive SIGKILL", pids=[p.pid for p in left])
    return len(first)


def _look_twice(look: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    """Return [] only if two reads of the process table find nothing.

    A process shows no environment while it becomes another program, and one that was
    forked after the table was read is not in it.
    """
    found = look()
    if not found:
        time.sleep(_POLL_S)
        found = look()
    return found


def _others() -> Iterator[int]:
    """Every pid but this process and those it was started by."""
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    return (pid for pid in psutil.pids() if pid not in own)


def _is_leader(record: Record) -> bool:
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.created) < _SAME_START_S
        return same or _marked_run(process, record.node_id) == record.run_id
    except (psutil.Error, OSError):
        return False


def _run_of_member(
    process: psutil.Process, record: Record, ended_at: float | None
) -> str | None:
    if ended_at is None:  # the leader is there and proved
        return record.run_id
    older = process.create_time() <= ended_at
    return record.run_id if older and os.getsid(process.pid) == record.pid else None


def _marked_run(process: psutil.Process, node_id: str) -> str | None:
    try:
        environment = process.environ()
    except (psutil.Error, OSError):
        return None
    if environment.get(NODE_MARKER) != node_id:
        return None
    return environment.get(RUN_MARKER, "")


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # psutil refuses a reused pid
        except psutil.Error:
            continue


def _wait(processes: Sequence[psutil.Process], limit_s: float) -> None:
    # psutil.wait_procs would reap our own children behind the event loop's back.
    limit = time.monotonic() + limit_s
    while time.monotonic() < limit and any(_alive(p) for p in processes):
        time.sleep(_POLL_S)


def _alive(process: psutil.Process) -> bool:
    try:
        running: bool = process.is_running()
        return running and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
