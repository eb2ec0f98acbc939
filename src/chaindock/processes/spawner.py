"""Start programs for one node, and know each of them after the node was killed.

Nothing is lost, whenever the node is killed (SIGKILL, no clean-up):

1. A child starts as a gate: /bin/sh that reads one line from a pipe. If the node dies
   now, the pipe ends and the gate exits without having run anything.
2. The node writes `<folder>/<pid>-<run id>.json`, then sends the line, and the gate
   becomes the program (same pid, same group). From here on the record exists.
3. When the run is over, its group is ended, and only then the record is removed.

Each child also carries CHAINDOCK_NODE and CHAINDOCK_RUN in its environment, which its
children inherit. `setsid` does not help a grandchild to escape; a process that changes
its group *and* starts another program without the marker does (docs/security.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import uuid
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil

from chaindock.aio import Tasks
from chaindock.container.attempt import Attempt
from chaindock.errors import StartFailed, is_retryable
from chaindock.ids import Ccid
from chaindock.processes.child import Child, Output, Program, Record, open_gate
from chaindock.processes.folders import remove_tree
from chaindock.processes.table import NODE_MARKER, RUN_MARKER, end, find, share_less
from chaindock.telemetry import get_logger

_log = get_logger("process")
BUILD_NICE = 10
"""Chaincode has nine times as much of a processor that both want."""


class Records:
    """The record files of one node, in `<folder>/<pid>-<run id>.json`."""

    def __init__(self, folder: Path, node_id: str) -> None:
        self.folder, self.node_id = folder, node_id

    def write(self, record: Record) -> None:
        """Keep `record`, whatever happens to the node; it need not outlive the machine."""
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


class Spawner:
    """Starts programs for one node and keeps account of them in `records`.

    Private directories lie beside the records; `tasks` follows each child to its end.
    """

    def __init__(self, records: Records, tasks: Tasks) -> None:
        self.records = records
        self._tasks = tasks
        self.children: dict[str, Child] = {}

    def private_dir(self, run_id: str) -> Path:
        """Return the directory of a run: made by who needs it, removed at its end."""
        return self.records.folder / run_id

    @staticmethod
    def new_run_id() -> str:
        """Return a name for a run."""
        return uuid.uuid4().hex[:12]

    async def spawn(
        self, run_id: str, program: Program, attempt: Attempt, output: Output
    ) -> Child:
        """Start `program` for `attempt`; `run_id`, from `new_run_id`, is used once.

        Raises:
            StartFailed: the system refuses; nothing is left of it.
        Cancelled: nothing is left of it.
        """
        node_id, kind, child = self.records.node_id, program.kind, None
        env = {**program.env, NODE_MARKER: node_id, RUN_MARKER: run_id}
        try:
            child = await open_gate(program, env, output)
            # No await up to the release: a cancellation cannot come in between.
            pid, created = child.pid, psutil.Process(child.pid).create_time()
            child.record = Record(
                run_id, node_id, attempt.ccid, attempt.id, kind, pid, created
            )
            self.records.write(child.record)
        except BaseException as error:
            if child is not None:
                child.abort()
            if program.sandbox is not None:
                program.sandbox.close()
            if not isinstance(error, (OSError, ValueError, psutil.Error)):
                raise
            raise StartFailed(
                f"program {program.argv[0]!r} of chaincode {attempt.ccid!r} cannot be "
                f"started: {error}",
                retryable=is_retryable(error),
                **attempt.facts(),
            ) from error
        if kind == "build":
            _give_way(pid)
        self.children[run_id] = child
        _ = self._tasks.start(self._follow(child), f"{kind} {run_id}")
        if program.sandbox is not None:
            _ = self._tasks.start(program.sandbox.serve(child), f"sandbox {run_id}")
        child.release()
        return child

    async def end_quietly(self, child: Child) -> None:
        """End `child` even if the caller is cancelled (again) meanwhile."""
        ending = self._tasks.start(child.end(0), f"end {child.record.run_id}")
        await asyncio.shield(ending)

    async def end_runs_of(self, ccid: Ccid, grace_s: float) -> None:
        """End every run of a ccid, of this process and of killed ones of this node."""
        for child in list(self.children.values()):
            if child.record.kind == "run" and child.record.ccid == ccid:
                await child.end(grace_s)
        await asyncio.to_thread(self.clear, ccid, grace_s)

    async def end_all(self, grace_s: float) -> None:
        """End everything this spawner started."""
        await asyncio.gather(*(c.end(grace_s) for c in list(self.children.values())))

    def clear(self, ccid: Ccid | None, grace_s: float) -> int:
        """End what killed processes of this node left, and remove its traces; blocks.

        `ccid`: runs of this chaincode alone; None = everything. `grace_s` lies between
        SIGTERM and SIGKILL. Returns how many of the runs still had processes.
        """
        own = set(self.children)
        records = [record for record in self.records.all() if record.run_id not in own]
        if ccid is not None:
            records = [r for r in records if (r.ccid, r.kind) == (ccid, "run")]
        names = {record.run_id for record in records}

        def look() -> dict[str, list[psutil.Process]]:
            found = find(self.records.node_id, records)
            wanted = names if ccid is not None else found.keys() - own
            return {run_id: found[run_id] for run_id in wanted & found.keys()}

        alive = len(look())
        end(lambda: [p for group in look().values() for p in group], grace_s)
        for record in records:
            self._forget(record)
        return alive

    async def _follow(self, child: Child) -> None:
        record = child.record

        async def sweep() -> None:
            """End what is left of the group, whose leader ended just now."""
            look = partial(find, record.node_id, [record], ended_at=time.time())
            await asyncio.to_thread(end, lambda: look().get(record.run_id, []), 0)
            await asyncio.to_thread(self._forget, record)

        try:
            await child.follow(sweep)
        finally:
            self.children.pop(record.run_id, None)

    def _forget(self, record: Record) -> None:
        remove_tree(self.private_dir(record.run_id))
        self.records.remove(record)


def _give_way(pid: int) -> None:
    """Let a build, and all that it starts, have what others leave of processors."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, BUILD_NICE)
    # Where Linux shares processors out among sessions, that counts within one alone.
    share_less(pid, BUILD_NICE)
