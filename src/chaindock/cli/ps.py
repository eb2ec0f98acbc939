"""`ps`, `status`, `logs` and `logspec`: what the node tells of itself and of chaincodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from chaindock.cli import show
from chaindock.cli.keys import TX_DIGITS
from chaindock.cli.session import Session, command, name_argument
from chaindock.cli.show import count, one_line
from chaindock.ids import CHANNEL_ENDORSEMENT

_COLUMNS: Mapping[str, Callable[[Any], object]] = {
    "NAME": lambda one: one["name"],
    "VERSION": lambda one: one["version"],
    "SEQ": lambda one: one["sequence"],
    "STATE": lambda one: show.state_text(one["state"]),
    "BACKEND": lambda one: one["backend"],
    "SINCE": lambda one: ago(one["since"]),
    "PACKAGE": lambda one: show.shorten(one["package_id"]),
    "WHERE": lambda one: ", ".join(_where(one["details"])) or "-",
}
_LOG_KEYS = ("time", "stream", "tx", "line")


@command(
    "chaindock ps",
    "chaindock ps --calls         # calls that are not answered yet",
    of_channel=True,
    channel_help="Only chaincodes of this channel.  [default: of all]",
)
@click.option("--calls", is_flag=True, help="List the open calls of each chaincode.")
def ps(session: Session, *, calls: bool) -> None:
    """List the deployed chaincodes.

    NAME@MSPID is the process or container that serves the peer of another organisation
    than the node's first one; the first call of that peer starts it.
    """
    found = session.client().ps()
    if session.emits(found):
        return
    found = [row for one in found for row in (one, *one.get("others", ()))]
    if not found:
        words = session.words("deploy DIR")
        click.echo(f"no chaincode is deployed; next: {words}", err=True)
    elif calls:
        _show_calls(found)
    else:
        named = {session.client().status()["channel"]} != {r["channel"] for r in found}
        first = {"CHANNEL": lambda one: one["channel"]} if named else {}
        show.table(found, **first, **_COLUMNS)
        for one in found:
            for text in _remarks(one):
                click.echo(f"{one['name']}: {text}", err=True)


def _remarks(one: Mapping[str, Any]) -> Iterator[str]:
    if one.get("error"):
        yield one_line(one["error"]["message"])
    elif one.get("last_end"):
        yield f"the last run {one['last_end']}"
    if warning := one["details"].get("warning"):
        yield f"warning: {one_line(warning)}"
    if plan := planned(one):
        yield plan
    policy = one.get("policy") or CHANNEL_ENDORSEMENT
    if policy != CHANNEL_ENDORSEMENT:
        yield f"endorsement policy {show.visible(policy)}"
    if collections := one.get("collections"):
        yield f"collections {show.visible(', '.join(collections))}"


def _show_calls(found: Sequence[Mapping[str, Any]]) -> None:
    calls = [{**call, "name": one["name"]} for one in found for call in one["calls"]]
    if not calls:
        click.echo("no call is open", err=True)
        return
    show.table(
        calls,
        NAME=lambda call: call["name"],
        TRANSACTION=lambda call: call["tx_id"][:TX_DIGITS],
        FUNCTION=lambda call: show.visible(call["function"]),
        SINCE=lambda call: ago(call["since"]),
        CALLER=lambda call: (
            "left" if call["caller_left"] else "waits" if call["sent"] else "queued"
        ),
    )


def planned(one: Mapping[str, Any]) -> str:
    """Return what comes next for a chaincode that failed; "" = nothing to tell."""
    if one["state"] == "crash-loop":
        times = count(one.get("failures") or 0, "failure")
        again = f"chaindock start {one['name']}"
        return f"gave up after {times} in a row; to try again: {again}"
    if one["state"] == "failed" and one.get("failures"):
        return "gave up: the build cannot succeed; correct the source and deploy again"
    if when := one.get("next_try"):
        left_s = -_age_s(when)
        return f"next attempt in {left_s} s" if left_s > 0 else "next attempt now"
    return ""


def _where(details: Mapping[str, str]) -> Iterator[str]:
    place = next(
        (key for key in ("container", "pid", "address") if details.get(key)), ""
    )
    if place:
        # The hash at the end tells containers apart, so the name is not cut there.
        yield ("pid " if place == "pid" else "") + one_line(details[place])
    for key, word in (("isolation", ""), ("weaker", "but "), ("stream", "stream: ")):
        if value := details.get(key):
            yield show.visible(word + value)


def ago(since: str | None) -> str:
    """Return how long ago an ISO 8601 time was: `12 s`, `5 min`, `3 h`, `2 d`."""
    try:
        spent = max(0, _age_s(since or ""))
    except ValueError:
        return "-"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if spent >= size:
            return f"{spent // size} {unit}"
    return f"{spent} s"


def _age_s(iso: str) -> int:
    return int((datetime.now(UTC) - datetime.fromisoformat(iso)).total_seconds())


@command("chaindock status", "chaindock status --json")
def status(session: Session) -> None:
    """Show the node: endpoints, back end, blocks."""
    show_status(session, session.client().status())


def show_status(session: Session, found: Mapping[str, Any]) -> None:
    """Print the fields of NodeStatus."""
    if session.emits(found):
        return
    reason = f"  ({found['reason']})" if found["reason"] else ""
    inside = found["home"].rstrip("/") + "/"
    show.pairs(
        [
            ("node", f"{show.state_text(found['state'])}, process {found['pid']}"),
            ("home", found["home"]),
            ("channel", f"{found['channel']}, {count(found['height'], 'block')}"),
            ("identity", found["msp_id"]),
            ("backend", found["backend"] + reason),
            *found["endpoints"].items(),
            *(
                row
                for one in found.get("gateways") or ()  # what clients dial and trust
                for row in (
                    (f"gateway {one['mspid']}", one["address"] or "-"),
                    ("TLS name", one.get("tls_name")),
                    ("TLS CA", (one.get("ca") or "").removeprefix(inside)),
                )
                if row[1]
            ),
            *(
                (f"user {name}", path.removeprefix(inside))
                for name, path in found["identities"].items()
            ),
        ]
    )
    for one in found.get("pending") or ():
        reason = one_line(one["reason"])
        click.echo(f"waiting for {one['component']}: {reason}", err=True)
    for warning in found["warnings"]:
        show.note("warning", one_line(warning))


@command(
    "chaindock logs basic -f",
    "chaindock logs basic --previous        # why it was restarted",
    "chaindock logs basic -t                # with time, stream and transaction",
    of_channel=True,
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

    NAME is a chaincode, even if its deployment failed, or the id of its package.
    NAME@MSPID is the process or container that serves the peer of that organisation.
    With --json each line is one object: time, stream, tx, line. The transaction is
    known when no other was running, or when the line contains its id.
    """
    if follow and previous:
        raise click.UsageError("--previous cannot be used with --follow")
    nothing = True
    try:
        for event in session.client().logs(name, follow=follow, previous=previous):
            nothing = False
            _show_line(event, timestamps=timestamps, as_json=session.json)
    except KeyboardInterrupt:
        if not follow:
            raise
    if nothing and not session.json:
        which = "no earlier launch of" if previous else "no output yet of"
        click.echo(f"{which} {name}", err=True)


def _show_line(event: Mapping[str, Any], *, timestamps: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({key: event.get(key) for key in _LOG_KEYS}))
        return
    line, stream, tx = event["line"], event["stream"], event.get("tx")
    if tx is not None:
        stream += f"@{tx[:TX_DIGITS]}"
    when = f"{event['time'] or '-':<20} {stream:<6} " if timestamps else ""
    if show.is_terminal():
        click.echo(click.style(when, dim=True) + show.visible(line))
    else:
        click.echo(when + line, color=True)  # as it is: click would drop its colours


@command("chaindock logspec", "chaindock logspec info:chaincode,endorser=debug")
@click.argument("spec", required=False)
def logspec(session: Session, spec: str | None) -> None:
    """Show or change which lines the node logs.

    A change lasts until the node stops. SPEC is the level of all components, then levels
    of single components; each also holds for the components below its own. Levels: fatal,
    panic, error, warning, info, debug.
    """
    client = session.client()
    found = client.put("logspec", spec=spec) if spec else client.get("logspec")
    session.says(found, show.visible(found["spec"]), err=False)
