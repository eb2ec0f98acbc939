"""Bound what a large message contains before objects are made of it, and make large ones.

A message of some bytes per field can hold millions of fields; a parser takes seconds and
gigabytes for them. Fields are counted in the encoding itself, up to a limit.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fabric_protos.peer import chaincode_shim_pb2 as shim
from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError

from chaindock.aio import LARGE_BYTES
from chaindock.chaincode.options import StreamOptions
from chaindock.errors import InvalidInput
from chaindock.ledger.encoding import field, lead, number_field
from chaindock.rpc.frames import Buffer

Field = tuple[int, int | memoryview]

Kind: Final = shim.ChaincodeMessage
LARGE: Final = LARGE_BYTES
"""Bytes from which on a message is looked through here, and parsed in a thread."""
MOST_FIELDS: Final = 16
"""Of a message without repeated fields; Fabric's have at most 7."""
MOST_TEXT: Final = 1024 * 1024
"""Bytes of a key and of every other field but values, payloads and responses."""
MOST_ID: Final = 256
"""Bytes that are kept of a transaction id or channel. Real ones have up to 249."""
MOST_ITEMS: Final = LARGE // 2
"""Of arguments, and of keys and records if READY has announced fewer: a message that is
not large may have as many."""
BROKEN: Final = "proto: cannot parse invalid wire-format data"
BAD_TEXT: Final = "string field contains invalid UTF-8"
"""Fabric's texts."""
_TYPE, _PAYLOAD, _TXID, _PROPOSAL, _CHANNEL = 1, 3, 4, 5, 7
_EVENT, _EVENT_PAYLOAD = 6, 4
_VALUE: Final = 2
_INPUT, _ARGUMENT = 3, 1
_VARINT, _BYTES = 0, 2
_SIZES: Final = {1: 8, 5: 4}
_ANY: Final = range(2**29)
_MAY_BE_LONG: Final[Mapping[int, Container[int]]] = {
    **dict.fromkeys((Kind.PUT_STATE, Kind.WRITE_BATCH_STATE), (_VALUE,)),
    Kind.COMPLETED: (3,),  # the payload of the response, not its text
}
"""Fields of a payload that may have more than `MOST_TEXT` bytes."""


@dataclass(slots=True)
class LargeMessage:
    """A `ChaincodeMessage` that is put together when it is sent.

    `content` returns the pieces of the payload, and the serialised proposal or b"".
    """

    type: int
    txid: str
    channel_id: str
    content: Callable[[], tuple[Sequence[bytes], bytes]]

    def put_together(self) -> bytes:
        """Return the serialised message, made by hand: large bytes are copied once."""
        payload, proposal = self.content()
        parts = (
            number_field(self.type),
            lead(_PAYLOAD, sum(map(len, payload))),
            *payload,
            field(_TXID, self.txid.encode()),
            lead(_PROPOSAL, len(proposal)),
            proposal,
            field(_CHANNEL, self.channel_id.encode()),
        )
        return b"".join(parts)


Message: TypeAlias = shim.ChaincodeMessage | LargeMessage


def serialized(message: Message) -> bytes:
    """Return a message as it is sent."""
    if isinstance(message, LargeMessage):
        return message.put_together()
    return bytes(message.SerializeToString())


def head_of(raw: Buffer) -> tuple[shim.ChaincodeMessage, memoryview]:
    """Return a message with type, transaction and channel, and the payload apart.

    Raises: InvalidInput for more than `MOST_FIELDS` fields, and a broken encoding.
    """
    kind, payload, ids = 0, memoryview(b""), {_TXID: "", _CHANNEL: ""}
    for number, value in _fields(memoryview(raw)):
        if number == _TYPE and isinstance(value, int):
            kind = value if value < 2**31 else -1  # no type has it
        elif number == _PAYLOAD and isinstance(value, memoryview):
            payload = value
        elif number in ids and isinstance(value, memoryview):
            ids[number] = bytes(value[:MOST_ID]).decode(errors="replace")
        elif isinstance(value, memoryview):
            _check(_fields(value), _ANY)
    return Kind(type=kind, txid=ids[_TXID], channel_id=ids[_CHANNEL]), payload


