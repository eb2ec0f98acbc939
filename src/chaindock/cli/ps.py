"""`ps` and `status`: the chaincodes and the node as lists."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command
from chaindock.cli.show import count, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_HEAD = ("NAME", "VERSION", "SEQ", "STATE", "BACKEND", "SINCE", "PACKAGE", "WHERE")
_CALLS_HEAD = ("NAME", "TRANSACTION", "FUNCTION", "SINCE", "CALLER")


@command(
    "chaindock ps", "chaindock ps --calls         # calls that are not answered yet"
)
@click.option("--calls", is_flag=True, help="List the open calls of each chaincode.")
def ps(session: Session, *, calls: bool) -> None:
    """List the deployed chaincodes."""
    found = session.client().ps()
    if session.json:
        show.emit_json(found)
        return
    if not found:
        words = session.words("deploy DIR")
        click.echo(f"no chaincode is deployed; next: {words}", err=True)
        return
    if calls:
        _show_calls(found)
        return
    show.table(_HEAD, [_row(one) for one in found])
    for one in found:
        if one.get("error"):
            click.echo(f"{one['name']}: {one_line(one['error']['message'])}", err=True)
        elif one.get("last_end"):
            click.echo(f"{one['name']}: the last run {one['last_end']}", err=True)
        if warning := one["details"].get("warning"):
            click.echo(f"{one['name']}: warning: {one_line(warning)}", err=True)
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


def _show_calls(found: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            one["name"],
            call["tx_id"][:12],
            show.visible(call["function"]),
            ago(call["since"]),
            _caller(call),
        )
        for one in found
        for call in one["calls"]
    ]
    if rows:
        show.table(_CALLS_HEAD, rows)
    else:
        click.echo("no call is open", err=True)


def _caller(call: Mapping[str, Any]) -> str:
    if call["caller_left"]:
        return "left"
    return "waits" if call.get("sent", True) else "queued"


def planned(one: Mapping[str, Any]) -> str:
    """Return what comes next for a chaincode that failed; "" = nothing to tell."""
    if one["state"] == "crash-loop":
        times = count(one.get("failures") or 0, "failure")
        return f"gave up after {times} in a row; chaindock start {one['name']}"
    if one["state"] == "failed" and one.get("failures"):
        return "gave up: the build cannot succeed; correct the source and deploy again"
    if when := one.get("next_try"):
        left_s = -_age_s(when)
        return f"next attempt in {left_s} s" if left_s > 0 else "next attempt now"
    return ""


def where(details: Mapping[str, str]) -> str:
    """Return the place and isolation of a run in few words."""
    return ", ".join(_where(details)) or "-"


def _where(details: Mapping[str, str]) -> Iterator[str]:
    for key in ("container", "pid", "address"):
        if value := details.get(key):
            # The hash at the end tells containers apart, so the name is not cut there.
            yield f"pid {value}" if key == "pid" else one_line(value)
            break
    for key, form in (
        ("isolation", "{}"),
        ("weaker", "but {}"),
        ("stream", "stream: {}"),
    ):
        if value := details.get(key):
            yield show.visible(form.format(value))


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


@command("chaindock status", "chaindock status --json")
def status(session: Session) -> None:
    """Show the node: endpoints, backend, blocks."""
    show_status(session, session.client().status())


def show_status(session: Session, found: Mapping[str, Any]) -> None:
    """Print the fields of NodeStatus."""
    if session.json:
        show.emit_json(found)
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
