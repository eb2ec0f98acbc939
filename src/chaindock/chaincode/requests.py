"""Answers to what chaincode asks for while it runs.

Owns:    one function per request type; the texts of ERROR replies.
Not:     queries (queries.py), the stream (handler.py).
Entry:   serve
Holds:   exactly one reply per request; no request of hostile content ends the stream
         or runs on the loop for long.
Source:  shim-protocol.md §2.2, §4
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final, cast

from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.chaincode import queries
from chaindock.chaincode.queries import NO_CONTEXT
from chaindock.errors import ChaindockError, InvalidInput, NotFound, Unsupported
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chaindock.chaincode.context import Context
    from chaindock.chaincode.observer import StreamObserver
    from chaindock.chaincode.options import StreamOptions

    Request = Callable[[Context, bytes, StreamOptions], bytes | Awaitable[bytes]]

Kind = shim.ChaincodeMessage
RESPONSE: Final = Kind.RESPONSE
ERROR: Final = Kind.ERROR
SLICE: Final = 500
"""Keys or records of one request handled before other streams get their turn."""
_FRAME_BYTES: Final = 4096
"""Room for everything of a reply but its payload."""
_log = get_logger("chaincode.requests")


async def serve(
    context: Context | None,
    message: shim.ChaincodeMessage,
    options: StreamOptions,
    observer: StreamObserver,
) -> tuple[shim.ChaincodeMessage, int]:
    """Carry out a request of the invocation `context`; None = of no running one.

    Returns: the reply, and the size of its payload in bytes. Raises nothing.
    """
    began = time.perf_counter()
    # What a request says of itself is not believed, here as elsewhere.
    kind = message.type
    channel = "" if context is None else context.invocation.channel_id
    observer.received(kind, channel)
    result = answer(context, message, options)
    if not isinstance(result, (bytes, ChaindockError)):
        try:
            result = await cast(Awaitable[bytes], result)
        except Exception as error:  # noqa: BLE001  # §4.1: the stream survives
            result = cause_of(error, message)
    reply, size = reply_to(message, result, options)
    ok = reply.type == RESPONSE
    observer.completed(kind, channel, time.perf_counter() - began, ok)
    return reply, size


def answer(
    context: Context | None, message: shim.ChaincodeMessage, options: StreamOptions
) -> bytes | ChaindockError | Awaitable[bytes]:
    """Carry out a request of the invocation `context`; None = of no running one.

    Returns: the payload of the reply, or the error that `cause_of` words; an awaitable
        of the payload when the work may be long.
    """
    if context is None or context.over:
        return NotFound(NO_CONTEXT)
    try:
        return REQUESTS[message.type](context, message.payload, options)
    except Exception as error:  # noqa: BLE001  # §4.1: the stream survives anything
        return cause_of(error, message)


def reply_to(
    message: shim.ChaincodeMessage,
    result: bytes | ChaindockError,
    options: StreamOptions,
) -> tuple[shim.ChaincodeMessage, int]:
    """Return the reply with this result, and the size of its payload in bytes."""
    if isinstance(result, bytes) and (
        len(result) > options.max_message_bytes - _FRAME_BYTES
    ):
        result = InvalidInput(f"result of {len(result)} bytes is too large to be sent")
    if isinstance(result, bytes):
        kind, payload = RESPONSE, result
    else:
        kind, payload = ERROR, _error_text(message, result.message).encode()
    reply = shim.ChaincodeMessage(
        type=kind, payload=payload, txid=message.txid, channel_id=message.channel_id
    )
    return reply, len(payload)


def cause_of(error: Exception, message: shim.ChaincodeMessage) -> ChaindockError:
    """Return the error whose message is the CAUSE of an ERROR reply."""
    if isinstance(error, ChaindockError):
        return error
    if isinstance(error, DecodeError):
        return InvalidInput(f"unmarshal failed: {error}")
    _log.error(
        "request failed unexpectedly",
        tx=message.txid[:64],
        kind=kind_of(message),
        exc_info=error,
    )
    return ChaindockError("panic during execution")


def _error_text(message: shim.ChaincodeMessage, cause: str) -> str:
    return f"{kind_of(message)} failed: transaction ID: {message.txid}: {cause}"


def kind_of(message: shim.ChaincodeMessage) -> str:
    """Return the name of its type; the number as text if it has none."""
    try:
        return str(Kind.Type.Name(message.type))
    except ValueError:
        return str(message.type)


def _require_public(context: Context, collection: str) -> None:
    if not collection:
        return
    _require_not_init(context)
    raise Unsupported(
        f"private data (collection {collection!r}) is not yet supported by Chaindock"
    )


def _require_not_init(context: Context) -> None:
    if context.is_init:
        raise InvalidInput("private data APIs are not allowed in chaincode Init()")


def _get_state(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.GetState.FromString(payload)
    if request.collection:
        _require_public(context, request.collection)
    return context.simulator.get_state(context.namespace, request.key) or b""


def _put_state(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.PutState.FromString(payload)
    _put(context, request.collection, request.key, request.value)
    return b""


def _put(context: Context, collection: str, key: str, value: bytes) -> None:
    if collection:
        _require_public(context, collection)
    context.note_written(len(key) + len(value))
    if value:
        context.simulator.put_state(context.namespace, key, value)
    else:  # an empty value is a delete
        context.simulator.delete_state(context.namespace, key)


def _del_state(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.DelState.FromString(payload)
    _put(context, request.collection, request.key, b"")
    return b""


async def _get_state_multiple(
    context: Context, payload: bytes, options: StreamOptions
) -> bytes:
    request = shim.GetStateMultiple.FromString(payload)
    _require_public(context, request.collection)
    values: list[bytes] = []
    size = 0
    for number, key in enumerate(request.keys, 1):
        # One by one: a key may be named often, and its value may be large.
        value = context.simulator.get_state(context.namespace, key) or b""
        size += len(value)
        if size > options.max_message_bytes:
            raise InvalidInput(
                f"values of more than {options.max_message_bytes} bytes; ask for fewer"
                f" than {len(request.keys)} keys"
            )
        values.append(value)
        if number % SLICE == 0:
            await _others_first(context)
    result: bytes = shim.GetStateMultipleResult(values=values).SerializeToString()
    return result


async def _write_batch(
    context: Context, payload: bytes, _options: StreamOptions
) -> bytes:
    request = shim.WriteBatchState.FromString(payload)
    for number, record in enumerate(request.rec, 1):
        if record.type == shim.WriteRecord.PUT_STATE:
            _put(context, record.collection, record.key, record.value)
        elif record.type == shim.WriteRecord.DEL_STATE:
            _put(context, record.collection, record.key, b"")
        elif record.type == shim.WriteRecord.PUT_STATE_METADATA:
            raise _no_metadata()
        elif record.type == shim.WriteRecord.PURGE_PRIVATE_DATA:
            _purge(context, record.collection)
        else:
            raise InvalidInput("unknown operation type")
        if number % SLICE == 0:
            await _others_first(context)
    return b""


async def _others_first(context: Context) -> None:
    await asyncio.sleep(0)
    if context.over:
        raise NotFound(NO_CONTEXT)


async def _range(context: Context, payload: bytes, options: StreamOptions) -> bytes:
    request = shim.GetStateByRange.FromString(payload)
    _require_public(context, request.collection)
    return await queries.open_range(
        context, request, options.total_query_limit, options.max_message_bytes
    )


def _rich_query(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.GetQueryResult.FromString(payload)
    _require_public(context, request.collection)
    paging = shim.QueryMetadata.FromString(request.metadata)
    paged = "WithMetadata" if paging.pageSize or paging.bookmark else ""
    raise Unsupported(f"ExecuteQuery{paged} not supported for leveldb")


def _history(context: Context, payload: bytes, options: StreamOptions) -> bytes:
    return queries.open_history(context, payload, options.total_query_limit)


def _next(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    return queries.next_batch(context, payload)


def _close(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    return queries.close_query(context, payload)


def _no_metadata() -> Unsupported:
    return Unsupported(
        "state metadata (key-level endorsement) is not yet supported by Chaindock"
    )


def _get_metadata(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    _require_public(context, shim.GetStateMetadata.FromString(payload).collection)
    raise _no_metadata()


def _put_metadata(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    _require_public(context, shim.PutStateMetadata.FromString(payload).collection)
    raise _no_metadata()


def _get_hash(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.GetState.FromString(payload)
    _require_not_init(context)
    _require_public(context, request.collection)
    raise InvalidInput("only applicable for private data")


def _purge_state(context: Context, payload: bytes, _options: StreamOptions) -> bytes:
    _purge(context, shim.DelState.FromString(payload).collection)
    return b""


def _purge(context: Context, collection: str) -> None:
    if not collection:
        raise InvalidInput("only applicable for private data")
    _require_public(context, collection)


def _invoke(_context: Context, _payload: bytes, _options: StreamOptions) -> bytes:
    raise Unsupported(
        "calling another chaincode (INVOKE_CHAINCODE) is not yet supported by Chaindock"
    )


REQUESTS: Final[Mapping[int, Request]] = {
    Kind.GET_STATE: _get_state,
    Kind.PUT_STATE: _put_state,
    Kind.DEL_STATE: _del_state,
    Kind.INVOKE_CHAINCODE: _invoke,
    Kind.GET_STATE_BY_RANGE: _range,
    Kind.GET_QUERY_RESULT: _rich_query,
    Kind.QUERY_STATE_NEXT: _next,
    Kind.QUERY_STATE_CLOSE: _close,
    Kind.GET_HISTORY_FOR_KEY: _history,
    Kind.GET_STATE_METADATA: _get_metadata,
    Kind.PUT_STATE_METADATA: _put_metadata,
    Kind.GET_PRIVATE_DATA_HASH: _get_hash,
    Kind.PURGE_PRIVATE_DATA: _purge_state,
    Kind.WRITE_BATCH_STATE: _write_batch,
    Kind.GET_STATE_MULTIPLE: _get_state_multiple,
}
"""All 15 request types."""
