"""`down`: stop a node and wait until its process is gone.

A signal is sent only to the process that the lock of the home names, and only if that
process is older than its entry there.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

CLOCK_SLACK_S = 2.0
POLL_S = 0.02
KILLED_S = 10.0


@command("chaindock down", "chaindock down --timeout 10 --force")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
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
    if session.json:
        show.emit_json({"stopped": stopped, "home": str(session.home)})
        return
    what = "the node in {} has stopped" if stopped else "no node is running in {}"
    click.echo(what.format(repr(str(session.home))), err=True)


def stop_node(home: Path, timeout_s: float = 60.0, *, force: bool = False) -> bool:
    """Stop the node of `home` and wait for its end; False = there was none.

    Raises: NodeError when it is still there after `timeout_s` (with `force`: killed
        then, so that the next `up` removes what it leaves). Denied.
    """
    from chaindock.cli.client import AdminClient
    from chaindock.errors import NodeError, NodeNotRunning

    began = time.monotonic()
    process = find_process(home)
    try:
        AdminClient(home).shutdown()
    except NodeError as error:
        if process is None:
            if isinstance(error, NodeNotRunning):
                return False
            raise
        # It is starting, or its socket was removed: a signal means the same.
        _signal(process)
    if process is None or _ends(process, began + timeout_s):
        return True
    if not force:
        raise NodeError(
            f"the node in {str(home)!r} (process {process.pid}) has not stopped "
            f"after {timeout_s:g} s",
            hint="wait and try again, or kill it: chaindock down --force",
            home=str(home),
            pid=process.pid,
        )
    _signal(process, kill=True)
    _ends(process, time.monotonic() + KILLED_S)
    return True


def _ends(process: psutil.Process, until: float) -> bool:
    # Not process.wait(): a zombie that its parent has not collected is at its end too.
    while is_alive(process):
        if time.monotonic() > until:
            return False
        time.sleep(POLL_S)
    return True


def is_alive(process: psutil.Process) -> bool:
    """Whether the process is there and no zombie."""
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, *, kill: bool = False) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill() if kill else process.terminate()


def find_process(home: Path) -> psutil.Process | None:
    """Return the process that serves `home`, or None."""
    import psutil

    path = home / "node.lock"
    try:
        pid = int(path.read_text())
        written = path.stat().st_mtime
        process = psutil.Process(pid)
        ours = process.create_time() <= written + CLOCK_SLACK_S
    except (OSError, ValueError, psutil.Error):
        return None
    return process if ours and is_alive(process) else None
