"""One program of this machine, started as a process group that can be ended for certain.

How the leader ended is known as soon as it has ended; a process or a pipe that it left
behind delays that by SETTLE_S at most, and is cleared up afterwards. Its output never
holds up the event loop: a flood slows its writer, not the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import psutil

from chaindock.aio import Latch
from chaindock.container.contracts import Cause, Exit
from chaindock.container.output import Lines
from chaindock.ids import Ccid
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from chaindock.processes.sandbox import Sandbox

_log = get_logger("process")
SHELL = "/bin/sh"
# If the pipe ends because the node died, nothing is run. The limits apply to the program
# too. One that cannot be set is stricter already.
GATE = 'ulimit -c 0; {limits}IFS= read -r go && exec "$@" </dev/null; exit 125'
_BLOCK_BYTES = 512  # unit of `ulimit -f` in every sh
SETTLE_S = 0.5
"""Seconds to wait, after the leader's end, for its last output and its group."""
DRAIN_LIMIT_S = 5.0
"""Seconds to wait for a pipe that a process outside of the group keeps open."""
_READ_BYTES: Final = 64 * 1024
_PROBE_LIMIT_S: Final = 5.0
_PLACES: Final = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Program:
    """What is to be started; `kind` is "run" or "build".

    `argv` begins with an absolute path. It gets the descriptors `inherits` and does not
    know of them: locks on its build; in a sandbox the end of a channel instead. Limits
    of 0 are those of the node.
    """

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str] = field(repr=False)
    kind: str
    inherits: Sequence[int] = ()
    max_open_files: int = 0
    max_file_bytes: int = 0
    sandbox: Sandbox | None = None


@dataclass(frozen=True)
class Output:
    """Who takes what a program writes.

    `stdout` and `stderr` take each line without its line end; `active` is called for
    each piece of output, whole lines or not.
    """

    stdout: Callable[[str], None]
    stderr: Callable[[str], None]
    active: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Record:
    """One started process group."""

    run_id: str
    """Unique; also the name of the run's private directory."""
    node_id: str
    ccid: Ccid
    attempt: str
    kind: str
    """"run" or "build"."""
    pid: int
    """Of the leader; its group and session have the same number."""
    created: float
    """When the leader started, seconds since the epoch as psutil tells it."""


