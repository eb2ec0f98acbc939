"""The node's end of one chaincode stream; either side may have opened it.

A stream has one reader and one writer, lives for one registration, and ends every call
that waits on it when it ends.
Source: docs/fabric/shim-protocol.md#states
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import grpc.aio
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.aio import Latch, Tasks
from chaindock.chaincode import requests
from chaindock.chaincode.calls import Calls
from chaindock.chaincode.requests import kind_of
from chaindock.container.attempt import Phase
from chaindock.errors import RegistrationRefused
from chaindock.telemetry import bind, get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

    from chaindock.chaincode.limiter import Rest
    from chaindock.chaincode.options import StreamOptions
    from chaindock.chaincode.registry import HandlerRegistry
    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Exit
    from chaindock.ids import Ccid

Kind = shim.ChaincodeMessage
FINAL: Final = frozenset({Kind.COMPLETED, Kind.ERROR})
KEEPALIVE: Final = Kind.KEEPALIVE
WAITING_MESSAGES = 256
WAITING_BYTES = 16 * 1024 * 1024
"""A chaincode that asks more than it reads is not read while this much waits for it."""
_log = get_logger("chaincode.handler")


class StreamState(StrEnum):
    """States of a stream."""

    CREATED = "created"
    ESTABLISHED = "established"
    READY = "ready"
    ENDED = "ended"


MOVES: Final[Mapping[StreamState, frozenset[StreamState]]] = {
    StreamState.CREATED: frozenset({StreamState.ESTABLISHED, StreamState.ENDED}),
    StreamState.ESTABLISHED: frozenset({StreamState.READY, StreamState.ENDED}),
    StreamState.READY: frozenset({StreamState.ENDED}),
    StreamState.ENDED: frozenset(),
}


@dataclass(frozen=True)
class StreamEnd:
    """Why a stream ended.

    Args:
        code: OK when the chaincode simply left.
        reason: in words.
        overrun_s: a call was not answered for so many seconds; None = another reason.
    """

    code: grpc.StatusCode
    reason: str
    overrun_s: float | None = None


@dataclass(eq=False)
class Expected:
    """A registration that a launch waits for.

    Args:
        dialled: the node dials; None until that is known.
        concurrency: transactions at a time on the stream; None = unlimited.
        certificate: hash (identity.ca.certificate_hash) of the certificate that a
            chaincode that dials must show; None = TLS is off.
        ready: settled with the handler after READY was written, or failed.
        exit: settled with how the launched instance ended.
    """

    ccid: Ccid
    attempt: Attempt
    dialled: bool | None = None
    concurrency: int | None = None
    certificate: str | None = None
    ready: Latch[Handler] = field(default_factory=Latch)
    exit: Latch[Exit] = field(default_factory=Latch)


class Duplex(Protocol):
    """An open gRPC stream, of either role.

    `read` returns `grpc.aio.EOF` at the end; both raise when the stream broke.
    """

    async def read(self) -> Any:
        """Return the next message."""

    async def write(self, message: ChaincodeMessage, /) -> None:
        """Send one message; never twice at the same time."""


class Outbox:
    """The one writer of a stream: grpc.aio fails the second of two writes at once.

    A write is never cancelled because a caller has left.

    Args:
        write: sends one message; never called again before it returned.
    """

    def __init__(self, write: Callable[[ChaincodeMessage], Awaitable[None]]) -> None:
        self._write = write
        self._queue: deque[tuple[ChaincodeMessage, int]] = deque()
        self._bytes = 0
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()
        self.writing: ChaincodeMessage | None = None

    def put(self, message: ChaincodeMessage, size: int = 0) -> None:
        """Send `message` (payload of `size` bytes) after those that wait."""
        self._queue.append((message, size))
        self._bytes += size
        self._filled.set()

    @property
    def full(self) -> bool:
        """Whether the reader has to wait for `room`."""
        return len(self._queue) >= WAITING_MESSAGES or self._bytes >= WAITING_BYTES

    async def room(self) -> None:
        """Return when it is no longer full."""
        while self.full:
            self._emptied.clear()
            await self._emptied.wait()

    async def run(self) -> None:
        """Write until cancelled.

        Raises: what `write` raises; then `writing` is the message that failed.
        """
        queue, write = self._queue, self._write
        while True:
            if not queue:
                self._filled.clear()
                await self._filled.wait()
            self.writing, size = queue.popleft()
            await write(self.writing)
            self._bytes -= size
            if not self.full:
                self._emptied.set()


class Handler:
    """One stream.

    Args:
        registry: decides about registration.
        options: limits and what READY announces.
        dialled: the registration that the node opened this stream for; None when the
            chaincode opened it.
        certificate: hash of the chaincode's certificate; None without TLS, and when the
            node opened the stream.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        options: StreamOptions,
        dialled: Expected | None = None,
        certificate: str | None = None,
    ) -> None:
        self._registry = registry
        self._options = options
        self.dialled = dialled
        self.certificate = certificate
        self.ccid: Ccid | None = None
        self.expected = dialled
        """The launch that this stream belongs to; None = a user's program."""
        self.lost_calls = 0
        """Calls that were open when the stream ended."""
        self.state = StreamState.CREATED
        self.ended: Latch[StreamEnd] = Latch()
        self.calls = Calls(options, self._overran)
        self.rest: Rest | None = None
        """How to wait until the chaincode has written all it had to, for the Python shim."""
        self._outbox: Outbox
        self._tasks: Tasks

    @property
    def log_key(self) -> str | None:
        """Identity that the chaincode cannot forge; limits the log lines that it causes."""
        return self.certificate or (self.dialled.ccid if self.dialled else None)

    # --- the life of a stream -------------------------------------------------------

    async def run(self, stream: Duplex) -> StreamEnd:
        """Serve `stream` until it ends.

        Returns: why; the caller tells the other side.
        Cancelled: everything ends as if the stream had.
        """
        self._outbox = Outbox(stream.write)
        self._registry.connected(self)
        loop = asyncio.get_running_loop()
        silence = loop.call_later(self._options.silence_s, self._too_silent)
        try:
            async with Tasks("stream") as tasks:
                self._tasks = tasks
                _ = tasks.start(self._receive(stream), "receive")
                _ = tasks.start(self._send(self._outbox), "send")
                return await self.ended.wait()
        finally:
            silence.cancel()
            self.end(grpc.StatusCode.CANCELLED, "connection lost")

    def end(
        self, code: grpc.StatusCode, reason: str, overrun_s: float | None = None
    ) -> None:
        """End the stream now; calls that wait fail. The first reason counts."""
        if self.state is StreamState.ENDED:
            return
        self._move(StreamState.ENDED)
        self._registry.remove(self)
        self.lost_calls = self.calls.close(reason)
        facts = {"ccid": self.ccid, "reason": reason, "waiting": self.lost_calls}
        if self.ccid is None:
            refusals = self._registry.refusals
            refusals.say(self.log_key, _log.info, "stream ended", **facts)
        else:
            _log.info("stream ended", **facts)
        self.ended.settle(StreamEnd(code, reason, overrun_s))

    def _overran(self, seconds: float) -> None:
        reason = f"a call has not answered for {seconds:g} s"
        self.end(grpc.StatusCode.ABORTED, reason, seconds)

    def _move(self, state: StreamState) -> None:
        if state not in MOVES[self.state]:
            raise AssertionError(f"stream cannot go from {self.state} to {state}")
        self.state = state

    def _too_silent(self) -> None:
        if self.state is StreamState.CREATED:
            self.end(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no REGISTER within {self._options.silence_s:g} s",
            )

    async def _receive(self, stream: Duplex) -> None:
        try:
            await self._receive_all(stream)
        except asyncio.CancelledError:
            # grpc.aio also raises it when the other side ended with CANCELLED.
            self.end(grpc.StatusCode.CANCELLED, "connection lost")
            raise
        except RegistrationRefused as error:
            self.end(_refusal_code(error), error.message)
        except _Unexpected as error:
            text = f"error handling message, ending stream: {error}"
            self.end(grpc.StatusCode.UNKNOWN, text)
        except Exception as error:  # noqa: BLE001  # whatever broke, the stream is over
            text = f"receive from chaincode support stream failed: {_text(error)}"
            self.end(grpc.StatusCode.UNKNOWN, text)

    async def _receive_all(self, stream: Duplex) -> None:
        read, outbox = stream.read, self._outbox
        while self.state is StreamState.CREATED:
            message = await read()
            if message is grpc.aio.EOF:
                return self.end(grpc.StatusCode.OK, "chaincode closed the stream")
            await self._before_ready(message, stream)
        while self.state is StreamState.READY:
            message = await read()
            if message is grpc.aio.EOF:
                return self.end(grpc.StatusCode.OK, "chaincode closed the stream")
            kind = message.type
            if kind in FINAL:
                self.calls.take_final(message)
            elif kind in requests.REQUESTS:
                busy = self.calls.take_request(message)
                if busy is not None:
                    await asyncio.wait([busy])
                if outbox.full:
                    await outbox.room()
            elif kind != KEEPALIVE:
                raise _Unexpected(message, self.state)
        return None

    async def _send(self, outbox: Outbox) -> None:
        try:
            await outbox.run()
        except asyncio.CancelledError:
            self.end(grpc.StatusCode.CANCELLED, "connection lost")
            raise
        except Exception as error:  # noqa: BLE001  # whatever broke, the stream is over
            message = outbox.writing or shim.ChaincodeMessage()
            text = (
                f"[{message.txid[:8]}] error sending {kind_of(message)}: {_text(error)}"
            )
            self.end(
                grpc.StatusCode.UNKNOWN,
                "received error while sending message, ending chaincode support "
                f"stream: {text}",
            )

    # --- registration ---------------------------------------------------------------

    async def _before_ready(self, message: shim.ChaincodeMessage, to: Duplex) -> None:
        if message.type == KEEPALIVE:
            return
        if message.type != Kind.REGISTER:
            raise _Unexpected(message, self.state)
        try:
            name = chaincode_pb2.ChaincodeID.FromString(message.payload).name
        except DecodeError as error:
            self._registry.refusals.say(
                self.log_key,
                _log.warning,
                "register message undecodable",
                error=str(error),
            )
            return
        expected = self.expected = self._registry.admit(name, self)
        self.ccid = name
        if expected:
            bind(ccid=name, attempt=expected.attempt.id)
        calls = self.calls
        calls.ccid = name
        calls.limiter.limit = expected.concurrency if expected else None
        if message.HasField("timestamp"):
            # Only the Python shim sets it. It fails when it writes while an earlier
            # write is not quite over, and never answers then (fabric-chaincode-python
            # 2.5.4): one call at a time, with a rest after the final message.
            calls.limiter.limit, calls.limiter.rest = 1, self.rest
        if expected:
            expected.attempt.tx_of = calls.correlator.transaction_of
            expected.attempt.enter(Phase.REGISTER)
        # There are no other messages yet, so these two need no outbox.
        await to.write(shim.ChaincodeMessage(type=Kind.REGISTERED))
        self._move_on(StreamState.ESTABLISHED)
        if expected:
            expected.attempt.enter(Phase.READY)
        await to.write(
            shim.ChaincodeMessage(type=Kind.READY, payload=self._parameters())
        )
        self._move_on(StreamState.READY)
        calls.begin(self._outbox, self._tasks)
        self._registry.ready(self)
        _log.info("chaincode registered", ccid=name)

    def _move_on(self, state: StreamState) -> None:
        if self.state is StreamState.ENDED:
            raise asyncio.CancelledError  # ended while the message was written
        self._move(state)

    def _parameters(self) -> bytes:
        options = self._options
        parameters: bytes = chaincode_pb2.ChaincodeAdditionalParams(
            use_write_batch=options.use_write_batch,
            max_size_write_batch=options.max_size_write_batch,
            use_get_multiple_keys=options.use_get_multiple_keys,
            max_size_get_multiple_keys=options.max_size_get_multiple_keys,
        ).SerializeToString()
        return parameters


class _Unexpected(Exception):  # never leaves this module
    """A message that has no place in this state."""

    def __init__(self, message: shim.ChaincodeMessage, state: StreamState) -> None:
        super().__init__(
            f"[{message.txid[:64]}] Fabric side handler cannot handle message "
            f"({kind_of(message)}) while in {state} state"
        )


def _text(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return str(error) or type(error).__name__


def _refusal_code(error: RegistrationRefused) -> grpc.StatusCode:
    return getattr(grpc.StatusCode, error.code.name)  # type: ignore[no-any-return]
