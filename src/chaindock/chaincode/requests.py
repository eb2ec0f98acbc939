"""Answer what chaincode asks for while it runs a call: one function per request type.

Each request gets exactly one reply, whatever it holds. A request that may take long is
done in steps, between which other streams and other calls are served; a step reads no more
than about 1 MiB from the ledger.
Source: docs/fabric/shim-protocol.md#requests, docs/fabric/shim-protocol.md#queries
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from types import GeneratorType
from typing import Any, Final

from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf.message import DecodeError

from chaindock.chaincode import queries
from chaindock.chaincode.invocation import Call, Nested, Payload, Steps
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.queries import SLICE
from chaindock.chaincode.wire import (
    LARGE,
    MOST_ID,
    MOST_ITEMS,
    LargeMessage,
    Message,
    why_unreadable,
)
from chaindock.errors import (
    BudgetExceeded,
    ChaindockError,
    InvalidInput,
    NotFound,
    Unsupported,
)
from chaindock.ledger.budget import Budget
from chaindock.ledger.encoding import lead, part
from chaindock.ledger.queries import STEP_BYTES
from chaindock.telemetry import get_logger, metrics

PANIC: Final = "panic during execution"
"""What a Fabric peer says when it has met what it does not expect."""
METADATA: Final = "key level endorsement", "V1_3"
"""What metadata are for, and the capability of the channel that they need."""
Request = Callable[[Call, Any, StreamOptions], Payload | Steps]
Serving = Generator[Nested | None, Any, tuple[Message, int, int]]
Kind: Final = shim.ChaincodeMessage
_KINDS: Final = {number: name for name, number in Kind.Type.items()}
NO_CONTEXT: Final = "no ledger context"
_NO_TRANSACTION: Final = "could not get valid transaction"
_FRAME_BYTES: Final = 4096
"""Room for everything of a reply but its payload."""
_log = get_logger("chaincode.requests")


def get_state(call: Call, request: shim.GetState, _options: StreamOptions) -> bytes:
    """Return the committed value, b"" if there is none."""
    invocation = call.invocation
    if collection := request.collection:
        stored = invocation.require(collection)
        value = invocation.simulator.get_private(
            invocation.namespace, collection, request.key, stored=stored
        )
    else:
        value = invocation.simulator.get_state(invocation.namespace, request.key)
    return value or b""


def put_state(call: Call, request: shim.PutState, _options: StreamOptions) -> bytes:
    """Write a value; an empty one deletes."""
    return _put(call, request, request.value)


def del_state(call: Call, request: shim.DelState, _options: StreamOptions) -> bytes:
    """Delete a key, which may be absent."""
    return _put(call, request, b"")


def _put(call: Call, request: shim.PutState | shim.DelState, value: bytes) -> bytes:
    invocation, collection = call.invocation, request.collection
    ns, simulator = invocation.namespace, invocation.simulator
    if collection:
        invocation.require(collection, write=True)
        simulator.put_private(ns, collection, request.key, value)
    else:
        simulator.put_state(ns, request.key, value)
    return b""


def purge_private_data(
    call: Call, request: shim.DelState, _options: StreamOptions
) -> bytes:
    """Delete a private value and all its earlier versions."""
    require_enabled(call, "purge private data", "V2_5")
    invocation, collection = call.invocation, request.collection
    if not collection:
        raise InvalidInput("only applicable for private data")
    invocation.require(collection, write=True)
    invocation.simulator.purge_private(invocation.namespace, collection, request.key)
    return b""


def require_enabled(call: Call, what: str, least: str) -> None:
    """Refuse what needs a higher capability of the channel. Raises: InvalidInput."""
    if call.invocation.capability < least:
        required = f"channel application capability of {least} or later is required"
        raise InvalidInput(f"{what} is not enabled, {required}")


def get_private_data_hash(
    call: Call, request: shim.GetState, _options: StreamOptions
) -> bytes:
    """Return the hash of a private value; members and others may read it."""
    invocation, collection = call.invocation, request.collection
    rules = invocation.rules()
    if not collection:  # a peer looks, and finds nothing
        return b""
    rules.require_known(collection)
    ns, simulator = invocation.namespace, invocation.simulator
    return simulator.get_private_hash(ns, collection, request.key) or b""


def get_state_metadata(
    call: Call, request: shim.GetStateMetadata, _options: StreamOptions
) -> bytes:
    """Return the committed metadata of a key."""
    require_enabled(call, *METADATA)
    invocation = call.invocation
    if request.collection:
        invocation.require(request.collection)
    found = invocation.simulator.get_metadata(
        invocation.namespace, request.key, request.collection
    )
    entries = [shim.StateMetadata(metakey=k, value=v) for k, v in found.items()]
    return bytes(shim.StateMetadataResult(entries=entries).SerializeToString())


def put_state_metadata(
    call: Call, request: shim.PutStateMetadata, _options: StreamOptions
) -> bytes:
    """Replace all metadata of a key by one entry."""
    require_enabled(call, *METADATA)
    if not request.HasField("metadata"):
        raise ChaindockError(PANIC)
    invocation, collection = call.invocation, request.collection
    if collection:
        invocation.require(collection, write=True)
    entry = {request.metadata.metakey: request.metadata.value}
    ns, simulator = invocation.namespace, invocation.simulator
    simulator.put_metadata(ns, request.key, entry, collection)
    return b""


# --- several at a time ----------------------------------------------------------------


def get_state_multiple(
    call: Call, request: shim.GetStateMultiple, options: StreamOptions
) -> Steps:
    """Return the values of keys in their order; private ones are not compared."""
    invocation, collection = call.invocation, request.collection
    stored = bool(collection) and invocation.require(collection)
    _require_few(len(request.keys), options.max_size_get_multiple_keys, "keys")
    ns, simulator = invocation.namespace, invocation.simulator
    parts: list[bytes] = []
    name = f"the answer (ask for fewer than {len(request.keys)} keys)"
    answer, step_began = Budget(options.max_message_bytes, name, call.budget), 0
    try:
        for number, key in enumerate(request.keys, 1):
            # One by one: a key may be named often, and its value may be large.
            if collection:
                value = simulator.get_private(
                    ns, collection, key, compare=False, stored=stored
                )
            else:
                value = simulator.get_state(ns, key)
            value = value or b""
            answer.take(len(value))
            parts += (lead(1, len(value)), value) if value else (part(1, b""),)
            if number % SLICE == 0 or answer.held - step_began > STEP_BYTES:
                step_began = answer.held
                yield None
    finally:
        answer.give_back()
    return parts  # of a GetStateMultipleResult


_OF_RECORDS: Final = {
    shim.WriteRecord.PUT_STATE: put_state,
    shim.WriteRecord.DEL_STATE: del_state,
    shim.WriteRecord.PUT_STATE_METADATA: put_state_metadata,
    shim.WriteRecord.PURGE_PRIVATE_DATA: purge_private_data,
}
"""A record has the fields of the request of its kind, and more."""


def write_batch(
    call: Call, request: shim.WriteBatchState, options: StreamOptions
) -> Steps:
    """Apply records in their order; the first that fails ends it, earlier ones stay."""
    _require_few(len(request.rec), options.max_size_write_batch, "records")
    for number, record in enumerate(request.rec, 1):
        if record.type not in _OF_RECORDS:
            raise InvalidInput("unknown operation type")
        _OF_RECORDS[record.type](call, record, options)
        if number % SLICE == 0:
            yield None
    return b""


def _require_few(found: int, most: int, what: str) -> None:
    """Bound what one message asks for; READY has announced fewer, Fabric has no bound."""
    most = max(most, MOST_ITEMS)
    if found > most:
        raise InvalidInput(
            f"{found} {what} in one message, more than the limit of {most}"
        )


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
    what the payload holds and its bytes, or why it was not parsed; None = it is in the
    message.

    Returns: the reply, its bytes, and how many the caller owes `budget` once it is sent.
    """
    began = time.perf_counter()
    kind = kind_of(message.type)
    # The channel in the message itself may be anything.
    channel = "" if call is None else call.invocation.channel_id
    metrics.requests(kind, channel, ccid).inc()
    parts: Sequence[bytes] = ()
    failed: ChaindockError | None = None
    size = taken = 0
    if call is None or call.over:
        calling = message.type == Kind.INVOKE_CHAINCODE
        failed = NotFound(_NO_TRANSACTION if calling else NO_CONTEXT)
    elif isinstance(request, Exception):
        failed = _cause_of(request, message, call)
    else:
        try:
            form, act = REQUESTS[message.type]
            if request is None:
                request = form.FromString(message.payload), len(message.payload)
            request, call.asked_bytes = request
            work: Any = act(call, request, options)
            found = (yield from work) if isinstance(work, GeneratorType) else work
            parts = (found,) if isinstance(found, bytes) else found
            if (size := _size_of(parts, options)) > STEP_BYTES:
                yield None  # to read it took some ms
            budget.take(size)
            taken = size
        except Exception as error:  # noqa: BLE001  # no request may end the stream
            failed = _cause_of(error, message, call)
    if failed is not None:
        if call is not None and isinstance(failed, (Unsupported, BudgetExceeded)):
            call.invocation.refuse(failed.message)
        cause = f"transaction ID: {message.txid[:MOST_ID]}: {failed.message}"
        parts = (f"{kind} failed: {cause}".encode(),)
        size = len(parts[0]) + 2 * MOST_ID
    spent_s = time.perf_counter() - began
    metrics.request_answered(kind, channel, ccid, spent_s, ok=failed is None)
    if call is not None and message.type in REQUESTS:
        call.invocation.count(kind, spent_s)
    answer = Kind.RESPONSE if failed is None else Kind.ERROR
    return _reply(message, answer, parts, size), size, taken