class Child(asyncio.SubprocessProtocol):
    """One started group. Made by Spawner."""

    def __init__(self, program: Program, output: Output) -> None:
        self.program, self._output = program, output
        self.record: Record
        self._transport: asyncio.SubprocessTransport
        self._pipes: dict[int, asyncio.StreamReader] = {}
        self._reads: list[asyncio.Future[None]] = []
        self._exited = asyncio.Event()
        self._exit: Latch[Exit] = Latch()
        self._gone = asyncio.Event()
        self._asked = self._killed = False
        self._verdict: Exit | None = None

    @property
    def running(self) -> bool:
        """Whether the leader has not ended, as far as the loop knows."""
        return not self._exited.is_set()

    @property
    def stopping(self) -> bool:
        """Whether it was asked to end, or killed."""
        return self._asked or self._killed

    @property
    def pid(self) -> int:
        """Number of the leader, its group and its session."""
        return self._transport.get_pid()

    async def wait(self) -> Exit:
        """Wait until the leader has ended, and its output has unless that takes long."""
        return await self._exit.wait()

    async def wait_gone(self) -> Exit:
        """Wait until the whole group is gone, and all its output was handed on."""
        await self._gone.wait()
        return await self._exit.wait()

    async def end(self, grace_s: float) -> Exit:
        """SIGTERM the group, `grace_s`, SIGKILL it; return when it is gone.

        Any number of callers; the shortest grace counts. Cancelled: SIGKILL at once.
        """
        try:
            if grace_s > 0 and self._lives():
                if not self._asked:
                    self._asked = True
                    self._signal(signal.SIGTERM)
                async with asyncio.timeout(grace_s):
                    await self._exited.wait()
        except TimeoutError:
            pass
        finally:
            self._killed = self._killed or self._lives()
            self._signal(signal.SIGKILL)
        return await self.wait_gone()

    def kill_as(self, verdict: Exit) -> None:
        """Kill the group; `wait` returns `verdict`, unless it ended in another way."""
        if self._verdict is None and self._lives():
            self._verdict = verdict
            self._signal(signal.SIGKILL)

    def _lives(self) -> bool:
        """Whether the leader runs: one that has crashed is not asked to stop any more."""
        if not self.running:
            return False
        try:
            return bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:  # ended, and the loop is about to be told
            return False
        except OSError:  # no descriptor is free to look
            return True

    def _signal(self, number: int) -> None:
        """Signal the group while its leader holds the number of the group."""
        if self.running:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    # --- what asyncio calls ---------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Prepare both output pipes."""
        assert isinstance(transport, asyncio.SubprocessTransport)  # noqa: S101
        self._transport = transport
        for fd, take in ((1, self._output.stdout), (2, self._output.stderr)):
            pipe = self._pipes[fd] = asyncio.StreamReader()
            pipe.set_transport(cast("Any", transport.get_pipe_transport(fd)))
            self._reads.append(asyncio.ensure_future(_hand_on(pipe, take)))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Hand on output."""
        self._output.active()
        self._pipes[fd].feed_data(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """Note the end of a pipe."""
        del exc
        if fd in self._pipes:
            self._pipes[fd].feed_eof()

    def process_exited(self) -> None:
        """Note the end of the leader."""
        self._exited.set()

    # --- for Spawner ------------------------------------------------------------------

    def release(self) -> None:
        """Open the gate."""
        gate: Any = self._transport.get_pipe_transport(0)
        gate.write(b"\n")
        gate.close()

    def abort(self) -> None:
        """Kill the gate; nothing was run."""
        self._transport.close()

    async def follow(self, sweep: Callable[[], Awaitable[None]]) -> None:
        """Tell the waiters how the leader ends; `sweep` ends the rest of its group."""
        await self._exited.wait()
        end = self._judge()
        rest = asyncio.ensure_future(self._clear_up(sweep))
        code = self._transport.get_returncode() or 0
        # If bubblewrap is killed, its program still takes calls for a moment: they are lost.
        limit_s = 0 if self.program.sandbox and code < 0 else SETTLE_S
        try:
            await asyncio.wait([rest], timeout=limit_s)
            self._exit.settle(end)
            await rest
        except Exception as error:  # noqa: BLE001  # waiters must be told anyway
            _log.error("leftovers of a run not removed", exc_info=error)
        finally:
            rest.cancel()
        self._transport.close()
        if self.program.sandbox:
            self.program.sandbox.release()
        self._gone.set()

    def _judge(self) -> Exit:
        code, sandbox = self._transport.get_returncode(), self.program.sandbox
        if sandbox and code and code > 0 and not (sandbox.entered or self.stopping):
            reason = "its sandbox could not be made"
            return Exit(code, reason=reason, cause=Cause.NOT_STARTED)
        if sandbox and code is not None and 128 < code <= 192:
            # bubblewrap adds 128 to the signal that ended its program.
            code = 128 - code
        if self._verdict is not None and code == -signal.SIGKILL:
            return self._verdict
        if code is None or code >= 0:
            return Exit(code, cause=Cause.STOPPED if self.stopping else None)
        ours = (self._asked and code == -signal.SIGTERM) or (
            self._killed and code == -signal.SIGKILL
        )
        return Exit(None, signal=-code, cause=Cause.STOPPED if ours else None)

    async def _clear_up(self, sweep: Callable[[], Awaitable[None]]) -> None:
        await sweep()
        await asyncio.wait(self._reads, timeout=DRAIN_LIMIT_S)


async def _hand_on(pipe: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    """Pass what is read to `take`, line by line."""
    lines = Lines(take)
    while data := await pipe.read(_READ_BYTES):
        await lines.add(data)
    lines.end()


async def open_gate(program: Program, env: Mapping[str, str], output: Output) -> Child:
    """Start a shell that becomes `program` when it is released. Raises: OSError."""
    blocks = -(-program.max_file_bytes // _BLOCK_BYTES)
    wanted = {"n": program.max_open_files, "f": blocks}
    limits = ""
    if program.sandbox:  # which limits open files itself
        limits = "trap '' TERM; ulimit -S -n $(ulimit -H -n) 2>/dev/null; "
        del wanted["n"]
    limits += "".join(f"ulimit -{k} {n} 2>/dev/null; " for k, n in wanted.items() if n)
    _, child = await asyncio.get_running_loop().subprocess_exec(
        lambda: Child(program, output),
        SHELL,
        "-c",
        GATE.format(limits=limits),
        "chaindock-gate",
        *(() if program.sandbox else end_with_node()),
        *program.argv,
        cwd=program.cwd,
        env=env,
        pass_fds=tuple(program.inherits),
        start_new_session=True,
    )
    return child


@functools.cache
def end_with_node() -> tuple[str, ...]:
    """Return what to put before a program: it gets SIGTERM when this process is gone.

    Empty where the system has no such thing. Blocks for some milliseconds, once.
    Without it a chaincode of a node that was killed goes on until the next start:
    fabric-shim for Node, 2.5, does not end with its stream, and takes half a processor.
    """
    # The one of util-linux. Others of that name do not know the option.
    tool = shutil.which("setpriv", path=_PLACES) if sys.platform == "linux" else None
    if tool is None:
        return ()
    words = (tool, "--pdeathsig", "TERM")
    try:
        done = subprocess.run(
            [*words, "/bin/true"],
            capture_output=True,
            timeout=_PROBE_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()
