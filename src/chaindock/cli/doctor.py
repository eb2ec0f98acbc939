"""`doctor`: the form of its findings, and the exit status.

The checks are in checks.py and isolation.py. The status is 0 when some chaincode can run.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
import textwrap
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import click

from chaindock.cli import show
from chaindock.cli.report import Exit
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
    """One finding.

    Args:
        group: heading it belongs to.
        name: what was checked.
        found: one line.
        remedy: what to do; "" when there is nothing to do.
    """

    group: str
    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything that was found.

    Args:
        docker: an engine answers.
        languages: what local processes can run.
    """

    checks: tuple[Check, ...]
    docker: bool
    languages: tuple[str, ...] = ()

    @property
    def can_run(self) -> bool:
        """Whether some chaincode can run somehow."""
        broken = any(c.state is State.FAIL and c.group == "home" for c in self.checks)
        return not broken and (self.docker or bool(self.languages))


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


def _print_group(checks: Sequence[Check], width: int) -> None:
    said: set[str] = set()
    nothing = all(check.state is State.ABSENT for check in checks)
    for check in checks:
        word, colour = _MARKS[check.state]
        quiet = check.state is State.ABSENT
        text = _wrap(f"{check.name:<{width}}  {show.visible(check.found)}", width + 8)
        mark = click.style(word, fg=colour, dim=quiet)
        click.echo(f"  {mark}  " + click.style(text[6:], dim=quiet))
        # Where nothing is there at all, the way to get it is said too.
        if check.remedy and check.remedy not in said and (nothing or not quiet):
            said.add(check.remedy)
            remedy = _wrap(f"do: {show.visible(check.remedy)}", width + 12, width + 8)
            arrow = click.style("do:", fg="cyan")
            click.echo(remedy.replace("do:", arrow, 1))


def _wrap(text: str, indent: int, first: int = 6) -> str:
    """Break `text` at words for the terminal; elsewhere it stays one line."""
    return textwrap.fill(
        text,
        max(show.width() or sys.maxsize, indent + 20),
        initial_indent=" " * first,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


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
    return f"Chaincode in {languages} can run as local processes; no engine for containers."
