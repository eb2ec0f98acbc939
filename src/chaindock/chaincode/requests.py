"""Answer what chaincode asks for while it runs a call: one function per request type.

Each request gets exactly one reply, whatever it holds. A request that may take long is
done in steps, between which other streams and other calls are served; a step reads no more
than about 1 MiB from the ledger.
Source: docs/fabric/shim-protocol.md#requests, docs/fabric/shim-protocol.md#queries
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Final

from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.errors import ChaindockError, InvalidInput, NotFound, Unsupported
from chaindock.telemetry import get_logger, metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from chaindock.chaincode.invocation import Call, Query
    from chaindock.chaincode.options import StreamOptions
    from chaindock.ledger.simulator import Results

    Steps = Generator[None, None, bytes]
    """Work that yields between two steps, and returns the payload of the reply."""
    Request = Callable[[Call, bytes, StreamOptions], bytes | Steps]
    Serving = Generator[None, None, tuple[shim.ChaincodeMessage, int]]

Kind: Final = shim.ChaincodeMessage
_KINDS: Final = {number: name for name, number in Kind.Type.items()}
SLICE: Final = 500
"""Keys, records or rows of one request that are handled in one step."""
STEP_BYTES: Final = 1024 * 1024
"""Bytes that are read in one step; one value may be larger."""
HELD_BYTES: Final = 64 * 1024 * 1024
"""What the open queries of one call may have read ahead; one row may be 10 MiB."""
NO_CONTEXT: Final = "no ledger context"
_FRAME_BYTES: Final = 4096
"""Room for everything of a reply but its payload."""
_log = get_logger("chaincode.requests")


def serve(
    call: Call | None,
    message: shim.ChaincodeMessage,
    options: StreamOptions,
    ccid: str,
) -> Serving:
    """Carry out a request of `call` in steps; None = of no running call.

    Raises nothing; an error that is thrown in is the cause of an ERROR reply.

    Returns: the reply, and the bytes in it that the chaincode chose.
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
            if len(result) > options.max_message_bytes - _FRAME_BYTES:
                result = InvalidInput(
                    f"result of {len(result)} bytes is too large to be sent"
                )
        except Exception as error:  # noqa: BLE001  # no request may end the stream
            result = _cause_of(error, message)
            if isinstance(result, Unsupported):
                call.invocation.refuse(result.message)
    ok = isinstance(result, bytes)
    if isinstance(result, ChaindockError):
        result = (
            f"{kind} failed: transaction ID: {message.txid}: {result.message}".encode()
        )
    reply = shim.ChaincodeMessage(
        type=Kind.RESPONSE if ok else Kind.ERROR,
        payload=result,
        txid=message.txid,
        channel_id=message.channel_id,
    )
    spent_s = time.perf_counter() - began
    metrics.request_answered(kind, channel, ccid, spent_s, ok=ok)
    # The channel may be as long as the payload.
    return reply, len(result) + len(reply.txid) + len(reply.channel_id)


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


def kind_of(message: shim.ChaincodeMessage) -> str:
    """Return the name of its type; the number as text if it has none."""
    return _KINDS.get(message.type) or str(message.type)


def _require_public(call: Call, collection: str) -> None:
    if not collection:
        return
    if call.invocation.is_init:
        raise InvalidInput("private data APIs are not allowed in chaincode Init()")
    raise Unsupported(
        f"private data (collection {collection!r}) is not yet supported by Chaindock"
    )


# --- keys -----------------------------------------------------------------------------


def _get(call: Call, key: str) -> bytes:
    invocation = call.invocation
    return invocation.simulator.get_state(invocation.namespace, key) or b""


def _put(call: Call, collection: str, key: str, value: bytes) -> None:
    if collection:
        _require_public(call, collection)
    call.note_written(len(key) + len(value))
    invocation = call.invocation  # an empty value is a delete
    invocation.simulator.put_state(invocation.namespace, key, value)


