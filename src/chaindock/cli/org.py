"""`org`: the organisations of a channel."""

from __future__ import annotations

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command


@click.group()
def org() -> None:
    """Add and list the organisations of a channel."""


@command("chaindock org add Org2", group=org, of_channel=True)
@click.argument("name")
def org_add(session: Session, name: str) -> None:
    """Add an organisation to a channel.

    Makes a CA, a peer, an admin and an MSP named NAME with `MSP` behind it, unless the
    node has them already, and commits a configuration block that contains it. From then on a majority of the organisations
    counts it: two of two, two of three.
    """
    made = session.client().post("organizations", name=name)
    if session.emits(made):
        return
    click.echo(f"organisation {made['mspid']} is a member since block {made['block']}")
    click.echo(f"its files: {made['path']}")


@command("chaindock org ls", "chaindock org ls --json", group=org, of_channel=True)
def org_ls(session: Session) -> None:
    """List the organisations of a channel."""
    found = session.client().get("organizations")["organizations"]
    if session.emits(found):
        return
    show.table(
        ("MSP", "DOMAIN", "ORDERS", "PEER", "FILES"),
        [
            (
                one["mspid"],
                one["domain"] or "-",
                "yes" if one["orders"] else "no",
                one.get("address") or "-",
                one["path"] or "-",
            )
            for one in found
        ],
    )
