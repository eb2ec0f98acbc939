"""`dump`, `load` and `reset`: copies of the ledger, and its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command
from chaindock.errors import AlreadyExists

if TYPE_CHECKING:
    from collections.abc import Mapping

_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@command("chaindock dump before-upgrade.ledger", "chaindock dump --force latest.ledger")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--force", is_flag=True, help="Replace the file if it exists.")
def dump(session: Session, file: Path, *, force: bool) -> None:
    """Write a copy of the ledger to a file.

    The node may run meanwhile. The copy has all blocks, the state and what is deployed,
    but neither packages nor keys: only this home can load it.
    """
    from chaindock.node.copies import dump as write
    from chaindock.node.home import Home

    if file.exists() and not force:
        raise AlreadyExists(
            f"{str(file)!r} exists already",
            hint="choose another name, or replace the file with --force",
        )
    _told(session, write(Home(session.home), file.absolute()), f"written to {file}")


@command("chaindock load before-upgrade.ledger --yes")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@_yes_option
def load(session: Session, file: Path, *, yes: bool) -> None:
    """Replace the ledger by a copy that `dump` wrote.

    The node must be stopped. The copy is checked first: every page, every block and the
    chain of their hashes, and that this home made it. A chaincode whose package was
    removed since has to be deployed again.
    """
    from chaindock.node.copies import load as read
    from chaindock.node.home import Home

    _ask(session, f"replace the ledger of {str(session.home)!r}", yes=yes)
    _told(session, read(Home(session.home), file), f"loaded from {file}")


@command("chaindock reset --yes")
@_yes_option
def reset(session: Session, *, yes: bool) -> None:
    """Remove the ledger; the next start begins a new one.

    The node must be stopped. Nothing is deployed then. Identities and keys stay. Keep a
    copy by `dump` if you may need the data again.
    """
    from chaindock.node.copies import reset as remove
    from chaindock.node.home import Home

    _ask(session, f"remove the ledger of {str(session.home)!r}", yes=yes)
    removed = remove(Home(session.home))
    if session.emits({"removed": removed}):
        return
    what = ", ".join(removed) if removed else "no ledger was there"
    click.echo(f"removed: {what}; begin again: {session.words('up -d')}", err=True)


def _ask(session: Session, what: str, *, yes: bool) -> None:
    if yes:
        return
    if session.json or not show.is_terminal(err=True):
        raise click.UsageError(f"this would {what}: confirm it with --yes")
    click.confirm(f"{what[0].upper()}{what[1:]}?", abort=True, err=True)


def _told(session: Session, manifest: Mapping[str, Any], what: str) -> None:
    if session.emits(manifest):
        return
    for channel, height in manifest["ledgers"].items():
        blocks = show.count(height, "block")
        click.echo(f"channel {channel}, {blocks}, {what}", err=True)
