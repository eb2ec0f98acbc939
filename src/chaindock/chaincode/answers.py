"""Carry out the requests of the calls of one stream.

Replies of one call keep the order of their requests. A request that takes long, or waits
for another chaincode, holds up neither other calls nor the reader of the stream.
Source: docs/fabric/shim-protocol.md#requests
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage
from google.protobuf.message import DecodeError

from chaindock.aio import Tasks, off_loop
from chaindock.chaincode import requests
from chaindock.chaincode.invocation import Call, Kind, Nested
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.outbox import Outbox
from chaindock.chaincode.requests import Serving
from chaindock.chaincode.wire import LARGE, head_of, parsed
from chaindock.errors import BudgetExceeded, InvalidInput, NotFound, TooManyRequests
from chaindock.ledger.budget import Budget, Held
from chaindock.rpc.frames import Buffer

MAX_BACKLOG = 64
MAX_BACKLOG_BYTES = 1024 * 1024
"""Requests that wait behind a long one of their call, and bytes of all that wait. Beyond,
the stream is not read until those of a call were carried out; shims wait for each reply."""
TURN_S: Final = 0.002
"""Seconds after which the requests that wait give way to other streams and calls."""
_DONE: Final = object()
"""A request was answered."""


class Answers:
    """Answers the requests of the calls in `calls`.

    Args:
        calls: by channel and transaction; the owner changes it.
        budget: of the stream.
    """

    def __init__(
        self,
        options: StreamOptions,
        calls: Mapping[tuple[str, str], Call],
        budget: Budget,
    ) -> None:
        self._options, self._calls, self.budget = options, calls, budget
        self._backlog_bytes = 0
        self._ccid = ""
        self._outbox: Outbox
        self._tasks: Tasks

    def begin(self, ccid: str, outbox: Outbox, tasks: Tasks) -> None:
        """Take requests from now on; those that take long run in `tasks`."""
        self._ccid, self._outbox, self._tasks = ccid, outbox, tasks

    async def parse(self, raw: Buffer) -> tuple[ChaincodeMessage, Any]:
        """Parse a large message, off the loop if it takes long.

        Returns: the message; of a request without its payload, but with what that holds
            and its bytes, or with the error that answers the request. Of a message that nobody waits for
            only the head, because a chaincode may repeat it without end.
        Raises: InvalidInput: it is no message.
        """
        message, payload = head_of(raw)
        call = self._calls.get((message.channel_id, message.txid))
        request = requests.REQUESTS.get(message.type)
        final = message.type in {Kind.COMPLETED, Kind.ERROR}
        if call is None or call.over or not (final or request):
            return message, None
        if message.type == Kind.ERROR:  # its payload is text
            cut = f"… ({len(payload)} bytes in all)".encode()
            message.payload = bytes(payload[:LARGE]) + cut
            return message, None
        # The answer of a call is nothing that its transaction keeps.
        budget = self.budget if request is None else call.budget
        form, data = (Kind, raw) if request is None else (request[0], payload)
        try:
            held = Held(budget, len(raw))
            work = partial(parsed, message.type, payload, self._options, form, data)
            found = await off_loop(len(raw), work)
        except (BudgetExceeded, InvalidInput, DecodeError) as error:
            if final:
                message.type, message.payload = Kind.ERROR, str(error).encode()
            return message, error.with_traceback(None)  # which would keep `raw`
        if request is not None:
            return message, (found, len(payload))
        call.invocation.answer_held = held
        return found, None

    def take_request(
        self, message: ChaincodeMessage, request: Any = None
    ) -> asyncio.Task[None] | None:
        """Carry out a request, or its first step; replies of one call keep their order.

        `request`: what `parse` has returned.

        Returns: what the reader of the stream has to wait for, if anything.
        """
        call = self._calls.get((message.channel_id, message.txid))
        if call is not None and not call.sent:
            call = None
        if call is not None and call.worker is not None:
            size = message.ByteSize()
            full = (
                len(call.backlog) + 1 >= MAX_BACKLOG
                or self._backlog_bytes + size >= MAX_BACKLOG_BYTES
                or request is not None  # a large one is not kept beside others
            )
            if full and call.callee_awaited:
                # The called chaincode may wait for what this stream brings next.
                error = TooManyRequests("too many requests at a time")
                self._step(self._serve(call, message, error))
                return None
            call.backlog.append((message, request))
            self._backlog_bytes += size
            return call.worker if full else None
        serving = self._serve(call, message, request)
        try:
            pending = next(serving)
        except StopIteration as done:  # as nearly always, so without `_step`
            self._outbox.put(*done.value)
        else:
            if call is not None:
                self._start_worker(call, serving, pending)
        return None

    def _serve(
        self, call: Call | None, message: ChaincodeMessage, request: Any
    ) -> Serving:
        options, budget = self._options, self.budget
        return requests.serve(call, message, options, self._ccid, budget, request)

    def _step(self, serving: Serving, given: Any = None) -> Nested | object | None:
        """Do one step of a request, which gets `given`, or raises it.

        Returns: `_DONE` once its reply is sent; a call of another chaincode whose outcome
            the next step wants; None = nothing.
        """
        try:
            if isinstance(given, Exception):
                return serving.throw(given)
            return serving.send(given)
        except StopIteration as done:
            self._outbox.put(*done.value)
            return _DONE

    def _start_worker(self, call: Call, serving: Serving, pending: Any) -> None:
        call.callee_awaited = pending is not None
        work = self._work_off(call, serving, pending)
        call.worker = self._tasks.start(work, "request")

    async def _work_off(self, call: Call, serving: Serving, pending: Any) -> None:
        """Do the remaining steps of a request, and the requests that came meanwhile.

        A call of another chaincode is awaited in a task of its own: the reader of the
        stream may wait for this one, and must not wait for the other stream.
        """
        handed_over = False
        try:
            while True:
                if pending is None:
                    await asyncio.sleep(0)  # other streams and calls are served now
                    given = None
                else:
                    given = await self._nested(call, pending)
                if call.over:
                    given = NotFound(requests.NO_CONTEXT)
                began = time.perf_counter()
                while (pending := self._step(serving, given)) is _DONE:
                    if not call.backlog:
                        return
                    if self._outbox.full:
                        await self._outbox.room()
                    if time.perf_counter() - began > TURN_S:
                        await asyncio.sleep(0)
                        began = time.perf_counter()
                    (message, request), given = call.backlog.popleft(), None
                    self._backlog_bytes -= message.ByteSize()
                    serving = self._serve(call, message, request)
                if pending is not None:
                    self._start_worker(call, serving, pending)
                    handed_over = True
                    return
        finally:
            if not handed_over:
                call.worker = None
                serving.close()

    async def _nested(self, call: Call, pending: Nested) -> Any:
        """Return the outcome of a call of another chaincode; None if `call` is over."""

        async def outcome() -> Any:
            try:
                return await pending()
            except Exception as error:  # noqa: BLE001  # is raised in the request
                return error

        nested = self._tasks.start(outcome(), "call of another chaincode")
        try:
            await asyncio.wait(
                [nested, call.final], return_when=asyncio.FIRST_COMPLETED
            )
            return nested.result() if nested.done() else None
        finally:
            call.callee_awaited = False
            nested.cancel()
