"""What the admin API gets: queries and transactions from end to end."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.peer import transaction_pb2

from chaindock.endorser.caller import Answer
from chaindock.errors import (
    ChaincodeError,
    Denied,
    ExecuteFailed,
    ExitedEarly,
    InvalidInput,
    LedgerError,
    NotFound,
    StartFailed,
)
from chaindock.ids import Ccid, TxId
from chaindock.ledger.transaction import code_name, parse_transaction
from chaindock.lifecycle.definitions import Definition, set_defaults
from support.ledgers.ledger import committed_definition

CCID = Ccid("x:" + "c" * 64)


@pytest.mark.statement(22, of="client")
async def test_an_invoked_value_is_there_for_the_next_query(defined):
    done = await defined.caller.invoke(
        "basic", [b"put", b"k", b"v"], signer=defined.user
    )
    assert (done.status, done.payload, done.code, done.code_name) == (
        200,
        b"v",
        0,
        "VALID",
    )
    assert done.block == defined.ledger.height - 1
    found = await defined.caller.query("basic", [b"get", b"k"], signer=defined.user)
    assert found.payload == b"v"
    assert (found.block, found.code, found.code_name) == (None, None, None)


async def test_private_data_is_there_once_its_transaction_is_committed(defined):
    secret = b"nobody may know this"
    await defined.caller.invoke("basic", [b"hide", b"k", secret], signer=defined.user)
    found = await defined.caller.query("basic", [b"reveal", b"k"], signer=defined.user)
    assert found.payload == secret
    # What a query writes is dropped.
    await defined.caller.query("basic", [b"hide", b"k", b"x"], signer=defined.user)
    found = await defined.caller.query("basic", [b"reveal", b"k"], signer=defined.user)
    assert found.payload == secret


async def test_a_query_writes_nothing(defined):
    height = defined.ledger.height
    await defined.caller.query("basic", [b"put", b"k", b"v"], signer=defined.user)
    assert defined.ledger.height == height
    found = await defined.caller.query("basic", [b"get", b"k"], signer=defined.user)
    assert found.payload == b""


async def test_a_query_is_checked_but_not_endorsed(defined, monkeypatch):
    def sign(_message: bytes) -> bytes:
        raise AssertionError("nobody has a query ordered")

    monkeypatch.setattr(defined.org.peer, "sign", sign)
    said = await defined.caller.query("basic", [b"get", b"a"], signer=defined.user)
    assert said.status == 200
    with pytest.raises(Denied):
        await defined.caller.query("basic", [b"get"], signer=defined.org.orderer)


@pytest.mark.statement(19, of="client")
async def test_a_submitted_read_commits_valid(defined):
    done = await defined.caller.invoke("basic", [b"get", b"none"], signer=defined.user)
    assert done.code == 0
    block = common_pb2.Block.FromString(defined.ledger.get_block(done.block))
    (space,) = [
        one
        for one in parse_transaction(block.data.data[0], None).spaces
        if one.ns == "basic"
    ]
    assert [key for key, _ in space.reads] == [b"none"]
    assert (list(space.writes), list(space.metadata)) == ([], [])


@pytest.mark.parametrize("status", [400, 404, 500, 599])
async def test_an_error_status_is_an_answer_and_is_never_ordered(defined, status):
    height = defined.ledger.height
    for call in (defined.caller.query, defined.caller.invoke):
        said = await call(
            "basic", [b"status", str(status).encode(), b"no"], signer=defined.user
        )
        assert (said.status, said.message, said.payload) == (status, "no", b"data")
        assert (said.block, said.code, said.event) == (None, None, None)
    assert defined.ledger.height == height


@pytest.mark.parametrize("status", [-1, 0, 199])
async def test_a_status_below_200_is_an_answer_of_a_query_and_is_never_ordered(
    defined, status
):
    """Also an empty `Response`, whose status is 0. Fabric's clients refuse these."""
    height, args = defined.ledger.height, [b"status", str(status).encode(), b"no"]
    said = await defined.caller.query("basic", args, signer=defined.user)
    assert (said.status, said.code) == (status, None)
    told = f"basic.*status {status}.*200 to 399"
    with pytest.raises(ExecuteFailed, match=told) as failed:
        await defined.caller.invoke("basic", args, signer=defined.user)
    assert failed.value.facts["tx_id"]
    assert defined.ledger.height == height


