"""The order of JSON values in CouchDB, as bytes that compare alike.

null < false < true < numbers < strings < arrays < objects. Python's comparison is never
used on JSON: there 1 == True, and 1 < "a" is an error.
Source: docs/fabric/rich-queries.md#order
"""

from __future__ import annotations

import math
import struct
import threading
import unicodedata
from functools import lru_cache
from typing import Any, Final

_NULL, _FALSE, _TRUE, _NUMBER, _STRING, _ARRAY, _OBJECT = (
    bytes([number]) for number in range(1, 8)
)
_END: Final = b"\0"
ABOVE_ALL: Final = b"\x08"
"""Greater than each sort key."""
COLLATED: Final = 4096
"""Characters of a string that are collated; those after them count as bytes."""
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
_collator_lock: Final = threading.Lock()


def rank(value: list[Any] | dict[str, Any]) -> bytes:
    """Return how the sort keys of all arrays, or of all objects, begin."""
    return _ARRAY if isinstance(value, list) else _OBJECT


def sort_key(value: Any) -> bytes:
    """Return bytes that compare as CouchDB's view collation compares the values."""
    if isinstance(value, str):
        return _STRING + string_key(value)
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, (int, float)):
        return _NUMBER + _number_key(value)
    if value is None:
        return _NULL
    if isinstance(value, list):
        return _ARRAY + b"".join(map(sort_key, value)) + _END
    parts = (sort_key(name) + sort_key(value[name]) for name in sorted(value))
    return _OBJECT + b"".join(parts) + _END


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
    """Return bytes in the order of the root collation.

    The key of a string is never a prefix of the key of another one.
    """
    return _known_key(text) if len(text) <= _SHORT else _key(text)


def _key(text: str) -> bytes:
    if len(text) > COLLATED:
        rest = text[COLLATED:].encode(errors="surrogatepass")
        rest = rest.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1")
        return _key(text[:COLLATED])[:-1] + rest + _END
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
    primary, secondary, tertiary = [], [], []
    for run in _runs(unicodedata.normalize("NFD", text)):
        for element in collator().collation_elements(run):
            first, second, third = element[:3]
            if first:
                primary.append(first)
            if second:
                secondary.append(second)
            if third:
                tertiary.append(third)
    while secondary and secondary[-1] == 0x20:
        secondary.pop()
    return (
        struct.pack(f">{len(primary)}H", *primary),
        struct.pack(f">{len(secondary)}H", *secondary),
        bytes(tertiary),
    )


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


def prepare_collator() -> None:
    """Read the collator's table in a thread, unless that was done before."""
    if _collator is None and not _collator_lock.locked():
        threading.Thread(target=collator, name="collation", daemon=True).start()


def collator() -> Any:
    """Return the collator; the first call takes 0.2 s to read its table."""
    global _collator  # noqa: PLW0603  # made once for the process
    with _collator_lock:
        if _collator is None:
            from pyuca.collator import Collator_10_0_0  # noqa: PLC0415  # 1.5 MB

            _collator = Collator_10_0_0()
        return _collator
