"""When blocks are cut in the modes for people who test contracts."""

import asyncio
from typing import Any

import pytest

from chaindock.endorser.cutting import OrdererOptions, read_mode, show_mode
from chaindock.endorser.genesis import with_organization
from chaindock.errors import LedgerError, NotFound, TransactionInvalid
from chaindock.identity.organization import Organization
from chaindock.ids import ChannelId
from chaindock.values import WrongValueError
from support.eventually import eventually
from support.ledgers.ledger import committed_definition

CHANNEL = ChannelId("mychannel")


async def invoke(node: Any, *args: bytes) -> Any:
    return await node.caller.invoke("basic", args, signer=node.user)


async def waiting(node: Any, *calls: Any) -> Any:
    """Start calls one after the other; return their answers when all wait."""
    tasks = []
    for call in calls:
        tasks.append(asyncio.ensure_future(invoke(node, *call)))
        await eventually(lambda: node.orderer.waiting == len(tasks))
    return asyncio.gather(*tasks)


def puts(count: int) -> Any:
    return [(b"put", b"k%d" % number, b"v") for number in range(count)]


class TestManual:
    """Transactions wait until somebody cuts a block; definitions do not."""

    @pytest.fixture
    def options(self) -> Any:
        return OrdererOptions(mode=("manual", 0.0), max_message_count=3)

    async def test_what_waits_is_cut_when_asked_and_not_before(self, defined):
        since = defined.ledger.height
        answers = await waiting(defined, *puts(4))
        await asyncio.sleep(0.05)
        assert defined.ledger.height == since
        assert await defined.orderer.cut() == 4
        found = [(one.block - since, one.code) for one in await answers]
        assert found == [(0, 0), (0, 0), (0, 0), (1, 0)]
        assert await defined.orderer.cut() == 0

    async def test_a_reader_and_a_writer_of_a_key_meet_in_one_block(self, defined):
        copies = (b"copy", b"k", b"a"), (b"put", b"k", b"v"), (b"copy", b"k", b"b")
        answers = await waiting(defined, *copies)
        await defined.orderer.cut()
        assert [one.code for one in await answers] == [0, 0, 11]

    async def test_a_definition_overtakes_what_waits(self, defined):
        answers = await waiting(defined, *puts(1))
        await defined.define("other")
        assert committed_definition(defined.ledger, "other").sequence == 1
        assert defined.orderer.waiting == 1
        await defined.orderer.cut()
        assert [one.code for one in await answers] == [0]

    async def test_the_end_of_the_node_commits_what_waits(self, defined):
        answers = await waiting(defined, *puts(2))
        await defined.orderer.__aexit__()
        assert [one.code for one in await answers] == [0, 0]

    async def test_a_revert_refuses_what_waits(self, defined):
        await defined.ledger.take_snapshot("base")
        height = defined.ledger.height
        answers = await waiting(defined, *puts(2))
        await defined.orderer.revert("base")
        with pytest.raises(
            TransactionInvalid, match="the ledger was reverted meanwhile"
        ):
            await answers
        assert (defined.orderer.waiting, defined.ledger.height) == (0, height)

    async def test_a_revert_that_is_refused_refuses_nothing_else(self, defined):
        answers = await waiting(defined, *puts(2))
        with pytest.raises(NotFound):
            await defined.orderer.revert("there is none")
        assert defined.orderer.waiting == 2
        assert await defined.orderer.cut() == 2
        assert [one.code for one in await answers] == [0, 0]

    async def test_the_end_of_the_node_in_a_refused_revert_commits_what_waits(
        self, defined
    ):
        answers = await waiting(defined, *puts(1))
        revert = asyncio.ensure_future(defined.orderer.revert("there is none"))
        await asyncio.sleep(0)
        await defined.orderer.__aexit__()
        with pytest.raises(NotFound):
            await revert
        assert [one.code for one in await answers] == [0]


