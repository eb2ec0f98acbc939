"""`doctor`: the form of its findings, and the exit status.

The checks are in checks.py. The status is 0 when some chaincode can run.
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import click

from chaindock.cli import show
from chaindock.cli.session import Session, command

if TYPE_CHECKING:
    from collections.abc import Sequence


class State(StrEnum):
    """Result of a check. ABSENT: not installed or not set, which is no fault."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    ABSENT = "absent"


@dataclass(frozen=True)
class Check:
    """One finding below the heading `group`; `remedy` is "" when nothing is to be done."""

    group: str
    name: str
    state: State
    found: str
    remedy: str = ""


_MARKS = {
    State.OK: ("ok", "green"),
    State.WARN: ("!!", "yellow"),
    State.FAIL: ("NO", "red"),
    State.ABSENT: ("--", None),
}


@command("chaindock doctor", "chaindock doctor --json")
def doctor(session: Session) -> int:
    """Check what Chaindock needs and say what to do.

    Checks the home, every place where a container engine may be, toolchains, and what
    builds need to reach the network. Changes nothing. Exits with 0 when some chaincode
    can run.
    """
    import asyncio

    from chaindock.cli.checks import examine

    checks, docker, languages = asyncio.run(examine(session.home))
    broken = any(one.state is State.FAIL and one.group == "home" for one in checks)
    can_run = not broken and (docker or bool(languages))
    told = {
        "can_run": can_run,
        "docker": docker,
        "process": languages,
        "checks": [dataclasses.asdict(one) for one in checks],
    }
    if not session.emits(told):
        _print(checks)
        if can_run:
            click.echo(f"\n{_sentence(languages, docker=docker)}")
        else:
            text = click.style("No chaincode can run here yet.", fg="red")
            click.echo(f"\n{text}")
    return show.Exit.OK if can_run else show.Exit.ENGINE


def _print(findings: Sequence[Check]) -> None:
    width = max(len(check.name) for check in findings)
    for group, members in itertools.groupby(findings, lambda check: check.group):
        click.echo(click.style(group, bold=True))
        checks = list(members)
        # Where nothing is there at all, the way to get it is said too.
        nothing = all(check.state is State.ABSENT for check in checks)
        said = {""}
        for check in checks:
            word, colour = _MARKS[check.state]
            quiet = check.state is State.ABSENT
            text = _wrap(
                f"{check.name:<{width}}  {show.visible(check.found)}", width + 8
            )
            mark = click.style(word, fg=colour, dim=quiet)
            click.echo(f"  {mark}  " + click.style(text[6:], dim=quiet))
            if check.remedy not in said and (nothing or not quiet):
                said.add(check.remedy)
                text = f"do: {show.visible(check.remedy)}"
                remedy = _wrap(text, width + 12, width + 8)
                click.echo(remedy.replace("do:", click.style("do:", fg="cyan"), 1))


def _wrap(text: str, indent: int, first: int = 6) -> str:
    """Break `text` at words for the terminal; elsewhere it stays one line."""
    return textwrap.fill(
        text,
        max(show.width(), indent + 20),
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _sentence(languages: Sequence[str], *, docker: bool) -> str:
    some = ", ".join(languages)
    if not docker:
        return (
            f"Chaincode in {some} can run as local processes; no engine for containers."
        )
    also = f", and {some} as local processes too" if some else ""
    return f"Chaincode can run in containers{also}."
