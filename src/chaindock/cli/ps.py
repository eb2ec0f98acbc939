"""`ps` and `status`.

Owns:    how chaincodes and the node are listed.
Not:     the states (the node).
Entry:   ps, status
Source:  ADR-0001
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEAD = ("NAME", "VERSION", "SEQ", "STATE", "BACKEND", "SINCE", "PACKAGE", "WHERE")


@click.command()
@json_option
@home_option
@pass_session
def ps(session: Session) -> None:
    """List the deployed chaincodes."""
    found = session.client().ps()
    if session.json:
        show.emit_json(found)
        return
    if not found:
        click.echo("no chaincode is deployed: chaindock deploy DIR", err=True)
        return
    show.table(_HEAD, [_row(one) for one in found])
    for one in found:
        if one.get("error"):
            message = _one_line(one["error"]["message"])
            click.echo(f"{one['name']}: {message}", err=True)
        if plan := planned(one):
            click.echo(f"{one['name']}: {plan}", err=True)


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        one["name"],
        one["version"],
        str(one["sequence"]),
        show.state_text(one["state"]),
        one["backend"],
        ago(one["since"]),
        show.shorten(one["package_id"]),
        where(one["details"]),
    )


def _one_line(text: str) -> str:
    return show.shorten_all(show.visible(text.replace("\n", " ")))


def planned(one: Mapping[str, Any]) -> str:
    """Return what comes next for a chaincode that failed; "" = nothing to tell."""
    if one["state"] == "crash-loop":
        times = count(one.get("failures") or 0, "failure")
        return f"left alone after {times} in a row; chaindock start {one['name']}"
    if one["state"] == "failed" and one.get("failures"):
        return "left alone, its build cannot succeed as it is; mend and deploy it again"
    if when := one.get("next_try"):
        left_s = -_age_s(when)
        return f"tried again in {left_s} s" if left_s > 0 else "tried again now"
    return ""


def count(number: int, what: str) -> str:
    """Return `1 block`, `2 blocks`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def where(details: Mapping[str, str]) -> str:
    """Return the place and isolation of a run in few words."""
    parts = []
    for key in ("container", "pid", "address"):
        if value := details.get(key):
            parts.append(f"pid {value}" if key == "pid" else show.visible(value)[:24])
            break
    if isolation := details.get("isolation"):
        parts.append(show.visible(isolation))
    if weaker := details.get("weaker"):
        parts.append(show.visible(f"but {weaker}"))
    if stream := details.get("stream"):
        parts.append(f"stream: {show.visible(stream)}")
    return ", ".join(parts) or "-"


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
    then = datetime.fromisoformat(iso)
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return int((datetime.now(UTC) - then).total_seconds())


@click.command()
@json_option
@home_option
@pass_session
def status(session: Session) -> None:
    """Show the node: endpoints, backend, blocks."""
    found = session.client().status()
    if session.json:
        show.emit_json(found)
        return
    show_status(found)


def show_status(found: Mapping[str, Any]) -> None:
    """Print the fields of NodeStatus for people."""
    reason = f"  ({found['reason']})" if found["reason"] else ""
    rows = [
        ("node", f"{show.state_text(found['state'])}, process {found['pid']}"),
        ("home", found["home"]),
        ("channel", f"{found['channel']}, {count(found['height'], 'block')}"),
        ("identity", found["msp_id"]),
        ("backend", found["backend"] + reason),
    ]
    rows += [(name, where_) for name, where_ in found["endpoints"].items()]
    inside = found["home"].rstrip("/") + "/"
    rows += [
        (f"user {name}", path.removeprefix(inside))
        for name, path in found["identities"].items()
    ]
    show.pairs(rows)
    for one in found.get("pending") or ():
        reason = _one_line(one["reason"])
        click.echo(f"waiting for {one['component']}: {reason}", err=True)
    for warning in found["warnings"]:
        click.echo(click.style("warning: ", fg="yellow") + _one_line(warning), err=True)
