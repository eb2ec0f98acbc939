"""`doctor`.

Owns:    the form of the findings, the exit status.
Not:     the checks (checks.py).
Entry:   doctor
Holds:   status 0 when some chaincode can run somehow.
Source:  needs.md rows 1, 8
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import click

from chaindock.cli import show
from chaindock.cli.exits import Exit
from chaindock.cli.session import Session, home_option, json_option, pass_session

if TYPE_CHECKING:
    from chaindock.cli.finding import Check, Findings

_MARKS = {
    "ok": ("ok", "green"),
    "warn": ("!!", "yellow"),
    "fail": ("NO", "red"),
    "absent": ("--", None),
}


@click.command()
@json_option
@home_option
@pass_session
def doctor(session: Session) -> int:
    """Try everything Chaindock needs and say what to do.

    Looks at the home, every place where a container engine may be, toolchains, and what
    builds need to reach the network. Changes nothing. Ends with 0 when some chaincode
    can run somehow.
    """
    import asyncio

    from chaindock.cli.checks import examine

    findings = asyncio.run(examine(session.home))
    if session.json:
        show.emit_json(
            {
                "can_run": findings.can_run,
                "docker": findings.docker,
                "process": list(findings.languages),
                "checks": [dataclasses.asdict(check) for check in findings.checks],
            }
        )
    else:
        _print(findings)
    return Exit.OK if findings.can_run else Exit.ENGINE


def _print(findings: Findings) -> None:
    width = max(len(check.name) for check in findings.checks)
    for group, checks in itertools.groupby(findings.checks, lambda check: check.group):
        click.echo(click.style(group, bold=True))
        _print_group(list(checks), width)
    click.echo()
    click.echo(_sentence(findings))


def _print_group(checks: list[Check], width: int) -> None:
    said: set[str] = set()
    for check in checks:
        word, colour = _MARKS[check.state]
        quiet = check.state == "absent"
        mark = click.style(word, fg=colour, dim=quiet)
        text = show.visible(check.found)
        line = f"{check.name:<{width}}  {text}"
        click.echo(f"  {mark}  " + (click.style(line, dim=True) if quiet else line))
        if check.remedy and not quiet and check.remedy not in said:
            said.add(check.remedy)
            arrow = click.style("do: ", fg="cyan")
            click.echo(" " * (width + 8) + arrow + show.visible(check.remedy))
    # Where nothing is there at all, the way to get it is said once.
    if not said and all(check.state == "absent" for check in checks):
        for remedy in dict.fromkeys(check.remedy for check in checks if check.remedy):
            arrow = click.style("do: ", fg="cyan")
            click.echo(" " * (width + 8) + arrow + show.visible(remedy))


def _sentence(findings: Findings) -> str:
    if not findings.can_run:
        return click.style("No chaincode can run here yet.", fg="red")
    languages = ", ".join(findings.languages)
    if findings.docker and languages:
        return (
            f"Chaincode can run in containers, and {languages} as local processes too."
        )
    if findings.docker:
        return "Chaincode can run in containers."
    return f"Chaincode in {languages} can run as local processes; containers need an engine."
