"""`ledger`: check the ledger's file, and make its state anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Mapping


@click.group()
def ledger() -> None:
    """Check the ledger, and make its state anew."""


@command("chaindock ledger verify", group=ledger)
def ledger_verify(session: Session) -> None:
    """Check every page of the ledger, every block and the chain of their hashes.

    The node may run meanwhile. It checks its blocks by itself after each start.
    """
    from chaindock.node.home import Home
    from chaindock.node.repair import verify

    _told(session, verify(Home(session.home)), "no damage found")


@command("chaindock ledger rebuild", group=ledger)
def ledger_rebuild(session: Session) -> None:
    """Make state, history and indexes anew from the blocks.

    The node must be stopped. Blocks stay as they are, and so does private data, which
    stands in no block, as far as it can be read. Needs free space of the size of the
    ledger.
    """
    from chaindock import telemetry
    from chaindock.node.home import Home
    from chaindock.node.repair import rebuild

    telemetry.configure()  # what is logged goes to standard error, beside --json
    _told(session, rebuild(Home(session.home), show.warn), "made anew")


def _told(session: Session, heights: Mapping[str, int], what: str) -> None:
    if session.emits(heights):
        return
    for channel, height in heights.items():
        click.echo(
            f"channel {channel}, {show.count(height, 'block')}: {what}", err=True
        )
