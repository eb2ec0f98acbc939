"""`logs`: what a chaincode and its build wrote. `logspec`: what the node logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command, name_argument

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS = ("time", "stream", "tx", "line")
_TX_DIGITS = 12


@command(
    "chaindock logs basic -f",
    "chaindock logs basic --previous        # why it was restarted",
    "chaindock logs basic -t                # with time, stream and transaction",
)
@name_argument()
@click.option("-f", "--follow", is_flag=True, help="Wait for more lines until Ctrl-C.")
@click.option("--previous", is_flag=True, help="Show the launch before the last one.")
@click.option(
    "-t",
    "--timestamps",
    is_flag=True,
    help="Show time, stream and transaction of each line.",
)
def logs(
    session: Session, name: str, follow: bool, previous: bool, timestamps: bool
) -> None:
    """Show what a chaincode and its build wrote.

    NAME is a chaincode, also one whose deployment failed, or the id of its package.
    With --json each line is one object: time, stream, tx, line. The transaction is
    known when no other was running, or when the line contains its id.
    """
    if follow and previous:
        raise click.UsageError("--previous cannot be used with --follow")
    nothing = True
    try:
        for event in session.client().logs(name, follow=follow, previous=previous):
            nothing = False
            _print(event, timestamps=timestamps, as_json=session.json)
    except KeyboardInterrupt:
        if not follow:
            raise
    if nothing and not session.json:
        which = "no earlier launch of" if previous else "no output yet of"
        click.echo(f"{which} {name}", err=True)


def _print(event: Mapping[str, Any], *, timestamps: bool, as_json: bool) -> None:
    if as_json:
        import json

        click.echo(json.dumps({key: event.get(key) for key in _KEYS}))
        return
    line = event["line"]
    stream, tx = event["stream"], event.get("tx")
    if tx is not None:
        stream += f"@{tx[:_TX_DIGITS]}"
    when = f"{event['time'] or '-':<20} {stream:<6} " if timestamps else ""
    if show.is_terminal():
        click.echo(click.style(when, dim=True) + show.visible(line))
    else:
        click.echo(when + line, color=True)  # as it is: click would drop its colours


@command("chaindock logspec", "chaindock logspec info:chaincode,endorser=debug")
@click.argument("spec", required=False)
def logspec(session: Session, spec: str | None) -> None:
    """Show or change which lines the node logs.

    A change lasts until the node stops. SPEC is a level, and levels of components where
    they differ. A level holds for everything below a component too. Levels: fatal,
    panic, error, warning, info, debug.
    """
    found = session.client().logspec(spec)
    if session.json:
        show.emit_json({"spec": found})
    else:
        click.echo(show.visible(found))
