"""One end of a connection, in either role: its frames and its flow control.

Everything runs in callbacks of the event loop, at most 64 KiB in one turn. Whoever breaks
the rules of HTTP/2, or asks much and brings nothing, loses the connection.
Source: docs/adr/0011-own-transport.md, RFC 9113
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from hpack import Decoder
from hpack.exceptions import HPACKError
from typing_extensions import override

from chaindock.rpc import frames as f
from chaindock.rpc.frames import BrokenRule, Buffer, Fault, Setting
from chaindock.rpc.status import Status
from chaindock.rpc.stream import STREAM_WINDOW, Stream
from chaindock.rpc.tls import Channel
from chaindock.rpc.wire import Wire
from chaindock.values import KIB, MIB

CONNECTION_WINDOW: Final = 4 * MIB
"""Bytes that the other side may send before anybody here has taken them."""
_MOST_HEADERS: Final = 16 * KIB
_MOST_IDLE_FRAMES, _IDLE_S = 2000, 10.0
"""Frames without content, one after the other, in as many seconds; a large one counts as
many. gRPC's shims send a few per message."""
_PONG_S: Final = 20.0


@dataclass(frozen=True)
class Limits:
    """What a side of a connection lets the other one do.

    Args:
        receive_bytes, send_bytes: the largest message.
        streams: calls at once on a connection.
        ping_s: seconds of silence after which the other side is pinged; 0 = never.
        idle_s: seconds without a call after which a server closes a connection.
    """

    receive_bytes: int
    send_bytes: int
    streams: int = 1
    ping_s: float = 0
    idle_s: float = 60.0


