"""Frames of HTTP/2 and the headers of gRPC, as bytes.

Source: docs/adr/0011-own-transport.md, RFC 9113, RFC 7541
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import Final
from urllib.parse import quote

from chaindock.rpc.status import CallEnded

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct(">HBBBI")
"""Size (upper 16 bits, lower 8 bits), kind, flags, and stream of a frame."""
PREFIX: Final = struct.Struct(">BI")
"""Whether a message is compressed, and its size."""
MOST_FRAME: Final = 16_384
"""Bytes of a frame that everybody takes."""
WINDOW: Final = 65_535
"""Bytes that may be on their way as long as nobody has said otherwise."""
MOST_WINDOW: Final = 2**31 - 1
DATA, HEADERS, _, RST, SETTINGS, PUSH, PING, GOAWAY, UPDATE, CONTINUATION = range(10)
END, ACK, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32
NO_TABLE: Final = b"\x20"
"""Begins headers: the other side may have made its table smaller, and waits for that."""
_MOST_FAREWELL: Final = 256
_MOST_TEXT: Final = "!\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~ "
"""What a status text has as it is, beside letters and digits."""

Buffer = bytes | bytearray | memoryview


class Setting(IntEnum):
    """What one side tells the other about itself."""

    PUSH = 2
    STREAMS = 3
    WINDOW = 4
    FRAME = 5
    HEADERS = 6


class Fault(IntEnum):
    """Why a stream or a connection ends, in HTTP/2."""

    NONE = 0
    PROTOCOL = 1
    FLOW = 3
    CLOSED = 5
    SIZE = 6
    REFUSED = 7
    CANCEL = 8
    COMPRESSION = 9
    CALM = 11


class BrokenRule(Exception):
    """The other side broke a rule of HTTP/2; the connection ends."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


def content(stream: int, data: Buffer) -> Iterator[Buffer]:
    """Return the parts of the frames that hold what a call says."""
    whole = memoryview(data)
    for at in range(0, len(data), MOST_FRAME):
        piece = whole[at : at + MOST_FRAME]
        yield HEAD.pack(len(piece) >> 8, len(piece) & 255, DATA, 0, stream)
        yield piece


def cut(stream: int, prefix: bytes, message: Buffer, at: int, end: int) -> bytes:
    """Return the frames that hold a part of a message and the prefix before it."""
    size = len(prefix)
    part = memoryview(message)[max(at - size, 0) : max(end - size, 0)]
    return b"".join(content(stream, prefix[at:end] + part))


class Bundle:
    """Messages that many calls send, put together once for all of them."""

    def __init__(self, messages: Iterable[bytes]) -> None:
        self.content = b"".join(
            part for each in messages for part in (PREFIX.pack(0, len(each)), each)
        )
        self._framed = (-1, b"")

    def __len__(self) -> int:
        return len(self.content)

    def frames(self, stream: int, at: int, end: int) -> bytes:
        """Return the frames that hold a part of the content; most calls have one number."""
        part = memoryview(self.content)[at:end]
        if len(part) < len(self):
            return b"".join(content(stream, part))
        if self._framed[0] != stream:
            self._framed = stream, b"".join(content(stream, part))
        return self._framed[1]


def number(value: int) -> bytes:
    """Return a number of four bytes."""
    return value.to_bytes(4, "big")


def settings(values: Iterable[tuple[Setting, int]]) -> bytes:
    """Return the frame that tells them."""
    packed = b"".join(struct.pack(">HI", key, value) for key, value in values)
    return frame(SETTINGS, 0, 0, packed)


def _string(data: bytes) -> bytes:
    """Return a string of HPACK, not compressed."""
    size, more = len(data), bytearray()
    if size < 127:
        return bytes((size,)) + data
    size -= 127
    while size > 127:
        more.append(size & 127 | 128)
        size >>= 7
    more.append(size)
    return b"\x7f" + more + data


def fields(pairs: Iterable[tuple[str, bytes]]) -> bytes:
    """Return header fields in HPACK; the other side is to remember none of them."""
    return b"".join(
        b"\0" + _string(name.encode()) + _string(value) for name, value in pairs
    )


_ANSWER: Final = NO_TABLE + b"\x88" + fields([("content-type", b"application/grpc")])
"""Status 200 is in the table that everybody has."""
_OK: Final = fields([("grpc-status", b"0")])


def farewell(last: int, fault: Fault, text: str) -> bytes:
    """Return the frame that says that no call after `last` is served."""
    told = number(last) + number(fault) + text.encode()
    return frame(GOAWAY, 0, 0, told[:_MOST_FAREWELL])


def answer(stream: int) -> bytes:
    """Return the frame that begins the answer to a call."""
    return frame(HEADERS, END_HEADERS, stream, _ANSWER)


def ending(stream: int, ended: CallEnded | None, *, begun: bool) -> bytes:
    """Return the frame that ends a call; None = well. `begun`: the answer has begun."""
    block = _OK
    if ended is not None:
        text = quote(ended.text, safe=_MOST_TEXT).encode()
        pairs = [("grpc-status", b"%d" % ended.code), ("grpc-message", text)]
        for name, value in ended.trailers:
            binary = name.endswith("-bin")
            pairs.append((name, base64.b64encode(value) if binary else value))
        block = fields(pairs)
    block = (NO_TABLE if begun else _ANSWER) + block
    pieces = [block[at : at + MOST_FRAME] for at in range(0, len(block), MOST_FRAME)]
    last = len(pieces) - 1
    return b"".join(
        frame(
            CONTINUATION if at else HEADERS,
            (0 if at else END) | (END_HEADERS if at == last else 0),
            stream,
            piece,
        )
        for at, piece in enumerate(pieces)
    )
