"""`up` and `down`: start a node here or in a process of its own, and stop it.

The detached process tells "ready" or its error through a pipe, so nothing is guessed from
files or time; when `up` is interrupted before that, the process is ended. `down` signals
only the process that the lock of the home names, and only while the lock is held.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.nodelog import LOG_BYTES, LOG_NAME, NodeLog, open_log
from chaindock.cli.ps import show_status
from chaindock.cli.session import Seconds, Session, command, config_option, pairs_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import psutil

    from chaindock.config.sections import Config
    from chaindock.operations.facade import NodeStatus

TAIL_LINES = 20
KILLED_S = 10.0


@command(
    "chaindock up -d",
    "chaindock up --backend process",
    "chaindock up -d --block manual         # see also: chaindock block cut",
    "chaindock up -d --set chaincode.executetimeout=60s",
)
@click.option("-d", "--detach", is_flag=True, help="Return when the node answers.")
@click.option(
    "--block",
    metavar="MODE",
    help="When transactions that wait become a block: auto (at once), interval=1s, size=N "
    "(transactions) or manual.  [default: auto]",
)
@click.option(
    "--backend",
    help="Where chaincode runs: docker (in containers), process (as local processes) or "
    "auto.  [default: auto]",
)
@click.option(
    "--ca",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="PEM file of more CA certificates that builds trust.",
)
@pairs_option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    text="Any setting of `chaindock config show`; repeatable.",
)
@config_option
@click.option("--ready-fd", type=int, hidden=True)
def up(
    session: Session,
    *,
    detach: bool,
    block: str | None,
    backend: str | None,
    ca: Path | None,
    settings: dict[str, str],
    ready_fd: int | None,
) -> None:
    """Start the node of a home.

    The node stays in the foreground until Ctrl-C; with -d it runs in a process of its
    own. What was deployed is started again; `up -d` may return while contracts are still
    starting. `up -d` also succeeds if the node is already running.
    """
    from chaindock.errors import NodeNotRunning

    os.umask(os.umask(0o022) | 0o022)  # what it makes it must trust at the next start
    if block is not None:
        settings["chaindock.block.mode"] = block
    if backend is not None:
        settings["chaindock.backend"] = backend
    if ca is not None:
        settings["chaindock.ca"] = str(ca.absolute())
    if not detach:
        _serve(session, settings, ready_fd)
        return
    try:
        found = session.client().status()
        click.echo("the node runs already", err=True)
        if settings or session.folder:
            text = "the running node ignores these options; stop it first: "
            show.note("warning", text + session.words("down"))
    except NodeNotRunning:
        found = start_detached(session.home, settings, session.folder)
    show_status(session, found)


# --- in the foreground ---------------------------------------------------------------


def _serve(session: Session, flags: Mapping[str, str], ready_fd: int | None) -> None:
    import asyncio
    import dataclasses

    from chaindock import telemetry
    from chaindock.config.load import load
    from chaindock.errors import ChaindockError

    pipe = None if ready_fd is None else os.fdopen(ready_fd, "w")

    def tell(what: Mapping[str, Any]) -> None:
        # Without the process that started this one the node serves all the same.
        if pipe is not None and not pipe.closed:
            with contextlib.suppress(OSError), pipe:
                pipe.write(json.dumps(what) + "\n")

    def ready(status: NodeStatus) -> None:
        tell({"ready": True})
        if pipe is None:
            with contextlib.suppress(OSError):  # the same without a reader
                show_status(session, dataclasses.asdict(status))
                if not session.json:
                    click.echo(click.style("stop with Ctrl-C", dim=True), err=True)
                sys.stdout.flush()

    try:
        config = load(session.home, flags, folder=session.folder)
        telemetry.configure(
            spec=config.log.spec,
            json=config.log.format == "json",
            stream=None if pipe is None else NodeLog(session.home / LOG_NAME),
        )
        asyncio.run(_until_signal(config, ready))
    except ChaindockError as error:
        tell({"error": error.as_dict()})
        raise


async def _until_signal(config: Config, ready: Callable[[NodeStatus], None]) -> None:
    """Serve until the node ends by itself, or SIGINT, SIGTERM or SIGHUP asks it to."""
    import asyncio
    import signal

    from chaindock.node.serve import serve

    task = asyncio.current_task()
    asked = False

    def ask() -> None:
        nonlocal asked
        if not asked and task is not None:
            asked = True
            task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ask)
    try:
        await serve(config, ready)
    except asyncio.CancelledError:
        if not asked:
            raise


# --- in a process of its own ---------------------------------------------------------


def start_detached(
    home: Path, flags: Mapping[str, str], folder: Path | None = None
) -> dict[str, Any]:
    """Start a node that outlives this process; return its NodeStatus when it is ready.

    `folder` has its core.yaml, None = the home.

    Raises: what the node raised; NodeError when it ended without an error.
    Cancelled (Ctrl-C): the node that was starting is ended.
    """
    import subprocess

    from chaindock.cli.client import AdminClient
    from chaindock.errors import NodeError
    from chaindock.operations.wire import rebuild_error

    reader, writer = os.pipe()
    settings = [part for k, v in flags.items() for part in ("--set", f"{k}={v}")]
    settings += [] if folder is None else ["--config", str(folder)]
    with open_log(home) as log, os.fdopen(reader) as pipe:
        began = log.tell()
        child = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "chaindock", "--home", str(home)),
                *("up", "--ready-fd", str(writer), *settings),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)
        try:
            said = pipe.readline()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    word = json.loads(said) if said else {}
    if word.get("ready"):
        child.returncode = 0  # it outlives this process: no warning that it still runs
        return AdminClient(home).status()
    child.wait()
    if "error" in word:
        raise rebuild_error(word["error"])
    path, code = home / LOG_NAME, child.returncode
    with path.open("rb") as file:
        file.seek(began)
        lines = file.read(LOG_BYTES).decode(errors="replace").splitlines()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise NodeError(
        f"the node of home {str(home)!r} ended before it was ready ({how})",
        hint=f"its log is {str(path)!r}",
        home=str(home),
        output=lines[-TAIL_LINES:],
    )


# --- its end -------------------------------------------------------------------------


@command("chaindock down", "chaindock down --timeout 10 --force")
@click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(min=0, max=86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the node to stop.",
)
@click.option("--force", is_flag=True, help="Kill the node after that time.")
def down(session: Session, *, timeout_s: float, force: bool) -> None:
    """Stop the node of a home.

    Returns when the node's process and everything that it started are gone. If no node
    is running, `down` says so and exits with 0.
    """
    stopped = stop_node(session.home, timeout_s, force=force)
    home = str(session.home)
    what = "the node in {!r} has stopped" if stopped else "no node is running in {!r}"
    session.says({"stopped": stopped, "home": home}, what.format(home))


def stop_node(home: Path, timeout_s: float = 60.0, *, force: bool = False) -> bool:
    """Stop the node of `home` and wait for its end; False = there was none.

    Raises: NodeError when it is still there after `timeout_s` (with `force`: killed
        then, so that the next `up` removes what it leaves). Denied.
    """
    import psutil

    from chaindock.cli.client import AdminClient
    from chaindock.errors import NodeError, NodeNotRunning
    from chaindock.processes.table import have_ended

    until = time.monotonic() + timeout_s
    process = find_process(home)
    try:
        AdminClient(home).shutdown()
    except NodeError as error:
        if process is None:
            if isinstance(error, NodeNotRunning):
                return False
            raise
        # It is starting, or its socket was removed: a signal means the same.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    if process is None or have_ended([process], until - time.monotonic()):
        return True
    if not force:
        raise NodeError(
            f"the node in {str(home)!r} (process {process.pid}) has not stopped "
            f"after {timeout_s:g} s",
            hint="wait and try again, or kill it: chaindock down --force",
            home=str(home),
            pid=process.pid,
        )
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    have_ended([process], KILLED_S)
    return True


def find_process(home: Path) -> psutil.Process | None:
    """Return the process that serves `home`, or None."""
    import fcntl

    import psutil

    from chaindock.processes.table import is_alive

    try:
        with (home / "node.lock").open() as lock:
            # Not by times: the clock may have been set while the node runs.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return None
            process = psutil.Process(int(lock.read()))
    except (OSError, ValueError, psutil.Error):
        return None
    return process if is_alive(process) else None
