"""`up`.

Owns:    starting a node here or in a process of its own; knowing when it is ready.
Not:     what a node is (node/serve.py).
Entry:   up, start_detached
Holds:   the detached child says "ready" or its error through a pipe, so nothing is
         guessed from files or time; interrupted before that, the child is ended.
Source:  ADR-0001
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.exits import Exit
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaindock.config.sections import Config
    from chaindock.operations.facade import NodeStatus

TAIL_LINES = 20


@click.command()
@click.option("-d", "--detach", is_flag=True, help="Return as soon as it is ready.")
@click.option("--backend", help="What runs chaincode: auto, docker, process.")
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
    help="Any setting of `chaindock config show`; repeatable.",
)
@click.option("--ready-fd", type=int, hidden=True)
@json_option
@home_option
@pass_session
def up(
    session: Session,
    *,
    detach: bool,
    backend: str | None,
    ca: Path | None,
    settings: Sequence[str],
    ready_fd: int | None,
) -> int:
    """Start the node of a home.

    In the foreground until Ctrl-C; with -d in a process of its own. What was deployed
    comes up again.
    """
    flags = _flags(backend, ca, settings)
    if detach:
        found = start_detached(session.home, flags)
        _announce(session, found)
        return Exit.OK
    return _serve(session, flags, ready_fd)


def _flags(
    backend: str | None, ca: Path | None, settings: Sequence[str]
) -> dict[str, str]:
    flags = {}
    for one in settings:
        key, equals, value = one.partition("=")
        if not key or not equals:
            raise click.UsageError(f"--set {one!r}: expected KEY=VALUE")
        flags[key] = value
    if backend is not None:
        flags["chaindock.backend"] = backend
    if ca is not None:
        flags["chaindock.ca"] = str(ca.absolute())
    return flags


def _announce(session: Session, found: Mapping[str, Any]) -> None:
    if session.json:
        show.emit_json(found)
        return
    from chaindock.cli.ps import show_status

    show_status(found)


# --- in the foreground ---------------------------------------------------------------


def _serve(session: Session, flags: Mapping[str, str], ready_fd: int | None) -> int:
    from chaindock.errors import ChaindockError

    try:
        return _run(session, flags, ready_fd)
    except ChaindockError as error:
        if ready_fd is not None:
            _tell(ready_fd, {"error": error.as_dict()})
        raise


def _run(session: Session, flags: Mapping[str, str], ready_fd: int | None) -> int:
    import asyncio
    import dataclasses

    from chaindock import telemetry
    from chaindock.cli.nodelog import LOG_NAME, NodeLog
    from chaindock.config.environment import quieten_transport

    quieten_transport()
    from chaindock.config.load import load

    config = load(session.home, flags)
    telemetry.configure(
        level=config.log.level,
        spec=config.log.spec,
        json=config.log.format == "json",
        stream=None if ready_fd is None else NodeLog(session.home / LOG_NAME),
    )

    def ready(status: NodeStatus) -> None:
        if ready_fd is not None:
            _tell(ready_fd, {"ready": True})
        else:
            _greet(session, dataclasses.asdict(status))

    asyncio.run(_until_signal(config, ready))
    return Exit.OK


async def _until_signal(config: Config, ready: Any) -> None:
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
    try:
        _announce(session, status)
        if not session.json:
            click.echo(click.style("stop with Ctrl-C", dim=True), err=True)
        sys.stdout.flush()
    except OSError:
        return  # nobody reads what it says; the node serves all the same


def _tell(fd: int, what: Mapping[str, Any]) -> None:
    try:
        with os.fdopen(fd, "w") as pipe:
            pipe.write(json.dumps(what) + "\n")
    except OSError:
        return  # whoever started us has gone; the node serves all the same


# --- in a process of its own ---------------------------------------------------------


def start_detached(home: Path, flags: Mapping[str, str]) -> dict[str, Any]:
    """Start a node that outlives this process; return its NodeStatus when it is ready.

    Args:
        home: of the node; made when it is missing.
        flags: settings from the command line.

    Raises: what the node raised; NodeError when it ended without a word.
    Cancelled (Ctrl-C): the node that was starting is ended.
    """
    import subprocess

    from chaindock.cli.client import AdminClient
    from chaindock.cli.nodelog import open_log

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
        child.returncode = 0  # it is on its own now: no warning that it still runs
        return AdminClient(home).status()
    child.wait()
    raise _child_error(home, child.returncode, began, word)


def _child_error(
    home: Path, returncode: int, began: int, word: Mapping[str, Any]
) -> Exception:
    from chaindock.cli.nodelog import LOG_BYTES, LOG_NAME
    from chaindock.errors import NodeError
    from chaindock.operations.wire import rebuild_error

    if "error" in word:
        return rebuild_error(word["error"])
    path = home / LOG_NAME
    with path.open("rb") as log:
        log.seek(began)
        lines = log.read(LOG_BYTES).decode(errors="replace").splitlines()
    how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    return NodeError(
        f"the node of home {str(home)!r} ended before it was ready ({how})",
        hint=f"its log is {str(path)!r}",
        home=str(home),
        output=lines[-TAIL_LINES:],
    )
