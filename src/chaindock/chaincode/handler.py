"""The node's end of one chaincode stream; either side may have opened it.

A stream has one reader and one writer, lives for one registration, and ends every call
that waits on it when it ends.
Source: docs/fabric/shim-protocol.md#states
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.aio import Latch, Tasks
from chaindock.chaincode.calls import Calls
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.outbox import Outbox, Rest
from chaindock.chaincode.requests import REQUESTS, kind_of
from chaindock.chaincode.wire import LARGE
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Exit
from chaindock.errors import RegistrationRefused
from chaindock.ids import Ccid
from chaindock.rpc.status import Status
from chaindock.rpc.stream import Stream
from chaindock.telemetry import bind, get_logger

if TYPE_CHECKING:
    from chaindock.chaincode.registry import HandlerRegistry

Kind: Final = shim.ChaincodeMessage
FINAL: Final = frozenset({Kind.COMPLETED, Kind.ERROR})
KEEPALIVE: Final = Kind.KEEPALIVE
_log = get_logger("chaincode.handler")


class StreamState(StrEnum):
    """States of a stream, in this order; each can be followed by ENDED."""

    CREATED = "created"
    READY = "ready"
    ENDED = "ended"


@dataclass(frozen=True)
class StreamEnd:
    """Why a stream ended."""

    code: Status
    """OK when the chaincode simply left."""
    reason: str
    """In words."""
    overrun_s: float | None = None
    """A call was not answered for so many seconds; None = another reason."""


@dataclass(eq=False)
class Expected:
    """A registration that a launch waits for."""

    ccid: Ccid
    attempt: Attempt
    dialled: bool | None = None
    """The node dials; None until that is known."""
    concurrency: int | None = None
    """Transactions at a time on the stream; None = unlimited."""
    certificate: str | None = None
    """Hash (identity.ca.certificate_hash) of the certificate that a chaincode that
    dials must show; None = TLS is off."""
    ready: Latch[Handler] = field(default_factory=Latch)
    """Settled with the handler after READY was written, or failed."""
    exit: Latch[Exit] = field(default_factory=Latch)
    """Settled with how the launched instance ended."""


class Handler:
    """One stream.

    Args:
        registry: decides about registration.
        options: limits and what READY announces.
        dialled: the registration that the node opened this stream for; None when the
            chaincode opened it.
        certificate: hash of the chaincode's certificate; None without TLS, and when the
            node opened the stream.

    Attributes:
        expected: the launch that this stream belongs to; None = a user's program.
        lost_calls: calls that were open when the stream ended.
        rest: waits until the chaincode has written all it had to, for the Python shim.
    """

    def __init__(
        self,
        registry: HandlerRegistry,
        options: StreamOptions,
        dialled: Expected | None = None,
        certificate: str | None = None,
    ) -> None:
        self._registry, self._options = registry, options
        self.dialled = self.expected = dialled
        self.certificate = certificate
        self.ccid: Ccid | None = None
        self.lost_calls = 0
        self.state = StreamState.CREATED
        self.ended: Latch[StreamEnd] = Latch()
        self.calls = Calls(options, self._overran)
        self.rest: Rest | None = None
        self._outbox: Outbox
        self._tasks: Tasks

    @property
    def log_key(self) -> str | None:
        """Identity that the chaincode cannot forge; limits the log lines that it causes."""
        return self.certificate or (self.dialled.ccid if self.dialled else None)

    # --- the life of a stream -------------------------------------------------------

    async def run(self, stream: Stream) -> StreamEnd:
        """Serve `stream`, of either role, until it ends; return why."""
        outbox = self._outbox = Outbox(stream, self.calls.budget)
        self._registry.connected(self)
        loop = asyncio.get_running_loop()
        silence = loop.call_later(self._options.silence_s, self._too_silent)
        try:
            async with Tasks("stream") as self._tasks:
                for name, work in (
                    ("receive", self._receive(stream)),
                    ("send", outbox.run()),
                ):
                    _ = self._tasks.start(self._until_it_breaks(name, work), name)
                return await self.ended.wait()
        finally:
            silence.cancel()
            self.end(Status.CANCELLED, "connection lost")

    def end(self, code: Status, reason: str, overrun_s: float | None = None) -> None:
        """End the stream now; calls that wait fail. The first reason counts."""
        if self.state is StreamState.ENDED:
            return
        self.state = StreamState.ENDED
        self._registry.remove(self)
        self.lost_calls = self.calls.close(reason)
        facts = {"ccid": self.ccid, "reason": reason, "waiting": self.lost_calls}
        if self.ccid is None:
            refusals = self._registry.refusals
            refusals.say(self.log_key, _log.info, "stream ended", **facts)
        else:
            _log.info("stream ended", **facts)
        self.ended.settle(StreamEnd(code, reason, overrun_s))

    def _overran(self, tx_id: str, seconds: float) -> None:
        reason = f"the call of transaction {tx_id} was not answered for {seconds:g} s"
        self.end(Status.ABORTED, reason, seconds)

    def _too_silent(self) -> None:
        if self.state is StreamState.CREATED:
            missing = "no REGISTER" if self.ccid is None else "not ready"
            reason = f"{missing} within {self._options.silence_s:g} s"
            self.end(Status.DEADLINE_EXCEEDED, reason)

    async def _until_it_breaks(
        self, name: str, work: Coroutine[Any, Any, None]
    ) -> None:
        """Do `work`; what it raises ends the stream."""
        try:
            await work
        except RegistrationRefused as error:
            self.end(getattr(Status, error.code.name), error.message)
        except Exception as error:  # noqa: BLE001  # whatever broke, the stream is over
            text = str(error) or type(error).__name__
            what = "receive from chaincode support stream failed"
            if name == "send":
                kind, txid = Kind.UNDEFINED, ""
                if (message := self._outbox.writing) is not None:
                    kind, txid = message.type, message.txid[:8]
                what = (
                    "received error while sending message, ending chaincode support "
                    f"stream: [{txid}] error sending {kind_of(kind)}"
                )
            self.end(Status.UNKNOWN, f"{what}: {text}")

    async def _receive(self, stream: Stream) -> None:
        outbox, stream.most = self._outbox, LARGE
        while (raw := await stream.read()) is not None:
            if len(raw) <= LARGE:
                message, request = Kind.FromString(raw), None
            else:
                message, request = await self.calls.answers.parse(raw)
            del raw
            kind = message.type
            ready = self.state is StreamState.READY
            if ready and kind in FINAL:
                self.calls.take_final(message)
            elif ready and kind in REQUESTS:
                busy = self.calls.answers.take_request(message, request)
                if busy is not None:
                    await asyncio.wait([busy])
                if outbox.full:
                    await outbox.room()
            elif kind == Kind.REGISTER and self.state is StreamState.CREATED:
                await self._register(message, stream)
            elif kind != KEEPALIVE:
                self._end_unexpected(message)
            del message, request  # an idle stream keeps no large message
        self.end(Status.OK, "chaincode closed the stream")

    def _end_unexpected(self, message: shim.ChaincodeMessage) -> None:
        self.end(
            Status.UNKNOWN,
            f"error handling message, ending stream: [{message.txid[:64]}] Fabric side "
            f"handler cannot handle message ({kind_of(message.type)}) while in {self.state} "
            "state",
        )

    # --- registration ---------------------------------------------------------------

    async def _register(self, message: shim.ChaincodeMessage, to: Stream) -> None:
        try:
            name = chaincode_pb2.ChaincodeID.FromString(message.payload).name
        except DecodeError as error:
            what, refusals = "register message undecodable", self._registry.refusals
            refusals.say(self.log_key, _log.warning, what, error=str(error))
            return
        expected = self.expected = self._registry.admit(name, self)
        self.ccid = name
        calls = self.calls
        calls.ccid = name
        if expected:
            bind(ccid=name, attempt=expected.attempt.id)
            calls.limiter.limit = expected.concurrency
            expected.attempt.tx_of = calls.correlator.transaction_of
            expected.attempt.enter(Phase.REGISTER)
        if message.HasField("timestamp"):
            # Only the Python shim sets it. It fails when it writes while an earlier
            # write is not quite over, and never answers then (fabric-chaincode-python
            # 2.5.4): one call at a time, with a rest after the final message.
            calls.limiter.limit, calls.limiter.rest = 1, self.rest
        # There are no other messages yet, so these two need no outbox.
        await to.write(shim.ChaincodeMessage(type=Kind.REGISTERED).SerializeToString())
        if expected and self.state is StreamState.CREATED:
            expected.attempt.enter(Phase.READY)
        options = self._options
        parameters = chaincode_pb2.ChaincodeAdditionalParams(
            use_write_batch=options.use_write_batch,
            max_size_write_batch=options.max_size_write_batch,
            use_get_multiple_keys=options.use_get_multiple_keys,
            max_size_get_multiple_keys=options.max_size_get_multiple_keys,
        )
        ready = parameters.SerializeToString()
        await to.write(
            shim.ChaincodeMessage(type=Kind.READY, payload=ready).SerializeToString()
        )
        if self.state is StreamState.ENDED:
            return  # it ended while a message was written
        self.state, to.most = StreamState.READY, options.receive_bytes
        calls.begin(self._outbox, self._tasks)
        self._registry.ready(self)
        _log.info("chaincode registered", ccid=name)
