"""Answer what chaincode asks for while it runs a call: one function per request type.

Each request gets exactly one reply, whatever it holds. A request that may take long is
done in steps, between which other streams and other calls are served; a step reads no more
than about 1 MiB from the ledger.
Source: docs/fabric/shim-protocol.md#requests, docs/fabric/shim-protocol.md#queries
"""

from __future__ import annotations

import time
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.chaincode.wire import MOST_ID, MOST_ITEMS, why_unreadable
from chaindock.errors import (
    BudgetExceeded,
    ChaindockError,
    InvalidInput,
    NotFound,
    Unsupported,
)
from chaindock.ledger.budget import Budget
from chaindock.telemetry import get_logger, metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping

    from chaindock.chaincode.invocation import Call, Query
    from chaindock.chaincode.options import StreamOptions
    from chaindock.ledger.queries import RangeResults

    Nested = Callable[[], Awaitable[shim.ChaincodeMessage]]
    """Makes a call of another chaincode, and returns the message that answers it."""
    Steps = Generator[Nested | None, Any, bytes]
    """Work that yields between two steps, and returns the payload of the reply; it gets the
    outcome of each call that it yields."""
    Request = Callable[[Call, Any, StreamOptions], bytes | Steps]
    Serving = Generator[Nested | None, Any, tuple[shim.ChaincodeMessage, int, int]]

Kind: Final = shim.ChaincodeMessage
_KINDS: Final = {number: name for name, number in Kind.Type.items()}
SLICE: Final = 500
"""Keys, records or rows of one request that are handled in one step."""
STEP_BYTES: Final = 1024 * 1024
"""Bytes that are read in one step; one value may be larger."""
NO_CONTEXT: Final = "no ledger context"
_NO_TRANSACTION: Final = "could not get valid transaction"
_PANIC: Final = "panic during execution"
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
    metrics.request_received(kind, channel, ccid)
    result: bytes | ChaindockError
    taken = 0
    if call is None or call.over:
        calling = message.type == Kind.INVOKE_CHAINCODE
        result = NotFound(_NO_TRANSACTION if calling else NO_CONTEXT)
    elif isinstance(request, Exception):
        result = _cause_of(request, message)
    else:
        try:
            form, act = REQUESTS[message.type]
            if request is None:
                request = form.FromString(message.payload)
            work = act(call, request, options)
            result = work if isinstance(work, bytes) else (yield from work)
            if len(result) > options.max_message_bytes - _FRAME_BYTES:
                result = InvalidInput(
                    f"result of {len(result)} bytes is too large to be sent"
                )
            else:
                taken = len(result) + 2 * MOST_ID
                budget.take(taken)
        except Exception as error:  # noqa: BLE001  # no request may end the stream
            result, taken = _cause_of(error, message), 0
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
    return reply, len(result) + 2 * MOST_ID, taken


def _cause_of(error: Exception, message: shim.ChaincodeMessage) -> ChaindockError:
    """Return the error whose message is the CAUSE of an ERROR reply."""
    if isinstance(error, ChaindockError):
        return error
    if isinstance(error, DecodeError):
        return InvalidInput(why_unreadable(message.payload))
    tx_id, kind = message.txid[:64], kind_of(message)
    _log.error("request failed unexpectedly", tx=tx_id, kind=kind, exc_info=error)
    return ChaindockError(_PANIC)


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
    _require_public(call, collection)
    invocation = call.invocation  # an empty value is a delete
    invocation.simulator.put_state(invocation.namespace, key, value)


def _require_few(found: int, most: int, what: str) -> None:
    """Bound what one message asks for; READY has announced fewer, Fabric has no bound."""
    most = max(most, MOST_ITEMS)
    if found > most:
        raise InvalidInput(
            f"{found} {what} in one message, more than the limit of {most}"
        )


def _get_state(call: Call, request: shim.GetState, _options: StreamOptions) -> bytes:
    _require_public(call, request.collection)
    return _get(call, request.key)


def _put_state(call: Call, request: shim.PutState, _options: StreamOptions) -> bytes:
    _put(call, request.collection, request.key, request.value)
    return b""


def _del_state(call: Call, request: shim.DelState, _options: StreamOptions) -> bytes:
    _put(call, request.collection, request.key, b"")
    return b""


def _get_state_multiple(
    call: Call, request: shim.GetStateMultiple, options: StreamOptions
) -> Steps:
    _require_public(call, request.collection)
    _require_few(len(request.keys), options.max_size_get_multiple_keys, "keys")
    values: list[bytes] = []
    name = f"the answer (ask for fewer than {len(request.keys)} keys)"
    answer, step_began = Budget(options.max_message_bytes, name, call.budget), 0
    try:
        for number, key in enumerate(request.keys, 1):
            # One by one: a key may be named often, and its value may be large.
            values.append(_get(call, key))
            answer.take(len(values[-1]))
            if number % SLICE == 0 or answer.held - step_began > STEP_BYTES:
                step_began = answer.held
                yield None
    finally:
        answer.give_back()
    result: bytes = shim.GetStateMultipleResult(values=values).SerializeToString()
    return result


def _write_batch(
    call: Call, request: shim.WriteBatchState, options: StreamOptions
) -> Steps:
    _require_few(len(request.rec), options.max_size_write_batch, "records")
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
            yield None
    return b""


# --- queries --------------------------------------------------------------------------


