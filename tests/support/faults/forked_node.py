"""Start a node by forking a process that has all modules imported.

That takes a tenth of the time of `chaindock up`.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from multiprocessing.connection import Connection
    from pathlib import Path

PRELOAD = (
    "chaindock.cli.node",
    "chaindock.config.load",
    "chaindock.node.serve",
    "support.faults.forked_node",
)
UP_S = 60.0
COUNT_S = 0.05


@functools.cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    return context


def fork(home: Path, env: Mapping[str, str], flags: Mapping[str, str]) -> int:
    """Start the node of `home`; return its pid when it is ready.

    Raises: AssertionError with the error of the node.
    """
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    tasks = context.Value("i", 0)
    process = context.Process(
        target=_run, args=(home, dict(env), dict(flags), theirs, tasks), daemon=False
    )
    process.start()
    theirs.close()
    assert ours.poll(UP_S), f"the node of {home} is not up after {UP_S:g} s"
    try:
        said = ours.recv()
    except EOFError:
        said = "the process ended before the node was ready"
    assert said == "ready", said
    ours.close()
    assert process.pid is not None
    _processes[process.pid] = process
    _tasks[process.pid] = tasks
    return int(process.pid)


_processes: dict[int, Any] = {}
_tasks: dict[int, Any] = {}


def tasks_of(pid: int) -> int:
    """The number of tasks on the loop of a node, at most COUNT_S old."""
    return int(_tasks[pid].value)


def join(pid: int, limit_s: float) -> bool:
    """Wait for the end of a node; return whether the node ended in time."""
    process = _processes[pid]
    process.join(limit_s)
    if process.exitcode is None:
        return False
    del _processes[pid], _tasks[pid]
    process.close()
    return True


def _run(
    home: Path, env: dict[str, str], flags: dict[str, str], word: Connection, tasks: Any
) -> None:
    os.setsid()
    os.environ.clear()  # noqa: TID251  # the node's own, as a user's shell gives it
    os.environ.update(env)  # noqa: TID251
    from chaindock import telemetry
    from chaindock.cli.node import _until_signal
    from chaindock.cli.nodelog import open_log
    from chaindock.config import load as config

    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = open_log(home)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    found = config.load(home, flags)
    telemetry.configure(spec="debug", json=False, stream=sys.stderr)

    import asyncio

    def count() -> None:
        tasks.value = len(asyncio.all_tasks())
        asyncio.get_running_loop().call_later(COUNT_S, count)

    def ready(_: Any) -> None:
        count()
        word.send("ready")
        word.close()

    try:
        asyncio.run(_until_signal(found, ready))
    except BaseException as error:
        if not word.closed:
            word.send(f"{type(error).__name__}: {error}")
        raise
