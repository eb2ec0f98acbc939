"""Start one program as a process group that can be ended for certain.

Owns:    the gated start, output, exit and end of a group.
Not:     what is started (build.py, run.py), what survives the node (records.py).
Entry:   Spawner.spawn
Holds:   a program runs only after its record is written; `wait` returns after all output
         was handed on and the whole group is gone; nothing of a failed spawn is left.
Source:  launch.md §9 W15-W17, W24, W46-W49
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from chaindock.aio import Latch
from chaindock.container.contracts import Cause, Exit
from chaindock.controllers.process.lines import Pump
from chaindock.controllers.process.parting import with_node
from chaindock.controllers.process.records import (
    NODE_MARKER,
    RUN_MARKER,
    Record,
    Records,
    end,
    find,
)
from chaindock.controllers.process.removal import remove_tree
from chaindock.errors import StartFailed, is_retryable
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from chaindock.aio import Tasks
    from chaindock.container.attempt import Attempt
    from chaindock.ids import Ccid

_log = get_logger("process")

SHELL = "/bin/sh"
# The pipe ends (the node died) => exit without running anything. The limits apply to
# the program too; one that cannot be set is left as it is.
GATE = 'ulimit -c 0; {limits}IFS= read -r go && exec "$@" </dev/null; exit 125'
_BLOCK_BYTES = 512  # unit of `ulimit -f` in every sh
DRAIN_LIMIT_S = 5.0
BUILD_NICE = 10
"""Chaincode has nine times as much of a processor that both want."""
_STDOUT, _STDERR = 1, 2


@dataclass(frozen=True)
class Program:
    """What is to be started.

    Args:
        argv: the program as an absolute path, and its arguments.
        kind: "run" or "build".
        inherits: descriptors that it gets and does not know of: locks on its build.
        max_open_files: None = as the node has it.
        max_file_bytes: largest file; 0 = as the node has it.
    """

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str] = field(repr=False)
    kind: str
    inherits: Sequence[int] = ()
    max_open_files: int | None = None
    max_file_bytes: int = 0


class Child(asyncio.SubprocessProtocol):
    """One started group. Made by Spawner."""

    def __init__(
        self,
        program: Program,
        take: Mapping[int, Callable[[str], None]],
        active: Callable[[], None] | None,
    ) -> None:
        self.program, self._active = program, active
        self.record: Record
        self._take = take
        self._transport: asyncio.SubprocessTransport
        self._pumps: dict[int, Pump] = {}
        self._exited = asyncio.Event()
        self._over: Latch[Exit] = Latch()
        self._asked = self._killed = False
        self._verdict: Exit | None = None

    @property
    def running(self) -> bool:
        """Whether the leader has not ended."""
        return not self._exited.is_set()

    async def wait(self) -> Exit:
        """Wait until the group is gone and its output handed on."""
        return await self._over.wait()

    async def end(self, grace_s: float) -> Exit:
        """SIGTERM the group, `grace_s`, SIGKILL it; return when it is gone.

        Any number of callers; the shortest grace counts. Cancelled: SIGKILL at once.
        """
        try:
            if grace_s > 0 and self.running:
                self._ask()
                async with asyncio.timeout(grace_s):
                    await self._exited.wait()
        except TimeoutError:
            pass
        finally:
            self._killed = self._killed or self.running
            self._signal(signal.SIGKILL)
        return await self.wait()

    def condemn(self, verdict: Exit) -> None:
        """Kill the group; `wait` tells `verdict`, unless it ended in another way."""
        if self.running and self._verdict is None:
            self._verdict = verdict
            self._signal(signal.SIGKILL)

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        """Signal the group while its leader holds the number of the group."""
        if self.running:
            try:
                os.killpg(self._transport.get_pid(), number)
            except (ProcessLookupError, PermissionError):
                return

    # --- what asyncio calls ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare both output pipes."""
        assert isinstance(transport, asyncio.SubprocessTransport)  # noqa: S101
        self._transport = transport
        for fd, take in self._take.items():
            pipe: Any = transport.get_pipe_transport(fd)
            self._pumps[fd] = Pump(take, pipe.pause_reading, pipe.resume_reading)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hand on output."""
        if self._active is not None:
            self._active()
        self._pumps[fd].feed(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Note the end of a pipe."""
        del exc
        if fd in self._pumps:
            self._pumps[fd].end()

    def process_exited(self) -> None:
        """Note the end of the leader."""
        self._exited.set()

    # --- for Spawner ------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Number of the leader, its group and its session."""
        return self._transport.get_pid()

    def release(self) -> None:
        """Open the gate."""
        gate: Any = self._transport.get_pipe_transport(0)
        gate.write(b"\n")
        gate.close()

    def abort(self) -> None:
        """Kill the gate; nothing was run."""
        self._transport.close()

    async def settle(self, sweep: Callable[[float], Awaitable[None]]) -> None:
        """After the leader: end the rest, take the last output, tell the waiters."""
        await self._exited.wait()
        try:
            await sweep(time.time())
        except Exception as error:  # noqa: BLE001  # whoever waits must be told anyway
            _log.error("a run was not cleared up", exc_info=error)
        try:
            async with asyncio.timeout(DRAIN_LIMIT_S):
                for pump in self._pumps.values():
                    await pump.done.wait()
        except TimeoutError:  # somebody out of reach keeps a pipe open
            for pump in self._pumps.values():
                pump.end()
        self._transport.close()
        asked = self._asked or self._killed
        code = self._transport.get_returncode()
        if self._verdict is not None and code == -signal.SIGKILL:
            self._over.settle(self._verdict)
        else:
            self._over.settle(_as_exit(code, asked=asked))


