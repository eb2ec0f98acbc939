"""Order, blocks, and what each submitter is told."""

import asyncio
import datetime as dt
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.peer import policy_pb2

from chaindock.endorser.caller import assemble
from chaindock.endorser.checks import parse_proposal
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.orderer import Orderer
from chaindock.errors import Denied, InvalidInput, LedgerClosed, LedgerError
from chaindock.identity.policies import parse_policy
from chaindock.ids import ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.transaction import parse_transaction
from support.eventually import eventually
from support.ledgers.proposals import new_proposal


async def transaction(
    node: Any, *args: Any, name: Any = "basic", signer: Any = None
) -> Any:
    signer = signer or node.user
    signed = new_proposal("mychannel", name, args or (b"put", b"k", b"v"), signer)
    parsed = parse_proposal(signed)
    _, endorsed = await node.endorser.process(parsed, endorse=True)
    return assemble(parsed, endorsed, signer)


async def transactions(node: Any, count: Any, size: Any = 1) -> Any:
    return [
        await transaction(node, b"put", b"k%d" % n, b"v" * size) for n in range(count)
    ]


def sizes(node: Any, since: Any) -> Any:
    """How many transactions each block holds."""
    blocks = [
        common_pb2.Block.FromString(node.ledger.get_block(n))
        for n in range(since, node.ledger.height)
    ]
    assert all(len(b.metadata.metadata[2]) == len(b.data.data) for b in blocks)
    return [len(block.data.data) for block in blocks]


def tx_id(envelope: bytes) -> str:
    return parse_transaction(envelope, ChannelId("mychannel")).tx_id


async def submit_all(node: Any, envelopes: Any) -> Any:
    return await asyncio.gather(*(node.orderer.submit(e) for e in envelopes))


async def test_a_block_takes_what_came_while_the_one_before_was_committed(defined):
    envelopes = await transactions(defined, 20)
    since = defined.ledger.height
    commits = await submit_all(defined, envelopes)
    assert {c.code for c in commits} == {0}
    assert sum(sizes(defined, since)) == 20
    assert len(sizes(defined, since)) <= 3
    order = [(c.block, c.index) for c in commits]
    assert order == sorted(order)
    for envelope, commit in zip(envelopes, commits, strict=True):
        assert defined.ledger.find_transaction(tx_id(envelope)) == commit


class TestSmallBlocks:
    @pytest.fixture
    def options(self) -> Any:
        return OrdererOptions(max_message_count=3, batch_timeout_s=0.05)

    @pytest.mark.statement(41, of="client")
    async def test_the_count_cuts_at_once_and_the_timeout_cuts_the_rest(self, defined):
        since = defined.ledger.height
        envelopes = await transactions(defined, 7)
        await submit_all(defined, envelopes)
        assert sizes(defined, since) == [3, 3, 1]

    async def test_a_lonely_transaction_waits_for_the_timeout(self, defined):
        loop = asyncio.get_running_loop()
        envelope = await transaction(defined)
        begin = loop.time()
        await defined.orderer.submit(envelope)
        assert loop.time() - begin >= 0.045


class TestPreferredBytes:
    @pytest.fixture
    def options(self) -> Any:
        return OrdererOptions(preferred_max_bytes=12_000, absolute_max_bytes=40_000)

    @pytest.mark.statement(41, of="client")
    async def test_a_large_transaction_is_alone_in_its_block(self, defined):
        small = await transactions(defined, 2)
        large = await transaction(defined, b"put", b"k", b"v" * 9_000)
        after = await transactions(defined, 2)
        since = defined.ledger.height
        await submit_all(defined, [*small, large, *after])
        assert sizes(defined, since) == [2, 1, 2]

    async def test_a_block_is_cut_before_it_exceeds_the_preferred_size(self, defined):
        envelopes = await transactions(defined, 6, size=500)
        each = len(envelopes[0])
        since = defined.ledger.height
        await submit_all(defined, envelopes)
        per_block = 12_000 // each
        assert max(sizes(defined, since)) <= per_block
        assert sum(sizes(defined, since)) == 6

    async def test_a_transaction_above_the_absolute_size_is_refused(self, defined):
        huge = await transaction(defined, b"put", b"k", b"v" * 40_000)
        height = defined.ledger.height
        with pytest.raises(InvalidInput, match="exceeds maximum allowed 40000 bytes"):
            await defined.orderer.submit(huge)
        assert defined.ledger.height == height


@pytest.mark.statement(38, of="client")
async def test_an_envelope_sent_again_is_code_9_and_the_first_stands(defined):
    envelope = await transaction(defined)
    first = await defined.orderer.submit(envelope)
    second = await defined.orderer.submit(envelope)
    assert (first.code, second.code) == (0, 9)
    assert second.block == first.block + 1
    assert defined.ledger.find_transaction(tx_id(envelope)) == first


async def test_twice_in_one_block_is_code_9_as_well(defined):
    envelope = await transaction(defined)
    commits = await submit_all(defined, [envelope, envelope])
    assert [c.code for c in commits] == [0, 9]


