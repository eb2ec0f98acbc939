"""Put data on the terminal or into a pipe.

Owns:    text that others wrote made harmless, tables, JSON, seconds, results.
Not:     errors (report.py), progress (progress.py).
Entry:   visible, table, emit_json
Holds:   what chaincode wrote reaches a terminal without control characters, and a pipe
         byte by byte.
Source:  needs.md row 3
"""

from __future__ import annotations

import base64
import json
import re
import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_COLOUR = re.compile(r"\x1b\[[0-9;:]*[A-Za-z]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?")
_HASH = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
_LATE = "\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069"
_CONTROL = re.compile(f"[\x00-\x08\x0a-\x1f{_LATE}]")
_LATE_CONTROL = re.compile(f"[{_LATE}]")
"""Those that JSON lets pass."""
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


def is_terminal(*, err: bool = False) -> bool:
    """Whether standard output (or error) is a terminal."""
    stream = sys.stderr if err else sys.stdout
    try:
        return stream.isatty()
    except (AttributeError, ValueError):
        return False


def emit_json(data: Any) -> None:
    """Print `data` as JSON, indented for people on a terminal.

    Characters that a terminal obeys and JSON would let pass are escaped too.
    """
    text = json.dumps(data, indent=2, ensure_ascii=not _takes_unicode())
    click.echo(_LATE_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _takes_unicode() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    return encoding.lower().replace("-", "") == "utf8"


def emit_payload(payload: bytes) -> None:
    """Print a payload and nothing else; a terminal gets it harmless, with a line end."""
    if is_terminal():
        text = payload.decode(errors="backslashreplace")
        if text:
            click.echo("\n".join(visible(line) for line in text.split("\n")))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(payload)
    sys.stdout.buffer.flush()


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


def seconds(value: float) -> str:
    """Return a duration for people: `40 ms`, `3.2 s`, `74 s`, `5 min 3 s`."""
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"


def state_text(state: str) -> str:
    """Return a state in its colour (click drops it where there is no terminal)."""
    return click.style(state, fg=_STATE_COLOURS.get(state))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as they need to be."""
    lines = [head, *rows]
    widths = [
        max(len(click.unstyle(line[at])) for line in lines) for at in range(len(head))
    ]
    click.echo(click.style(_row(head, widths), dim=True))
    for row in rows:
        click.echo(_row(row, widths))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell + " " * (width - len(click.unstyle(cell)))
        for cell, width in zip(cells, widths, strict=True)
    ]
    return "  ".join(padded).rstrip()


def pairs(rows: Sequence[tuple[str, str]], *, indent: int = 0) -> None:
    """Print `name  value` lines, values aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        click.echo(
            " " * indent + click.style(f"{name:<{width}}", dim=True) + f"  {value}"
        )


def shorten(package_id: str) -> str:
    """Return a package id with 12 digits of its hash."""
    label, colon, digest = package_id.rpartition(":")
    return f"{label}{colon}{digest[:12]}"


def shorten_all(text: str) -> str:
    """Return `text` with what `shorten` shows of each package and transaction in it."""
    return _HASH.sub(r"\1", text)
