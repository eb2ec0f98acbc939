"""`logs`.

Owns:    printing what a chaincode and its build wrote.
Not:     reading the files (operations/tail.py).
Entry:   logs
Holds:   the text is the chaincode's own, line by line; a pipe gets it unchanged.
Source:  needs.md row 3
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.exits import Exit
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Mapping

_KEYS = ("time", "stream", "tx", "line")
_TX_DIGITS = 12


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on as more is written.")
@click.option("--previous", is_flag=True, help="The attempt before the last one.")
@click.option(
    "-t",
    "--timestamps",
    is_flag=True,
    help="Show when, which stream, which transaction.",
)
@json_option
@home_option
@pass_session
def logs(
    session: Session, name: str, follow: bool, previous: bool, timestamps: bool
) -> int:
    """Show what a chaincode and its build wrote.

    NAME is a chaincode, also one whose deployment failed, or the id of its package.
    With --json one object a line: time, stream, tx, line. The transaction is told where
    it can be known: it was the only one under way, or the line names it.
    """
    if follow and previous:
        raise click.UsageError("--previous has ended: it cannot be followed")
    nothing = True
    try:
        for event in session.client().logs(name, follow=follow, previous=previous):
            nothing = False
            _print(event, timestamps=timestamps, as_json=session.json)
    except KeyboardInterrupt:
        if not follow:
            raise
    if nothing and not session.json:
        which = "no earlier attempt of" if previous else "nothing was written yet by"
        click.echo(f"{which} {name}", err=True)
    return Exit.OK


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
