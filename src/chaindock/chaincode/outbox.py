"""The one writer of a stream.

Owns:    the order of what is sent; how much may wait; what a stream is (Duplex).
Not:     what is sent (calls.py, requests.py).
Entry:   Outbox
Holds:   never two writes at once (grpc.aio fails the second one); a write is never
         cancelled because somebody lost interest in an answer.
Source:  shim-protocol.md §1.2
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

WAITING_MESSAGES = 256
WAITING_BYTES = 16 * 1024 * 1024
"""A chaincode that asks more than it reads is not read while this much waits."""


class Duplex(Protocol):
    """An open gRPC stream, of either role.

    `read` returns `grpc.aio.EOF` at the end; both raise when the stream broke.
    """

    async def read(self) -> Any:
        """Return the next message."""

    async def write(self, message: ChaincodeMessage, /) -> None:
        """Send one message; never twice at the same time."""


class Outbox:
    """Messages that wait for their turn to be written.

    Args:
        write: sends one message; never called again before it returned.
    """

    def __init__(self, write: Callable[[ChaincodeMessage], Awaitable[None]]) -> None:
        self._write = write
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[ChaincodeMessage, int]] = deque()
        self._bytes = 0
        self._idle: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.writing: ChaincodeMessage | None = None

    def put(self, message: ChaincodeMessage, size: int = 0) -> None:
        """Send `message` (payload of `size` bytes) after those that wait."""
        self._queue.append((message, size))
        self._bytes += size
        idle = self._idle
        if idle is not None:
            self._idle = None
            if not idle.done():
                idle.set_result(None)

    @property
    def full(self) -> bool:
        """Whether the reader has to wait for `room`."""
        return len(self._queue) >= WAITING_MESSAGES or self._bytes >= WAITING_BYTES

    async def room(self) -> None:
        """Return when it is no longer full. One waiter at a time."""
        while self.full:
            self._room = self._loop.create_future()
            await self._room

    async def run(self) -> None:
        """Write until cancelled.

        Raises: what `write` raises; then `writing` is the message that failed.
        """
        queue, write = self._queue, self._write
        while True:
            if not queue:
                self._idle = self._loop.create_future()
                await self._idle
            self.writing, size = queue.popleft()
            await write(self.writing)
            self._bytes -= size
            if self._room is not None and not self.full:
                if not self._room.done():
                    self._room.set_result(None)
                self._room = None
