"""`channel` and `org`: the channels of the node, and the organisations of a channel."""

from __future__ import annotations

import click

from chaindock.cli.session import Session, command, complete_channels, list_option


@click.group()
def channel() -> None:
    """Make, list and remove channels."""


@command(
    "chaindock channel create trades",
    "chaindock channel create trades --orgs Org1MSP,Org2MSP",
    "chaindock channel create trades --capability V2_0",
    group=channel,
)
@click.argument("name")
@list_option(
    "--orgs",
    "mspids",
    text="Its organisations; repeatable.  [default: those of the first channel]",
)
@click.option(
    "--capability",
    default="V2_5",
    show_default=True,
    help="Application capability: V2_0 or V2_5, as in the network where your contracts "
    "will run. With V2_0 a contract cannot purge private data.",
)
def channel_create(
    session: Session, name: str, mspids: tuple[str, ...], capability: str
) -> None:
    """Make a channel.

    It has a ledger, a configuration, an orderer and definitions of its own, and is there
    again when the node starts. The node's first organisation orders, and is always a
    member. Other commands work on it with --channel NAME.
    """
    asked = {"organizations": mspids, "capability": capability}
    made = session.client().post("channels", name=name, **asked)
    members = ", ".join(made["organizations"])
    session.channel = name
    words = session.words("deploy DIR")
    session.says(made, f"channel {name} of {members} is made; next: {words}")


@command("chaindock channel ls", "chaindock channel ls --json", group=channel)
def channel_ls(session: Session) -> None:
    """List the channels.

    Commands without --channel mean the first one.
    """
    session.shows(
        session.client().get("channels")["channels"],
        CHANNEL=lambda one: one["name"],
        BLOCKS=lambda one: one["height"],
        CAPABILITY=lambda one: one["capability"],
        ORGANISATIONS=lambda one: ", ".join(one["organizations"]),
    )


@command("chaindock channel rm trades --yes", group=channel)
@click.argument("name", shell_complete=complete_channels)
@click.option("--yes", is_flag=True, help="Do not ask.")
def channel_rm(session: Session, name: str, *, yes: bool) -> None:
    """Remove a channel with its ledger.

    Chaincode that runs on no other channel is stopped and removed. The node's first
    channel cannot be removed.
    """
    session.require(f"remove channel {name} and its ledger", yes=yes)
    session.client().delete("channels", name)
    session.says({"name": name}, f"channel {name} is removed")


# --- organisations -----------------------------------------------------------------------


@click.group()
def org() -> None:
    """Add and list organisations, stop and start their peers."""


@command("chaindock org add Org2", group=org, of_channel=True)
@click.argument("name")
def org_add(session: Session, name: str) -> None:
    """Add an organisation to a channel.

    Makes a CA, a peer, an admin and an MSP named NAME with `MSP` behind it, unless the
    node has them already, and commits a configuration block that contains it. From then
    on it counts for policies that need a majority: two of two, two of three.
    """
    made = session.client().post("organizations", name=name)
    text = f"organisation {made['mspid']} is a member since block {made['block']}"
    session.says(made, f"{text}\nits files: {made['path']}", err=False)


@command("chaindock org ls", "chaindock org ls --json", group=org, of_channel=True)
def org_ls(session: Session) -> None:
    """List the organisations of a channel."""
    session.shows(
        session.client().get("organizations")["organizations"],
        MSP=lambda one: one["mspid"],
        DOMAIN=lambda one: one["domain"] or "-",
        ORDERS=lambda one: "yes" if one["orders"] else "no",
        PEER=lambda one: "stopped" if one.get("stopped") else one.get("address") or "-",
        FILES=lambda one: one["path"] or "-",
    )


@command("chaindock org stop Org2", group=org, of_channel=True)
@click.argument("name")
def org_stop(session: Session, name: str) -> None:
    """Stop the peer of an organisation, on all channels.

    Shows what an application does when a peer is down: its clients cannot connect, it
    endorses nothing, and discovery does not name it. It runs again after `org start`, or
    when the node starts.
    """
    _run_peer(session, name, running=False)


@command("chaindock org start Org2", group=org, of_channel=True)
@click.argument("name")
def org_start(session: Session, name: str) -> None:
    """Start the peer of an organisation that `org stop` stopped."""
    _run_peer(session, name, running=True)


def _run_peer(session: Session, name: str, *, running: bool) -> None:
    found = session.client().put("organizations", name, running=running)
    state = f"serves at {found['address']}" if running else "is stopped"
    session.says(found, f"the peer of {found['mspid']} {state}")