def _reply(
    message: shim.ChaincodeMessage, kind: int, payload: Sequence[bytes], size: int
) -> Message:
    txid, channel = message.txid[:MOST_ID], message.channel_id[:MOST_ID]
    if size > LARGE:
        return LargeMessage(kind, txid, channel, lambda: (payload, b""))
    return Kind(type=kind, payload=b"".join(payload), txid=txid, channel_id=channel)


def _size_of(payload: Sequence[bytes], options: StreamOptions) -> int:
    """Return the bytes of a reply. Raises: InvalidInput: too many."""
    size = sum(map(len, payload))
    if size > options.max_message_bytes - _FRAME_BYTES:
        raise InvalidInput(f"result of {size} bytes is too large to be sent")
    return size + 2 * MOST_ID


def _cause_of(
    error: Exception, message: shim.ChaincodeMessage, call: Call
) -> ChaindockError:
    """Return the error whose message is the CAUSE of an ERROR reply."""
    if message.type == Kind.GET_STATE_METADATA:  # a peer looks before it reads that one
        try:
            require_enabled(call, *METADATA)
        except InvalidInput as refusal:
            return refusal
    if isinstance(error, ChaindockError):
        return error
    if isinstance(error, DecodeError):
        return InvalidInput(f"unmarshal failed: {why_unreadable(message.payload)}")
    tx_id, kind = message.txid[:64], kind_of(message.type)
    _log.error("request failed unexpectedly", tx=tx_id, kind=kind, exc_info=error)
    return ChaindockError(PANIC)


