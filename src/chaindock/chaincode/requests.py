"""Answer what chaincode asks for while it runs a call: one function per request type.

Each request gets exactly one reply, whatever it holds. A request that may take long is
done in steps, between which other streams and other calls are served; a step reads no more
than about 1 MiB from the ledger.
Source: docs/fabric/shim-protocol.md#requests, docs/fabric/shim-protocol.md#queries
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import Any, Final

from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.chaincode import keys, queries
from chaindock.chaincode.invocation import PANIC, STEP_BYTES, Call, Nested, Steps
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.wire import MOST_ID, why_unreadable
from chaindock.errors import (
    BudgetExceeded,
    ChaindockError,
    InvalidInput,
    NotFound,
    Unsupported,
)
from chaindock.ledger.budget import Budget
from chaindock.telemetry import get_logger, metrics

Request = Callable[[Call, Any, StreamOptions], bytes | Steps]
Serving = Generator[Nested | None, Any, tuple[shim.ChaincodeMessage, int, int]]

Kind: Final = shim.ChaincodeMessage
_KINDS: Final = {number: name for name, number in Kind.Type.items()}
NO_CONTEXT: Final = "no ledger context"
_NO_TRANSACTION: Final = "could not get valid transaction"
_FRAME_BYTES: Final = 4096
"""Room for everything of a reply but its payload."""
_log = get_logger("chaincode.requests")


def serve(
    call: Call | None,
    message: shim.ChaincodeMessage,
    options: StreamOptions,
    ccid: str,
    budget: Budget,
    request: Any = None,
) -> Serving:
    """Carry out a request of `call` in steps; None = of no running call.

    Raises nothing; an error that is thrown in is the cause of an ERROR reply. `request`:
    what the payload holds, or why it was not parsed; None = it is in the message.

    Returns: the reply, its bytes, and how many the caller owes `budget` once it is sent.
    """
    began = time.perf_counter()
    kind = kind_of(message)
    # The channel in the message itself may be anything.
    channel = "" if call is None else call.invocation.channel_id
    metrics.requests(kind, channel, ccid).inc()
    result: bytes | ChaindockError
    taken = 0
    if call is None or call.over:
        calling = message.type == Kind.INVOKE_CHAINCODE
        result = NotFound(_NO_TRANSACTION if calling else NO_CONTEXT)
    elif isinstance(request, Exception):
        result = _cause_of(request, message, call)
    else:
        try:
            form, act = REQUESTS[message.type]
            if request is None:
                request = form.FromString(message.payload)
            work = act(call, request, options)
            result = work if isinstance(work, bytes) else (yield from work)
            if len(result) > STEP_BYTES:
                yield None  # to read it took some ms, and so does the reply
            if len(result) > options.max_message_bytes - _FRAME_BYTES:
                result = InvalidInput(
                    f"result of {len(result)} bytes is too large to be sent"
                )
            else:
                taken = len(result) + 2 * MOST_ID
                budget.take(taken)
        except Exception as error:  # noqa: BLE001  # no request may end the stream
            result, taken = _cause_of(error, message, call), 0
    if call is not None and isinstance(result, (Unsupported, BudgetExceeded)):
        call.invocation.refuse(result.message)
    ok = isinstance(result, bytes)
    if isinstance(result, ChaindockError):
        tx_id = message.txid[:MOST_ID]
        result = f"{kind} failed: transaction ID: {tx_id}: {result.message}".encode()
    reply = shim.ChaincodeMessage(
        type=Kind.RESPONSE if ok else Kind.ERROR,
        payload=result,
        txid=message.txid[:MOST_ID],
        channel_id=message.channel_id[:MOST_ID],
    )
    spent_s = time.perf_counter() - began
    metrics.request_answered(kind, channel, ccid, spent_s, ok=ok)
    if call is not None and message.type in REQUESTS:
        call.invocation.count(kind, spent_s)
    return reply, len(result) + 2 * MOST_ID, taken


def _cause_of(
    error: Exception, message: shim.ChaincodeMessage, call: Call
) -> ChaindockError:
    """Return the error whose message is the CAUSE of an ERROR reply."""
    if message.type == Kind.GET_STATE_METADATA:  # a peer looks before it reads that one
        try:
            keys.require_enabled(call, *keys.METADATA)
        except InvalidInput as refusal:
            return refusal
    if isinstance(error, ChaindockError):
        return error
    if isinstance(error, DecodeError):
        return InvalidInput(f"unmarshal failed: {why_unreadable(message.payload)}")
    tx_id, kind = message.txid[:64], kind_of(message)
    _log.error("request failed unexpectedly", tx=tx_id, kind=kind, exc_info=error)
    return ChaindockError(PANIC)


def kind_of(message: shim.ChaincodeMessage) -> str:
    """Return the name of its type; the number as text if it has none."""
    return _KINDS.get(message.type) or str(message.type)


def _invoke_chaincode(
    call: Call, request: chaincode_pb2.ChaincodeSpec, _options: StreamOptions
) -> Steps:
    if not request.HasField("chaincode_id") or not request.HasField("input"):
        raise ChaindockError(PANIC)
    invoke = call.invocation.invoke
    if invoke is None:
        raise NotFound(_NO_TRANSACTION)
    name, channel = target_of(request.chaincode_id.name)
    given = request.input
    given.ClearField("decorations")  # only the peer sets them, for clients' calls
    size = given.ByteSize()
    call.budget.take(size)
    try:
        message = yield partial(invoke, call, name, channel, given)
    finally:
        call.budget.give_back(size)
    return bytes(message.SerializeToString())


def target_of(text: str) -> tuple[str, str]:
    """Return name and channel of `NAME[:VERSION][/CHANNEL]`; "" = the caller's channel."""
    name, _, channel = text.partition("/")
    return name.partition(":")[0], channel


REQUESTS: Final[Mapping[int, tuple[Any, Request]]] = {
    Kind.GET_STATE: (shim.GetState, keys.get_state),
    Kind.PUT_STATE: (shim.PutState, keys.put_state),
    Kind.DEL_STATE: (shim.DelState, keys.del_state),
    Kind.INVOKE_CHAINCODE: (chaincode_pb2.ChaincodeSpec, _invoke_chaincode),
    Kind.GET_STATE_BY_RANGE: (shim.GetStateByRange, queries.open_range),
    Kind.GET_QUERY_RESULT: (shim.GetQueryResult, queries.open_query),
    Kind.QUERY_STATE_NEXT: (shim.QueryStateNext, queries.next_batch),
    Kind.QUERY_STATE_CLOSE: (shim.QueryStateClose, queries.close_query),
    Kind.GET_HISTORY_FOR_KEY: (shim.GetHistoryForKey, queries.open_history),
    Kind.GET_STATE_METADATA: (shim.GetStateMetadata, keys.get_state_metadata),
    Kind.PUT_STATE_METADATA: (shim.PutStateMetadata, keys.put_state_metadata),
    Kind.GET_PRIVATE_DATA_HASH: (shim.GetState, keys.get_private_data_hash),
    Kind.PURGE_PRIVATE_DATA: (shim.DelState, keys.purge_private_data),
    Kind.WRITE_BATCH_STATE: (shim.WriteBatchState, keys.write_batch),
    Kind.GET_STATE_MULTIPLE: (shim.GetStateMultiple, keys.get_state_multiple),
}
"""All 15 request types: what the payload is, and what answers it."""
