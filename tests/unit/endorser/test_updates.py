"""Changes of a channel's configuration by clients, as `peer channel update` sends them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.common import (
    common_pb2,
    configtx_pb2,
    configuration_pb2,
    policies_pb2,
)
from fabric_protos.orderer import configuration_pb2 as orderer_pb2
from fabric_protos.peer import configuration_pb2 as peer_pb2

from chaindock.endorser.acl import require
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions, in_force
from chaindock.endorser.orderer import Orderer
from chaindock.endorser.updates import MOST_BYTES
from chaindock.errors import Denied, InvalidInput, Unsupported
from chaindock.identity.organization import Organization
from support.config_updates import (
    change,
    config,
    envelope,
    leaves,
    put,
    timeout,
    update,
)

if TYPE_CHECKING:
    from support.config_updates import Change


@pytest.fixture
def org(organizations: Any) -> Any:
    return organizations.first


def anchors(mspid: str, port: int = 7051) -> Change:
    one = peer_pb2.AnchorPeers(anchor_peers=[peer_pb2.AnchorPeer(host="p", port=port)])
    return lambda group: put(
        group.groups["Application"].groups[mspid], "AnchorPeers", one
    )


def batch(**size: int) -> Change:
    made = {"max_message_count": 2, "absolute_max_bytes": 20_000, **size}
    value = orderer_pb2.BatchSize(**{"preferred_max_bytes": 20_000, **made})
    return lambda group: put(group.groups["Orderer"], "BatchSize", value)


def acl(resource: str, policy: str) -> Change:
    acls = peer_pb2.ACLs(acls={resource: peer_pb2.APIResource(policy_ref=policy)})
    return lambda group: put(group.groups["Application"], "ACLs", acls)


def capability(*names: str) -> Change:
    able = configuration_pb2.Capabilities()
    for name in names:
        able.capabilities[name].SetInParent()
    return lambda group: put(group.groups["Application"], "Capabilities", able)


# --- what is changed ----------------------------------------------------------------


async def test_an_organisation_sets_its_own_anchor_peers(two):
    """Its own admin is enough, and the block says who asked for what."""
    sequence, height = config(two).sequence, two.ledger.height
    sent = await change(two, anchors("Org2MSP"), two.admins[1])
    found = config(two)
    group = found.channel_group.groups["Application"].groups["Org2MSP"]
    assert (found.sequence, group.version) == (sequence + 1, 1)
    told = peer_pb2.AnchorPeers.FromString(group.values["AnchorPeers"].value)
    assert [(one.host, one.port) for one in told.anchor_peers] == [("p", 7051)]
    block = common_pb2.Block.FromString(two.ledger.get_block(height))
    payload = common_pb2.Envelope.FromString(block.data.data[0]).payload
    content = common_pb2.Payload.FromString(payload).data
    made = configtx_pb2.ConfigEnvelope.FromString(content)
    assert (made.config, made.last_update.SerializeToString()) == (found, sent)
    await change(two, anchors("Org2MSP", 7052), two.admins[1])
    group = config(two).channel_group.groups["Application"].groups["Org2MSP"]
    assert (group.version, group.values["AnchorPeers"].version) == (1, 1)


async def test_the_next_blocks_follow_the_size_and_time_of_batches(two):
    await change(two, timeout("1h"))
    # Settings of the node that do not go together stay as they are.
    odd = OrdererOptions(absolute_max_bytes=9)
    assert in_force(odd, config(two)).absolute_max_bytes == 9
    await change(two, batch())
    calls = [
        asyncio.ensure_future(
            two.caller.invoke("basic", [b"put", b"%d" % n, b"v"], signer=two.user)
        )
        for n in range(4)
    ]
    placed = sorted((one.block, one.code) for one in await asyncio.gather(*calls))
    assert [block - placed[0][0] for block, _ in placed] == [0, 0, 1, 1]
    with pytest.raises(InvalidInput, match="exceeds maximum allowed 20000 bytes"):
        await two.caller.invoke("basic", [b"put", b"k", b"v" * 20_000], signer=two.user)
    # Also after a restart, and for what nobody has changed the settings count.
    given = OrdererOptions(max_message_count=99, max_waiting=7)
    again = Orderer(two.ledger, Configuration.of(two.ledger), given)._options
    assert (again.max_message_count, again.batch_timeout_s) == (2, 3600)
    assert again.max_waiting == 7


async def test_a_policy_of_a_resource_counts_at_once(two):
    configuration, user = two.endorser.configuration, two.user
    who = configuration.msps.identify(user.creator)
    assert require(configuration, "qscc/GetChainInfo", who) is who
    await change(two, acl("qscc/GetChainInfo", "Admins"))
    with pytest.raises(Denied):
        require(configuration, "qscc/GetChainInfo", who)


async def test_another_endorsement_policy_counts_for_the_next_call(two):
    def any_of(group: Any) -> None:
        meta = policies_pb2.ImplicitMetaPolicy(sub_policy="Endorsement", rule="ANY")
        held = group.groups["Application"].policies["Endorsement"]
        held.policy.value = meta.SerializeToString()

    call = [b"put", b"k", b"v"]
    one = {"signer": two.user, "endorsers": ["Org1MSP"]}
    assert (await two.caller.invoke("basic", call, **one)).code == 10
    await change(two, any_of)
    assert (await two.caller.invoke("basic", call, **one)).code == 0


async def test_the_capability_counts_from_the_next_call_on(two):
    """Also after a restart."""
    await two.caller.invoke("basic", [b"put", b"k", b"v"], signer=two.user)
    await change(two, capability("V1_3", "V2_0"))
    await two.caller.invoke("basic", [b"put", b"k", b"v"], signer=two.user)
    assert {one.capability for _, one in two.chaincode.seen} == {"V2_5", "V2_0"}
    assert Configuration.of(two.ledger).capability == "V2_0"
    await change(two, capability("V2_5"))
    assert two.endorser.configuration.capability == "V2_5"


async def test_of_two_updates_of_one_configuration_the_second_is_refused(two):
    made = [
        envelope(update(config(two), anchors("Org1MSP", port)), two.admins[0])
        for port in (1, 2)
    ]
    first, second = await asyncio.gather(
        *map(two.orderer.submit, made), return_exceptions=True
    )
    assert not isinstance(first, BaseException)
    assert first.code == 0
    assert isinstance(second, InvalidInput)
    assert second.message == (
        "error applying config update to existing channel 'mychannel': error "
        "authorizing update: error validating ReadSet: proposed update requires that "
        "key [Group]  /Channel/Application/Org1MSP be at version 0, but it is currently "
        "at version 1"
    )


# --- what is refused ----------------------------------------------------------------


def no_mod_policy(group: Any) -> None:
    group.groups["Orderer"].values["BatchTimeout"].mod_policy = ""


def unknown_kind(group: Any) -> None:
    group.policies["Readers"].policy.type = 7


def bad_name(group: Any) -> None:
    group.policies["a/b"].CopyFrom(group.policies["Readers"])


def no_acls(group: Any) -> None:
    group.groups["Application"].values["ACLs"].value = b"\xff"
    group.groups["Application"].values["ACLs"].mod_policy = "Admins"


def strange(group: Any) -> None:
    made = group.groups["Application"].groups["Org9MSP"]
    made.mod_policy = made.values["MSP"].mod_policy = "Admins"


FOLLOW = "this node does not change "
DELTA = "error authorizing update: error validating DeltaSet: "
REFUSED: dict[str, tuple[Change, type[Exception], str]] = {
    "capability": (
        capability("V1_4_2"),
        Unsupported,
        "Application capability V1_4_2 is required but not supported: expected V2_0 or",
    ),
    "unknown capability": (
        capability("V2_5", "V3_0"),
        Unsupported,
        "Application capability V3_0 is required but not supported",
    ),
    "no capabilities": (
        lambda group: group.groups["Application"].values.pop("Capabilities"),
        Unsupported,
        "Application capability none is required but not supported",
    ),
    "organisation that orders": (
        leaves("Org1MSP"),
        Unsupported,
        f"{FOLLOW}[Group]  /Channel/Application/Org1MSP",
    ),
    "MSP": (
        lambda group: put(
            group.groups["Application"].groups["Org2MSP"], "MSP", peer_pb2.ACLs()
        ),
        Unsupported,
        "add and remove organisations, but not change one otherwise",
    ),
    "no batches": (
        lambda group: group.groups["Orderer"].values.pop("BatchSize"),
        Unsupported,
        f"{FOLLOW}[Value]  /Channel/Orderer/BatchSize",
    ),
    "empty batches": (batch(max_message_count=0), InvalidInput, "impossible batches"),
    "batches above the limit": (
        batch(preferred_max_bytes=20_001),
        InvalidInput,
        "impossible batches",
    ),
    "no time": (timeout("0s"), InvalidInput, "impossible batches"),
    "no duration": (
        timeout("soon"),
        InvalidInput,
        "size or time of batches: a duration",
    ),
    "no mod_policy": (
        no_mod_policy,
        InvalidInput,
        f"{DELTA}invalid mod_policy for element [Value]  /Channel/Orderer/BatchTimeout",
    ),
    "organisation without MSP": (strange, InvalidInput, "MSP"),
    "policy": (unknown_kind, InvalidInput, "Unknown policy type: 7"),
    "name": (bad_name, InvalidInput, "Illegal characters in key"),
    "ACLs": (no_acls, InvalidInput, "Error parsing message with type 'protos.ACLs'"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_changes_nothing(two, name):
    how, kind, text = REFUSED[name]
    before, height = two.endorser.configuration.policies, two.ledger.height
    with pytest.raises(kind) as told:
        await change(two, how)
    assert text in str(told.value)
    assert (two.endorser.configuration.policies, two.ledger.height) == (before, height)


async def test_too_few_admins_are_refused_with_what_the_policy_wants(
    two, organizations
):
    user = organizations.first.user("clerk")
    forged = two.admins[1]
    for signers in ([two.admins[0]], [two.admins[0]] * 2, [user, two.admins[0]]):
        with pytest.raises(InvalidInput) as told:
            await change(two, acl("event/Block", "Readers"), *signers)
        assert (
            f"{DELTA}policy for [Group]  /Channel/Application not satisfied: implicit "
            "policy evaluation failed - 1 sub-policies were satisfied, but this policy "
            "requires 2 of the 'Admins' sub-policies to be satisfied"
        ) in told.value.message
    asked = update(config(two), acl("event/Block", "Readers"))
    many = [two.admins[0]] * 1000
    with pytest.raises(InvalidInput, match="1 sub-policies were satisfied"):
        await two.orderer.submit(envelope(asked, *many, forged))  # too many
    made = envelope(asked, two.admins[0], forged)
    tampered = made.replace(b"event/Block", b"event/Clock")
    with pytest.raises(Denied, match="permission denied"):  # of the envelope
        await two.orderer.submit(tampered)


async def test_who_may_not_write_may_not_ask(two, tmp_path):
    stranger = Organization.open(tmp_path / "x", "Org1MSP", "org1.example.com").admin
    asked = update(config(two), anchors("Org1MSP"))
    with pytest.raises(Denied, match="permission denied"):
        await two.orderer.submit(envelope(asked, two.admins[0], by=stranger))
    # Admins of the ledger sign, and any writer may send it.
    sent = envelope(asked, two.admins[0], by=two.user)
    assert (await two.orderer.submit(sent)).code == 0


def versions(asked: Any, *path: str) -> Any:
    group = asked.write_set
    for name in path:
        group = group.groups[name]
    return group


async def test_versions_that_do_not_follow_are_refused(two):
    send, admin = two.orderer.submit, two.admins[0]
    asked = update(config(two), anchors("Org1MSP"))
    versions(asked, "Application", "Org1MSP").version = 5
    with pytest.raises(InvalidInput, match="to version 5, but key is at version 0"):
        await send(envelope(asked, admin))
    asked = update(config(two), anchors("Org1MSP"))
    versions(asked, "Application", "Org1MSP").values["AnchorPeers"].version = 3
    with pytest.raises(InvalidInput, match="to version 3, but key does not exist"):
        await send(envelope(asked, admin))
    asked = update(config(two), anchors("Org1MSP"))
    asked.read_set.groups["Nowhere"].version = 0
    with pytest.raises(InvalidInput, match="existing config does not contain element"):
        await send(envelope(asked, admin))
    asked = configtx_pb2.ConfigUpdate(channel_id="mychannel")
    with pytest.raises(InvalidInput, match="delta set was empty"):
        await send(envelope(asked, admin))
    asked.channel_id = "other"
    with pytest.raises(InvalidInput, match="ConfigUpdate for channel 'other'"):
        await send(envelope(asked, admin))


async def test_a_policy_that_is_not_there_lets_nobody_change(two):
    await change(two, acl("event/Block", "Readers"))

    def locked(group: Any) -> None:
        group.groups["Application"].values["ACLs"].mod_policy = "Nobody"

    await change(two, locked)
    with pytest.raises(InvalidInput, match="unexpected missing policy Nobody"):
        await change(two, acl("event/Block", "Writers"))


async def test_a_configuration_above_the_limit_is_refused(two):
    with pytest.raises(InvalidInput, match=f"maximum allowed {MOST_BYTES} bytes"):
        await change(two, acl("event/Block", "x" * MOST_BYTES))
    half = MOST_BYTES // 2
    with pytest.raises(InvalidInput, match=f"maximum allowed {MOST_BYTES} bytes"):
        await change(two, acl("event/Block", "x" * half))


async def test_what_cannot_be_read_is_refused(two):
    made = envelope(update(config(two), anchors("Org1MSP")), two.admins[0])
    with pytest.raises(InvalidInput):
        await two.orderer.submit(made[:-200])
    assert config(two).sequence == 1
