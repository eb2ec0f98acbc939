"""The bytes of a connection: from and to the system, through TLS if any.

Everything runs in callbacks of the event loop, at most 64 KiB in one turn.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from typing import Any, ClassVar, Final

from typing_extensions import override

from chaindock.rpc.frames import Buffer
from chaindock.rpc.tls import Channel
from chaindock.values import KIB, show_address

_BLOCK: Final = 64 * KIB


class Wire(asyncio.BufferedProtocol):
    """One end of a connection, as bytes.

    Args:
        tls: how it is encrypted; None = in plain.

    Attributes:
        ready: settled when calls can be made and taken: after the handshake, if any.
        source: host:port of the other side, or unix: without a name.
        certificate: what the other side has shown, DER.
        full: the system takes no more bytes at the moment.
    """

    _block: ClassVar = memoryview(bytearray(_BLOCK))
    _plain: ClassVar = memoryview(bytearray(_BLOCK))
    """Shared by all connections: each empties them before another one's turn."""

    def __init__(self, tls: Channel | None) -> None:
        self._tls, self._loop = tls, asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.source = "unix:"
        self.certificate: bytes | None = None
        self.transport: Any = None
        self.full = self._closing = False
        self._heard = self._loop.time()
        """When the last bytes came, of the clock of the loop."""

    @property
    def shaken(self) -> bool:
        """Whether the handshake is over, or there is none."""
        return self._tls is None or self._tls.shaken

    def _begin(self) -> None:
        raise NotImplementedError

    def _received(self, received: Buffer) -> None:
        raise NotImplementedError

    def let_write(self) -> None:
        """Take note that there may be room to send."""
        raise NotImplementedError

    @override
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self.source = show_address(address[:2])
        if self._closing:
            transport.abort()
        elif self._tls is None:
            self._begin()
        else:
            self._shake()

    def _shake(self, received: Buffer = b"") -> bool:
        """Go on with the handshake; return whether it is over."""
        tls = self._tls
        assert tls is not None  # noqa: S101  # the caller has looked
        try:
            self.transport.write(tls.begin(received))
        except ssl.SSLError as error:
            self.transport.write(tls.said())
            self._fail(error)
            return False
        if tls.shaken:
            self.certificate = tls.certificate()
            self._begin()
        return tls.shaken

    def _fail(self, error: Exception) -> None:
        """End a connection that is not ready."""
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # or asyncio complains if nobody waits
        self._closing = True
        self.transport.close()

    def abort(self) -> None:
        """End the connection without a word. Idempotent."""
        self._closing = True
        if self.transport is not None:
            self.transport.abort()

    @override
    def eof_received(self) -> None:
        self.abort()  # or what is not sent would wait for it to read

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if not self.ready.done():
            self._fail(exc or ConnectionResetError("connection closed"))

    def send(self, data: bytes) -> None:
        """Send whole frames."""
        if self._closing or self.transport.is_closing():
            return
        if self._tls is not None:
            small = len(data) <= _BLOCK
            data = self._tls.seal(data) if small else self._left_of(self._tls, data)
        self.transport.write(data)

    def _left_of(self, tls: Channel, data: bytes) -> bytes:
        """Encrypt and send what the system takes at once; return what is left.

        In pieces: each connection keeps room for as much as is encrypted at once.
        """
        view, sent = memoryview(data), 0
        pieces = [
            tls.seal(view[at : at + _BLOCK]) for at in range(0, len(data), _BLOCK)
        ]
        if not self.transport.get_write_buffer_size():
            with suppress(OSError):  # the transport will meet it, too
                sent = os.writev(
                    self.transport.get_extra_info("socket").fileno(), pieces
                )
        return b"" if sent == sum(map(len, pieces)) else b"".join(pieces)[sent:]

    @override
    def pause_writing(self) -> None:
        self.full = True
        # Or the other side could make this one answer without end.
        self.transport.pause_reading()

    @override
    def resume_writing(self) -> None:
        self.full = False
        self.transport.resume_reading()
        self.let_write()

    @override
    def get_buffer(self, sizehint: int) -> memoryview:
        return self._block

    @override
    def buffer_updated(self, nbytes: int) -> None:
        received = self._block[:nbytes]
        self._heard = self._loop.time()
        tls = self._tls
        if tls is None:
            self._received(received)
            return
        try:
            if tls.shaken:
                tls.receive(received)
            elif not self._shake(received):
                return
            while not self._closing and (size := tls.read(self._plain)):
                self._received(self._plain[:size])
            self.transport.write(tls.said())
        except ssl.SSLError as error:  # the end of what the other side sends is one
            self.abort()
            self.connection_lost(error)  # the transport would not say why