class TestFull:
    """Definitions and configurations have a place where no other transaction has."""

    @pytest.fixture(params=["count", "bytes"])
    def options(self, request: Any) -> Any:
        full: Any = {"count": {"max_waiting": 1}, "bytes": {"max_waiting_bytes": 1}}
        return OrdererOptions(mode=("manual", 0.0), **full[request.param])

    async def test_what_is_urgent_does_not_wait_for_room(self, defined, tmp_path):
        first = await waiting(defined, *puts(1))
        later = asyncio.ensure_future(invoke(defined, *puts(2)[1]))
        other = Organization.open(tmp_path / "2", "Org2MSP", "org2.example.com")
        now, org = defined.endorser.configuration.config, defined.org
        made = with_organization(CHANNEL, now, other.msp, [org.admin])
        async with asyncio.timeout(5):
            await defined.define("other")
            assert (await defined.orderer.submit(made)).code == 0
        assert (defined.orderer.waiting, later.done()) == (1, False)
        assert await defined.orderer.cut() == 1
        await first
        await eventually(lambda: defined.orderer.waiting == 1)
        later.cancel()


async def test_what_was_simulated_before_a_revert_is_not_committed(defined):
    """Its reads may have versions that other values have by now."""
    await invoke(defined, b"put", b"k", b"1")
    await defined.ledger.take_snapshot("base")
    await invoke(defined, b"put", b"k", b"2")
    defined.chaincode.hold = asyncio.Event()
    call = asyncio.ensure_future(invoke(defined, b"put", b"other", b"v"))
    await eventually(lambda: len(defined.chaincode.seen) == 3)
    await defined.orderer.revert("base")
    defined.chaincode.hold.set()
    with pytest.raises(LedgerError, match="reverted"):
        await call
    defined.chaincode.hold = None
    assert (await invoke(defined, b"copy", b"k", b"copy")).code == 0


class TestSize:
    @pytest.fixture
    def options(self) -> Any:
        return OrdererOptions(mode=("size", 3.0))

    async def test_a_block_waits_until_it_is_full(self, defined):
        calls = [asyncio.ensure_future(invoke(defined, *put)) for put in puts(4)]
        await eventually(lambda: sum(one.done() for one in calls) == 3)
        await eventually(lambda: defined.orderer.waiting == 1)
        await defined.orderer.cut()
        blocks = sorted([(await one).block for one in calls])
        assert [one - blocks[0] for one in blocks] == [0, 0, 0, 1]


class TestInterval:
    @pytest.fixture
    def options(self) -> Any:
        return OrdererOptions(mode=("interval", 0.2))

    async def test_a_revert_in_the_interval_makes_no_block(self, defined):
        await invoke(defined, b"put", b"k", b"v")
        await defined.ledger.take_snapshot("base")
        height = defined.ledger.height
        answers = await waiting(defined, *puts(2))
        await defined.orderer.revert("base")
        with pytest.raises(LedgerError, match="reverted meanwhile"):
            await answers
        await asyncio.sleep(0.3)
        assert defined.ledger.height == height
        assert (await invoke(defined, b"put", b"k", b"v")).block == height

    async def test_a_block_takes_what_came_in_the_interval(self, defined):
        began = asyncio.get_running_loop().time()
        answers = await waiting(defined, *puts(4))
        assert len({one.block for one in await answers}) == 1
        assert asyncio.get_running_loop().time() - began >= 0.2


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("auto", ("auto", 0)),
        ("manual", ("manual", 0)),
        ("interval=1500ms", ("interval", 1.5)),
        ("size=10", ("size", 10)),
    ],
)
def test_modes_are_read_and_shown(text, mode):
    assert read_mode(text) == mode
    assert read_mode(show_mode(mode)) == mode


@pytest.mark.parametrize(
    "text", ["", "never", "size", "size=0", "size=1.5", "size=9999", "interval=0s"]
)
def test_other_modes_are_refused(text):
    with pytest.raises(WrongValueError):
        read_mode(text)
