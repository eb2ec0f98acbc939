"""One call on a connection: its messages in both directions.

It has one reader and one writer at a time. What the reader has not taken stays on the
other side, which may send no more than a window ahead.
Source: docs/adr/0011-own-transport.md
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from chaindock.rpc import frames as f
from chaindock.rpc.frames import BrokenRule, Bundle, Fault
from chaindock.rpc.status import CallEnded, Status
from chaindock.values import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chaindock.rpc.connection import Connection
    from chaindock.rpc.frames import Buffer

STREAM_WINDOW: Final = MIB
_CODES: Final = frozenset(str(one.value) for one in Status)
_LARGE: Final = 64 * KIB
_TURN: Final = 512 * KIB
"""Bytes that are sent in one turn of the event loop."""


class Stream:
    """One call.

    Args:
        request: headers of the request; of a call that this side makes, only `:path`.
        serves: the other side has called.

    Attributes:
        ended: how the other side, or the end of the connection, has ended the call.
        most: bytes of the largest message that is read.
        task: what serves the call; cancelled when it is `cut`.
    """

    def __init__(
        self,
        connection: Connection,
        number: int,
        request: Mapping[str, str],
        *,
        serves: bool,
    ) -> None:
        self.connection, self.number, self.request = connection, number, request
        self.ended: CallEnded | None = None
        self.task: asyncio.Task[None] | None = None
        self.most = connection.limits.receive_bytes
        self._serves = serves
        self._head = f.answer(number) if serves else b""
        """What is sent before the first message."""
        self._got = bytearray()
        self._unread = self._owed = 0
        """Bytes that are here and not read; those read that the other side may replace."""
        self._last = self._over = False
        """Whether the other side has sent all it had to; whether this one has."""
        self._send_window = connection.initial_window
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # --- reading ----------------------------------------------------------------------

    async def read(self) -> Buffer | None:
        """Return the next message; None = there is none any more.

        Raises: CallEnded: the call has failed, or the message is too large.
        """
        while (message := self._next()) is None:
            if self._last and self.ended is None:
                if self._got:
                    raise CallEnded(Status.INTERNAL, "the last message is not complete")
                return None
            self._check()
            self._take(self._unread)
            await self._more()
        return message

    async def begun(self) -> None:
        """Return when the other side has sent something, or no more will come.

        Raises: CallEnded.
        """
        while not self._got:
            if self._last and self.ended is None:
                return
            self._check()
            await self._more()

    async def _more(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def _next(self) -> Buffer | None:
        """Return the next message if all of it is here."""
        got = self._got
        if len(got) < f.PREFIX.size:
            return None
        compressed, size = f.PREFIX.unpack_from(got)
        if size > self.most:
            text = f"Received message larger than max ({size} vs. {self.most})"
            raise CallEnded(Status.RESOURCE_EXHAUSTED, text)
        if compressed:
            raise CallEnded(Status.UNIMPLEMENTED, "compressed messages are not read")
        end = size + f.PREFIX.size
        if len(got) < end:
            return None
        message: Buffer
        if size > _LARGE:
            message, self._got = memoryview(got)[f.PREFIX.size : end], got[end:]
        else:
            message = bytes(got[f.PREFIX.size : end])
            del got[:end]
        self.connection.content()
        self._take(self._unread - len(self._got))
        return message

    def _take(self, size: int) -> None:
        """Let the other side send so many bytes more, at the latest when it must wait."""
        if size <= 0:
            return
        self._unread -= size
        self._owed += size
        more = self.connection.grant(size)
        if self._owed >= STREAM_WINDOW // 4 and not self._last:
            more += f.frame(f.UPDATE, 0, self.number, f.number(self._owed))
            self._owed = 0
        if more:
            self.connection.send(more)

    def receive(self, payload: Buffer, size: int, *, last: bool) -> None:
        """Take what has arrived, as a frame of `size` bytes. Raises: BrokenRule."""
        self._unread += size
        if self._unread + self._owed > STREAM_WINDOW:
            raise BrokenRule(Fault.FLOW, "more than the window of a stream")
        if self._last:
            raise BrokenRule(Fault.CLOSED, "content after the end of a stream")
        self._got += payload
        self._last = last
        if self._reader is not None:
            _wake(self._reader)

    def headers(self, found: Mapping[str, str], *, last: bool) -> None:
        """Take headers that follow those of the request, or answer it."""
        if self._serves and (self._last or not last):
            fault = Fault.CLOSED if self._last else Fault.PROTOCOL
            raise BrokenRule(fault, "headers amid a request or after it")
        self._last = self._last or last
        if not self._serves and (last or found.get(":status", "200") != "200"):
            code = found.get("grpc-status", "")
            if code != "0":
                known = code in _CODES
                text = unquote(found.get("grpc-message", "")) or (
                    "" if known else f"HTTP status {found.get(':status')}"
                )
                status = Status(int(code)) if known else Status.UNKNOWN
                self.ended = CallEnded(status, text)
        if self._reader is not None:
            _wake(self._reader)

    # --- writing ----------------------------------------------------------------------

    def write_now(self, message: Buffer | Bundle, ending: bytes = b"") -> bool:
        """Send a message if that takes no waiting; return whether it was sent.

        Raises: CallEnded.
        """
        size = len(message)
        if isinstance(message, Bundle):
            if fits := self._fits(size, _TURN):
                self._send(size, message.frames(self.number, 0, size))
            return fits
        parts, size = [f.PREFIX.pack(0, size), message], size + f.PREFIX.size
        if not self._fits(size):
            return False
        if size <= f.MOST_FRAME:
            begin = f.HEAD.pack(size >> 8, size & 255, f.DATA, 0, self.number)
            frames = [begin, *parts, ending]
        else:
            frames = [*f.content(self.number, b"".join(parts)), ending]
        self._send(size, b"".join(frames))
        return True

    def _fits(self, size: int, most: int = _LARGE) -> bool:
        """Return whether so many bytes can be sent at once. Raises: CallEnded."""
        connection = self.connection
        self._check()
        room = min(most, self._send_window, connection.send_window)
        if size > room or connection.full:
            return False
        connection.content()
        return True

    def _send(self, size: int, frames: bytes) -> None:
        self._send_window -= size
        self.connection.send_window -= size
        head, self._head = self._head, b""
        self.connection.send(head + frames if head else frames)

    async def write(self, message: Buffer | Bundle) -> None:
        """Send one or several messages; return when there is room for the next.

        Raises: CallEnded: the call has ended, or the message is too large.
        """
        most, size = self.connection.limits.send_bytes, len(message)
        if isinstance(message, Bundle):
            await self._write(size, partial(message.frames, self.number), _TURN)
            if self.connection.full:
                await self._room()
        elif size > most:
            text = f"Sent message larger than max ({size} vs. {most})"
            raise CallEnded(Status.RESOURCE_EXHAUSTED, text)
        elif not self.write_now(message):
            cut = partial(f.cut, self.number, f.PREFIX.pack(0, size), message)
            await self._write(size + f.PREFIX.size, cut)

    async def _write(
        self, size: int, cut: Callable[[int, int], bytes], most: int = _LARGE
    ) -> None:
        """Send so many bytes, as frames that `cut` makes of a part, as there is room."""
        turn = at = 0
        while at < size:
            end = min(at + await self._room(most), size)
            if end - at > KIB or end == size:
                self.connection.content()
            self._send(end - at, cut(at, end))
            turn, at = turn + end - at, end
            if turn >= _TURN:
                turn = 0
                await asyncio.sleep(0)

    async def _room(self, most: int = _LARGE) -> int:
        """Return how many bytes may be sent, when it is at least one.

        Calls that wait for room on the connection take turns.
        """
        connection, waiting = self.connection, self.connection.waiting
        try:
            while True:
                self._check()
                room = min(self._send_window, connection.send_window, most)
                if self._send_window <= 0:
                    waiting.pop(self, None)
                    connection.let_write()
                elif room <= 0 or connection.full or next(iter(waiting), self) != self:
                    waiting[self] = None  # keeps its place if it has one
                else:
                    return room
                self._writer = asyncio.get_running_loop().create_future()
                await self._writer
        finally:
            self._writer = None
            waiting.pop(self, None)
            connection.let_write()

    def room(self) -> None:
        """Look again whether something can be sent."""
        if self._writer is not None:
            _wake(self._writer)

    def widen(self, change: int) -> None:
        """Change what may be sent. Raises: BrokenRule."""
        self._send_window += change
        if self._send_window > f.MOST_WINDOW:
            raise BrokenRule(Fault.FLOW, "too large a window")
        self.room()

    # --- the end ----------------------------------------------------------------------

    async def reply(self, message: bytes) -> None:
        """Send the last message and end the call well. Raises: CallEnded."""
        ending = f.ending(self.number, None, begun=True) + self._farewell()
        if self.write_now(message, ending=ending):
            self._forget()
        else:
            await self.write(message)
            self.finish()

    def finish(self, ended: CallEnded | None = None) -> None:
        """End a call of the other side; None = well. Idempotent."""
        if not self._over:
            last = f.ending(self.number, ended, begun=not self._head)
            self.connection.send(last + self._farewell())
            self._forget()

    def _farewell(self) -> bytes:
        """Return what tells the other side to send no more of the request."""
        if self._last:
            return b""
        return f.frame(f.RST, 0, self.number, f.number(Fault.NONE))

    def cancel(self) -> None:
        """Leave a call without an answer. Idempotent."""
        if not self._over:
            if self.ended is None and (self._serves or not self._last):
                # To a client, CANCELLED means that it has left itself.
                fault = f.number(Fault.CALM if self._serves else Fault.CANCEL)
                self.connection.send(f.frame(f.RST, 0, self.number, fault))
            self._forget()

    def cut(self, code: Status, text: str) -> None:
        """Take note that the other side, or the connection, has ended the call."""
        self._forget()
        if self.ended is None and (self._serves or not self._last):
            self.ended = CallEnded(code, text)  # or its status has come before
        if self.task is not None:
            self.task.cancel()
            return
        for waiter in (self._reader, self._writer):
            if waiter is not None:
                _wake(waiter)

    def _forget(self) -> None:
        self._over = True
        self.connection.over(self)
        if more := self.connection.grant(self._unread):
            self.connection.send(more)
        self._unread = 0

    def _check(self) -> None:
        """Raise CallEnded if the call is over."""
        if self.ended is not None:
            raise self.ended
        if self._over:
            raise CallEnded(Status.CANCELLED, "the call is over")


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
