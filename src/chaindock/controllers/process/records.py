"""Know every process that was started, even after the node was killed.

Owns:    record files; finding and ending the processes they speak of.
Not:     starting processes (child.py).
Entry:   Records, Record
Holds:   a process is signalled only when it is proved to be ours; a reused pid never is.
Source:  launch.md §9 W16, W17, W48; needs.md row 12

How nothing is lost, whenever the node is killed (SIGKILL, no clean-up):

1. A child starts as a gate: /bin/sh that reads one line from a pipe. If the node dies
   now, the pipe ends and the gate exits without having run anything.
2. The node writes `<root>/runs/<node id>/<pid>-<run id>.json`, then sends the line, and
   the gate becomes the program (same pid, same group). From here on the record exists.
3. When the run is over, its group is ended, and only then the record is removed.

Each child also carries CHAINDOCK_NODE and CHAINDOCK_RUN in its environment, which its
children inherit. A process is ours when it carries this node's marker; or is the leader
of a recorded group and was created when the record says; or is in such a leader's group.
`setsid` does not help a grandchild to escape; a process that changes its group *and*
starts another program without the marker does (see docs/security.md: this back end is
no sandbox).
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import psutil

from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from chaindock.ids import Ccid

NODE_MARKER = "CHAINDOCK_NODE"
RUN_MARKER = "CHAINDOCK_RUN"
KILL_LIMIT_S = 5.0
_POLL_S = 0.01
_SAME_START_S = 0.05

_log = get_logger("process")


@dataclass(frozen=True)
class Record:
    """One started process group.

    Args:
        run_id: unique; also the name of the run's private directory.
        kind: "run" or "build".
        pid: of the leader; its group and session have the same number.
        created: when the leader started, seconds since the epoch as psutil tells it.
    """

    run_id: str
    node_id: str
    ccid: Ccid
    attempt: str
    kind: str
    pid: int
    created: float


class Records:
    """The record files of one node, in `<folder>/<pid>-<run id>.json`."""

    def __init__(self, folder: Path, node_id: str) -> None:
        self.folder = folder
        self.node_id = node_id

    def write(self, record: Record) -> None:
        """Keep `record`; complete when this returns, whatever happens to the node.

        It need not outlive the machine: neither does the process.
        """
        path = self._path(record)
        fresh = path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(asdict(record)))
            fresh.rename(path)
        except OSError:
            fresh.unlink(missing_ok=True)  # a full disk leaves an empty one
            raise

    def remove(self, record: Record) -> None:
        """Forget a group that has ended."""
        self._path(record).unlink(missing_ok=True)

    def all(self) -> list[Record]:
        """Return every record that can be read."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                found.append(Record(**json.loads(path.read_text())))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError):
                _log.warning("unreadable record ignored", path=str(path))
        return [record for record in found if record.node_id == self.node_id]

    def _path(self, record: Record) -> Path:
        return self.folder / f"{record.pid}-{record.run_id}.json"


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
    """Believe in "nothing" only when it is seen twice.

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
