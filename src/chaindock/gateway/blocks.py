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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self
from weakref import WeakKeyDictionary

from chaindock.aio import Waiters
from chaindock.endorser.channel import Channel
from chaindock.errors import NotFound
from chaindock.gateway.forms import FeedBlock, decode
from chaindock.ledger.delivered import PrivateSet
from chaindock.ledger.reader import View
from chaindock.rpc.frames import Bundle
from chaindock.values import KIB, MIB

_CACHED_BYTES: Final = 16 * MIB
"""What is kept in memory of a channel's blocks; the newest one is kept in any case."""
_BATCH_BYTES: Final = 500 * KIB
"""Of blocks that are given at once, unless one alone is larger."""
_STEP: Final = 8
"""Subscribers that are given blocks in one turn of the event loop: others go on, too."""
_MANY: Final = 16
"""So many blocks are given at once without waiting for more."""
_PACE_S, _LONGEST_S = 4e-5, 0.4
"""Pause before the next block is given, for the square of the subscribers that got one, and
at most. Ten wait 4 ms, which nobody sees. With 100 of them, of which each write takes some
30 µs, a block waits for others for 0.4 s: else they would take a quarter of the time."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Blocks that follow each other; all who wait for the first of them get the same."""

    blocks: Sequence[FeedBlock]
    _made: dict[object, bytes | Bundle | None] = field(default_factory=dict)

    def begin(self, count: int | None) -> Batch:
        """Return the first `count` blocks; None = all."""
        whole = count is None or count >= len(self.blocks)
        return self if whole else Batch(self.blocks[:count])

    async def message(
        self, form: object, make: Callable[[FeedBlock], Awaitable[bytes | None]]
    ) -> bytes | Bundle | None:
        """Return what is sent of the blocks: what `make` makes of each, if anything.

        It is made once for all who ask for the same form.
        """
        if form not in self._made:
            made = [await make(block) for block in self.blocks]
            messages = [one for one in made if one is not None]
            one = messages[0] if messages else None
            self._made[form] = Bundle(messages) if len(messages) > 1 else one
        return self._made[form]


class BlockFeed:
    """The blocks of one channel; keeps some of the newest ones in memory.

    A subscriber costs its position alone, and reads at its own pace.
    """

    def __init__(self, channel: Channel) -> None:
        self.ledger = channel.ledger
        self._reader = channel.reader
        self._kept: OrderedDict[int, FeedBlock] = OrderedDict()
        self._kept_bytes = 0
        self._coming: dict[int, asyncio.Task[Batch]] = {}
        self._outcomes: Waiters[int, Batch] = Waiters()
        self._due = 0.0
        """When new blocks are given at the earliest, of the clock of the loop."""
        self._reverts = 0
        self._private: tuple[Any, asyncio.Task[list[PrivateSet]] | None] = (0, None)

    def follow(self, start: int, most: int | None = None) -> Follower:
        """Return an async iterator over the blocks from `start` on, without end.

        `most`: blocks in a step; None = as many as go in one write.
        """
        return Follower(self, start, most)

    async def blocks(self, number: int) -> Batch:
        """Return a block as soon as it is there, and those after it that are there, too.

        Raises: LedgerClosed. LedgerError: a revert removed it, or blocks before it.
        """
        self._renew()
        if number in self._kept:
            self._kept.move_to_end(number)
            batch = _batch(self._kept.get, number)
            await asyncio.sleep(0)  # others go on while many are passed over
            return batch
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

    async def _read(self, number: int) -> Batch:
        await self.ledger.wait_above(number)
        waiting, before = self.ledger.height - number, self._kept.get(number - 1)
        size = len(before.full) if before else 0
        # Not if no further one would come with them.
        if waiting < _MANY and (waiting + 1) * size <= _BATCH_BYTES:
            await asyncio.sleep(self._due - _now())
        reverts = len(self.ledger.reverted_to)
        try:
            batch = await self._reader.run(
                partial(_decoded, number=number, end=self.ledger.height)
            )
        except NotFound:  # it was there
            raise self.ledger.reverted() from None
        if not batch.blocks or reverts != len(self.ledger.reverted_to):
            raise self.ledger.reverted()
        self._renew()
        for block in batch.blocks:
            if block.number not in self._kept:
                self._kept[block.number] = block
                self._kept_bytes += block.cost
        while self._kept_bytes > _CACHED_BYTES and len(self._kept) > 1:
            self._kept_bytes -= self._kept.popitem(last=False)[1].cost
        return batch

    def _came(self, number: int, task: asyncio.Task[Batch]) -> None:
        self._forget(number, task)
        if task.cancelled():
            return
        if error := task.exception():
            self._outcomes.fail(lambda: copy.copy(error), number.__eq__)
        else:
            told = self._outcomes.settle(number, task.result(), _STEP)
            due = max(self._due, _now()) + told**2 * _PACE_S
            self._due = min(due, _now() + _LONGEST_S)

    def _forget(self, number: int, task: asyncio.Task[Batch]) -> None:
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
        self.most = most
        """Blocks in a step; None = as many as go in one write."""
        self._feed = feed
        self._reverts = len(feed.ledger.reverted_to)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        self._require()
        batch = (await self._feed.blocks(self.position)).begin(self.most)
        self._require()
        self.position += len(batch.blocks)
        return batch

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


def _batch(find: Callable[[int], FeedBlock | None], number: int) -> Batch:
    """Return the blocks from `number` on that are found, up to `_BATCH_BYTES`.

    One that cannot be filtered begins a batch: streams of filtered blocks end before it.
    """
    blocks: list[FeedBlock] = []
    size = 0
    while (block := find(number)) is not None:
        size += len(block.full)
        odd = block.known is not None and block.known.filtered is None
        if blocks and (size > _BATCH_BYTES or odd):
            break
        blocks.append(block)
        number += 1
    return Batch(blocks)


def _decoded(view: View, number: int, end: int) -> Batch:
    """Return the blocks from `number` on, up to `_BATCH_BYTES`. Raises: NotFound."""
    return _batch(lambda at: decode(view.block(at)[1]) if at < end else None, number)
