"""Print data for people and for programs: tables, JSON, durations, results.

Text that others wrote reaches a terminal without control characters, and a pipe byte by
byte.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COLOUR = re.compile(r"\x1b\[[0-9;:]*[A-Za-z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?")
_HASH = re.compile(r"(?<![0-9a-f])([0-9a-f]{12})[0-9a-f]{52}(?![0-9a-f])")
_LATE = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[\x00-\x08\x0a-\x1f{_LATE}]")
_LATE_CONTROL = re.compile(f"[{_LATE}]")
"""Control characters that JSON does not escape."""
_STATE_COLOURS = {
    "running": "green",
    "ready": "green",
    "starting": "yellow",
    "stopping": "yellow",
    "back-off": "yellow",
    "failed": "red",
    "crash-loop": "red",
}


def visible(text: str) -> str:
    """Return one line of foreign text without anything that moves the cursor."""
    text = _COLOUR.sub("", text).expandtabs(4)
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def one_line(text: str) -> str:
    """Return foreign text of several lines as one, with short hashes."""
    return shorten_all(visible(text.replace("\n", " ")))


def is_terminal(*, err: bool = False) -> bool:
    """Whether standard output (or error) is a terminal."""
    return (sys.stderr if err else sys.stdout).isatty()


def width() -> int | None:
    """Return the columns of the terminal; None when standard output is none."""
    if not is_terminal():
        return None
    import shutil

    return shutil.get_terminal_size().columns


# --- data ----------------------------------------------------------------------------


def emit_json(data: Any) -> None:
    """Print `data` as indented JSON.

    Characters that a terminal obeys and JSON would let pass are escaped too.
    """
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
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    if not text:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def payload_of(body: Mapping[str, Any]) -> bytes:
    """Return the payload of an answer of the admin API."""
    return base64.b64decode(body["payload"])


# --- text ----------------------------------------------------------------------------


def note(label: str, text: str, colour: str = "yellow") -> None:
    """Print `label: text` on standard error, the label in its colour."""
    click.echo(
        click.style(f"{label}: ", fg=colour, bold=colour == "red") + text, err=True
    )


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they need to be.

    Columns that do not fit on the terminal go to further lines, which are indented.
    """
    lines = [head, *rows]
    widths = [
        max(len(click.unstyle(line[at])) for line in lines) for at in range(len(head))
    ]
    parts = _split(widths, width())
    for line in lines:
        for at, part in enumerate(parts):
            cells = [_pad(line[column], widths[column]) for column in part]
            text = ("    " if at else "") + "  ".join(cells).rstrip()
            click.echo(click.style(text, dim=True) if line is head else text)


def _split(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """Return which columns go to which line."""
    parts: list[list[int]] = [[]]
    used = 0
    for column, wide in enumerate(widths):
        if room is not None and parts[-1] and used + wide > room:
            parts.append([])
            used = 4
        parts[-1].append(column)
        used += wide + 2
    return parts


def _pad(cell: str, wide: int) -> str:
    return cell + " " * (wide - len(click.unstyle(cell)))


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Print `name  value` lines, values aligned."""
    wide = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(click.style(f"{name:<{wide}}", dim=True) + f"  {value}")


def shorten(package_id: str) -> str:
    """Return a package id with 12 digits of its hash."""
    label, colon, digest = package_id.rpartition(":")
    return f"{label}{colon}{digest[:12]}"


def shorten_all(text: str) -> str:
    """Return `text` with what `shorten` shows of each package and transaction in it."""
    return _HASH.sub(r"\1", text)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    note("warning", visible(text))