async def test_a_refusal_that_the_contract_swallows_is_told_beside_its_answer(defined):
    """A contract that hides our "not supported" must not look as if it had worked."""
    for call in (defined.caller.query, defined.caller.invoke):
        said = await call("basic", [b"swallow"], signer=defined.user)
        assert (said.status, said.payload) == (200, b"all is well")
        assert list(said.refusals) == ["rich queries are not supported"]


@pytest.mark.statement(34)
@pytest.mark.statement(65, of="client")
async def test_status_399_is_success(defined):
    done = await defined.caller.invoke(
        "basic", [b"status", b"399"], signer=defined.user
    )
    assert (done.status, done.code) == (399, 0)


@pytest.mark.parametrize("way", ["invoke", "query"])
async def test_the_event_carries_name_and_transaction_as_the_node_knows_them(
    defined, way
):
    call = getattr(defined.caller, way)
    done = await call("basic", [b"event", b"sold", b"car"], signer=defined.user)
    event = done.event
    assert (event.chaincode_id, event.event_name) == ("basic", "sold")
    assert (event.tx_id, event.payload) == (done.tx_id, b"car")


@pytest.mark.statement(6, of="client")
async def test_two_writers_of_what_both_read_conflict(defined):
    await defined.caller.invoke("basic", [b"put", b"a", b"1"], signer=defined.user)
    defined.chaincode.hold = asyncio.Event()
    both = asyncio.gather(
        defined.caller.invoke("basic", [b"copy", b"a", b"a"], signer=defined.user),
        defined.caller.invoke("basic", [b"copy", b"a", b"a"], signer=defined.user),
    )
    for _ in range(3):
        await defined.chaincode.entered.acquire()
    defined.chaincode.hold.set()
    codes = sorted(done.code for done in await both)
    assert codes == [0, 11]
    assert code_name(11) == "MVCC_READ_CONFLICT"


@pytest.mark.statement(20, of="client")
async def test_an_upgrade_in_between_makes_the_transaction_void(defined):
    defined.chaincode.hold = asyncio.Event()
    running = asyncio.ensure_future(
        defined.caller.invoke("basic", [b"put", b"k", b"v"], signer=defined.user)
    )
    await defined.chaincode.entered.acquire()
    await defined.define(version="2.0")
    defined.chaincode.hold.set()
    assert (await running).code == transaction_pb2.MVCC_READ_CONFLICT


async def test_failures_of_the_node_keep_their_facts(defined):
    error = ExitedEarly(
        "could not launch chaincode x: …", output=["panic"], exit_code=2
    )
    defined.chaincode.raises = error
    with pytest.raises(ExitedEarly) as caught:
        await defined.caller.query("basic", [b"get", b"k"], signer=defined.user)
    assert caught.value is error
    defined.chaincode.raises = ChaincodeError("transaction returned with failure: x")
    with pytest.raises(ChaincodeError):
        await defined.caller.invoke("basic", [b"get", b"k"], signer=defined.user)


async def test_an_unknown_name_says_that_it_is_not_defined(node):
    with pytest.raises(NotFound) as caught:
        await node.caller.query("none", [b"get"], signer=node.user)
    assert caught.value.message == (
        "make sure the chaincode none has been successfully defined on channel "
        "mychannel and try again: chaincode none not found"
    )


async def test_defined_but_not_installed_says_so(defined):
    defined.approvals.known.clear()
    with pytest.raises(NotFound) as caught:
        await defined.caller.query("basic", [b"get", b"k"], signer=defined.user)
    assert caught.value.message.endswith(
        "chaincode definition for 'basic' exists, but chaincode is not installed"
    )


async def test_a_stopped_chaincode_is_not_started_by_a_call(defined):
    defined.approvals.stopped.add("basic")
    with pytest.raises(StartFailed, match="was stopped"):
        await defined.caller.query("basic", [b"get", b"k"], signer=defined.user)
    assert defined.chaincode.seen == []


@pytest.mark.statement(87)
@pytest.mark.statement(21, of="client")
async def test_init_is_required_once_for_each_version(node):
    await node.define("basic", "1.0", init_required=True)

    def call(*args: Any, is_init: Any = False) -> Any:
        return node.caller.invoke("basic", args, signer=node.user, is_init=is_init)

    with pytest.raises(InvalidInput, match="must call as init first") as caught:
        await call(b"put", b"k", b"v")
    assert caught.value.hint == "chaindock invoke basic --init FUNCTION ARGS..."
    assert (await call(b"init", is_init=True)).payload == b"init"
    with pytest.raises(InvalidInput, match="is already initialized but called as init"):
        await call(b"init", is_init=True)
    assert (await call(b"put", b"k", b"v")).code == 0
    await node.define("basic", "2.0", init_required=True)
    with pytest.raises(InvalidInput, match="must call as init first"):
        await call(b"put", b"k", b"v")
    assert (await call(b"init", is_init=True)).code == 0
    assert (await call(b"get", b"k")).payload == b"v"


