"""`logspec`.

Owns:    showing and changing which lines the node logs.
Not:     what a specification means (telemetry/spec.py).
Entry:   logspec
Source:  launch.md §8.3
"""

from __future__ import annotations

import click

from chaindock.cli import show
from chaindock.cli.session import Session, home_option, json_option, pass_session


@click.command()
@click.argument("spec", required=False)
@json_option
@home_option
@pass_session
def logspec(session: Session, spec: str | None) -> None:
    """Show or change which lines the node logs.

    A change lasts until the node stops. SPEC is a level, and levels of components where they differ, such as
    info:chaincode,endorser=debug. A level holds for what is below a component too.
    Levels: fatal, panic, error, warning, info, debug.
    """
    found = session.client().logspec(spec)
    if session.json:
        show.emit_json({"spec": found})
    else:
        click.echo(show.visible(found))
