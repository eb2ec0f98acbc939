"""Answer requests about keys: values, metadata, private data, and several at a time.

Source: docs/fabric/shim-protocol.md#requests, docs/fabric/shim-protocol.md#private-data
"""

from __future__ import annotations

from typing import Final

from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode.invocation import PANIC, SLICE, STEP_BYTES, Call, Steps
from chaindock.chaincode.options import StreamOptions
from chaindock.chaincode.wire import MOST_ITEMS
from chaindock.errors import ChaindockError, InvalidInput
from chaindock.ledger.budget import Budget

_ONLY_PRIVATE: Final = "only applicable for private data"
_PURGE: Final = "purge private data", "V2_5"
METADATA: Final = "key level endorsement", "V1_3"
"""What metadata are for, and the capability of the channel that they need."""


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
    _put(call, request.collection, request.key, request.value)
    return b""


def del_state(call: Call, request: shim.DelState, _options: StreamOptions) -> bytes:
    """Delete a key, which may be absent."""
    _put(call, request.collection, request.key, b"")
    return b""


def _put(call: Call, collection: str, key: str, value: bytes) -> None:
    invocation = call.invocation
    if collection:
        invocation.require(collection, write=True)
        invocation.simulator.put_private(invocation.namespace, collection, key, value)
    else:
        invocation.simulator.put_state(invocation.namespace, key, value)


def purge_private_data(
    call: Call, request: shim.DelState, _options: StreamOptions
) -> bytes:
    """Delete a private value and all its earlier versions."""
    _purge(call, request.collection, request.key)
    return b""


def _purge(call: Call, collection: str, key: str) -> None:
    require_enabled(call, *_PURGE)
    if not collection:
        raise InvalidInput(_ONLY_PRIVATE)
    invocation = call.invocation
    invocation.require(collection, write=True)
    invocation.simulator.purge_private(invocation.namespace, collection, key)


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
    _put_metadata(call, request)
    return b""


def _put_metadata(
    call: Call, request: shim.PutStateMetadata | shim.WriteRecord
) -> None:
    require_enabled(call, *METADATA)
    if not request.HasField("metadata"):
        raise ChaindockError(PANIC)
    invocation, collection = call.invocation, request.collection
    if collection:
        invocation.require(collection, write=True)
    entry = {request.metadata.metakey: request.metadata.value}
    ns, simulator = invocation.namespace, invocation.simulator
    simulator.put_metadata(ns, request.key, entry, collection)


# --- several at a time ----------------------------------------------------------------


def get_state_multiple(
    call: Call, request: shim.GetStateMultiple, options: StreamOptions
) -> Steps:
    """Return the values of keys in their order; private ones are not compared."""
    invocation, collection = call.invocation, request.collection
    stored = bool(collection) and invocation.require(collection)
    _require_few(len(request.keys), options.max_size_get_multiple_keys, "keys")
    ns, simulator = invocation.namespace, invocation.simulator
    values: list[bytes] = []
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
            values.append(value or b"")
            answer.take(len(values[-1]))
            if number % SLICE == 0 or answer.held - step_began > STEP_BYTES:
                step_began = answer.held
                yield None
    finally:
        answer.give_back()
    return bytes(shim.GetStateMultipleResult(values=values).SerializeToString())


def write_batch(
    call: Call, request: shim.WriteBatchState, options: StreamOptions
) -> Steps:
    """Apply records in their order; the first that fails ends it, earlier ones stay."""
    _require_few(len(request.rec), options.max_size_write_batch, "records")
    for number, record in enumerate(request.rec, 1):
        if record.type == shim.WriteRecord.PUT_STATE:
            _put(call, record.collection, record.key, record.value)
        elif record.type == shim.WriteRecord.DEL_STATE:
            _put(call, record.collection, record.key, b"")
        elif record.type == shim.WriteRecord.PUT_STATE_METADATA:
            _put_metadata(call, record)
        elif record.type == shim.WriteRecord.PURGE_PRIVATE_DATA:
            _purge(call, record.collection, record.key)
        else:
            raise InvalidInput("unknown operation type")
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