def parsed(
    kind: int, payload: memoryview, options: StreamOptions, form: Any, data: Buffer
) -> Any:
    """Return what `data` holds, as `form`, unless the payload holds too much.

    Raises: InvalidInput for too many fields, records or keys, and for long keys;
        DecodeError.
    """
    may_be_long = _MAY_BE_LONG.get(kind, ())
    if kind == Kind.WRITE_BATCH_STATE:
        most = max(options.max_size_write_batch, MOST_ITEMS)
        for number, value in _fields(payload, most, "records"):
            if number == 1 and isinstance(value, memoryview):
                _check(_fields(value), may_be_long)
    elif kind == Kind.GET_STATE_MULTIPLE:
        most = max(options.max_size_get_multiple_keys, MOST_ITEMS) + 1  # the collection
        _check(_fields(payload, most, "keys"), may_be_long)
    elif kind == Kind.INVOKE_CHAINCODE:
        _check_spec(payload)
    else:
        _check(_fields(payload), may_be_long)
    if kind == Kind.COMPLETED:
        for number, value in _fields(memoryview(data)):
            if number == _EVENT and isinstance(value, memoryview):
                _check(_fields(value), (_EVENT_PAYLOAD,))
    return form.FromString(data)


def _check_spec(payload: memoryview) -> None:
    """Check a ChaincodeSpec: only arguments may be long, and many."""
    left = MOST_ITEMS
    for number, value in _fields(payload):
        if number == _INPUT and isinstance(value, memoryview):
            for inner, argument in _fields(value, left, "arguments"):
                left -= 1
                if inner != _ARGUMENT and isinstance(argument, memoryview):
                    _check(_fields(argument), ())
        elif isinstance(value, memoryview):
            _check(_fields(value), ())


def message_of(form: Any, data: bytes) -> Any:
    """Return a message that a client sent; a large one has at most `MOST_ITEMS` fields.

    Counted are those of its parts, too, without what is in fields of bytes.

    Raises: InvalidInput.
    """
    if len(data) > LARGE:
        _require_few(form, data)
    try:
        return form.FromString(data)
    except DecodeError:
        raise InvalidInput(BROKEN) from None


def _require_few(form: Any, data: bytes) -> None:
    left, parts = MOST_ITEMS, [(form.DESCRIPTOR, memoryview(data))]
    while parts:
        kind, part = parts.pop()
        for number, value in _fields(part, left):
            left -= 1
            known = kind.fields_by_number.get(number)
            if known and known.message_type and isinstance(value, memoryview):
                parts.append((known.message_type, value))


def why_unreadable(payload: bytes) -> str:
    """Return Fabric's text for a payload that could not be parsed."""
    try:
        empty_pb2.Empty.FromString(
            payload
        )  # knows no field, so only their order counts
    except DecodeError:
        return BROKEN
    return BAD_TEXT


def _check(fields: Iterator[Field], may_be_long: Container[int]) -> None:
    for number, value in fields:
        size = len(value) if isinstance(value, memoryview) else 0
        if size > MOST_TEXT and number not in may_be_long:
            raise InvalidInput(
                f"field {number} has {size} bytes, more than the limit of {MOST_TEXT}"
            )


def _fields(
    data: memoryview, most: int = MOST_FIELDS, what: str = "fields"
) -> Iterator[Field]:
    """Yield number and value of each field. Raises: InvalidInput: too many, or broken."""
    at = count = 0
    try:
        while at < len(data):
            count += 1
            if count > most:
                raise InvalidInput(f"more than {most} {what} in one message")
            tag, at = _varint(data, at)
            value: int | memoryview = 0
            if tag & 7 == _VARINT:
                value, at = _varint(data, at)
            else:
                size = _SIZES.get(tag & 7, len(data))  # that of a group is unknown
                if tag & 7 == _BYTES:
                    size, at = _varint(data, at)
                value = data[at : at + size]
                _ = data[at + size - 1]  # or the end is missing
                at += size
            yield tag >> 3, value
    except IndexError:
        raise InvalidInput(f"unmarshal failed: {BROKEN}") from None


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError
