"""Keys and values of the state as people write and read them.

What a contract wrote reaches no terminal as it is: every character that is not
printable is escaped, so that two keys never look alike.
Source: docs/fabric/ledger.md#keys
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import click

_PART = "\0"
_LAST = "\U0010ffff"
"""Fabric allows neither of them in a part of a composite key."""
TX_DIGITS = 12
"""Of a transaction id in a text; --json has all of them."""
PREVIEW_BYTES = 240
"""Bytes of a value that a list asks for."""
_PREVIEW = 60
_HEX = 24


def escaped(text: str) -> str:
    """Return text in which what is not printable is escaped as Python does it."""
    return "".join(
        one
        if one.isprintable() and one != "\\"
        else one.encode("unicode_escape").decode()
        for one in text
    )


def composite(kind: str, attributes: Sequence[str]) -> str:
    """Return a composite key. Raises: UsageError for a part that Fabric refuses."""
    for part in (kind, *attributes):
        if _PART in part or _LAST in part:
            raise click.UsageError(
                "a part of a composite key cannot contain U+0000 or U+10FFFF"
            )
    return _PART + "".join(part + _PART for part in (kind, *attributes))


def parts_of(key: str) -> list[str] | None:
    """Return type and attributes of a composite key; None = a simple one."""
    if not key.startswith(_PART) or not key.endswith(_PART) or len(key) < 3:
        return None
    parts = key[1:-1].split(_PART)
    return None if any(_LAST in part for part in parts) else parts


def shown(key: str) -> str:
    """Return a key as the commands take it: as it is, or `--composite TYPE ATTR…`."""
    parts = parts_of(key)
    if parts is None:
        return escaped(key)
    return " ".join(["--composite", *(shlex.quote(escaped(part)) for part in parts)])


def preview(data: str, size: int = 0) -> str:
    """Return one line for a value of `size` bytes, or fewer; `data` is base64."""
    raw = base64.b64decode(data)
    cut = size > len(raw)
    # The last character may have been cut.
    for end in range(len(raw), max(0, len(raw) - 4 * cut) - 1, -1):
        try:
            text = escaped(raw[:end].decode())
            break
        except UnicodeDecodeError:
            continue
    else:
        text, cut = "0x" + raw[:_HEX].hex(), size > _HEX
    if len(text) > _PREVIEW:
        text, cut = text[:_PREVIEW], True
    return text + ("…" if cut else "")


def place(version: Sequence[int]) -> str:
    """Return a version for people: `block 3, transaction 0`."""
    return f"block {version[0]}, transaction {version[1]}"


def key_argument(function: Any) -> Any:
    """Have a function get the `key` that KEY, or TYPE ATTR… with --composite, names."""

    @wraps(function)
    def with_key(
        *args: Any, words: Sequence[str], is_composite: bool, **given: Any
    ) -> Any:
        return function(*args, key=key_of(words, is_composite=is_composite), **given)

    return key_words("KEY")(with_key)


def key_words(metavar: str) -> Callable[[Any], Any]:
    """Add KEY, or TYPE ATTR… with --composite, for `key_of`."""
    option = click.option(
        "--composite",
        "is_composite",
        is_flag=True,
        help="KEY is a composite one, given as TYPE and its attributes.",
    )
    words = click.argument("words", metavar=metavar, nargs=-1, required=True)
    return lambda function: words(option(function))


def key_of(words: Sequence[str], *, is_composite: bool) -> str:
    """Return the key that the words of a command line name. Raises: UsageError."""
    if is_composite:
        key = composite(words[0], words[1:])
    elif len(words) == 1:
        key = words[0]
    else:
        raise click.UsageError(
            f"expected one KEY, found {len(words)}; a composite key needs --composite"
        )
    if not key:
        raise click.UsageError("the key is empty")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise click.UsageError("the key is not UTF-8, as Fabric's keys are") from None
    return key
