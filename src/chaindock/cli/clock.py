"""`time`: the time of calls, which contracts see as the timestamp of transactions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from chaindock.cli.call import CallCommand
from chaindock.cli.session import Session, command


@click.group()
def time() -> None:
    """Show and change the time that contracts see."""


@command("chaindock time show", group=time)
def time_show(session: Session) -> None:
    """Show the time of calls."""
    _show(session, session.client().get("time"))


@command(
    "chaindock time set 2027-01-01",
    "chaindock time set 2027-01-01T08:00:00+01:00",
    group=time,
)
@click.argument("when", metavar="TIME")
def time_set(session: Session, when: str) -> None:
    """Set the time of calls; it runs on from there.

    TIME is ISO 8601, UTC if it has no offset. The time of calls is the timestamp of
    transactions, which contracts and histories show. When the node stops, the setting
    is lost.
    """
    try:
        found = datetime.fromisoformat(when)
    except ValueError as error:
        raise click.BadParameter(
            f"{when!r}: expected ISO 8601, such as 2027-01-01T08:00:00",
            param_hint="TIME",
        ) from error
    if found.tzinfo is None:
        found = found.replace(tzinfo=UTC)
    _show(session, session.client().put("time", at_s=found.timestamp()))


@command(
    "chaindock time advance 30d",
    "chaindock time advance 1h30m",
    group=time,
    cls=CallCommand,
)
@click.argument("duration")
def time_advance(session: Session, duration: str) -> None:
    """Move the time of calls forward.

    DURATION is such as 90s, 2h, 1h30m or 30d.
    """
    from chaindock.values import WrongValueError, read_duration

    if duration.startswith("-"):
        raise click.BadParameter(
            f"{duration!r}: time only advances; to go back, use `chaindock time reset` "
            "or `chaindock time set TIME`",
            param_hint="DURATION",
        )
    try:
        spent_s = read_duration(duration)
    except WrongValueError as error:
        raise click.BadParameter(
            f"{duration!r}: expected {error}", param_hint="DURATION"
        ) from error
    _show(session, session.client().put("time", advance_s=spent_s))


@command("chaindock time reset", group=time)
def time_reset(session: Session) -> None:
    """Give calls the time of this machine again."""
    _show(session, session.client().put("time"))


def _show(session: Session, found: Mapping[str, Any]) -> None:
    offset_s = found["offset_s"]
    told = "the time of this machine"
    if offset_s:
        away = timedelta(seconds=abs(round(offset_s)))
        told = f"{away} {'ahead' if offset_s > 0 else 'behind'}"
    session.says(found, f"{found['now']}  ({told})", err=False)
