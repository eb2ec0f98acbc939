"""A block in the forms that subscribers get.

Source: docs/fabric/deliver.md#blocks
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2
from fabric_protos.peer import (
    chaincode_event_pb2,
    events_pb2,
    proposal_pb2,
    proposal_response_pb2,
    transaction_pb2,
)
from fabric_protos.peer.chaincode_event_pb2 import ChaincodeEvent
from google.protobuf.message import DecodeError

from chaindock.aio import off_loop
from chaindock.ledger import encoding
from chaindock.values import KIB

_BLOCK, _FILTERED = 2, 3
"""Fields of `DeliverResponse`."""
_LARGE: Final = 64 * KIB
_BLOCK_COST: Final = 4096
"""What a block takes beside its bytes."""


@dataclass(frozen=True)
class Contents:
    """What the transactions of a block are."""

    filtered: bytes | None
    """A `DeliverResponse` with the filtered block; None = a part of a transaction
    cannot be read, and Fabric then ends the stream."""
    events: tuple[ChaincodeEvent, ...]
    """Of the valid transactions, in order."""
    is_config: bool
    """Whether its only transaction is a configuration."""


@dataclass(frozen=True, eq=False)
class FeedBlock:
    """A block as subscribers get it."""

    number: int
    full: bytes
    """A `DeliverResponse` with the block, which begins at `begin`."""
    begin: int
    known: Contents | None
    """What is in it, if that was read before anybody asks."""

    @cached_property
    def contents(self) -> Contents:
        """What is in it: whoever gets whole blocks does not ask."""
        return self.known or _read(common_pb2.Block.FromString(self.raw))

    @property
    def raw(self) -> bytes:
        """The serialised block."""
        return self.full[self.begin :]

    @property
    def cost(self) -> int:
        """About how many bytes of memory the block takes."""
        return 2 * len(self.full) + _BLOCK_COST

    async def events_of(self, chaincode: str) -> bytes | None:
        """Return the `ChaincodeEventsResponse` of a chaincode; None = it has no event."""
        return events_response(self.number, chaincode, self.contents.events)

    async def form(self, *, data: bool, judged: bool) -> bytes:
        """Return a `DeliverResponse` with the block.

        Args:
            data: with its transactions.
            judged: with what a committing peer adds, codes and commit hash.
        """
        if data and judged:
            return self.full
        make = partial(_form, self.raw, data=data, judged=judged)
        return await off_loop(len(self.full), make)


def events_response(
    number: int, chaincode: str, events: Iterable[ChaincodeEvent]
) -> bytes | None:
    """Return the `ChaincodeEventsResponse` of a block; None = no event of the chaincode."""
    found = [one for one in events if one.chaincode_id == chaincode]
    if not found:
        return None
    answer = gateway_pb2.ChaincodeEventsResponse(events=found, block_number=number)
    message: bytes = answer.SerializeToString()
    return message


def _form(raw: bytes, *, data: bool, judged: bool) -> bytes:
    block = common_pb2.Block.FromString(raw)
    if not data:
        block.ClearField("data")
    if not judged:
        block.metadata.metadata[common_pb2.TRANSACTIONS_FILTER] = b""
        block.metadata.metadata[common_pb2.COMMIT_HASH] = b""
    return encoding.field(_BLOCK, block.SerializeToString())


def decode(raw: bytes) -> FeedBlock:
    """Return what subscribers get of a serialised block."""
    block = common_pb2.Block.FromString(raw)
    full = encoding.field(_BLOCK, raw)
    # This is not the event loop's thread. What is valid (code 0) can be read.
    codes = block.metadata.metadata[common_pb2.TRANSACTIONS_FILTER]
    known = _read(block) if any(codes) or len(raw) > _LARGE else None
    return FeedBlock(block.header.number, full, len(full) - len(raw), known)


def _read(block: Any) -> Contents:
    codes = block.metadata.metadata[common_pb2.TRANSACTIONS_FILTER]
    filtered = events_pb2.FilteredBlock(number=block.header.number)
    events: list[ChaincodeEvent] = []
    readable = True
    for code, envelope in zip(codes, block.data.data, strict=True):
        try:
            header, raised = _transaction(envelope)
        except DecodeError:
            readable = False
            continue
        if header is None:
            continue
        filtered.channel_id = header.channel_id
        _list(filtered, header, code, raised)
        if code == transaction_pb2.VALID:
            events += (one for one in raised if one.event_name and one.tx_id)
    kinds = [one.type for one in filtered.filtered_transactions]
    return Contents(
        encoding.field(_FILTERED, filtered.SerializeToString()) if readable else None,
        tuple(events),
        kinds == [common_pb2.CONFIG],
    )


def _transaction(data: bytes) -> tuple[Any, list[ChaincodeEvent]]:
    """Return the channel header of an envelope, and the events in it that name a chaincode.

    No header = the filtered block does not list it. Raises: DecodeError.
    """
    try:
        envelope = common_pb2.Envelope.FromString(data)
    except DecodeError:
        return None, []
    payload = common_pb2.Payload.FromString(envelope.payload)
    if not payload.HasField("header"):
        return None, []
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    if header.type != common_pb2.ENDORSER_TRANSACTION:
        return header, []
    return header, [one for one in _events(payload.data) if one.chaincode_id]


def _events(data: bytes) -> Iterator[ChaincodeEvent]:
    for outer in transaction_pb2.Transaction.FromString(data).actions:
        action = transaction_pb2.ChaincodeActionPayload.FromString(outer.payload)
        if not action.HasField("action"):
            continue
        response = proposal_response_pb2.ProposalResponsePayload.FromString(
            action.action.proposal_response_payload
        )
        result = proposal_pb2.ChaincodeAction.FromString(response.extension)
        yield chaincode_event_pb2.ChaincodeEvent.FromString(result.events)


def _list(filtered: Any, header: Any, code: int, events: list[ChaincodeEvent]) -> None:
    """Add a transaction to a filtered block; the events go without their payload."""
    tx = filtered.filtered_transactions.add(
        txid=header.tx_id, type=header.type, tx_validation_code=code
    )
    if header.type == common_pb2.ENDORSER_TRANSACTION:
        tx.transaction_actions.SetInParent()
    for event in events:
        listed = tx.transaction_actions.chaincode_actions.add().chaincode_event
        listed.CopyFrom(event)
        listed.ClearField("payload")