def _get_state(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.GetState.FromString(payload)
    if request.collection:
        _require_public(call, request.collection)
    return _get(call, request.key)


def _put_state(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.PutState.FromString(payload)
    _put(call, request.collection, request.key, request.value)
    return b""


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
        values.append(_get(call, key))
        size += len(values[-1])
        if size > options.max_message_bytes:
            raise InvalidInput(
                f"values of more than {options.max_message_bytes} bytes; ask for fewer"
                f" than {len(request.keys)} keys"
            )
        if number % SLICE == 0 or size - step_began > STEP_BYTES:
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


# --- queries --------------------------------------------------------------------------


def _open_range(call: Call, payload: bytes, options: StreamOptions) -> bytes | Steps:
    request = shim.GetStateByRange.FromString(payload)
    _require_public(call, request.collection)
    paging = shim.QueryMetadata.FromString(request.metadata)
    simulator = call.invocation.simulator
    bounds = (call.invocation.namespace, request.startKey, request.endKey)
    limit = options.total_query_limit
    if not (paging.pageSize or paging.bookmark):
        return _batch(call, call.open_query(simulator.open_range(*bounds), limit))
    size = min(paging.pageSize, limit) if paging.pageSize > 0 else limit
    rows = simulator.open_range(*bounds, page_size=size, bookmark=paging.bookmark)
    return _page(rows, size, options.max_message_bytes)


def _page(rows: Results, size: int, max_bytes: int) -> Steps:
    """Return the one answer with all rows of a page."""
    page: list[bytes] = []
    total = 0
    try:
        while True:
            found = rows.take(min(SLICE, size - len(page)), STEP_BYTES)
            page += found
            total += sum(map(len, found))
            if total > max_bytes:
                raise InvalidInput(
                    f"page of more than {max_bytes} bytes; ask for fewer than {size} "
                    "rows"
                )
            if not found or rows.exhausted or len(page) >= size:
                break
            yield
        bookmark = rows.bookmark
    finally:
        rows.close()
    metadata = shim.QueryResponseMetadata(
        fetched_records_count=len(page), bookmark=bookmark
    )
    name = str(uuid.uuid4())
    return _rows(page, name, more=False, metadata=metadata.SerializeToString())


def _open_history(call: Call, payload: bytes, options: StreamOptions) -> bytes:
    key = shim.GetHistoryForKey.FromString(payload).key
    rows = call.invocation.simulator.open_history(call.invocation.namespace, key)
    return _batch(call, call.open_query(rows, options.total_query_limit))


def _next_batch(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    query = call.queries.get(shim.QueryStateNext.FromString(payload).id)
    if query is None:
        raise NotFound("query iterator not found")
    return _batch(call, query)


def _close_query(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    name = shim.QueryStateClose.FromString(payload).id
    call.drop_query(name)
    return _rows((), name, more=False)


def _batch(call: Call, query: Query) -> bytes:
    try:
        rows, more = query.batch()
    except BaseException:
        call.drop_query(query.name)
        raise
    if not more:
        call.drop_query(query.name)
    elif sum(one.held for one in call.queries.values()) > HELD_BYTES:
        call.drop_query(query.name)
        raise InvalidInput(
            f"open queries hold more than {HELD_BYTES} bytes; close some of them"
        )
    return _rows(rows, query.name, more=more)


def _rows(
    rows: Iterable[bytes], name: str, *, more: bool, metadata: bytes = b""
) -> bytes:
    response: bytes = shim.QueryResponse(
        results=[shim.QueryResultBytes(resultBytes=row) for row in rows],
        has_more=more,
        id=name,
        metadata=metadata,
    ).SerializeToString()
    return response


def _rich_query(call: Call, payload: bytes, _options: StreamOptions) -> bytes:
    request = shim.GetQueryResult.FromString(payload)
    _require_public(call, request.collection)
    paging = shim.QueryMetadata.FromString(request.metadata)
    paged = "WithMetadata" if paging.pageSize or paging.bookmark else ""
    raise Unsupported(f"ExecuteQuery{paged} not supported for leveldb")


# --- what is refused ------------------------------------------------------------------


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
    Kind.GET_STATE_BY_RANGE: _open_range,
    Kind.GET_QUERY_RESULT: _rich_query,
    Kind.QUERY_STATE_NEXT: _next_batch,
    Kind.QUERY_STATE_CLOSE: _close_query,
    Kind.GET_HISTORY_FOR_KEY: _open_history,
    Kind.GET_STATE_METADATA: _refuse(shim.GetStateMetadata.FromString, _NO_METADATA),
    Kind.PUT_STATE_METADATA: _refuse(shim.PutStateMetadata.FromString, _NO_METADATA),
    Kind.GET_PRIVATE_DATA_HASH: _refuse(shim.GetState.FromString, _ONLY_PRIVATE),
    Kind.PURGE_PRIVATE_DATA: _refuse(shim.DelState.FromString, _ONLY_PRIVATE),
    Kind.WRITE_BATCH_STATE: _write_batch,
    Kind.GET_STATE_MULTIPLE: _get_state_multiple,
}
"""All 15 request types."""
