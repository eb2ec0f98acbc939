"""Blocks for many subscribers: what they get, what they cost, and what a revert does."""

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fabric_protos.gateway import gateway_pb2
from fabric_protos.peer import events_pb2

from chaindock.errors import LedgerClosed, LedgerError, NotFound
from chaindock.gateway import blocks as feeds
from chaindock.gateway.blocks import BlockFeed, Feeds, Follower
from chaindock.gateway.forms import FeedBlock, decode
from chaindock.ids import TxId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.reader import LedgerReader
from support.eventually import eventually
from support.ledgers.envelopes import rwset, transaction
from support.ledgers.ledger import MVCC, VALID, judged, ledger_at
from support.ledgers.recorded import blocks, delivered
from support.ledgers.recorded import decode as plain


class Parts:
    """What a feed needs of a channel."""

    def __init__(self, ledger: Any, reader: Any) -> None:
        self.ledger, self.reader = ledger, reader


class Counting(LedgerReader):
    """A reader that counts, and can be held up."""

    reads = 0

    async def run(self, job: Any) -> Any:
        self.reads += 1
        return await super().run(job)


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[Any]:
    async with ledger_at(tmp_path) as ledger, Counting(ledger._path) as reader:
        yield Parts(ledger, reader)


@pytest.fixture
def feed(channel: Any) -> BlockFeed:
    return Feeds().of(channel)


async def commit(ledger: Ledger, size: int = 1, *events: Any) -> int:
    """Commit a block with a transaction of so many bytes, or one for each event."""
    write = rwset(writes={"k": b"x" * size})
    made = [(transaction(write, event=event), code) for event, code in events]
    made = made or [(transaction(write), VALID)]
    return (
        await ledger.commit(judged([(tx.envelope, code) for tx, code in made]))
    ).number


async def some(follower: Follower, count: int) -> list[int]:
    """Return the numbers of the next blocks, which come in steps that end with them."""
    numbers: list[int] = []
    while len(numbers) < count:
        numbers += (one.number for one in (await in_time(anext(follower))).blocks)
    assert len(numbers) == count
    return numbers


async def in_time(wait: Any) -> Any:
    async with asyncio.timeout(5):
        return await wait


@pytest.mark.statement(45, of="client")
def test_filtered_blocks_are_those_of_the_peer_byte_for_byte():
    """Those of invalid transactions and of configurations, too, and events everywhere."""
    recorded = delivered()["filtered"]
    for number, data in recorded.items():
        block = decode(blocks()[int(number)])
        assert block.contents.filtered == plain(data), number
        assert block.raw == blocks()[int(number)]
    assert len(recorded) > 30


def test_a_block_that_the_peer_could_not_filter_has_no_filtered_form():
    first = delivered()["end"]["block"]
    assert decode(blocks()[first]).contents.filtered is None
    assert all(decode(blocks()[n]).contents.filtered for n in range(first))


async def test_the_form_of_the_orderer_has_no_codes():
    for number, digest in delivered()["ordered"].items():
        form = await decode(blocks()[int(number)]).form(data=True, judged=False)
        block = events_pb2.DeliverResponse.FromString(form).block
        assert hashlib.sha256(block.SerializeToString()).hexdigest() == digest


async def test_a_form_without_data_keeps_headers_and_signatures():
    block = decode(blocks()[30])
    form = await block.form(data=False, judged=True)
    short = events_pb2.DeliverResponse.FromString(form).block
    whole = events_pb2.DeliverResponse.FromString(block.full).block
    assert not short.HasField("data")
    assert (short.header, short.metadata) == (whole.header, whole.metadata)


@pytest.mark.statement(45, of="client")
async def test_events_are_those_of_valid_transactions_in_order(feed):
    number = await commit(
        feed.ledger,
        1,
        (("one", b"1"), VALID),
        (("lost", b"2"), MVCC),
        (("two", b"3"), VALID),
        (None, VALID),
    )
    block = (await feed.blocks(number)).blocks[0]
    assert [(one.event_name, one.payload) for one in block.contents.events] == [
        ("one", b"1"),
        ("two", b"3"),
    ]
    response = gateway_pb2.ChaincodeEventsResponse.FromString(
        await block.events_of("cc")
    )
    assert (list(response.events), response.block_number) == (
        list(block.contents.events),
        number,
    )
    assert await block.events_of("other") is None
    filtered = events_pb2.DeliverResponse.FromString(
        block.contents.filtered
    ).filtered_block
    listed = [
        [
            one.chaincode_event.event_name
            for one in tx.transaction_actions.chaincode_actions
        ]
        for tx in filtered.filtered_transactions
    ]
    assert listed == [["one"], ["lost"], ["two"], []]
    assert b"payload" not in str(filtered).encode()