@pytest.mark.statement(43, of="client")
async def test_a_wrong_signature_is_refused_with_the_text_of_an_orderer(defined):
    envelope = common_pb2.Envelope.FromString(await transaction(defined))
    envelope.signature = envelope.signature[:-1] + bytes([envelope.signature[-1] ^ 1])
    height = defined.ledger.height
    with pytest.raises(Denied) as caught:
        await defined.orderer.submit(envelope.SerializeToString())
    assert caught.value.message == (
        "implicit policy evaluation failed - 0 sub-policies were satisfied, but this "
        "policy requires 1 of the 'Writers' sub-policies to be satisfied: permission "
        "denied"
    )
    assert defined.ledger.height == height


def edited(data: bytes, signer: Any, **changes: Any) -> Any:
    """Return the envelope with other fields of its channel header; None = not signed."""
    envelope = common_pb2.Envelope.FromString(data)
    payload = common_pb2.Payload.FromString(envelope.payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    header.MergeFrom(common_pb2.ChannelHeader(**changes))
    payload.header.channel_header = header.SerializeToString()
    envelope.payload = payload.SerializeToString()
    envelope.signature = signer.sign(envelope.payload) if signer else b""
    return envelope.SerializeToString()


@pytest.mark.parametrize("changes", [{"epoch": 1}, {"type": 6}, {"tx_id": "a" * 64}])
async def test_nobody_writes_without_a_signature_however_broken_the_rest_is(
    defined, changes
):
    """Else anybody could fill blocks, and use up the id of a transaction of another."""
    good = await transaction(defined)
    height = defined.ledger.height
    for signer in (None, defined.org.peer):
        with pytest.raises(Denied, match="permission denied"):
            await defined.orderer.submit(edited(good, signer, **changes))
    assert defined.ledger.height == height


async def test_a_writer_whose_transaction_id_is_wrong_gets_a_code(defined):
    """As with Fabric, whose orderer does not look at the id."""
    wrong = edited(await transaction(defined), defined.user, tx_id="a" * 64)
    assert (await defined.orderer.submit(wrong)).code == 8


def signed_by(text: Any) -> Any:
    return policy_pb2.ApplicationPolicy(
        signature_policy=parse_policy(text)
    ).SerializeToString()


def referred(name: Any) -> Any:
    return policy_pb2.ApplicationPolicy(
        channel_config_policy_reference=f"/Channel/Application/{name}"
    ).SerializeToString()


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (signed_by("OR('Org1MSP.peer')"), 0),
        (signed_by("OR('Org2MSP.peer', 'Org1MSP.member')"), 0),
        (signed_by("AND('Org1MSP.peer', 'Org2MSP.peer')"), 10),
        (signed_by("OR('Org1MSP.admin')"), 10),
        (referred("Org1MSP/Endorsement"), 0),
        (referred("Org2Peers"), 10),
        (b"\xff", 10),
    ],
)
@pytest.mark.statement(66, of="client")
async def test_the_policy_of_a_definition_decides(node, policy, code):
    await node.define(validation_parameter=policy)
    assert (await node.orderer.submit(await transaction(node))).code == code
    await node.define()
    assert (await node.orderer.submit(await transaction(node))).code == 0


async def test_a_transaction_of_an_undefined_chaincode_is_code_25(defined):
    # `_lifecycle` answers, but the header and the action speak of a name that is
    # not defined: only a peer that endorsed by mistake could make such a one.
    defined.endorser.system["ghost"] = defined.endorser.system["_lifecycle"]
    from fabric_protos.peer.lifecycle import lifecycle_pb2

    args = lifecycle_pb2.QueryChaincodeDefinitionsArgs().SerializeToString()
    envelope = await transaction(
        defined, b"QueryChaincodeDefinitions", args, name="ghost"
    )
    assert (await defined.orderer.submit(envelope)).code == 25


@pytest.mark.parametrize(
    ("envelope", "text"),
    [
        (common_pb2.Envelope(), "Message was empty"),
        (common_pb2.Envelope(payload=b"\xff"), "cannot be read"),
        (
            common_pb2.Envelope(
                payload=common_pb2.Payload(
                    header=common_pb2.Header(
                        channel_header=common_pb2.ChannelHeader(
                            channel_id="other", type=3
                        ).SerializeToString()
                    )
                ).SerializeToString()
            ),
            "channel does not exist",
        ),
        (
            common_pb2.Envelope(
                payload=common_pb2.Payload(
                    header=common_pb2.Header(
                        channel_header=common_pb2.ChannelHeader(
                            channel_id="mychannel", type=1
                        ).SerializeToString()
                    )
                ).SerializeToString()
            ),
            "message is of type that cannot be processed directly",
        ),
    ],
)
async def test_an_orderer_refuses_at_once(node, envelope, text):
    with pytest.raises(InvalidInput, match=text):
        await node.orderer.submit(envelope.SerializeToString())


