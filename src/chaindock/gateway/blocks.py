"""The blocks of a channel for any number of subscribers.

Each block is read, decoded and serialised once, on the thread of the ledger's reader, and
all subscribers send the same bytes. Many subscribers get several new blocks at once, or
telling each of them of each small block would take more time than committing it.
Source: docs/fabric/deliver.md#blocks
"""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Final, Self
from weakref import WeakKeyDictionary

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

from chaindock.aio import Waiters, off_loop
from chaindock.endorser.channel import Channel
from chaindock.errors import NotFound
from chaindock.ledger import encoding
from chaindock.ledger.delivered import PrivateSet
from chaindock.ledger.reader import View
from chaindock.values import KIB, MIB

_BLOCK, _FILTERED = 2, 3
"""Fields of `DeliverResponse`."""
_CACHED_BYTES: Final = 16 * MIB
"""What is kept in memory of a channel's blocks; the newest one is kept in any case."""
_BLOCK_COST: Final = 4096
"""What a block takes beside its bytes."""
_BATCH_BYTES: Final = 64 * KIB
"""Of blocks that are given at once, unless one alone is larger."""
_MANY: Final = 16
"""So many blocks are given at once without waiting for more."""
_PACE_S, _LONGEST_S = 1e-3, 0.1
"""Pause before the next block is given: for each subscriber that got one, and at most. To
send a block to a subscriber takes some 20 µs, so all of them take a fiftieth of the time;
with 100 of them, a block waits at most 0.1 s for others."""


@dataclass(frozen=True, eq=False)
class FeedBlock:
    """A block as subscribers get it."""

    number: int
    full: bytes
    """A `DeliverResponse` with the block, which begins at `begin`."""
    begin: int
    filtered: bytes | None
    """A `DeliverResponse` with the filtered block; None = a part of a transaction
    cannot be read, and Fabric then ends the stream."""
    events: tuple[ChaincodeEvent, ...]
    """Of the valid transactions, in order."""
    is_config: bool
    """Whether its only transaction is a configuration."""
    _made: dict[object, bytes] = field(default_factory=dict)

    @property
    def raw(self) -> bytes:
        """The serialised block."""
        return self.full[self.begin :]

    @property
    def cost(self) -> int:
        """About how many bytes of memory the block takes."""
        return 2 * len(self.full) + len(self.filtered or b"") + _BLOCK_COST

    def event_response(self, chaincode: str) -> bytes | None:
        """Return the `ChaincodeEventsResponse` of a chaincode; None = it has no event."""
        if chaincode not in self._raised_by:
            return None
        if chaincode not in self._made:
            events = [one for one in self.events if one.chaincode_id == chaincode]
            self._made[chaincode] = gateway_pb2.ChaincodeEventsResponse(
                events=events, block_number=self.number
            ).SerializeToString()
        return self._made[chaincode]

    @cached_property
    def _raised_by(self) -> frozenset[str]:
        return frozenset(one.chaincode_id for one in self.events)

    async def form(self, *, data: bool, judged: bool) -> bytes:
        """Return a `DeliverResponse` with the block.

        Args:
            data: with its transactions.
            judged: with what a committing peer adds, codes and commit hash.
        """
        if data and judged:
            return self.full
        key = data, judged
        if key not in self._made:
            make = partial(_form, self.raw, data=data, judged=judged)
            self._made[key] = await off_loop(len(self.full), make)
        return self._made[key]


def _form(raw: bytes, *, data: bool, judged: bool) -> bytes:
    block = common_pb2.Block.FromString(raw)
    if not data:
        block.ClearField("data")
    if not judged:
        block.metadata.metadata[common_pb2.TRANSACTIONS_FILTER] = b""
        block.metadata.metadata[common_pb2.COMMIT_HASH] = b""
    return encoding.field(_BLOCK, block.SerializeToString())


