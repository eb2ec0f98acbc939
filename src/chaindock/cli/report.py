"""What went wrong: the text of errors, their JSON, and exit statuses.

An error's first line says what happened and its last line what to do; the facts of a
launch stand between them. An exit status never changes its meaning.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import click

from chaindock.errors import (
    ChaindockError,
    Code,
    EngineError,
    ExecuteFailed,
    LaunchFailed,
    LedgerError,
    NodeError,
    ToolMissing,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Exit(IntEnum):
    """Exit statuses."""

    OK = 0
    REFUSED = 1
    USAGE = 2
    NODE = 3
    LAUNCH = 4
    INPUT = 5
    ENGINE = 6
    INTERNAL = 70
    OUTPUT = 74
    INTERRUPTED = 130
    PIPE = 141


MEANINGS = {
    Exit.OK: "success",
    Exit.REFUSED: "the chaincode answered with an error or not at all, or the "
    "transaction is not valid",
    Exit.USAGE: "the command line is wrong",
    Exit.NODE: "no node runs in this home, or it cannot be started or reached",
    Exit.LAUNCH: "a build or launch failed",
    Exit.INPUT: "an input was refused: a file, name, setting or identity",
    Exit.ENGINE: "a container engine or a tool is missing or fails",
    Exit.INTERNAL: "a defect of Chaindock, or damaged files",
    Exit.OUTPUT: "standard output is closed or full",
    Exit.INTERRUPTED: "interrupted (Ctrl-C)",
    Exit.PIPE: "the reader of standard output has gone",
}

_BY_CLASS: tuple[tuple[type[ChaindockError], Exit], ...] = (
    (LaunchFailed, Exit.LAUNCH),
    (ExecuteFailed, Exit.REFUSED),
    (EngineError, Exit.ENGINE),
    (ToolMissing, Exit.ENGINE),
    (NodeError, Exit.NODE),
)


def exit_status(error: ChaindockError) -> Exit:
    """Return the status for `error`."""
    for kind, status in _BY_CLASS:
        if isinstance(error, kind):
            return status
    if error.code in {Code.INTERNAL, Code.DATA_LOSS}:
        return Exit.INTERNAL
    return Exit.REFUSED if isinstance(error, LedgerError) else Exit.INPUT


# --- errors --------------------------------------------------------------------------

SHOWN_LINES = 20
"""Lines of output below an error; the log has the others."""
_CAUSES = {
    "not-executable": "the program is not executable",
    "not-found": "there is no such program",
    "removed": "somebody removed it",
    "engine-gone": "its engine went away",
}


def show_error(error: ChaindockError, *, as_json: bool) -> None:
    """Print an error: JSON on standard output, or text on standard error."""
    from chaindock.cli.show import emit_json, shorten_all, visible

    if as_json:
        emit_json(error.as_dict())
        return
    first, *more = shorten_all(error.message).splitlines() or [""]
    lines = [click.style("error: ", fg="red", bold=True) + visible(first)]
    lines += ["       " + visible(line) for line in more]
    lines += [
        click.style(f"  {name:<8}", dim=True) + value
        for name, value in _launch_facts(error.facts)
    ]
    lines += _output(error.facts)
    if error.hint:
        hint = "\n      ".join(visible(line) for line in error.hint.splitlines())
        lines.append(click.style("hint: ", fg="cyan") + hint)
    for line in lines:
        click.echo(line, err=True)


def _launch_facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    from chaindock.cli.show import seconds, visible

    phases = [
        (visible(one["phase"]), float(one["seconds"]))
        for one in facts.get("phases") or ()
    ]
    if phase := facts.get("phase"):
        spent = next((s for name, s in reversed(phases) if name == phase), None)
        after = "" if spent is None else f", after {seconds(spent)}"
        yield "phase", f"{visible(str(phase))}{after}"
    if phases:
        yield "times", ", ".join(f"{name} {seconds(s)}" for name, s in phases)
    if ended := _ended(facts):
        yield "ended", ended
    if facts.get("retryable") is True:
        yield "later", "a later attempt may succeed without a change"
    verdicts = facts.get("verdicts")
    if isinstance(verdicts, dict):
        for builder, verdict in verdicts.items():
            yield visible(str(builder)), visible(str(verdict))


def _ended(facts: Mapping[str, Any]) -> str:
    parts = []
    if facts.get("oom"):
        parts.append("out of memory")
    number = facts.get("signal")
    if isinstance(number, int):
        import signal

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
    from chaindock.cli.show import count, visible

    lines = [str(line) for line in facts.get("output") or ()][-SHOWN_LINES:]
    if lines:
        yield click.style(f"  output  {count(len(lines), 'line')}", dim=True)
    for line in lines:
        yield click.style("  | ", dim=True) + visible(line)


def show_defect(error: Exception, *, as_json: bool) -> None:
    """Print an error that nobody planned, with its trace."""
    import traceback

    told = ChaindockError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a defect of Chaindock; please report it with the lines above",
    )
    click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    show_error(told, as_json=as_json)
