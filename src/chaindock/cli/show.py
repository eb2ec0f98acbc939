"""What the commands print: data, tables, payloads, errors; and the exit statuses.

Text that others wrote reaches a terminal without control characters, and a pipe byte by
byte. An exit status never changes its meaning.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, Self

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

_COLOUR = re.compile(r"\x1b\[[0-9;:]*[A-Za-z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?")
_HASH = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")
_LATE = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[\x00-\x08\x0a-\x1f{_LATE}]")
_LATE_CONTROL = re.compile(f"[{_LATE}]")
"""Control characters that JSON does not escape."""
_STATE_COLOURS = {
    **dict.fromkeys(("running", "ready"), "green"),
    **dict.fromkeys(("starting", "stopping", "back-off"), "yellow"),
    **dict.fromkeys(("failed", "crash-loop", "not-installed"), "red"),
}


def visible(text: str) -> str:
    """Return one line of foreign text without anything that moves the cursor."""
    text = _COLOUR.sub("", text).expandtabs(4)
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: str) -> str:
    """Return foreign text of several lines as one, with short hashes."""
    return shorten(visible(text.replace("\n", " ")))


def shorten(text: str) -> str:
    """Return `text` with 12 digits of each hash of a package or transaction."""
    return _HASH.sub(r"\1", text)


def is_terminal(*, err: bool = False) -> bool:
    """Whether standard output (or error) is a terminal."""
    return (sys.stderr if err else sys.stdout).isatty()


def width() -> int:
    """Return the columns of standard output; no limit when it is no terminal."""
    if not is_terminal():
        return sys.maxsize
    import shutil

    return shutil.get_terminal_size().columns


# --- data ----------------------------------------------------------------------------


def emit_json(data: Any) -> None:
    """Print `data` as JSON; what a terminal obeys and JSON lets pass is escaped too."""
    import json

    unicode = sys.stdout.encoding.lower().replace("-", "") == "utf8"
    text = json.dumps(data, indent=2, ensure_ascii=not unicode)
    click.echo(_LATE_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def emit_payload(payload: bytes) -> None:
    """Print a payload and nothing else; a terminal gets it harmless, with a line end.

    Where standard error leads to the same file or pipe as standard output, it gets the
    line end that the payload lacks: in a log the next text starts a line of its own.
    """
    if is_terminal():
        text = payload.decode(errors="backslashreplace")
        if text:
            lines = text.removesuffix("\n").split("\n")
            click.echo("\n".join(visible(line) for line in lines))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()
    if payload and not payload.endswith(b"\n") and _same_file():
        click.echo(err=True)


def _same_file() -> bool:
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError):
        return False


def parsed(payload: bytes) -> Any:
    """Return the JSON value of a payload, else its text, else None."""
    import json

    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text or None
    return value


# --- text ----------------------------------------------------------------------------


def note(label: str, text: str, colour: str = "yellow") -> None:
    """Print `label: text` on standard error, the label in its colour."""
    bold = colour == "red" or None
    click.echo(click.style(f"{label}: ", fg=colour, bold=bold) + text, err=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    note("warning", visible(text))


def seconds(value: float) -> str:
    """Return a duration for people: `40 ms`, `3.2 s`, `74 s`, `5 min 3 s`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def count(number: int, what: str) -> str:
    """Return `1 block`, `2 blocks`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def state_text(state: str) -> str:
    """Return a state in its colour (click drops it where there is no terminal)."""
    return click.style(state, fg=_STATE_COLOURS.get(state))


def table(rows: Sequence[Any], **cells: Callable[[Any], object]) -> None:
    """Print columns; what does not fit on the terminal goes to indented lines.

    `cells` has what each column shows of a row, by its heading, with _ for a space.
    """
    head = [name.replace("_", " ") for name in cells]
    lines = [head, *([str(cell(row)) for cell in cells.values()] for row in rows)]
    columns = zip(*lines, strict=True)
    widths = [max(len(click.unstyle(cell)) for cell in column) for column in columns]
    room = width()
    for line in lines:
        parts, used = [""], 0
        for cell, wide in zip(line, widths, strict=True):
            if parts[-1] and used + wide > room:
                parts.append("    ")
                used = 4
            parts[-1] += cell + " " * (wide - len(click.unstyle(cell)) + 2)
            used += wide + 2
        for part in map(str.rstrip, parts):
            fits = len(click.unstyle(part)) <= room
            for text in [part] if fits else _broken(part, room):
                click.echo(click.style(text, dim=True) if line is head else text)


def _broken(text: str, room: int) -> list[str]:
    """Break a line at spaces; names of containers, which are long, stay whole."""
    words = text.lstrip()
    return textwrap.wrap(
        words,
        room,
        initial_indent=text[: len(text) - len(words)],
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print `name  value` lines, values aligned."""
    wide = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(click.style(f"{name:<{wide}}", dim=True) + f"  {value}")


