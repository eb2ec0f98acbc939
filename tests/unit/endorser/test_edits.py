"""State that a developer writes, and the time of calls: real transactions."""

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
from fabric_protos.common import common_pb2

from chaindock.errors import InvalidInput, LedgerError, NotFound
from chaindock.ids import ChannelId
from chaindock.ledger.database import corrupt
from chaindock.ledger.transaction import parse_transaction
from chaindock.node.controls import Controls
from chaindock.node.described import describe


@pytest.fixture
def org(organizations: Any) -> Any:
    return organizations.first


@pytest.fixture
def controls(defined: Any) -> Controls:
    return Controls(defined.caller, lambda _org: [defined.org.admin])


def last(node: Any) -> bytes:
    block = common_pb2.Block.FromString(node.ledger.get_block(node.ledger.height - 1))
    return bytes(block.data.data[0])


async def get(node: Any, key: str) -> bytes:
    answer = await node.caller.query("basic", [b"get", key.encode()], signer=node.user)
    return bytes(answer.payload)


async def test_a_write_is_endorsed_and_ordered_like_any_other(defined, controls):
    answer = await controls.write("basic", [("a", b"1"), ("b", b"2"), ("c", b"")])
    assert (answer.status, answer.code) == (200, 0)
    assert await get(defined, "a") == b"1"
    found = describe(last(defined), 0)
    assert (found["function"], found["chaincode"]) == ("chaindock.state.write", "basic")
    assert "admin" in found["creator"]["subject"].lower()
    assert len(found["endorsers"]) == 1
    assert len(defined.chaincode.seen) == 1  # the query
    assert [one["is_delete"] for one in found["writes"]] == [False, False, True]


async def test_a_write_needs_a_chaincode_that_is_defined(controls):
    with pytest.raises(NotFound):
        await controls.write("other", [("a", b"1")])


@pytest.mark.parametrize("collection", ["", "_implicit_org_Org2MSP"])
async def test_the_admin_of_the_named_organisation_signs(two, members, collection):
    controls = Controls(two.caller, members.admins)
    for org in ("Org2", "Org2MSP"):
        answer = await controls.write("basic", [("a", b"1")], collection, org)
        assert answer.code == 0
        assert describe(last(two), 0)["creator"]["mspid"] == "Org2MSP"
    with pytest.raises(NotFound, match="'Org9' is none of those of channel"):
        await controls.write("basic", [("a", b"1")], collection, "Org9")


async def test_a_revert_without_any_snapshot_says_so(controls):
    with pytest.raises(NotFound, match=r"^there is no snapshot; known: none$"):
        await controls.revert("")


@pytest.mark.parametrize("writes", [[], [("", b"v")], [("\ud800", b"v")]])
async def test_wrong_keys_are_refused(controls, writes):
    with pytest.raises(InvalidInput):
        await controls.write("basic", writes)


async def test_calls_have_the_time_that_was_set(defined, controls):
    controls.set_time(at_s=2_000_000_000, advance_s=None)
    controls.set_time(at_s=None, advance_s=3600)
    await defined.caller.invoke("basic", [b"put", b"k", b"v"], signer=defined.user)
    tx = parse_transaction(last(defined), ChannelId("mychannel"))
    assert 0 <= tx.timestamp.seconds - 2_000_003_600 < 30
    assert "the time of calls is 2033-05-18T" in next(controls.warnings())
    controls.set_time(at_s=None, advance_s=None)
    await defined.caller.invoke("basic", [b"put", b"k", b"v"], signer=defined.user)
    tx = parse_transaction(last(defined), ChannelId("mychannel"))
    assert abs(tx.timestamp.seconds - time.time()) < 30
    assert list(controls.warnings()) == []


@pytest.mark.parametrize("at_s", [-1.0, 1e12, 1e300])
async def test_times_that_no_timestamp_can_hold_are_refused(controls, at_s):
    with pytest.raises(InvalidInput, match="before 1970 or after 9999"):
        controls.set_time(at_s=at_s, advance_s=None)
    assert controls.time()["offset_s"] == 0


async def test_an_answer_does_not_depend_on_its_explanation(defined):
    async def fails(_envelope: bytes, _place: Any) -> None:
        raise LedgerError("the file cannot be read")

    caller = dataclasses.replace(defined.caller, explain=fails)
    calls = [
        caller.invoke("basic", [b"copy", b"k", b"k"], signer=defined.user)
        for _ in range(5)
    ]
    answers = await asyncio.gather(*calls)
    assert {one.code for one in answers} == {0, 11}
    assert {one.conflict for one in answers} == {None}


async def test_a_damaged_ledger_is_told_with_the_remedy(controls, monkeypatch):
    found = corrupt(Path("channel.db"), "block 6 cannot be decoded")
    monkeypatch.setattr(controls.caller.endorser.ledger, "damage", found)
    (told,) = controls.warnings()
    assert "block 6 cannot be decoded" in told
    assert "chaindock load FILE" in told


async def test_one_transaction_that_waits_is_told_in_the_singular(
    controls, monkeypatch
):
    orderer = controls.caller.orderer
    monkeypatch.setattr(type(orderer), "mode", ("manual", 0.0))
    for number, told in (
        (1, "1 transaction waits for its block"),
        (2, "2 transactions wait for their block"),
    ):
        monkeypatch.setattr(type(orderer), "waiting", number)
        assert next(controls.warnings()).startswith(told)
