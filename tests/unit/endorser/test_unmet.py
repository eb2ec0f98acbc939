"""What a user is told of a policy that a transaction does not satisfy."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fabric_protos.peer import policy_pb2

from chaindock.cli.blocks import reason_lines
from chaindock.endorser.cutting import MANUAL, OrdererOptions
from chaindock.identity.policies import parse_policy
from chaindock.ledger.reader import LedgerReader
from chaindock.node.explorer import Explorer
from support.doubles.fake_explorer import members_of
from support.eventually import eventually

BOTH = "AND('Org1MSP.peer', 'Org2MSP.peer')"
LABEL = parse_policy(BOTH).SerializeToString().hex().encode()


def signed_by(text: str) -> Any:
    return policy_pb2.ApplicationPolicy(
        signature_policy=parse_policy(text)
    ).SerializeToString()


def of_channel(path: str) -> Any:
    return policy_pb2.ApplicationPolicy(
        channel_config_policy_reference=path
    ).SerializeToString()


@pytest.fixture
async def call(node: Any) -> Any:
    """Submits a transaction and returns its code, and the lines that say why."""
    async with LedgerReader(node.ledger._path) as reader:
        explorer = Explorer(node.ledger, reader, members_of(node.ledger))
        caller = replace(node.caller, explain=explorer.reasons)

        async def call(*args: bytes) -> Any:
            found = await caller.invoke("basic", args, signer=node.user)
            told = {"conflict": found.conflict, "unmet": found.unmet}
            return found.code, list(reason_lines(told))

        yield call


async def test_the_policy_of_the_chaincode_is_told_with_who_endorsed(node, call):
    await node.define(validation_parameter=signed_by(BOTH))
    assert await call(b"put", b"k", b"v") == (
        10,
        [f"policy of basic: {BOTH}", "endorsed by: Org1MSP.peer"],
    )
    # The state before the block counts, whatever is defined by now.
    await node.define()
    assert await call(b"put", b"k", b"v") == (0, [])


async def test_a_policy_of_the_channel_is_told_with_what_it_wants(node, call):
    path = "/Channel/Application/Org2MSP/Endorsement"
    await node.define(validation_parameter=of_channel(path))
    _, lines = await call(b"put", b"k", b"v")
    assert lines == [
        "policy of basic: a policy that nobody can satisfy",
        f"the channel has no policy {path}",
        "endorsed by: Org1MSP.peer",
    ]


async def test_the_policy_of_a_key_is_told_as_such(node, call):
    await node.define()
    assert (await call(b"put", b"k", b"v"))[0] == 0
    assert (await call(b"label", b"k", LABEL))[0] == 0
    assert await call(b"put", b"k", b"v") == (
        10,
        [f"policy of key k of basic: {BOTH}", "endorsed by: Org1MSP.peer"],
    )


async def test_a_damaged_policy_is_told(node, call):
    await node.define(validation_parameter=b"\xff")
    _, lines = await call(b"put", b"k", b"v")
    assert lines[0] == "policy of basic: a policy that nobody can satisfy"


class TestInOneBlock:
    @pytest.fixture
    def options(self) -> Any:
        return OrdererOptions(mode=MANUAL)

    async def test_a_policy_that_changed_in_the_block_is_told(self, node, call):
        await node.define()
        calls = []
        for args in ((b"label", b"k", LABEL), (b"put", b"k", b"v")):
            calls.append(asyncio.ensure_future(call(*args)))
            await eventually(lambda: node.orderer.waiting == len(calls))
        await node.orderer.cut()
        assert await calls[1] == (
            10,
            [
                "an earlier transaction of the block changed the policy of a written key",
                "endorsed by: Org1MSP.peer",
            ],
        )


class TestOfSeveralOrganisations:
    @pytest.fixture
    def org(self, organizations: Any) -> Any:
        return organizations.first

    async def test_a_stopped_peer_that_is_needed_is_told(
        self, node, members, organizations
    ):
        """Also if others that run would have to endorse besides."""
        await members.add("Org2", node.orderer)
        await members.add("Org3", node.orderer)
        async with LedgerReader(node.ledger._path) as reader:
            explorer = Explorer(node.ledger, reader, members)
            caller = replace(node.caller, explain=explorer.reasons)
            for policy, stopped in {
                "OR('Org9MSP.peer')": [],
                BOTH: ["Org2MSP"],
                "AND('Org1MSP.peer','Org2MSP.peer','Org3MSP.peer')": ["Org2MSP"],
                "AND('Org2MSP.peer','Org9MSP.peer')": [],
            }.items():
                await node.define(validation_parameter=signed_by(policy))
                organizations.stopped.add("Org2MSP")
                members.refresh()
                answer = await caller.invoke(
                    "basic", [b"put", b"k", b"v"], signer=node.user
                )
                assert answer.unmet["stopped"] == stopped
                organizations.stopped.clear()
                members.refresh()