def kind_of(kind: int) -> str:
    """Return the name of a type of messages; the number as text if it has none."""
    return _KINDS.get(kind) or str(kind)


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
    size = call.asked_bytes
    call.budget.take(size)
    try:
        answer: bytes = yield partial(invoke, call, name, channel, given)
    finally:
        call.budget.give_back(size)
    return answer


def target_of(text: str) -> tuple[str, str]:
    """Return name and channel of `NAME[:VERSION][/CHANNEL]`; "" = the caller's channel."""
    name, _, channel = text.partition("/")
    return name.partition(":")[0], channel


REQUESTS: Final[Mapping[int, tuple[Any, Request]]] = {
    Kind.GET_STATE: (shim.GetState, get_state),
    Kind.PUT_STATE: (shim.PutState, put_state),
    Kind.DEL_STATE: (shim.DelState, del_state),
    Kind.INVOKE_CHAINCODE: (chaincode_pb2.ChaincodeSpec, _invoke_chaincode),
    Kind.GET_STATE_BY_RANGE: (shim.GetStateByRange, queries.open_range),
    Kind.GET_QUERY_RESULT: (shim.GetQueryResult, queries.open_query),
    Kind.QUERY_STATE_NEXT: (shim.QueryStateNext, queries.next_batch),
    Kind.QUERY_STATE_CLOSE: (shim.QueryStateClose, queries.close_query),
    Kind.GET_HISTORY_FOR_KEY: (shim.GetHistoryForKey, queries.open_history),
    Kind.GET_STATE_METADATA: (shim.GetStateMetadata, get_state_metadata),
    Kind.PUT_STATE_METADATA: (shim.PutStateMetadata, put_state_metadata),
    Kind.GET_PRIVATE_DATA_HASH: (shim.GetState, get_private_data_hash),
    Kind.PURGE_PRIVATE_DATA: (shim.DelState, purge_private_data),
    Kind.WRITE_BATCH_STATE: (shim.WriteBatchState, write_batch),
    Kind.GET_STATE_MULTIPLE: (shim.GetStateMultiple, get_state_multiple),
}
"""All 15 request types: what the payload is, and what answers it."""
