"""`snapshot`, `revert`, `dump`, `load`, `reset`, `ledger`: check, copy and replace ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command, completing
from chaindock.errors import AlreadyExists, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.node.home import Home


_complete = completing(lambda client: client.get("snapshots")["snapshots"])
_yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


@command(
    "chaindock snapshot clean",
    "chaindock snapshot --list",
    "chaindock snapshot clean --rm",
    of_channel=True,
)
@click.argument("name", required=False, shell_complete=_complete)
@click.option("--list", "is_list", is_flag=True, help="List the snapshots; also: ls.")
@click.option("--rm", "removes", is_flag=True, help="Remove the snapshot NAME.")
def snapshot(
    session: Session, name: str | None, *, is_list: bool, removes: bool
) -> None:
    """Name the state of the ledger, to go back to it.

    This takes no time and no space. A snapshot that has the name already moves.
    `chaindock revert NAME` goes back. Snapshots are kept when the node stops.
    """
    client = session.client()
    if is_list or (name == "ls" and not removes):  # as with all other lists
        session.shows(
            client.get("snapshots")["snapshots"],
            NAME=lambda one: one["name"],
            BLOCKS=lambda one: one["height"],
            HASH=lambda one: one["hash"][:12],
        )
        return
    if name is None:
        raise click.UsageError("Missing argument 'NAME', or --list.")
    if removes:
        client.delete("snapshots", name)
        session.says({"name": name}, f"snapshot {name} removed")
        return
    taken = client.post("snapshots", name=name)
    blocks, back = show.count(taken["height"], "block"), session.words(f"revert {name}")
    session.says(taken, f"snapshot {name} at {blocks}; go back: {back}")


@command(
    "chaindock revert clean",
    "chaindock revert          # to the newest snapshot",
    of_channel=True,
)
@click.argument("name", default="", shell_complete=_complete)
def revert(session: Session, name: str) -> None:
    """Go back to a snapshot.

    Without NAME that is the newest one. Later blocks, all that they changed, and later
    snapshots are removed. Chaincode keeps running. Transactions that wait for a block are
    refused. If a chaincode was deployed since the snapshot, the revert is refused: `dump`
    and `load` bring back deployments, too.
    """
    found = session.client().post("revert", name=name)
    removed = show.count(found["removed"], "block")
    session.says(found, f"back at snapshot {found['name']}; {removed} removed")


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

    The node must be stopped. The copy is checked first: every block, the chain of their
    hashes, private data against its hashes, and that this home made it. State, history and
    indexes are made anew from the blocks: about 4 seconds for 100,000 transactions. A
    chaincode whose package was removed since has to be deployed again.
    """
    from chaindock.node.copies import load as read
    from chaindock.node.copies import require_readable

    require_readable(file)
    home = _free_home(session, "replace", yes=yes)
    _told(session, read(home, file), f"loaded from {file}")


@command("chaindock reset --yes")
@_yes_option
def reset(session: Session, *, yes: bool) -> None:
    """Remove the ledger; the next start begins a new one.

    The node must be stopped. Afterwards nothing is deployed, and channels that
    `chaindock channel create` made are gone. Identities and keys stay. Keep a copy by
    `dump` if you may need the data again.
    """
    from chaindock.node.copies import reset as remove

    removed = remove(_free_home(session, "remove", yes=yes))
    what = ", ".join(removed) if removed else "no ledger was there"
    text = f"removed: {what}; begin again: {session.words('up -d')}"
    session.says({"removed": removed}, text)


@click.group()
def ledger() -> None:
    """Check the ledger, and rebuild its state."""


@command("chaindock ledger verify", group=ledger)
def ledger_verify(session: Session) -> None:
    """Check the ledger for damage.

    Checks every page of the file, every block and the chain of their hashes. The node may
    run meanwhile. The node also checks its blocks by itself after each start.
    """
    from chaindock.node.copies import verify
    from chaindock.node.home import Home

    _told(session, verify(Home(session.home)), "no damage found")


@command("chaindock ledger rebuild", group=ledger)
def ledger_rebuild(session: Session) -> None:
    """Rebuild state, history and indexes from the blocks.

    The node must be stopped. Blocks stay as they are. Private data, which no block
    holds, is kept as far as it can be read. Needs free space of the size of the ledger.
    """
    from chaindock import telemetry
    from chaindock.node.copies import rebuild
    from chaindock.node.home import Home

    telemetry.configure()  # what is logged goes to standard error, beside --json
    _told(session, rebuild(Home(session.home), show.warn), "made anew")


def _free_home(session: Session, verb: str, *, yes: bool) -> Home:
    """Return the home when no node serves it and the user wants to lose its ledger."""
    from chaindock.node.home import Home

    home = Home(session.home)
    if not home.root.is_dir():
        raise NotFound(
            f"there is no home at {str(home.root)!r}",
            hint=f"begin one: {session.words('up -d')}, or name another with --home DIR",
        )
    with home.locked():
        what = f"{verb} the ledger of {str(home.root)!r}"
    session.require(what, yes=yes)
    return home


def _told(session: Session, told: Mapping[str, Any], what: str) -> None:
    """Say for each ledger what was done; `told`: heights, or a manifest with them."""
    if session.emits(told):
        return
    for channel, height in told.get("ledgers", told).items():
        blocks = show.count(height, "block")
        click.echo(f"channel {channel}, {blocks}: {what}", err=True)
