"""Answer what chaincode asks for while it runs a call: one function per request type.

Each request gets exactly one reply, whatever it holds. A request that may take long is
done in steps, between which other streams and other calls are served.
Source: docs/fabric/shim-protocol.md#requests
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.chaincode import queries
from chaindock.errors import ChaindockError, InvalidInput, NotFound, Unsupported
from chaindock.telemetry import get_logger, metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from chaindock.chaincode.calls import Call
    from chaindock.chaincode.options import StreamOptions

    Steps = Generator[None, None, bytes]
    """Work that yields between two steps, and returns the payload of the reply."""
    Request = Callable[[Call, bytes, StreamOptions], bytes | Steps]

Kind = shim.ChaincodeMessage
_KINDS: Final = {number: name for name, number in Kind.Type.items()}
RESPONSE: Final = Kind.RESPONSE
ERROR: Final = Kind.ERROR
SLICE: Final = 500
"""Keys or records of one request that are handled in one step."""
SLICE_BYTES: Final = 1024 * 1024
"""Values of one request that are read in one step; one value may be larger."""
NO_CONTEXT: Final = "no ledger context"
_FRAME_BYTES: Final = 4096
"""Room for everything of a reply but its payload."""
_log = get_logger("chaincode.requests")


def serve(
    call: Call | None,
    message: shim.ChaincodeMessage,
    options: StreamOptions,
    ccid: str,
) -> Generator[None, None, tuple[shim.ChaincodeMessage, int]]:
    """Carry out a request of `call` in steps; None = of no running call.

    Raises nothing; an error that is thrown in is the cause of an ERROR reply.

    Returns: the reply, and the size of its payload in bytes.
    """
    began = time.perf_counter()
    kind = kind_of(message)
    # The channel in the message itself may be anything.
    channel = "" if call is None else call.invocation.channel_id
    metrics.request_received(kind, channel, ccid)
    result: bytes | ChaindockError
    if call is None or call.over:
        result = NotFound(NO_CONTEXT)
    else:
        try:
            work = REQUESTS[message.type](call, message.payload, options)
            result = work if isinstance(work, bytes) else (yield from work)
        except Exception as error:  # noqa: BLE001  # no request may end the stream
            result = _cause_of(error, message)
    if call is not None and isinstance(result, Unsupported):
        call.invocation.refuse(result.message)
    reply, size = _reply_to(message, result, options)
    ok = reply.type == RESPONSE
    spent_s = time.perf_counter() - began
    metrics.request_answered(kind, channel, ccid, spent_s, ok=ok)
    return reply, size


def _reply_to(
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
    # All that a chaincode chooses counts: the channel may be as long as the payload.
    return reply, len(payload) + len(reply.txid) + len(reply.channel_id)


def _cause_of(error: Exception, message: shim.ChaincodeMessage) -> ChaindockError:
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
    return _KINDS.get(message.type) or str(message.type)


def _require_public(call: Call, collection: str) -> None:
    if not collection:
        return
    if call.is_init:
        raise InvalidInput("private data APIs are not allowed in chaincode Init()")
    raise Unsupported(
        f"private data (collection {collection!r}) is not yet supported by Chaindock"
    )


def _get_state(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.GetState.FromString(payload)
    if request.collection:
        _require_public(call, request.collection)
    return call.simulator.get_state(call.namespace, request.key) or b""


def _put_state(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.PutState.FromString(payload)
    _put(call, request.collection, request.key, request.value)
    return b""


def _put(call: Call, collection: str, key: str, value: bytes) -> None:
    if collection:
        _require_public(call, collection)
    call.note_written(len(key) + len(value))
    if value:
        call.simulator.put_state(call.namespace, key, value)
    else:  # an empty value is a delete
        call.simulator.delete_state(call.namespace, key)


def _del_state(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.DelState.FromString(payload)
    _put(call, request.collection, request.key, b"")
    return b""


def _get_state_multiple(call: Call, payload: bytes, options: StreamOptions) -> Steps:
    request = shim.GetStateMultiple.FromString(payload)
    _require_public(call, request.collection)
    values: list[bytes] = []
    size = step_began = 0
    for number, key in enumerate(request.keys, 1):
        # One by one: a key may be named often, and its value may be large.
        value = call.simulator.get_state(call.namespace, key) or b""
        values.append(value)
        size += len(value)
        if size > options.max_message_bytes:
            raise InvalidInput(
                f"values of more than {options.max_message_bytes} bytes; ask for fewer"
                f" than {len(request.keys)} keys"
            )
        if number % SLICE == 0 or size - step_began > SLICE_BYTES:
            step_began = size
            yield
    result: bytes = shim.GetStateMultipleResult(values=values).SerializeToString()
    return result


def _write_batch(call: Call, payload: bytes, _options: StreamOptions) -> Steps:
    request = shim.WriteBatchState.FromString(payload)
    for number, record in enumerate(request.rec, 1):
        if record.type == shim.WriteRecord.PUT_STATE:
            _put(call, record.collection, record.key, record.value)
        elif record.type == shim.WriteRecord.DEL_STATE:
            _put(call, record.collection, record.key, b"")
        elif record.type == shim.WriteRecord.PUT_STATE_METADATA:
            raise Unsupported(_NO_METADATA.message)
        elif record.type == shim.WriteRecord.PURGE_PRIVATE_DATA:
            _require_public(call, record.collection)
            raise InvalidInput(_ONLY_PRIVATE.message)
        else:
            raise InvalidInput("unknown operation type")
        if number % SLICE == 0:
            yield
    return b""


def _range(call: Call, payload: bytes, options: StreamOptions) -> bytes | Steps:
    request = shim.GetStateByRange.FromString(payload)
    _require_public(call, request.collection)
    return queries.open_range(call, request, options)


def _rich_query(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.GetQueryResult.FromString(payload)
    _require_public(call, request.collection)
    paging = shim.QueryMetadata.FromString(request.metadata)
    paged = "WithMetadata" if paging.pageSize or paging.bookmark else ""
    raise Unsupported(f"ExecuteQuery{paged} not supported for leveldb")


def _refuse(decode: Callable[[bytes], Any], error: ChaindockError) -> Request:
    """Return a request that is refused, as private data if it names a collection."""

    def refuse(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
        _require_public(call, decode(payload).collection)
        raise type(error)(error.message)  # a new one: each raise adds to its traceback

    return refuse


_NO_METADATA: Final = Unsupported(
    "state metadata (key-level endorsement) is not yet supported by Chaindock"
)
_ONLY_PRIVATE: Final = InvalidInput("only applicable for private data")


def _invoke(_call: Call, _payload: bytes, _options: StreamOptions) -> bytes:
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
    Kind.QUERY_STATE_NEXT: queries.next_batch,
    Kind.QUERY_STATE_CLOSE: queries.close_query,
    Kind.GET_HISTORY_FOR_KEY: queries.open_history,
    Kind.GET_STATE_METADATA: _refuse(shim.GetStateMetadata.FromString, _NO_METADATA),
    Kind.PUT_STATE_METADATA: _refuse(shim.PutStateMetadata.FromString, _NO_METADATA),
    Kind.GET_PRIVATE_DATA_HASH: _refuse(shim.GetState.FromString, _ONLY_PRIVATE),
    Kind.PURGE_PRIVATE_DATA: _refuse(shim.DelState.FromString, _ONLY_PRIVATE),
    Kind.WRITE_BATCH_STATE: _write_batch,
    Kind.GET_STATE_MULTIPLE: _get_state_multiple,
}
"""All 15 request types."""
