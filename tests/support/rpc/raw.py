"""A client that writes HTTP/2 byte by byte, also what no client may write."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING, cast

from hpack import Decoder, Encoder

if TYPE_CHECKING:
    import ssl

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, UPDATE, MORE = range(10)
END, ACK, END_HEADERS, PADDED, PRIORITISED = 1, 1, 4, 8, 32
NO_ERROR, PROTOCOL, INTERNAL, FLOW, SETTINGS_TIMEOUT, CLOSED, SIZE, REFUSED = range(8)
CANCEL, COMPRESSION, CONNECT, CALM = range(8, 12)
Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    size = len(payload)
    return struct.pack(">HBBBI", size >> 8, size & 255, kind, flags, stream) + payload


def update(stream: int, change: int) -> bytes:
    return frame(UPDATE, 0, stream, struct.pack(">I", change))


def setting(key: int, value: int) -> bytes:
    return frame(SETTINGS, 0, 0, struct.pack(">HI", key, value))


def message(content: bytes) -> bytes:
    return struct.pack(">BI", 0, len(content)) + content


def block(method: str, *more: tuple[str, str]) -> bytes:
    """Return the headers of a request, which no table is needed for."""
    pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", f"/test.Calls/{method}"),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    ]
    coder = Encoder()
    coder.header_table_size = 0
    return coder.encode(pairs)


def request(
    stream: int, method: str, content: bytes | None = None, *more: tuple[str, str]
) -> bytes:
    """Return a whole unary request; without content, only its headers."""
    head = frame(HEADERS, END_HEADERS, stream, block(method, *more))
    return head + (
        b"" if content is None else frame(DATA, END, stream, message(content))
    )


class Raw:
    """One connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._reader, self._writer = reader, writer
        self._decoder = Decoder()

    @classmethod
    async def dial(
        cls, port: int, first: bytes = b"", tls: ssl.SSLContext | None = None
    ) -> Raw:
        """Connect, and send the preface, settings, and `first`."""
        name = "localhost" if tls else None
        ends = await asyncio.open_connection(
            "127.0.0.1", port, ssl=tls, server_hostname=name
        )
        raw = cls(*ends)
        raw.send(PREFACE + frame(SETTINGS, 0, 0) + first)
        return raw

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def drain(self) -> None:
        await self._writer.drain()

    def read_no_more(self) -> None:
        """Leave what the other side sends to the system."""
        cast("asyncio.Transport", self._writer.transport).pause_reading()

    async def next(self) -> Frame | None:
        """Return the next frame; None = the connection has ended."""
        try:
            async with asyncio.timeout(5):
                head = await self._reader.readexactly(9)
                high, low, kind, flags, stream = struct.unpack(">HBBBI", head)
                payload = await self._reader.readexactly(high << 8 | low)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        assert len(payload) <= 16_384
        return kind, flags, stream, payload

    async def until(self, *kinds: int) -> Frame:
        """Return the next frame of one of these kinds."""
        while (found := await self.next()) is not None:
            if found[0] in kinds:
                return found
        raise AssertionError(f"the connection ended before any of {kinds}")

    async def fault(self) -> int | None:
        """Return the error of the GOAWAY with which the connection ends, if it arrives."""
        fault = None
        while (found := await self.next()) is not None:
            if found[0] == GOAWAY:
                fault = int.from_bytes(found[3][4:8], "big")
        return fault

    async def answer(self, stream: int) -> tuple[bytes, dict[str, str]]:
        """Return the bytes and the trailers of a call, which no fault has ended."""
        content = b""
        while True:
            kind, flags, number, payload = await self.until(DATA, HEADERS, RST, GOAWAY)
            assert kind in {DATA, HEADERS} or number not in {0, stream}, payload
            headers = {}
            if kind == HEADERS:
                headers = {str(k): str(v) for k, v in self._decoder.decode(payload)}
            elif number == stream:
                content += payload
            if number == stream and flags & END:
                return content, headers

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
