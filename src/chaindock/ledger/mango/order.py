"""The order of JSON values in CouchDB, as bytes that compare alike.

null < false < true < numbers < strings < arrays < objects. Python's comparison is never
used on JSON: there 1 == True, and 1 < "a" is an error.
Source: docs/fabric/rich-queries.md#order
"""

from __future__ import annotations

import math
import struct
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

_NULL, _FALSE, _TRUE, _NUMBER, _STRING, _ARRAY, _OBJECT = (
    bytes([number]) for number in range(1, 8)
)
_END: Final = b"\0"
_USUAL: Final = b"\0\x20"
"""The secondary weight of characters without accents."""
ABOVE_ALL: Final = b"\x08"
"""Greater than each sort key."""
COLLATED: Final = 4096
"""Characters of a string that are collated; those after them count as bytes. Of arrays and
objects: for all strings that are not ASCII together. 4096 characters take up to 10 ms."""
_SHORT: Final = 64
"""Characters up to which keys are kept for the next time."""
_RUN: Final = 64
"""Characters that are collated together: pyuca's time grows with their square."""

# Primary weights of the characters 32 to 126 in the default table of Unicode 10, so
# that the 1.5 MB of that table are read only for other ones.
_PRINTABLE: Final = (
    "02090261030d03991c77039a03970306031803190390062c0222020d027803951ca31ca41ca51ca61ca7"
    "1ca81ca91caa1cab1cac023a02340630063106320267038f1cad1cc61ce01cf51d101d4b1d5a1d7e1d98"
    "1db21dcb1ddd1e101e1f1e431e721e871e991ed71efb1f1b1f491f5b1f651f711f87031a0396031b049b"
    "020b04981cad1cc61ce01cf51d101d4b1d5a1d7e1d981db21dcb1ddd1e101e1f1e431e721e871e991ed7"
    "1efb1f1b1f491f5b1f651f711f87031c0634031d0636"
)
_WEIGHTS: Final = bytes.fromhex("02010202020302040205" + _PRINTABLE)
_WEIGHED: Final = (*range(9, 14), *range(32, 127))
_PRIMARY: Final = {
    chr(code): _WEIGHTS[2 * at : 2 * at + 2].decode("latin-1")
    for at, code in enumerate(_WEIGHED)
}
_TO_PRIMARY: Final = str.maketrans(
    {chr(code): _PRIMARY.get(chr(code), "") for code in range(128)}
)
_IGNORED: Final = bytes(set(range(128)) - set(_WEIGHED))
_TO_TERTIARY: Final = bytes(8 if 65 <= code <= 90 else 2 for code in range(256))
_collator: Any = None
collator_lock: Final = threading.Lock()


def rank(value: list[Any] | dict[str, Any]) -> bytes:
    """Return how the sort keys of all arrays, or of all objects, begin."""
    return _ARRAY if isinstance(value, list) else _OBJECT


def sort_key(value: Any) -> bytes:
    """Return bytes that compare as CouchDB's view collation compares the values."""
    if isinstance(value, str):
        return _STRING + string_key(value)
    return _sort_key(value, [COLLATED])


def _sort_key(value: Any, left: list[int]) -> bytes:
    """Return the key of a value or part; `left`: characters that may still be collated."""
    if isinstance(value, str):
        return _STRING + _part_key(value, left)
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, (int, float)):
        return _NUMBER + _number_key(value)
    if value is None:
        return _NULL
    if isinstance(value, list):
        return _ARRAY + b"".join([_sort_key(each, left) for each in value]) + _END
    parts = [
        _sort_key(name, left) + _sort_key(value[name], left) for name in sorted(value)
    ]
    return _OBJECT + b"".join(parts) + _END


def _part_key(text: str, left: list[int]) -> bytes:
    most = left[0]
    if not text.isascii():
        left[0] = max(0, most - len(text))
    return string_key(text) if len(text) <= most else _key(text, most)


def _number_key(number: float) -> bytes:
    """Return 9 bytes: the nearest float, then on which side of it an integer lies."""
    try:
        near = float(number)
    except OverflowError:
        near = math.inf if number > 0 else -math.inf
    side = 1 if near == number else 2 if number > near else 0
    bits: int = struct.unpack(">Q", struct.pack(">d", near + 0.0))[0]
    bits = bits ^ 0xFFFFFFFFFFFFFFFF if bits >> 63 else bits | 1 << 63
    return bits.to_bytes(8, "big") + bytes([side])


def string_key(text: str) -> bytes:
    """Return bytes in the order of the root collation; none are a prefix of others."""
    return _known_key(text) if len(text) <= _SHORT else _key(text)