async def test_a_follower_gets_old_blocks_and_each_new_one_once(feed):
    for _ in range(3):
        await commit(feed.ledger)
    follower = feed.follow(1)
    assert await some(follower, 3) == [1, 2, 3]
    following = asyncio.ensure_future(some(follower, 2))
    await commit(feed.ledger)
    await commit(feed.ledger)
    assert await following == [4, 5]


async def test_a_thousand_followers_share_one_read_of_each_block(feed):
    following = [asyncio.ensure_future(some(feed.follow(1), 3)) for _ in range(1000)]
    await asyncio.sleep(0)
    for _ in range(3):
        await commit(feed.ledger)
    assert await asyncio.gather(*following) == [[1, 2, 3]] * 1000
    assert feed._reader.reads == 2  # the first block at once, the others together


async def test_others_have_their_turn_while_many_followers_are_told(feed):
    following = [asyncio.ensure_future(anext(feed.follow(1))) for _ in range(50)]
    await commit(feed.ledger)
    told = [0]
    async with asyncio.timeout(5):
        while told[-1] < len(following):
            await asyncio.sleep(0)
            told.append(sum(one.done() for one in following))
    assert max(after - before for before, after in itertools.pairwise(told)) <= 8


async def test_few_followers_do_not_wait_for_more_blocks(feed):
    follower = feed.follow(1)
    for number in range(1, 20):
        waiting = asyncio.ensure_future(some(follower, 1))
        await asyncio.sleep(0)
        await commit(feed.ledger)
        assert await waiting == [number]


async def test_many_that_read_old_blocks_keep_nobody_waiting_for_new_ones(
    feed, monkeypatch
):
    """They read past what is kept, all the time."""
    monkeypatch.setattr(feeds, "_CACHED_BYTES", 1)
    for _ in range(30):
        await commit(feed.ledger)

    async def read_again() -> None:
        while True:
            await feed.blocks(1)

    reading = [asyncio.ensure_future(read_again()) for _ in range(50)]
    waiting = asyncio.ensure_future(some(feed.follow(31), 1))
    await asyncio.sleep(0.05)
    await commit(feed.ledger)
    try:
        async with asyncio.timeout(1):
            assert await waiting == [31]
    finally:
        for task in reading:
            task.cancel()


async def test_one_that_is_behind_gets_as_many_bytes_as_go_in_one_write(feed):
    for _ in range(6):
        await commit(feed.ledger, 160_000)
    follower = feed.follow(1)
    assert len((await in_time(anext(follower))).blocks) == 3
    feed._due = (
        asyncio.get_running_loop().time() + 60
    )  # but no more would come with them
    assert len((await in_time(anext(follower))).blocks) == 3


async def test_what_is_sent_is_put_together_once_for_all(feed):
    following = [asyncio.ensure_future(anext(feed.follow(0))) for _ in range(2)]
    await commit(feed.ledger)
    one, two = await asyncio.gather(*following)

    async def full(block: FeedBlock) -> bytes:
        return block.full

    assert await one.message("full", full) is await two.message("full", full)


async def test_a_block_that_cannot_be_filtered_begins_a_batch(feed, monkeypatch):
    for _ in range(3):
        await commit(feed.ledger)

    def decoded(raw: bytes) -> FeedBlock:
        block = decode(raw)
        if block.number != 2:
            return block
        return replace(block, known=replace(block.contents, filtered=None))

    monkeypatch.setattr("chaindock.gateway.blocks.decode", decoded)
    follower = feed.follow(0)
    numbers = [[one.number for one in (await anext(follower)).blocks] for _ in "ab"]
    assert numbers == [[0, 1], [2, 3]]


