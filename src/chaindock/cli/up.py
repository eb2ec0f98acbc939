"""`up`: start a node here or in a process of its own.

The detached process tells "ready" or its error through a pipe, so nothing is guessed from
files or time. When `up` is interrupted before that, the detached process is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from chaindock.cli import show
from chaindock.cli.ps import show_status
from chaindock.cli.report import Exit
from chaindock.cli.session import Session, command, read_pairs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chaindock.config.sections import Config
    from chaindock.operations.facade import NodeStatus

TAIL_LINES = 20


@command(
    "chaindock up -d",
    "chaindock up --backend process",
    "chaindock up -d --set chaincode.executetimeout=60s",
)
@click.option("-d", "--detach", is_flag=True, help="Return when the node is ready.")
@click.option("--backend", help="Back end of chaincode: auto, docker or process.")
@click.option(
    "--ca",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Extra CA certificates for builds, PEM.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="Any setting of `chaindock config show`; repeatable.",
)
@click.option("--ready-fd", type=int, hidden=True)
def up(
    session: Session,
    *,
    detach: bool,
    backend: str | None,
    ca: Path | None,
    settings: dict[str, str],
    ready_fd: int | None,
) -> int:
    """Start the node of a home.

    The node stays in the foreground until Ctrl-C; with -d it runs in a process of its
    own. What was deployed is started again. With -d, a node that runs already is
    success.
    """
    from chaindock.errors import NodeNotRunning

    flags = settings
    if backend is not None:
        flags["chaindock.backend"] = backend
    if ca is not None:
        flags["chaindock.ca"] = str(ca.absolute())
    if not detach:
        return _serve(session, flags, ready_fd)
    try:
        found = session.client().status()
        click.echo("the node runs already", err=True)
        if flags:
            words = session.words("down")
            show.note("warning", f"the running node ignores the options; first {words}")
    except NodeNotRunning:
        found = start_detached(session.home, flags)
    show_status(session, found)
    return Exit.OK


# --- in the foreground ---------------------------------------------------------------


def _serve(session: Session, flags: Mapping[str, str], ready_fd: int | None) -> int:
    import asyncio
    import dataclasses

    from chaindock import telemetry
    from chaindock.config.environment import quieten_transport
    from chaindock.errors import ChaindockError

    quieten_transport()
    from chaindock.config.load import load

    def ready(status: NodeStatus) -> None:
        if ready_fd is not None:
            _tell(ready_fd, {"ready": True})
        else:
            _greet(session, dataclasses.asdict(status))

    try:
        config = load(session.home, flags)
        telemetry.configure(
            level=config.log.level,
            spec=config.log.spec,
            json=config.log.format == "json",
            stream=None if ready_fd is None else NodeLog(session.home / LOG_NAME),
        )
        asyncio.run(_until_signal(config, ready))
    except ChaindockError as error:
        if ready_fd is not None:
            _tell(ready_fd, {"error": error.as_dict()})
        raise
    return Exit.OK


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


def _greet(session: Session, status: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # without a reader the node serves all the same
        show_status(session, status)
        if not session.json:
            click.echo(click.style("stop with Ctrl-C", dim=True), err=True)
        sys.stdout.flush()


def _tell(fd: int, what: Mapping[str, Any]) -> None:
    # Without the process that started this one the node serves all the same.
    with contextlib.suppress(OSError), os.fdopen(fd, "w") as pipe:
        pipe.write(json.dumps(what) + "\n")


# --- in a process of its own ---------------------------------------------------------


def start_detached(home: Path, flags: Mapping[str, str]) -> dict[str, Any]:
    """Start a node that outlives this process; return its NodeStatus when it is ready.

    Args:
        home: of the node; created when it is missing.
        flags: settings from the command line.

    Raises: what the node raised; NodeError when it ended without an error.
    Cancelled (Ctrl-C): the node that was starting is ended.
    """
    import subprocess

    from chaindock.cli.client import AdminClient
    from chaindock.errors import NodeError
    from chaindock.operations.wire import rebuild_error

    reader, writer = os.pipe()
    settings = [part for k, v in flags.items() for part in ("--set", f"{k}={v}")]
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
    with path.open("rb") as log:
        log.seek(began)
        lines = log.read(LOG_BYTES).decode(errors="replace").splitlines()
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise NodeError(
        f"the node of home {str(home)!r} ended before it was ready ({how})",
        hint=f"its log is {str(path)!r}",
        home=str(home),
        output=lines[-TAIL_LINES:],
    )


# --- the log of a detached node ------------------------------------------------------

LOG_NAME = "node.log"
LOG_BYTES = 16 * 1024 * 1024
"""A larger log becomes `node.log.1`, so two files of about this size are kept."""


def open_log(home: Path) -> BinaryIO:
    """Open the log of `home` at its end; create both when they are missing.

    Raises: NodeError.
    """
    from chaindock.errors import NodeError

    path = home / LOG_NAME
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_BYTES:
            path.replace(path.with_suffix(".log.1"))
        file = open(_append(path), "ab")  # noqa: SIM115  # a descriptor
        file.seek(0, os.SEEK_END)
    except OSError as error:
        raise NodeError(
            f"home {str(home)!r} cannot be written: {error.strerror}",
            hint="choose another one with --home DIR or CHAINDOCK_HOME",
            home=str(home),
        ) from error
    return file


class NodeLog:
    """A text stream to the log that this process was started with.

    Args:
        path: the file.
        descriptors: all that lead to the file; the first one is written to.
        max_bytes: a larger file becomes `node.log.1`, and a new one takes its place.
    """

    def __init__(
        self,
        path: Path,
        descriptors: Sequence[int] = (2, 1),
        max_bytes: int = LOG_BYTES,
    ) -> None:
        self._path, self._descriptors, self._max = path, descriptors, max_bytes

    def write(self, text: str) -> int:
        """Write `text`. Raises: OSError."""
        os.write(self._descriptors[0], text.encode(errors="backslashreplace"))
        now = os.fstat(self._descriptors[0])
        if now.st_size >= self._max and os.path.samestat(now, self._path.stat()):
            self._path.replace(self._path.with_suffix(".log.1"))
            fresh = _append(self._path)
            for descriptor in self._descriptors:
                os.dup2(fresh, descriptor)
            os.close(fresh)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every write goes to the file at once."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return False


def _append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