def _key(text: str, most: int = COLLATED) -> bytes:
    if len(text) > most:
        rest = text[most:].encode(errors="surrogatepass")
        rest = rest.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1")
        return _key(text[:most])[:-1] + rest + _END
    if text.isascii():
        primary = text.translate(_TO_PRIMARY).encode("latin-1")
        secondary = b""
        tertiary = text.encode().translate(_TO_TERTIARY, _IGNORED)
    else:
        primary, secondary, tertiary = _levels(text)
    # A level may end early: where it does, the weight is the usual one, the lowest.
    return primary + b"\0\0" + secondary + b"\0\0" + tertiary.rstrip(b"\2") + b"\0\0"


_known_key: Final = lru_cache(4096)(_key)


def _levels(text: str) -> tuple[bytes, bytes, bytes]:
    found: list[tuple[bytes, bytes, bytes]] = []
    # The time for characters that combine grows with their square, here, too.
    text = "".join([unicodedata.normalize("NFD", run) for run in _runs(text)])
    at = 0
    while at < len(text):
        alone = _alone(text[at])
        if alone is not None:
            found.append(alone)
            at += 1
            continue
        end = at + 1
        while end < len(text) and _may_follow(text[end]):
            end += 1
        found += map(_weights_of, _runs(text[at:end]))
        at = end
    primary, secondary, tertiary = (
        b"".join([each[level] for each in found]) for level in range(3)
    )
    end = len(secondary)
    while secondary[end - 2 : end] == _USUAL:
        end -= 2
    return primary, secondary[:end], tertiary


def _weights_of(run: str) -> tuple[bytes, bytes, bytes]:
    return _packed(collator().collation_elements(run))


def _packed(elements: list[list[int]]) -> tuple[bytes, bytes, bytes]:
    """Return primary, secondary and tertiary weights."""
    first, second, third = ([each[n] for each in elements if each[n]] for n in range(3))
    return (
        struct.pack(f">{len(first)}H", *first),
        struct.pack(f">{len(second)}H", *second),
        bytes(third),
    )


@lru_cache(16_384)
def _alone(char: str) -> tuple[bytes, bytes, bytes] | None:
    """Return the weights of a character that begins no contraction; None of another one."""
    node = collator().table.root.children.get(ord(char))
    if node is None:
        if unicodedata.combining(char):
            return None
        return _packed(collator().implicit_weight(ord(char)))
    return _packed(node.value) if node.value and node.children is None else None


@lru_cache(16_384)
def _may_follow(char: str) -> bool:
    """Return whether the weights of characters before may depend on `char`."""
    return (
        unicodedata.combining(char) > 0
        or ord(char) in _continuing()
        or _alone(char) is None
    )


@lru_cache(1)
def _continuing() -> frozenset[int]:
    """Return the characters of contractions behind their first."""
    found: set[int] = set()
    nodes = list(collator().table.root.children.values())
    while nodes:
        children = nodes.pop().children or {}
        found.update(children)
        nodes += children.values()
    return frozenset(found)


def _runs(text: str) -> list[str]:
    """Cut before characters that combine with none before them, as far as possible."""
    runs = []
    while len(text) > _RUN:
        at = _RUN
        while at > 1 and unicodedata.combining(text[at]):
            at -= 1
        at = at if at > 1 else _RUN
        runs.append(text[:at])
        text = text[at:]
    return [*runs, text]


def can_collate(text: bytes | str) -> bool:
    """Return whether sort keys of what is in this JSON need no table that is still unread.

    If they do, a thread reads it from now on.
    """
    if _collator is not None or (text.isascii() and not _may_escape(text)):
        return True
    if not collator_lock.locked():
        threading.Thread(target=collator, name="collation", daemon=True).start()
    return False


def _may_escape(text: bytes | str) -> bool:
    return "\\" in text if isinstance(text, str) else b"\\" in text


def collator() -> Any:
    """Return the collator; the first call takes 0.2 s to read its table."""
    global _collator  # noqa: PLW0603  # made once for the process
    with collator_lock:
        if _collator is None:
            from pyuca import collator as pyuca  # noqa: PLC0415  # 1.5 MB

            pyuca.open = _in_turns
            _collator = pyuca.Collator_10_0_0()
        return _collator


@contextmanager
def _in_turns(path: str) -> Iterator[Iterator[str]]:
    """Open a text, of which each 100 lines are a turn: then the event loop has its own."""

    def lines() -> Iterator[str]:
        text = Path(path).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines()):
            if number % 100 == 0:
                time.sleep(5e-5)
            yield line

    yield lines()