class Spawner:
    """Starts programs for one node and keeps account of them.

    Args:
        records: where the account lies; private directories lie beside it.
        tasks: follows each child to its end.
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
        self,
        run_id: str,
        program: Program,
        attempt: Attempt,
        lines: tuple[Callable[[str], None], Callable[[str], None]],
        active: Callable[[], None] | None = None,
    ) -> Child:
        """Start `program` for `attempt`.

        Args:
            run_id: from `new_run_id`; used once.
            program: what to start.
            attempt: whose facts the record and an error carry.
            lines: take each line of its stdout and of its stderr.
            active: called for each piece of output, whole lines or not.

        Raises:
            StartFailed: the system refuses; nothing is left of it.
        Cancelled: nothing is left of it.
        """
        take = {_STDOUT: lines[0], _STDERR: lines[1]}
        node_id = self.records.node_id
        env = {**program.env, NODE_MARKER: node_id, RUN_MARKER: run_id}
        try:
            child = await _open(program, env, take, active)
        except (OSError, ValueError) as error:
            raise _refused(program, attempt, error) from error
        try:
            # No await up to the release: a cancellation cannot come in between.
            created = psutil.Process(child.pid).create_time()
            child.record = Record(
                run_id,
                node_id,
                attempt.ccid,
                attempt.id,
                program.kind,
                child.pid,
                created,
            )
            self.records.write(child.record)
        except (OSError, psutil.Error) as error:
            child.abort()
            raise _refused(program, attempt, error) from error
        if program.kind == "build":
            _give_way(child.pid)
        self.children[run_id] = child
        _ = self._tasks.start(self._follow(child), f"{program.kind} {run_id}")
        child.release()
        return child

    async def end_quietly(self, child: Child, grace_s: float = 0) -> None:
        """End `child` even if the caller is cancelled (again) meanwhile."""
        ending = self._tasks.start(child.end(grace_s), f"end {child.record.run_id}")
        await asyncio.shield(ending)

    async def end_runs_of(self, ccid: Ccid, grace_s: float) -> None:
        """End every run of a ccid, of this process and of killed ones of this node."""
        for child in list(self.children.values()):
            if child.record.kind == "run" and child.record.ccid == ccid:
                await child.end(grace_s)
        lost = [
            record
            for record in self.records.all()
            if record.ccid == ccid and record.kind == "run"
        ]
        for record in lost:
            await asyncio.to_thread(self.clear, [record], grace_s)

    async def end_all(self, grace_s: float) -> None:
        """End everything this spawner started."""
        await asyncio.gather(*(c.end(grace_s) for c in list(self.children.values())))

    def clear(self, records: Sequence[Record], grace_s: float) -> int:
        """End the processes of `records` and remove what is kept of them; blocks.

        Returns: how many of the runs still had processes.
        """
        names = {record.run_id for record in records}

        def look() -> dict[str, list[psutil.Process]]:
            found = find(self.records.node_id, records)
            return {run_id: found[run_id] for run_id in found if run_id in names}

        alive = len(look())
        end(lambda: [p for group in look().values() for p in group], grace_s)
        for record in records:
            self._forget(record)
        return alive

    async def _follow(self, child: Child) -> None:
        try:
            await child.settle(partial(self._sweep, child.record))
        finally:
            self.children.pop(child.record.run_id, None)

    async def _sweep(self, record: Record, ended_at: float) -> None:
        await asyncio.to_thread(self._sweep_now, record, ended_at)

    def _sweep_now(self, record: Record, ended_at: float) -> None:
        def look() -> list[psutil.Process]:
            found = find(record.node_id, [record], ended_at=ended_at)
            return found.get(record.run_id, [])

        end(look, 0)
        self._forget(record)

    def _forget(self, record: Record) -> None:
        remove_tree(self.private_dir(record.run_id))
        self.records.remove(record)


async def _open(
    program: Program,
    env: Mapping[str, str],
    take: Mapping[int, Callable[[str], None]],
    active: Callable[[], None] | None,
) -> Child:
    files = program.max_open_files
    limits = "" if files is None else f"ulimit -n {files} 2>/dev/null; "
    if program.max_file_bytes:
        blocks = -(-program.max_file_bytes // _BLOCK_BYTES)
        limits += f"ulimit -f {blocks} 2>/dev/null; "
    _, child = await asyncio.get_running_loop().subprocess_exec(
        lambda: Child(program, take, active),
        SHELL,
        "-c",
        GATE.format(limits=limits),
        "chaindock-gate",
        *with_node(),
        *program.argv,
        cwd=program.cwd,
        env=env,
        pass_fds=tuple(program.inherits),
        start_new_session=True,
    )
    return child


def _give_way(pid: int) -> None:
    """Let a build, and all that it starts, have what others leave of processors."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, BUILD_NICE)
    # Where Linux shares processors out among sessions, that counts within one alone.
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(f"{BUILD_NICE}")


def _refused(program: Program, attempt: Attempt, error: Exception) -> StartFailed:
    return StartFailed(
        f"program {program.argv[0]!r} of chaincode {attempt.ccid!r} cannot be started: "
        f"{error}",
        retryable=isinstance(error, OSError) and is_retryable(error),
        **attempt.facts(),
    )


def _as_exit(returncode: int | None, *, asked: bool = False) -> Exit:
    cause = Cause.STOPPED if asked else None
    if returncode is None or returncode >= 0:
        return Exit(code=returncode, cause=cause)
    return Exit(code=None, signal=-returncode, cause=cause)
