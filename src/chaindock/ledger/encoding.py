"""Bytes of protobuf fields, for messages of which there are very many.

Made by hand they take half the time of an object of the library.
"""

from __future__ import annotations

from typing import Final

Version = tuple[int, int]
"""Of a key: block, and position in the block."""
Row = tuple[bytes, bytes, int, int]
"""Key, value, block, position in the block."""
SHORT: Final = 0x80
"""Bytes from which on a field is not short."""
LEAD: Final = [
    [b"", *(bytes((number << 3 | 2, size)) for size in range(1, SHORT))]
    for number in range(16)
]
"""What precedes the content of a short field, by its number and size."""


def uvarint(number: int) -> bytes:
    """Return a number of 0 or above as protobuf's varint."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """Return a length-delimited field below 16; nothing when empty (proto3)."""
    length = len(content)
    if 0 < length < SHORT:
        return LEAD[number][length] + content
    if 0 < length < 0x4000:
        return bytes((number << 3 | 2, length & 0x7F | 0x80, length >> 7)) + content
    return lead(number, length) + content


def lead(number: int, size: int) -> bytes:
    """Return what precedes the content of a field, of `size` bytes; nothing for none."""
    return bytes((number << 3 | 2,)) + uvarint(size) if size else b""


def part(number: int, content: bytes) -> bytes:
    """Return a length-delimited field below 16 that is present even if it is empty."""
    return field(number, content) or bytes((number << 3 | 2, 0))


def number_field(number: int) -> bytes:
    """Return field 1 with a number; nothing for 0."""
    return b"\x08" + uvarint(number) if number else b""


def header_field(number: int, previous_hash: bytes, data_hash: bytes) -> bytes:
    """Return field 1 of a `Block`: its header."""
    hashes = field(2, previous_hash) + field(3, data_hash)
    return part(1, number_field(number) + hashes)


def version_field(block: int, position: int) -> bytes:
    """Return field 2 of a `KVRead`: the version of a key that exists."""
    inner = number_field(block)
    if position:
        inner += b"\x10" + uvarint(position)
    return b"\x12" + uvarint(len(inner)) + inner