@pytest.mark.statement(87)
async def test_init_where_none_is_required_is_refused(defined):
    with pytest.raises(InvalidInput, match="does not require initialization"):
        await defined.caller.invoke(
            "basic", [b"init"], signer=defined.user, is_init=True
        )


@pytest.mark.statement(32, of="client")
async def test_transient_values_reach_the_chaincode_and_not_the_ledger(defined):
    done = await defined.caller.invoke(
        "basic",
        [b"put", b"k", b"v"],
        signer=defined.user,
        transient={"pin": b"only-for-the-chaincode"},
    )
    assert done.code == 0
    _, invocation = defined.chaincode.seen[-1]
    assert b"only-for-the-chaincode" in invocation.signed_proposal.proposal_bytes
    assert b"only-for-the-chaincode" not in defined.ledger.get_block(done.block)


async def test_the_time_limit_of_a_call_reaches_the_chaincode(defined):
    await defined.caller.query(
        "basic", [b"get", b"k"], signer=defined.user, timeout_s=1.5
    )
    assert defined.chaincode.seen[-1][1].timeout_s == 1.5


async def test_a_definition_that_stopped_peers_would_endorse_names_them(node):
    class Unendorsed:
        async def invoke(self, *_: Any, **__: Any) -> Answer:
            unmet = {"stopped": ["Org2MSP"]}
            return Answer(200, "", b"", TxId("t"), block=1, code=10, unmet=unmet)

    writer = replace(node.writer, caller=Unendorsed())
    with pytest.raises(LedgerError, match="ENDORSEMENT_POLICY_FAILURE") as caught:
        await writer._call("CommitChaincodeDefinition", Definition(), node.org.admin)
    assert caught.value.hint == "start these peers: chaindock org start Org2MSP"


async def test_a_definition_without_approval_is_not_committed(node):
    definition = Definition(name="x", sequence=1, version="1.0")
    with pytest.raises(LedgerError, match="not agreed to by this org"):
        await node.writer._call("CommitChaincodeDefinition", definition, node.org.admin)
    assert committed_definition(node.ledger, "x") is None


async def test_an_approval_of_an_attempt_that_was_lost_is_not_made_again(node):
    definition = Definition(name="x", sequence=1, version="1.0")
    set_defaults(definition)
    lost = replace(node.writer, caller=FailsToCommit(node.caller))
    with pytest.raises(LedgerError, match="the disk is full"):
        await lost.commit(definition, CCID)
    height = node.ledger.height
    await node.writer.commit(definition, CCID)
    assert node.ledger.height == height + 1
    assert committed_definition(node.ledger, "x").version == "1.0"


class FailsToCommit:
    """A caller that has no success with the second function."""

    def __init__(self, caller: Any) -> None:
        self.caller = caller

    async def invoke(self, name: Any, args: Any, **options: Any) -> Any:
        if args[0] == b"CommitChaincodeDefinition":
            raise LedgerError("the disk is full")
        return await self.caller.invoke(name, args, **options)


async def test_a_definition_is_a_transaction_that_anybody_can_read(defined):
    block = common_pb2.Block.FromString(defined.ledger.get_block(1))
    envelope = common_pb2.Envelope.FromString(block.data.data[0])
    payload = common_pb2.Payload.FromString(envelope.payload)
    header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
    assert header.type == common_pb2.ENDORSER_TRANSACTION
    assert b"_lifecycle" in header.extension
    assert bytes(block.metadata.metadata[2]) == b"\x00"


async def test_calls_that_come_one_after_the_other_share_a_block(defined):
    async def put(number: int) -> Any:
        for _ in range(2 * number):
            await asyncio.sleep(0)
        args = [b"put", b"k%d" % number, b"v"]
        return await defined.caller.invoke("basic", args, signer=defined.user)

    answers = await asyncio.gather(*map(put, range(20)))
    assert {one.code for one in answers} == {0}
    assert len({one.block for one in answers}) <= 2