async def test_one_that_is_cancelled_takes_the_block_from_no_other(feed):
    await commit(feed.ledger)
    one, two = (asyncio.ensure_future(some(feed.follow(1), 1)) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    assert await two == [1]
    waiting = [asyncio.ensure_future(some(feed.follow(2), 1)) for _ in range(50)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert len(feed.ledger._blocks) == 0


async def test_slow_followers_keep_no_blocks(feed, monkeypatch):
    """A hundred that took one block each and stopped hold nothing of what came since."""
    monkeypatch.setattr(feeds, "_CACHED_BYTES", 64 * 1024)
    await commit(feed.ledger)
    slow = [feed.follow(1) for _ in range(100)]
    for follower in slow:
        await some(follower, 1)
    fast = feed.follow(2)
    for number in range(2, 60):
        await commit(feed.ledger, 5000)
        assert await some(fast, 1) == [number]
        assert feed._kept_bytes <= 64 * 1024
        assert feed._kept_bytes == sum(one.cost for one in feed._kept.values())
    assert await some(slow[0], 58) == list(range(2, 60))


async def test_the_newest_block_is_kept_however_large_it_is(feed, monkeypatch):
    monkeypatch.setattr(feeds, "_CACHED_BYTES", 1024)
    number = await commit(feed.ledger, 50_000)
    one, two = [(await feed.blocks(number)).blocks for _ in "ab"]
    assert one[0] is two[0]
    assert list(feed._kept) == [number]


class TestRevert:
    @pytest.fixture
    async def ledger(self, feed: BlockFeed) -> Ledger:
        for _ in range(3):
            await commit(feed.ledger)
        await feed.ledger.take_snapshot("four")
        return feed.ledger

    async def test_a_follower_whose_blocks_are_gone_is_told(self, feed, ledger):
        await commit(ledger)
        there, behind = feed.follow(4), feed.follow(2)
        assert await some(there, 1) == [4]
        waiting = asyncio.ensure_future(some(there, 1))
        await asyncio.sleep(0)
        await ledger.revert("four")
        with pytest.raises(LedgerError, match="reverted to height 4"):
            await in_time(waiting)
        assert await some(behind, 2) == [2, 3]

    async def test_also_if_it_was_slow_and_the_ledger_has_grown_again(
        self, feed, ledger
    ):
        await commit(ledger)
        slow = feed.follow(4)
        assert await some(slow, 1) == [4]
        await ledger.revert("four")
        for _ in range(3):
            await commit(ledger)
        with pytest.raises(LedgerError, match="reverted"):
            await some(slow, 1)

    async def test_nobody_gets_a_block_that_was_removed(self, feed, ledger):
        await commit(ledger, 10)
        old = (await feed.blocks(4)).blocks[0]
        await ledger.revert("four")
        await commit(ledger, 20)
        new = (await feed.blocks(4)).blocks[0]
        assert (len(new.raw) > len(old.raw), new.raw) == (True, ledger.get_block(4))

    async def test_one_that_waits_at_the_height_of_the_snapshot_goes_on(
        self, feed, ledger
    ):
        waiting = asyncio.ensure_future(some(feed.follow(4), 1))
        await asyncio.sleep(0)
        await ledger.revert("four")
        await commit(ledger)
        assert await in_time(waiting) == [4]

    async def test_a_revert_that_is_refused_is_none(self, feed, ledger, monkeypatch):
        read = feed._reader.run

        async def refused(job: Any) -> Any:
            with pytest.raises(NotFound):
                await ledger.revert("unknown")
            return await read(job)

        monkeypatch.setattr(feed._reader, "run", refused)
        assert await some(feed.follow(2), 2) == [2, 3]


async def test_followers_are_told_when_the_ledger_closes(tmp_path):
    async with ledger_at(tmp_path) as ledger, LedgerReader(ledger._path) as reader:
        feed = BlockFeed(Parts(ledger, reader))  # type: ignore[arg-type]
        waiting = asyncio.ensure_future(some(feed.follow(1), 1))
        await asyncio.sleep(0)
    with pytest.raises(LedgerClosed):
        await in_time(waiting)
    with pytest.raises(LedgerClosed):
        (await feed.blocks(0)).blocks[0]


async def test_private_data_is_read_again_after_each_block(feed):
    """A later block may purge it."""
    ledger = feed.ledger

    async def put(*, purge: bool) -> int:
        with ledger.new_simulator(TxId("t")) as simulator:
            simulator.put_private("cc", "col", "k", b"secret")
            if purge:
                simulator.purge_private("cc", "col", "k")
            tx = transaction(simulator.results())
            await ledger.keep_private(TxId(tx.tx_id), simulator.private_results())
        block = await ledger.commit(judged([(tx.envelope, VALID)]))
        return int(block.number)

    number = await put(purge=False)
    found = await asyncio.gather(*(feed.private(number) for _ in range(100)))
    assert all(b"secret" in one.rwset for (one,) in found)
    assert feed._reader.reads == 1
    await put(purge=True)
    assert [one.rwset for one in await feed.private(number)] == [b""]
    await eventually(lambda: feed._reader.reads == 2)


async def test_private_data_is_read_again_after_a_failure(feed, monkeypatch):
    async def fails(_read):
        raise LedgerClosed("the reader was busy")

    with monkeypatch.context() as broken:
        broken.setattr(feed._reader, "run", fails)
        with pytest.raises(LedgerClosed):
            await feed.private(0)
    assert await feed.private(0) == []


def test_a_channel_has_one_feed():
    some_feeds = Feeds()
    one, two = Parts(1, 1), Parts(2, 2)
    assert some_feeds.of(one) is some_feeds.of(one)  # type: ignore[arg-type]
    assert some_feeds.of(one) is not some_feeds.of(two)  # type: ignore[arg-type]