class Connection(Wire):
    """One end of a connection.

    Args:
        limits: what the other side may do.
        called: is given each call of the other side; None = this side calls.
        tls: how it is encrypted; None = in plain.

    Attributes:
        gone: set when the connection has ended.
        streams: the open calls.
        waiting: those that wait for room on the connection, to write.
        authority: what calls of the other side name as their server.
        idle_since: when the last call ended, of the clock of the loop.
    """

    def __init__(
        self,
        limits: Limits,
        called: Callable[[Stream], None] | None = None,
        tls: Channel | None = None,
    ) -> None:
        super().__init__(tls)
        self.limits, self._called = limits, called
        self.gone = asyncio.Event()
        self.streams: dict[int, Stream] = {}
        self.waiting: dict[Stream, None] = {}
        self.idle_since = self._idle_since = self._heard
        self._rest = b""
        self._preface = f.PREFACE if called else b""
        """What of it is still to come."""
        self._decoder = Decoder(max_header_list_size=_MOST_HEADERS)
        self._headers: tuple[int, int, bytearray] | None = None
        """Stream, flags and content of headers whose continuation must be next."""
        self._last = 0 if called else -1
        """The highest stream that the other side, or this one, has opened."""
        self._window, self._owed = CONNECTION_WINDOW, 0
        self.send_window = f.WINDOW
        self.initial_window = f.WINDOW
        """Of a stream's send window, as the other side has told."""
        self._idle_frames = 0
        self._pinged_at: float | None = None
        self._leaving = False
        self.authority = "localhost"

    # --- the life of a connection -----------------------------------------------------

    @override
    def _begin(self) -> None:
        told = [(Setting.WINDOW, STREAM_WINDOW), (Setting.HEADERS, _MOST_HEADERS)]
        told.append(
            (Setting.STREAMS, self.limits.streams)
            if self._called
            else (Setting.PUSH, 0)
        )
        more = f.number(CONNECTION_WINDOW - f.WINDOW)
        head = b"" if self._called else f.PREFACE
        self.send(head + f.settings(told) + f.frame(f.UPDATE, 0, 0, more))
        if not self.ready.done():
            self.ready.set_result(None)

    def close(self, fault: Fault = Fault.NONE, text: str = "") -> None:
        """End the connection, and what is open on it. Idempotent."""
        if self._closing:
            return
        if self.transport is None:
            self.abort()
            return
        if self.shaken:
            self.send(f.farewell(max(self._last, 0), fault, text))
        self._closing = True
        self.transport.close()
        if self.full:  # it would wait until the other side reads
            self.transport.abort()
        elif self.transport.get_write_buffer_size():
            self._loop.call_later(_PONG_S, self.transport.abort)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for stream in list(self.streams.values()):
            stream.cut(Status.UNAVAILABLE, f"connection lost: {exc or 'closed'}")
        self.gone.set()

    def look(self, now: float) -> None:
        """Close it if it is of no use any more, and ping the other side if it is silent."""
        limits = self.limits
        idle_s = _PONG_S if self.full else limits.idle_s  # full of what a call has left
        if self._pinged_at is not None and self._heard < self._pinged_at:
            if now - self._pinged_at > _PONG_S:
                self.abort()
        elif not self.streams and now - self.idle_since > idle_s:
            if self._leaving or not self.shaken:
                self.close()
            else:  # a call may be on its way: it is served
                self._leaving = True
                self.send(f.farewell(f.MOST_WINDOW, Fault.NONE, "idle"))
        elif limits.ping_s and now - self._heard > limits.ping_s and self.shaken:
            self._pinged_at = now
            self.send(f.frame(f.PING, 0, 0, bytes(8)))

    # --- sending ----------------------------------------------------------------------

    @override
    def let_write(self) -> None:
        """Let the call write that has waited longest, if there is room."""
        if self.waiting and self.send_window > 0 and not self.full:
            next(iter(self.waiting)).room()

    def request(self, path: str, *, empty: bool = False) -> Stream:
        """Begin a call of the other side; only where `ready`.

        `empty`: with one request, which is empty.
        """
        self._last = number = self._last + 2
        stream = Stream(self, number, {":path": path}, serves=False)
        self.streams[number] = stream
        pairs = ((":authority", self.authority), (":path", path), ("te", "trailers"))
        packed = [(name, value.encode()) for name, value in pairs]
        packed.append(("content-type", b"application/grpc"))
        scheme = b"\x86" if self._tls is None else b"\x87"  # of HPACK's own table
        block = f.NO_TABLE + b"\x83" + scheme + f.fields(packed)
        begin = f.frame(f.HEADERS, f.END_HEADERS, number, block)
        whole = f.frame(f.DATA, f.END, number, f.PREFIX.pack(0, 0)) if empty else b""
        self.send(begin + whole)
        if self._closing:
            stream.cut(Status.UNAVAILABLE, "connection lost")
        return stream

    def over(self, stream: Stream) -> None:
        """Forget a call that has ended."""
        if self.streams.pop(stream.number, None) is not None and not self.streams:
            self.idle_since = self._loop.time()

    def content(self) -> None:
        """Take note that a message moved: the other side brings something."""
        self._idle_frames = 0

    def grant(self, size: int) -> bytes:
        """Return the frame that lets the other side send as much more, if it is time."""
        self._owed += size
        if self._owed < CONNECTION_WINDOW // 4:
            return b""
        granted, self._owed = self._owed, 0
        self._window += granted
        return f.frame(f.UPDATE, 0, 0, f.number(granted))

    # --- receiving --------------------------------------------------------------------

    @override
    def _received(self, received: Buffer) -> None:
        try:
            self._take(received)
        except BrokenRule as error:
            self.close(error.fault, str(error))

    def _take(self, received: Buffer) -> None:
        data = self._rest + received if self._rest else received
        at, end = 0, len(data)
        if self._preface:
            begin = bytes(data[: len(self._preface)])
            if not self._preface.startswith(begin):
                raise BrokenRule(Fault.PROTOCOL, "not HTTP/2")
            at, self._preface = len(begin), self._preface[len(begin) :]
        while end - at >= 9:
            high, low, kind, flags, number = f.HEAD.unpack_from(data, at)
            size = high << 8 | low
            if size > f.MOST_FRAME:
                raise BrokenRule(Fault.SIZE, f"a frame of {size} bytes")
            if end - at - 9 < size:
                break
            at += 9 + size
            number &= f.MOST_WINDOW
            payload = data[at - size : at]
            if self._headers is not None and kind != f.CONTINUATION:
                raise BrokenRule(Fault.PROTOCOL, "headers end with other frames")
            if kind == f.DATA:
                self._data(flags, number, payload)
            else:
                self._idle(1 + size // 256)
                take = self._KINDS.get(kind)
                if take is not None:
                    take(self, flags, number, bytes(payload))
            if self._closing:
                return
        self._rest = bytes(data[at:])

    def _idle(self, count: int = 1) -> None:
        if self._heard - self._idle_since > _IDLE_S:
            self._idle_since, self._idle_frames = self._heard, 0
        self._idle_frames += count
        if self._idle_frames > _MOST_IDLE_FRAMES:
            raise BrokenRule(Fault.CALM, "too many frames without content")

    def _data(self, flags: int, number: int, payload: Buffer) -> None:
        size = len(payload)
        self._window -= size
        if self._window < 0:
            raise BrokenRule(Fault.FLOW, "more than the window of the connection")
        if flags & f.PADDED:
            payload = _unpadded(payload)
        if not payload:
            self._idle()
        stream = self.streams.get(number)
        if stream is not None:
            stream.receive(payload, size, last=bool(flags & f.END))
            return
        if not number or number > self._last:
            raise BrokenRule(Fault.PROTOCOL, "content of a stream that nobody opened")
        self._idle()
        if more := self.grant(size):
            self.send(more)

    def _begin_headers(self, flags: int, number: int, block: bytes) -> None:
        payload: Buffer = block
        if flags & f.PADDED:
            payload = _unpadded(payload)
        if flags & f.PRIORITISED:
            payload = payload[5:]
        self._headers = number, flags, bytearray(payload)
        if flags & f.END_HEADERS:
            self._end_headers()

    def _go_on_headers(self, flags: int, number: int, block: bytes) -> None:
        if self._headers is None or self._headers[0] != number:
            raise BrokenRule(Fault.PROTOCOL, "a continuation of nothing")
        self._headers[2].extend(block)
        if len(self._headers[2]) > _MOST_HEADERS:
            raise BrokenRule(Fault.CALM, "headers that are too long")
        if flags & f.END_HEADERS:
            self._end_headers()

    def _end_headers(self) -> None:
        assert self._headers is not None  # noqa: S101  # the caller has set them
        (number, flags, block), self._headers = self._headers, None
        try:
            pairs = self._decoder.decode(bytes(block))
        except (HPACKError, UnicodeDecodeError) as error:
            raise BrokenRule(Fault.COMPRESSION, f"headers: {error}") from None
        stream, last = self.streams.get(number), bool(flags & f.END)
        found: Mapping[str, str] = dict(pairs)  # type: ignore[arg-type]
        if stream is not None:
            stream.headers(found, last=last)
        elif 0 < number <= self._last:
            return  # what is left of a call that is over
        elif self._called is None or not number & 1:
            raise BrokenRule(Fault.PROTOCOL, f"a call on stream {number}")
        else:
            self._last = number
            if len(self.streams) >= self.limits.streams:
                self.send(f.frame(f.RST, 0, number, f.number(Fault.REFUSED)))
                return
            stream = Stream(self, number, found, serves=True)
            self.streams[number] = stream
            if last:
                stream.receive(b"", 0, last=True)
            self._called(stream)

    def _reset(self, _flags: int, number: int, payload: bytes) -> None:
        fault = _number(payload)
        stream = self.streams.get(number)
        if stream is not None:
            code = Status.CANCELLED if fault == Fault.CANCEL else Status.UNAVAILABLE
            stream.cut(code, f"the stream was reset, HTTP/2 error {fault}")
        elif not number or number > self._last:
            raise BrokenRule(Fault.PROTOCOL, "a reset of a stream that nobody opened")

    def _settings(self, flags: int, _stream: int, payload: bytes) -> None:
        if flags & f.ACK:
            return
        if len(payload) % 6:
            raise BrokenRule(Fault.SIZE, f"settings of {len(payload)} bytes")
        told = dict(struct.iter_unpack(">HI", payload))
        value = told.get(Setting.WINDOW, self.initial_window)
        if value > f.MOST_WINDOW:
            raise BrokenRule(Fault.FLOW, "too large a window")
        change, self.initial_window = value - self.initial_window, value
        if change:
            for stream in self.streams.values():
                stream.widen(change)
        self.send(f.frame(f.SETTINGS, f.ACK, 0))

    def _ping(self, flags: int, _stream: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise BrokenRule(Fault.SIZE, f"a ping of {len(payload)} bytes")
        if not flags & f.ACK:
            self.send(f.frame(f.PING, f.ACK, 0, payload))

    def _update(self, _flags: int, number: int, payload: bytes) -> None:
        change = _number(payload)
        if not number:
            blocked = self.send_window <= 0
            self.send_window += change
            if self.send_window > f.MOST_WINDOW:
                raise BrokenRule(Fault.FLOW, "too large a window")
            if blocked:
                self.let_write()
        elif (stream := self.streams.get(number)) is not None:
            stream.widen(change)

    def _promise(self, _flags: int, _stream: int, _payload: bytes) -> None:
        raise BrokenRule(Fault.PROTOCOL, "a promise that nobody wants")

    def _goes(self, _flags: int, _stream: int, payload: bytes) -> None:
        """The other side wants no more calls; those that are open go on."""
        if self._called is None and _number(payload[4:8]):
            text = payload[8:].decode(errors="replace")
            for stream in list(self.streams.values()):
                stream.cut(Status.UNAVAILABLE, f"the server has left: {text}")

    _KINDS: ClassVar[Mapping[int, Callable[[Connection, int, int, bytes], None]]] = {
        f.HEADERS: _begin_headers,
        f.RST: _reset,
        f.PUSH: _promise,
        f.SETTINGS: _settings,
        f.PING: _ping,
        f.GOAWAY: _goes,
        f.UPDATE: _update,
        f.CONTINUATION: _go_on_headers,
    }


def _unpadded(payload: Buffer) -> Buffer:
    if not payload or payload[0] >= len(payload):
        raise BrokenRule(Fault.PROTOCOL, "more padding than content")
    return payload[1 : len(payload) - payload[0]]


def _number(payload: bytes) -> int:
    if len(payload) != 4:
        raise BrokenRule(Fault.SIZE, f"a number of {len(payload)} bytes")
    return int.from_bytes(payload, "big") & f.MOST_WINDOW