def _open_range(
    call: Call, request: shim.GetStateByRange, options: StreamOptions
) -> bytes | Steps:
    _require_public(call, request.collection)
    paging = _paging_of(request.metadata)
    simulator = call.invocation.simulator
    bounds = (call.invocation.namespace, request.startKey, request.endKey)
    limit = options.total_query_limit
    if not (paging.pageSize or paging.bookmark):
        return _batch(call, call.open_query(simulator.open_range(*bounds), limit))
    size = min(paging.pageSize, limit) if paging.pageSize > 0 else limit
    rows = simulator.open_range(*bounds, page_size=size, bookmark=paging.bookmark)
    name = f"the page (ask for fewer than {size} rows)"
    return _page(rows, size, Budget(options.max_message_bytes, name, call.budget))


def _paging_of(metadata: bytes) -> shim.QueryMetadata:
    try:
        return shim.QueryMetadata.FromString(metadata)
    except DecodeError:
        raise InvalidInput(why_unreadable(metadata)) from None


def _page(rows: RangeResults, size: int, budget: Budget) -> Steps:
    """Return the one answer with all rows of a page."""
    page: list[bytes] = []
    try:
        while True:
            found = rows.take(min(SLICE, size - len(page)), STEP_BYTES)
            budget.take(sum(map(len, found)))
            page += found
            if not found or rows.exhausted or len(page) >= size:
                break
            yield None
        bookmark = rows.bookmark
    finally:
        rows.close()
        budget.give_back()
    metadata = shim.QueryResponseMetadata(
        fetched_records_count=len(page), bookmark=bookmark
    )
    name = str(uuid.uuid4())
    return _rows(page, name, more=False, metadata=metadata.SerializeToString())


def _open_history(
    call: Call, request: shim.GetHistoryForKey, options: StreamOptions
) -> bytes:
    invocation = call.invocation
    rows = invocation.simulator.open_history(invocation.namespace, request.key)
    return _batch(call, call.open_query(rows, options.total_query_limit))


def _next_batch(
    call: Call, request: shim.QueryStateNext, _options: StreamOptions
) -> bytes:
    query = call.queries.get(request.id)
    if query is None:
        raise NotFound("query iterator not found")
    return _batch(call, query)


def _close_query(
    call: Call, request: shim.QueryStateClose, _options: StreamOptions
) -> bytes:
    call.drop_query(request.id)
    return _rows((), request.id, more=False)


def _batch(call: Call, query: Query) -> bytes:
    try:
        rows, more = query.batch()
    except BaseException:
        call.drop_query(query.name)
        raise
    if not more:
        call.drop_query(query.name)
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


def _rich_query(
    call: Call, request: shim.GetQueryResult, _options: StreamOptions
) -> bytes:
    _require_public(call, request.collection)
    paging = _paging_of(request.metadata)
    paged = "WithMetadata" if paging.pageSize or paging.bookmark else ""
    raise Unsupported(f"ExecuteQuery{paged} not supported for leveldb")


# --- other chaincode ------------------------------------------------------------------


def _invoke_chaincode(
    call: Call, request: chaincode_pb2.ChaincodeSpec, _options: StreamOptions
) -> Steps:
    if not request.HasField("chaincode_id") or not request.HasField("input"):
        raise ChaindockError(_PANIC)
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
    result: bytes = message.SerializeToString()
    return result


def target_of(text: str) -> tuple[str, str]:
    """Return name and channel of `NAME[:VERSION][/CHANNEL]`; "" = the caller's channel."""
    name, _, channel = text.partition("/")
    return name.partition(":")[0], channel


# --- what is refused ------------------------------------------------------------------


def _refuse(error: ChaindockError) -> Request:
    """Return a request that is refused, as private data if it names a collection."""

    def refuse(call: Call, request: Any, _options: StreamOptions) -> bytes:
        _require_public(call, getattr(request, "collection", ""))
        raise type(error)(error.message)  # a new one: each raise adds to its traceback

    return refuse


_NO_METADATA: Final = Unsupported(
    "state metadata (key-level endorsement) is not yet supported by Chaindock"
)
_ONLY_PRIVATE: Final = InvalidInput("only applicable for private data")


REQUESTS: Final[Mapping[int, tuple[Any, Request]]] = {
    Kind.GET_STATE: (shim.GetState, _get_state),
    Kind.PUT_STATE: (shim.PutState, _put_state),
    Kind.DEL_STATE: (shim.DelState, _del_state),
    Kind.INVOKE_CHAINCODE: (chaincode_pb2.ChaincodeSpec, _invoke_chaincode),
    Kind.GET_STATE_BY_RANGE: (shim.GetStateByRange, _open_range),
    Kind.GET_QUERY_RESULT: (shim.GetQueryResult, _rich_query),
    Kind.QUERY_STATE_NEXT: (shim.QueryStateNext, _next_batch),
    Kind.QUERY_STATE_CLOSE: (shim.QueryStateClose, _close_query),
    Kind.GET_HISTORY_FOR_KEY: (shim.GetHistoryForKey, _open_history),
    Kind.GET_STATE_METADATA: (shim.GetStateMetadata, _refuse(_NO_METADATA)),
    Kind.PUT_STATE_METADATA: (shim.PutStateMetadata, _refuse(_NO_METADATA)),
    Kind.GET_PRIVATE_DATA_HASH: (shim.GetState, _refuse(_ONLY_PRIVATE)),
    Kind.PURGE_PRIVATE_DATA: (shim.DelState, _refuse(_ONLY_PRIVATE)),
    Kind.WRITE_BATCH_STATE: (shim.WriteBatchState, _write_batch),
    Kind.GET_STATE_MULTIPLE: (shim.GetStateMultiple, _get_state_multiple),
}
"""All 15 request types: what the payload is, and what answers it."""
