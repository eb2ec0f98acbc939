"""`stop` and `rm`.

Owns:    ending chaincode.
Not:     starting it (deploy.py).
Entry:   stop, rm
Source:  ADR-0001
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
@home_option
@pass_session
def stop(session: Session, names: Sequence[str]) -> None:
    """Stop a chaincode; it stays deployed.

    `chaindock start NAME` brings it up again.
    """
    _each(session, names, session.client().stop, "stopped")


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
@home_option
@pass_session
def rm(session: Session, names: Sequence[str]) -> None:
    """Stop a chaincode and forget it; its state stays on the ledger."""
    _each(session, names, session.client().remove, "removed")


def _each(
    session: Session, names: Sequence[str], act: Callable[[str], Any], done: str
) -> None:
    for name in names:
        act(name)
        if not session.json:
            click.echo(f"{name} {done}", err=True)
    if session.json:
        show.emit_json({done: list(names)})