async def test_a_peer_may_not_submit(defined):
    def proposal(signer: Any) -> Any:
        args = [b"put", b"a", b"b"]
        return parse_proposal(new_proposal("mychannel", "basic", args, signer))

    peer = defined.org.peer
    _, endorsed = await defined.endorser.process(proposal(defined.user), endorse=True)
    envelope = assemble(proposal(peer), endorsed, peer)
    with pytest.raises(Denied, match="permission denied"):
        await defined.orderer.submit(envelope)


async def test_who_expired_after_the_endorsement_may_not_write(defined):
    signer = defined.org.user("late")
    envelope = await transaction(defined, signer=signer)
    identity = defined.endorser.configuration.msps.identify(signer.creator)
    object.__setattr__(identity, "expires", dt.datetime.now(dt.UTC))
    with pytest.raises(Denied, match="broadcast client identity expired"):
        await defined.orderer.submit(envelope)


async def test_who_leaves_after_acceptance_is_committed_all_the_same(defined):
    height = defined.ledger.height
    task = asyncio.ensure_future(defined.orderer.submit(await transaction(defined)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: defined.ledger.height == height + 1)


async def test_closing_commits_what_was_accepted_and_refuses_the_rest(defined):
    envelopes = await transactions(defined, 5)
    late = await transaction(defined)
    waiting = [asyncio.ensure_future(defined.orderer.submit(e)) for e in envelopes]
    await asyncio.sleep(0)
    await defined.orderer.__aexit__()
    assert [c.code for c in await asyncio.gather(*waiting)] == [0] * 5
    with pytest.raises(LedgerClosed):
        await defined.orderer.submit(late)


class Stubborn(Ledger):
    """A ledger whose disk is full, and which shows how it was called."""

    channel = ChannelId("mychannel")

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self.reverts = 0
        self.awaited = ledger.awaited
        self.full = True
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def height(self) -> Any:
        return self._ledger.height

    def new_simulator(self, tx_id: Any) -> Any:
        return self._ledger.new_simulator(tx_id)

    def check_with(self, validator: Any) -> None:
        self._ledger.check_with(validator)

    async def commit(self, envelopes: Any) -> Any:
        await self.gate.wait()
        if self.full:
            raise LedgerError("no space left on the device")
        return await self._ledger.commit(envelopes)


async def test_a_block_that_cannot_be_written_fails_its_submitters_only(defined):
    disk = Stubborn(defined.ledger)
    async with Orderer(disk, defined.endorser.configuration) as orderer:
        envelope = await transaction(defined)
        with pytest.raises(LedgerError, match="no space"):
            await orderer.submit(envelope)
        disk.full = False
        assert (await orderer.submit(envelope)).code == 0


async def test_a_defect_fails_one_block_and_not_all_that_follow(defined, monkeypatch):
    async with Orderer(defined.ledger, defined.endorser.configuration) as orderer:
        envelope = await transaction(defined)
        with monkeypatch.context() as patched:

            def fail(*_: Any) -> Any:
                raise RuntimeError("nobody thought of that")

            patched.setattr(orderer._validator, "check", fail)
            with pytest.raises(LedgerError, match="unexpected RuntimeError"):
                await orderer.submit(envelope)
        assert (await orderer.submit(envelope)).code == 0


async def test_submitters_wait_when_too_many_wait(defined):
    disk = Stubborn(defined.ledger)
    disk.full = False
    disk.gate.clear()
    options = OrdererOptions(max_message_count=1, max_waiting=2)
    async with Orderer(disk, defined.endorser.configuration, options) as orderer:
        envelopes = await transactions(defined, 8)
        tasks = []
        for envelope in envelopes:
            tasks.append(asyncio.ensure_future(orderer.submit(envelope)))
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(orderer._queue) <= 2
        disk.gate.set()
        commits = await asyncio.gather(*tasks)
        assert [c.code for c in commits] == [0] * 8
        blocks = [c.block for c in commits]
        assert blocks == sorted(blocks)


async def test_what_is_parsed_has_a_place_in_the_queue(defined):
    """Many small writes take several times the memory of their envelope."""
    disk = Stubborn(defined.ledger)
    disk.full = False
    disk.gate.clear()
    envelopes = await transactions(defined, 8)
    most = 3 * max(map(len, envelopes))
    options = OrdererOptions(max_message_count=1, max_waiting_bytes=most)
    async with Orderer(disk, defined.endorser.configuration, options) as orderer:
        tasks = [asyncio.ensure_future(orderer.submit(one)) for one in envelopes]
        for _ in range(50):
            await asyncio.sleep(0)
            assert orderer._bytes <= most
        assert len(orderer._queue) <= 2, "one is being committed"
        disk.gate.set()
        assert [one.code for one in await asyncio.gather(*tasks)] == [0] * 8
        assert orderer._bytes == 0
        with pytest.raises(InvalidInput):
            await orderer.submit(envelopes[0][:-4])
        assert orderer._bytes == 0