class BlockFeed:
    """The blocks of one channel; keeps some of the newest ones in memory.

    A subscriber costs its position alone, and reads at its own pace.
    """

    def __init__(self, channel: Channel) -> None:
        self.ledger = channel.ledger
        self._reader = channel.reader
        self._kept: OrderedDict[int, FeedBlock] = OrderedDict()
        self._kept_bytes = 0
        self._coming: dict[int, asyncio.Task[Sequence[FeedBlock]]] = {}
        self._outcomes: Waiters[int, Sequence[FeedBlock]] = Waiters()
        self._due = 0.0
        """When new blocks are given at the earliest, of the clock of the loop."""
        self._reverts = 0
        self._private: tuple[Any, asyncio.Task[list[PrivateSet]] | None] = (0, None)

    def follow(self, start: int, most: int | None = None) -> Follower:
        """Return an async iterator over the blocks from `start` on, without end.

        `most`: blocks in a step; None = as many as go in one write.
        """
        return Follower(self, start, most)

    async def blocks(self, number: int) -> Sequence[FeedBlock]:
        """Return a block as soon as it is there, and those after it that are there, too.

        Raises: LedgerClosed. LedgerError: a revert removed it, or blocks before it.
        """
        self._renew()
        if number in self._kept:
            self._kept.move_to_end(number)
            return _batch(self._kept.get, number)
        task = self._coming.get(number)
        if task is None:
            task = self._coming[number] = asyncio.ensure_future(self._read(number))
            task.add_done_callback(partial(self._came, number))
        try:
            # The blocks themselves wake all of them, each once: that is what many cost.
            return await self._outcomes.wait(number)
        finally:
            if number not in self._outcomes:
                task.cancel()
                self._forget(number, task)

    async def _read(self, number: int) -> Sequence[FeedBlock]:
        await self.ledger.wait_above(number)
        if self.ledger.height - number < _MANY:
            await asyncio.sleep(self._due - _now())
        reverts = len(self.ledger.reverted_to)
        try:
            blocks = await self._reader.run(
                partial(_decoded, number=number, end=self.ledger.height)
            )
        except NotFound:  # it was there
            raise self.ledger.reverted() from None
        if not blocks or reverts != len(self.ledger.reverted_to):
            raise self.ledger.reverted()
        self._renew()
        for block in blocks:
            if block.number not in self._kept:
                self._kept[block.number] = block
                self._kept_bytes += block.cost
        while self._kept_bytes > _CACHED_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].cost
        return blocks

    def _came(self, number: int, task: asyncio.Task[Sequence[FeedBlock]]) -> None:
        self._forget(number, task)
        if task.cancelled():
            return
        if error := task.exception():
            self._outcomes.fail(lambda: copy.copy(error), number.__eq__)
        else:
            told = self._outcomes.settle(number, task.result())
            due = max(self._due, _now()) + told * _PACE_S
            self._due = min(due, _now() + _LONGEST_S)

    def _forget(self, number: int, task: asyncio.Task[Sequence[FeedBlock]]) -> None:
        if self._coming.get(number) is task:
            del self._coming[number]

    def _renew(self) -> int:
        """Keep no block that a revert may have removed.

        Returns: what is another number after each revert, and while one is going on.
        """
        reverts = self.ledger.reverts + len(self.ledger.reverted_to)
        if reverts != self._reverts:
            self._reverts, self._kept_bytes = reverts, 0
            self._kept.clear()
        return reverts

    async def private(self, number: int) -> list[PrivateSet]:
        """Return the private data of a block that the node has now.

        A later block may purge some of it, so it is kept until the next block at most.

        Raises: NotFound, LedgerClosed, LedgerError.
        """
        key = number, self.ledger.height, self._renew()
        known, task = self._private
        if known != key or task is None:
            read = self._reader.run(lambda view: view.private_of(number))
            task = asyncio.ensure_future(read)
            self._private = key, task
            task.add_done_callback(self._read_private)
        return await asyncio.shield(task)

    def _read_private(self, task: asyncio.Task[list[PrivateSet]]) -> None:
        """Forget a read that failed, so that the next subscriber reads again."""
        failed = task.cancelled() or task.exception() is not None
        if failed and self._private[1] is task:
            self._private = 0, None


class Follower:
    """Where a subscriber is; an async iterator over blocks as they are committed.

    Each step gives all that are there, up to some bytes.

    Raises: LedgerError: a revert removed blocks that were given already, or the one that
        comes next. LedgerClosed.
    """

    def __init__(self, feed: BlockFeed, position: int, most: int | None) -> None:
        self.position = position
        """Number of the block that comes next."""
        self._feed, self._most = feed, most
        self._reverts = len(feed.ledger.reverted_to)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[FeedBlock]:
        self._require()
        blocks = (await self._feed.blocks(self.position))[: self._most]
        self._require()
        self.position += len(blocks)
        return blocks

    def _require(self) -> None:
        reverted_to = self._feed.ledger.reverted_to
        if len(reverted_to) == self._reverts:
            return
        if min(reverted_to[self._reverts :]) < self.position:
            raise self._feed.ledger.reverted()
        self._reverts = len(reverted_to)


class Feeds:
    """The feed of each channel, made when it is first asked for."""

    def __init__(self) -> None:
        self._feeds: WeakKeyDictionary[Channel, BlockFeed] = WeakKeyDictionary()

    def of(self, channel: Channel) -> BlockFeed:
        """Return the one feed of a channel."""
        if channel not in self._feeds:
            self._feeds[channel] = BlockFeed(channel)
        return self._feeds[channel]


def _now() -> float:
    return asyncio.get_running_loop().time()


def _batch(find: Callable[[int], FeedBlock | None], number: int) -> Sequence[FeedBlock]:
    """Return the blocks from `number` on that are found, up to `_BATCH_BYTES`."""
    blocks: list[FeedBlock] = []
    size = 0
    while (block := find(number)) is not None:
        size += len(block.full)
        if blocks and size > _BATCH_BYTES:
            break
        blocks.append(block)
        number += 1
    return blocks


# --- decoding, on the reader's thread -------------------------------------------------


def _decoded(view: View, number: int, end: int) -> Sequence[FeedBlock]:
    """Return the blocks from `number` on, up to `_BATCH_BYTES`. Raises: NotFound."""
    return _batch(lambda at: decode(view.block(at)[1]) if at < end else None, number)


def decode(raw: bytes) -> FeedBlock:
    """Return what subscribers get of a serialised block."""
    block = common_pb2.Block.FromString(raw)
    number = block.header.number
    codes = block.metadata.metadata[common_pb2.TRANSACTIONS_FILTER]
    filtered = events_pb2.FilteredBlock(number=number)
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
    full = encoding.field(_BLOCK, raw)
    return FeedBlock(
        number,
        full,
        len(full) - len(raw),
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
