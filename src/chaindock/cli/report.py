"""Say what went wrong.

Owns:    the form of errors on standard error, and as JSON on standard output.
Not:     exit statuses (exits.py).
Entry:   show_error, show_defect
Holds:   first line what, last line what to do; between them the facts of a launch.
Source:  needs.md rows 2, 3; docs/reference/exit-codes.md
"""

from __future__ import annotations

import signal
import traceback
from typing import TYPE_CHECKING, Any

import click

from chaindock.cli.show import emit_json, seconds, shorten_all, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chaindock.errors import ChaindockError

SHOWN_LINES = 20
_CAUSES = {
    "not-executable": "the program is not executable",
    "not-found": "there is no such program",
    "removed": "somebody removed it",
    "engine-gone": "its engine went away",
}


def show_error(error: ChaindockError, *, as_json: bool) -> None:
    """Print an error: JSON on standard output, or text on standard error."""
    if as_json:
        emit_json(error.as_dict())
        return
    first, *more = shorten_all(error.message).splitlines() or [""]
    click.echo(click.style("error: ", fg="red", bold=True) + visible(first), err=True)
    for line in more:
        click.echo("       " + visible(line), err=True)
    for name, value in _launch_facts(error.facts):
        click.echo(click.style(f"  {name:<8}", dim=True) + value, err=True)
    for line in _output(error.facts):
        click.echo(line, err=True)
    if error.hint:
        hint = "\n      ".join(visible(line) for line in error.hint.splitlines())
        click.echo(click.style("hint: ", fg="cyan") + hint, err=True)


def _launch_facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    phases = _phases(facts)
    if phase := facts.get("phase"):
        spent = next((s for name, s in reversed(phases) if name == phase), None)
        after = "" if spent is None else f", after {seconds(spent)}"
        yield "phase", f"{visible(str(phase))}{after}"
    if phases:
        yield "times", ", ".join(f"{name} {seconds(s)}" for name, s in phases)
    if ended := _ended(facts):
        yield "ended", ended
    if facts.get("retryable") is True:
        yield "later", "it may work by itself later"
    verdicts = facts.get("verdicts")
    if isinstance(verdicts, dict):
        for builder, verdict in verdicts.items():
            yield visible(str(builder)), visible(str(verdict))


def _phases(facts: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = []
    for one in facts.get("phases") or ():
        try:
            found.append((visible(str(one["phase"])), float(one["seconds"])))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def _ended(facts: Mapping[str, Any]) -> str:
    parts = []
    if facts.get("oom"):
        parts.append("out of memory")
    number = facts.get("signal")
    if isinstance(number, int):
        try:
            parts.append(f"signal {signal.Signals(number).name}")
        except ValueError:
            parts.append(f"signal {number}")
    if facts.get("exit_code") is not None:
        parts.append(f"exit code {facts['exit_code']}")
    if told := _CAUSES.get(str(facts.get("cause"))):
        parts.append(told)
    if parts and isinstance(facts.get("registered"), bool):
        parts.append(f"{'after' if facts['registered'] else 'before'} it registered")
    return ", ".join(parts)


def _output(facts: Mapping[str, Any]) -> Iterator[str]:
    lines = [str(line) for line in facts.get("output") or ()]
    if not lines:
        return
    shown = lines[-SHOWN_LINES:]
    said = "1 line" if len(shown) == 1 else f"{len(shown)} lines"
    yield click.style(f"  output  last {said}", dim=True)
    for line in shown:
        yield click.style("  | ", dim=True) + visible(line)


def show_defect(error: Exception, *, as_json: bool) -> None:
    """Print an error that nobody planned, with its trace."""
    from chaindock.errors import ChaindockError

    told = ChaindockError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a defect of Chaindock; please report it with the lines above",
    )
    click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    show_error(told, as_json=as_json)