# --- errors --------------------------------------------------------------------------

_REFUSED = "the chaincode answered with an error or not at all, or the transaction is "
_REFUSED += "not valid"


class Exit(IntEnum):
    """Exit statuses and what they mean."""

    meaning: str

    OK = 0, "success"
    REFUSED = 1, _REFUSED
    USAGE = 2, "the command line is wrong"
    NODE = 3, "no node runs in this home, or it cannot be started or reached"
    LAUNCH = 4, "a build or launch failed"
    INPUT = 5, "an input was refused: a file, name, setting or identity"
    ENGINE = 6, "a container engine or a tool is missing or fails"
    INTERNAL = 70, "a defect of Chaindock, or damaged files"
    OUTPUT = 74, "standard output is closed or full"
    INTERRUPTED = 130, "interrupted (Ctrl-C)"
    PIPE = 141, "the reader of standard output has gone"

    def __new__(cls, number: int, meaning: str) -> Self:
        """Make the member `number`."""
        made = int.__new__(cls, number)
        made._value_, made.meaning = number, meaning
        return made


SHOWN_LINES = 20
"""Lines of output below an error; the log has the others."""
_CAUSES = {
    "not-executable": "the program is not executable",
    "not-found": "there is no such program",
    "removed": "somebody removed it",
    "engine-gone": "its engine does not answer",
}


def exit_status(error: ChaindockError) -> Exit:
    """Return the status for `error`."""
    match error:
        case LaunchFailed():
            return Exit.LAUNCH
        case ExecuteFailed():
            return Exit.REFUSED
        case EngineError() | ToolMissing():
            return Exit.ENGINE
        case NodeError():
            return Exit.NODE
    if error.code in {Code.INTERNAL, Code.DATA_LOSS}:
        return Exit.INTERNAL
    return Exit.REFUSED if isinstance(error, LedgerError) else Exit.INPUT


def show_error(error: ChaindockError, *, as_json: bool) -> None:
    """Print an error: JSON on standard output, or text on standard error."""
    if as_json:
        emit_json(error.as_dict())
        return
    first, *more = shorten(error.message).splitlines() or [""]
    note("error", visible(first), "red")
    lines = [f"       {visible(line)}" for line in more]
    for name, value in _launch_facts(error.facts):
        lines.append(click.style(f"  {name:<8}", dim=True) + value)
    output = [str(line) for line in error.facts.get("output") or ()][-SHOWN_LINES:]
    if output:
        lines.append(click.style(f"  output  {count(len(output), 'line')}", dim=True))
    lines += [click.style("  | ", dim=True) + visible(line) for line in output]
    for line in lines:
        click.echo(line, err=True)
    if error.hint:
        note("hint", "\n      ".join(map(visible, error.hint.splitlines())), "cyan")


def _launch_facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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


def _ended(facts: Mapping[str, Any]) -> str:
    parts = ["out of memory"] if facts.get("oom") else []
    if isinstance(number := facts.get("signal"), int):
        from signal import Signals

        name = next((one.name for one in Signals if one == number), number)
        parts.append(f"signal {name}")
    if facts.get("exit_code") is not None:
        parts.append(f"exit code {facts['exit_code']}")
    if told := _CAUSES.get(str(facts.get("cause"))):
        parts.append(told)
    if parts and isinstance(facts.get("registered"), bool):
        parts.append(f"{'after' if facts['registered'] else 'before'} it registered")
    return ", ".join(parts)
