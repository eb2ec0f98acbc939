"""Channels of a node: made, removed, there after a restart; nothing of one is in another."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.errors import (
    AlreadyExists,
    ConfigInvalid,
    InvalidInput,
    LedgerClosed,
    LedgerError,
    NotFound,
    StorageError,
    TooManyRequests,
    Unsupported,
)
from chaindock.identity.organization import Organization, Organizations
from chaindock.ids import at_peer
from chaindock.ledger import committer as ledgers
from chaindock.node import home as homes
from chaindock.node.rows import row
from support.config_updates import envelope, leaves, update
from support.doubles.channels import World
from support.doubles.deployments import package

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.node.channels import NodeChannel


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_each_channel_has_a_ledger_of_its_own(world: World):
    async with world.up() as channels:
        assert [*channels] == ["mychannel"]
        made = await channels.create("trades")
        assert [*channels] == ["mychannel", "trades"]
        assert channels["trades"] is made is channels.require("trades")
        assert channels.require() is channels.require("mychannel")
        for channel in channels.values():
            await channel.deployer.deploy(package("one"), "basic")
            await world.call(channel, "put", "k", channel.id)
        await channels["trades"].deployer.deploy(package("two"), "basic")
        assert len(world.node.runtime.running) == 2
    async with world.up() as channels:  # and that is so after a restart
        assert [*channels] == ["mychannel", "trades"]
        for channel in channels.values():
            assert await world.call(channel, "get", "k") == channel.id.encode()
        found = [
            one.deployer.deployments.definition("basic").sequence
            for one in channels.values()
        ]
        assert found == [1, 2]
        await world.node.quiet()
        assert len(world.node.runtime.running) == 2


@pytest.mark.parametrize(
    ("mspid", "domain", "key"),
    [
        ("Org2MSP", "org1.example.com", "peer.localMspId"),
        ("Org1MSP", "elsewhere.example.com", "chaindock.domain"),
    ],
)
async def test_a_channel_of_another_organisation_is_not_opened(
    world: World, mspid: str, domain: str, key: str
):
    async with world.up() as channels:
        await channels.require().deployer.deploy(package("one"), "basic")
    folder = world.home.organizations
    own = world.organizations
    other = Organization.open(folder, mspid, domain)
    world.organizations = Organizations(folder, other)
    with pytest.raises(ConfigInvalid) as caught:
        async with world.up():
            pytest.fail("it is open")
    assert key in caught.value.message
    assert "'mychannel'" in caught.value.message
    assert "Org1MSP" in caught.value.message
    world.organizations = own  # nothing was removed
    async with world.up() as channels:
        await world.call(channels.require(), "put", "k", "v")


async def test_a_removed_channel_takes_along_what_runs_there_alone(world: World):
    async with world.up() as channels:
        made = await channels.create("trades")
        await channels.require().deployer.deploy(package("both"), "basic")
        both = {one.ccid for one in world.node.fleet.all()}
        await made.deployer.deploy(package("both"), "basic")
        await made.deployer.deploy(package("alone"), "other")
        await world.call(made, "put", "k", "v")
        await channels.remove("trades")
        assert [*channels] == ["mychannel"]
        assert world.node.runtime.running == both
        assert set(world.node.store.list()) == both
        assert not [*world.home.ledgers.glob("trades*")]
        with pytest.raises(LedgerClosed):
            await world.call(made, "get", "k")
        again = await channels.create("trades")
        assert again.ledger.height == 1
        assert again.deployer.deployments.all() == []
    async with world.up() as channels:
        assert [*channels] == ["mychannel", "trades"]


async def test_who_follows_a_removed_channel_is_told(world: World):
    async with world.up() as channels:
        made = await channels.create("trades")
        events = made.explorer.events("", None, follow=True, over=lambda: False)
        waiting = asyncio.ensure_future(anext(events, "over"))
        block = asyncio.ensure_future(made.ledger.wait_above(1))
        await asyncio.sleep(0.01)
        await channels.remove("trades")
        async with asyncio.timeout(5):
            assert await waiting == "over"
        with pytest.raises(LedgerClosed):
            await block


async def test_the_limit_of_proposals_holds_for_all_channels(world: World):
    async with world.up(concurrency=1) as channels:
        made = await channels.create("trades")
        for channel in channels.values():
            await channel.deployer.deploy(package("one"), "basic")
        world.contract.open.clear()
        first = asyncio.ensure_future(world.call(channels.require(), "get", "k"))
        await world.contract.entered.wait()
        with pytest.raises(TooManyRequests):
            await world.call(made, "get", "k")
        world.contract.open.set()
        assert await first == b""
        assert await world.call(made, "get", "k") == b""


async def test_wrong_wishes_change_nothing(world: World):
    async with world.up() as channels:
        with pytest.raises(AlreadyExists, match="channel 'mychannel' exists already"):
            await channels.create("mychannel")
        with pytest.raises(InvalidInput, match="lower-case letter"):
            await channels.create("../Trades")
        with pytest.raises(NotFound, match="organisation 'Org9MSP' is none"):
            await channels.create("trades", ["Org9MSP"])
        with pytest.raises(NotFound, match="this node has no channel 'none'"):
            await channels.remove("none")
        with pytest.raises(InvalidInput, match="first one and stays"):
            await channels.remove("mychannel")
        for name in ("V1_4_2", "V3_0", ""):
            with pytest.raises(Unsupported, match="expected V2_0 or V2_5"):
                await channels.create("trades", capability=name)
        (world.home.ledgers / "trades.db").write_bytes(b"no database" * 100)
        with pytest.raises(StorageError):
            await channels.create("trades")
        assert [*channels] == ["mychannel"]
    async with world.up() as channels:
        assert [*channels] == ["mychannel"]


async def test_a_channel_of_some_organisations(world: World):
    async with world.up() as channels:
        for name in ("Org2", "Org3"):
            await channels.require().members.add(name, channels.require().orderer)
        everyone = await channels.create("everyone")
        two = await channels.create("two", ["Org2"])
        text = (
            "'Org3' is none of those of channel 'two' whose keys this node has: Org1MSP"
        )
        with pytest.raises(NotFound, match=text):
            two.members.get("Org3")
        assert everyone.members.configuration.peers == ["Org1MSP", "Org2MSP", "Org3MSP"]
        assert [*two.members.peers] == ["Org1MSP", "Org2MSP"]
        # Their policies count: two of two have to approve and endorse.
        await two.deployer.deploy(package("one"), "basic")
        await world.call(two, "put", "k", "v")
        await two.members.add("Org3", two.orderer)
        assert [*two.members.peers] == ["Org1MSP", "Org2MSP", "Org3MSP"]
        assert world.served[-3:] == ["Org1MSP", "Org2MSP", "Org3MSP"]
        # The node has keys of a fourth one, which the first channel does not know.
        await two.members.add("Org4", two.orderer)
        later = await channels.create("later")
        assert [*later.members.peers] == ["Org1MSP", "Org2MSP", "Org3MSP"]


async def test_members_change_before_anybody_serves_clients(world: World):
    """A change may come while the node starts."""
    async with world.up() as channels:
        channels.followers.clear()
        first = channels.require()
        await first.members.add("Org2", first.orderer)
        made = await channels.create("trades")
        assert [*made.members.peers] == ["Org1MSP", "Org2MSP"]


async def leave(channel: NodeChannel, mspid: str) -> None:
    admins = channel.members.admins()
    asked = update(channel.members.configuration.config, leaves(mspid), channel.id)
    await channel.orderer.submit(envelope(asked, *admins, channel=channel.id))


def others(world: World, channel: NodeChannel) -> list[str]:
    """Return what `ps` shows below `basic` on a channel."""
    of, node = channel.deployer.deployments, world.node
    about = node.fleet, node.custodian, world.config.chaincodes
    shown = row(of.get("basic"), of.definition("basic"), *about)
    return [one.name for one in shown.others]


@pytest.mark.parametrize("how", ["leaves", "removed"])
async def test_what_serves_a_peer_ends_when_no_channel_needs_it(world: World, how: str):
    async with world.up() as channels:
        first, custodian = channels.require(), world.node.custodian
        await first.members.add("Org2", first.orderer)
        made = await channels.create("trades")
        ccid = (await first.deployer.deploy(package("one"), "basic")).ccid
        await made.deployer.deploy(package("one"), "basic")
        await first.deployer.deploy(package("two"), "other")
        await custodian.ready(at_peer(ccid, "Org2MSP"), 5)
        assert others(world, first) == others(world, made) == ["basic@Org2MSP"]
        await leave(first, "Org2MSP")
        await world.node.quiet()
        assert at_peer(ccid, "Org2MSP") in world.node.runtime.running
        assert (others(world, first), others(world, made)) == ([], ["basic@Org2MSP"])
        if how == "leaves":
            await leave(made, "Org2MSP")
        else:
            await channels.remove("trades")
        await world.node.quiet()
        assert at_peer(ccid, "Org2MSP") not in world.node.runtime.running
        assert ccid in world.node.runtime.running
        assert await world.call(first, "get", "k") == b""


async def test_who_leaves_does_not_leave_half_a_channel(world: World):
    async with world.up() as channels:
        making = asyncio.ensure_future(channels.create("trades"))
        await asyncio.sleep(0)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        assert "trades" in channels
        removing = asyncio.ensure_future(channels.remove("trades"))
        await asyncio.sleep(0)
        removing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await removing
        assert "trades" not in channels
        assert not [*world.home.ledgers.glob("trades*")]


async def test_a_removal_that_was_interrupted_is_ended(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    def full(_path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    async with world.up() as channels:
        await channels.create("trades")
        with monkeypatch.context() as patch:
            patch.setattr(homes, "remove_database", full)
            with pytest.raises(StorageError, match="cannot remove"):
                await channels.remove("trades")
            with pytest.raises(StorageError):  # not the former ledger again
                await channels.create("trades")
        assert [*channels] == ["mychannel"]
    async with world.up() as channels:
        assert [*channels] == ["mychannel"]
        assert not [*world.home.ledgers.glob("trades*")]
        assert not [*world.home.organizations.glob("trades*")]


async def test_a_deployment_leaves_nothing_on_a_channel_that_is_removed_meanwhile(
    world: World,
):
    async with world.up() as channels:
        made = await channels.create("trades")
        world.node.runtime.gate = gate = asyncio.Event()
        deploying = asyncio.ensure_future(made.deployer.deploy(package("one"), "basic"))
        await world.node.runtime.entered.wait()
        await channels.remove("trades")
        gate.set()
        with pytest.raises(LedgerClosed):
            await deploying
        await world.node.quiet()
        assert world.node.runtime.running == set()
        assert world.node.store.list() == []


async def test_a_deployment_whose_commit_comes_last_says_that_the_channel_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    async with world.up() as channels:
        made = await channels.create("trades")
        deployer, watchers = made.deployer, made.ledger.watchers
        commit = deployer._commit_on_ledger

        async def last(definition: Any, ccid: Any) -> None:
            """The orderer commits what it has accepted when nobody follows any more."""
            watchers.remove(deployer.committed)
            await commit(definition, ccid)
            watchers.append(deployer.committed)
            await channels.remove("trades")

        monkeypatch.setattr(deployer, "_commit_on_ledger", last)
        with pytest.raises(
            LedgerClosed, match="channel 'trades' has just been removed"
        ):
            await deployer.deploy(package("one"), "basic")
        await world.node.quiet()
        assert world.node.store.list() == []


async def test_what_lies_in_place_of_a_new_ledger_is_named_and_stays(world: World):
    left = world.home.ledgers / "trades.db"
    async with world.up() as channels:
        made = await channels.create("trades")
        await made.deployer.deploy(package("one"), "basic")
    _, marker = world.home.ledger("trades")
    marker.unlink()
    before = left.read_bytes()
    async with world.up() as channels:
        assert [*channels] == ["mychannel"]
        with pytest.raises(StorageError, match=re.escape(str(left))):
            await channels.create("trades")
        assert left.read_bytes() == before
        left.rename(left.with_suffix(".old"))
        assert (await channels.create("trades")).ledger.height == 1


async def test_a_channel_that_could_not_be_made_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    async with world.up() as channels:
        with monkeypatch.context() as patch:
            patch.setattr(ledgers, "mark", failing)
            with pytest.raises(LedgerError, match="no space"):
                await channels.create("trades")
        assert not [*world.home.ledgers.glob("trades*")]
        assert (await channels.create("trades")).ledger.height == 1


def failing(*_: object) -> None:
    raise LedgerError("no space")


async def test_a_removal_that_fails_later_does_not_bring_the_channel_back(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    def full(_channel: str) -> None:
        raise StorageError("no space")

    async with world.up() as channels:
        made = await channels.create("trades")
        await made.deployer.deploy(package("one"), "basic")
        monkeypatch.setattr(world.node.targets, "forget", full)
        with pytest.raises(StorageError, match="no space"):
            await channels.remove("trades")
    async with world.up() as channels:
        assert [*channels] == ["mychannel"]
        await world.node.quiet()
        assert world.node.store.list() == []


async def test_a_second_deployment_of_a_package_leaves_nothing_either(world: World):
    async with world.up() as channels:
        made = await channels.create("trades")
        ccid = (await made.deployer.deploy(package("one"), "basic")).ccid
        await made.deployer.stop("basic")
        world.node.runtime.gate = gate = asyncio.Event()
        world.node.runtime.entered.clear()
        deploying = asyncio.ensure_future(made.deployer.deploy(package("one"), "basic"))
        await world.node.runtime.entered.wait()
        await channels.remove("trades")
        gate.set()
        with pytest.raises(LedgerClosed):
            await deploying
        await world.node.quiet()
        assert ccid not in world.node.runtime.running
        assert world.node.store.list() == []
