"""Discovery: peers, orderers and layouts, and who is told of them."""

from __future__ import annotations

import random
import ssl
from hashlib import sha256
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.discovery import protocol_pb2 as messages
from fabric_protos.gossip.message_pb2 import GossipMessage
from fabric_protos.peer.proposal_response_pb2 import ChaincodeCall, ChaincodeInterest

from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.genesis import genesis_envelope, with_organization
from chaindock.gateway.discovery import Discovery
from chaindock.gateway.seat import Seat
from chaindock.gateway.statuses import Refusal
from chaindock.identity.policies import parse_policy
from chaindock.ids import ChannelId
from chaindock.ledger.ledger import Ledger
from chaindock.lifecycle.definitions import Definition
from chaindock.lifecycle.terms import parse_collections
from support.holds import cpu_of, watched
from support.peers import channel_of

if TYPE_CHECKING:
    from fabric_protos.common.collection_pb2 import CollectionConfigPackage

    from chaindock.identity.organization import Organization

CHANNEL = ChannelId("mychannel")
BOTH = "AND('Org1MSP.peer', 'Org2MSP.peer')"
ONE, TWO = {"Org1MSP"}, {"Org2MSP"}


class Known:
    """The organisations of a node."""

    def __init__(self, *organizations: Organization) -> None:
        self._known = {one.mspid: one for one in organizations}

    def find(self, mspid: str) -> Organization | None:
        return self._known.get(mspid)


class World:
    """A channel of two organisations; clients ask the peer of the first one."""

    def __init__(self, channel: Any, *organizations: Organization) -> None:
        self.channel, (self.org, self.other) = channel, organizations
        addresses = {"Org1MSP": "127.0.0.1:7051", "Org2MSP": "127.0.0.1:9051"}
        seat = Seat("Org1MSP", addresses["Org1MSP"], addresses)
        known: Any = Known(*organizations)
        self.discovery = Discovery(seat, {CHANNEL: channel}, known)

    async def ask(self, *queries: Any, signer: Any = None, change: Any = None) -> Any:
        signer = signer or self.org.admin
        authentication = messages.AuthInfo(client_identity=signer.creator)
        request = messages.Request(authentication=authentication, queries=queries)
        payload = request.SerializeToString()
        signed = messages.SignedRequest(payload=payload, signature=signer.sign(payload))
        if change:
            change(signed)
        answer = await self.discovery.discover(signed.SerializeToString())
        return messages.Response.FromString(answer).results

    async def layouts(self, *calls: ChaincodeCall) -> Any:
        """Return the layouts as sets of organisations, or the text of the error."""
        interest = ChaincodeInterest(chaincodes=calls)
        query = messages.ChaincodeQuery(interests=[interest])
        (result,) = await self.ask(messages.Query(channel=CHANNEL, cc_query=query))
        if result.HasField("error"):
            return result.error.content
        (found,) = result.cc_query_res.content
        assert found.chaincode == calls[0].name
        msps = {}
        for group, peers in found.endorsers_by_groups.items():
            (peer,) = peers.peers
            msps[group] = described(peer)["mspid"]
        return [
            {
                msps[group]
                for group, count in layout.quantities_by_group.items()
                if count
            }
            for layout in found.layouts
        ]

    async def define(self, policy: str, collections: Any = None) -> None:
        definition = Definition(name="basic", sequence=1, version="1.0")
        parameter = definition_policy(policy)
        definition.validation_parameter = parameter
        if collections:
            definition.collections.CopyFrom(collections)
        raw = definition.SerializeToString()
        invoke = self.channel.caller.invoke
        for admin in (self.org.admin, self.other.admin):
            args = [b"ApproveChaincodeDefinitionForMyOrg", raw]
            answer = await invoke("_lifecycle", args, signer=admin)
            assert (answer.status, answer.code) == (200, 0), answer.message
        args = [b"CommitChaincodeDefinition", raw]
        answer = await invoke("_lifecycle", args, signer=self.org.admin)
        assert (answer.status, answer.code) == (200, 0), answer.message


def definition_policy(text: str) -> bytes:
    from fabric_protos.peer.policy_pb2 import ApplicationPolicy

    policy = ApplicationPolicy(signature_policy=parse_policy(text))
    return bytes(policy.SerializeToString())


def described(peer: messages.Peer) -> dict[str, Any]:
    """Read a peer as SDKs do."""
    from fabric_protos.msp.identities_pb2 import SerializedIdentity

    alive = GossipMessage.FromString(peer.membership_info.payload).alive_msg
    state = GossipMessage.FromString(peer.state_info.payload).state_info
    assert alive.HasField("timestamp")
    return {
        "mspid": SerializedIdentity.FromString(peer.identity).mspid,
        "endpoint": alive.membership.endpoint,
        "height": state.properties.ledger_height,
        "chaincodes": [(one.name, one.version) for one in state.properties.chaincodes],
    }


@pytest.fixture
async def world(tmp_path: Any, org: Any, other: Any) -> Any:
    ledger = Ledger(
        tmp_path / "ledger.db",
        CHANNEL,
        org.orderer,
        lambda: genesis_envelope(CHANNEL, org.msp, OrdererOptions()),
    )
    peers = {one.mspid: one.peer for one in (org, other)}
    async with ledger, channel_of(ledger, peers, {}) as channel:
        config = channel.members.configuration.config
        update = with_organization(CHANNEL, config, other.msp, [org.admin])
        await channel.orderer.submit(update)
        yield World(channel, org, other)


async def test_peers_and_orderers_are_told_with_their_addresses(world):
    await world.define(BOTH)
    config, members, local = await world.ask(
        messages.Query(channel=CHANNEL, config_query=messages.ConfigQuery()),
        messages.Query(channel=CHANNEL, peer_query=messages.PeerMembershipQuery()),
        messages.Query(local_peers=messages.LocalPeerQuery()),
    )
    height = world.channel.ledger.height
    for number, (mspid, port) in enumerate((("Org1MSP", 7051), ("Org2MSP", 9051))):
        (peer,) = members.members.peers_by_org[mspid].peers
        assert described(peer) == {
            "mspid": mspid,
            "endpoint": f"localhost:{port}",
            "height": height,
            "chaincodes": [("basic", "1.0")],
        }
        org = (world.org, world.other)[number]
        sealed = peer.membership_info
        world.channel.members.configuration.msps.identify(org.peer.creator).verify(
            sealed.payload, sealed.signature
        )
        (peer,) = local.members.peers_by_org[mspid].peers
        assert not peer.HasField("state_info")
        msp = config.config_result.msps[mspid]
        assert list(msp.tls_root_certs) == [org.tls[0]]
    orderers = config.config_result.orderers
    assert [(one.host, one.port) for one in orderers["Org1MSP"].endpoint] == [
        ("localhost", 7051)
    ]
    assert list(orderers) == ["Org1MSP"]


@pytest.mark.parametrize(
    ("policy", "layouts"),
    [
        (BOTH, [ONE | TWO]),
        ("OR('Org1MSP.peer', 'Org2MSP.peer')", [ONE, TWO]),
        ("OR('Org2MSP.peer')", [TWO]),
    ],
)
async def test_layouts_follow_the_policy_of_the_chaincode(world, policy, layouts):
    await world.define(policy)
    assert await world.layouts(ChaincodeCall(name="basic")) == layouts


async def test_layouts_follow_policies_of_keys_and_collections(world):
    members = "OR('Org1MSP.member', 'Org2MSP.member')"
    both = {
        "name": "both",
        "policy": members,
        "endorsementPolicy": {"signaturePolicy": BOTH},
    }
    mine = {"name": "mine", "policy": "OR('Org1MSP.member')"}
    await world.define("OR('Org1MSP.peer', 'Org2MSP.peer')", collections_of(both, mine))
    either = [ONE, TWO]
    second = parse_policy("OR('Org2MSP.peer')")
    for call, expected in (
        (ChaincodeCall(name="basic", collection_names=["both"]), [ONE | TWO]),
        (ChaincodeCall(name="basic", collection_names=["mine"]), [ONE]),
        (
            ChaincodeCall(
                name="basic", collection_names=["mine"], no_private_reads=True
            ),
            either,
        ),
        (
            ChaincodeCall(name="basic", collection_names=["_implicit_org_Org2MSP"]),
            [TWO],
        ),
        (ChaincodeCall(name="basic", key_policies=[second]), [TWO]),
        (
            ChaincodeCall(
                name="basic", key_policies=[second], disregard_namespace_policy=True
            ),
            [TWO],
        ),
    ):
        assert await world.layouts(call) == expected, call


def collections_of(*entries: dict[str, Any]) -> CollectionConfigPackage:
    import json

    return parse_collections(
        json.dumps(
            [
                {"requiredPeerCount": 0, "maxPeerCount": 1, "blockToLive": 0, **entry}
                for entry in entries
            ]
        )
    )


async def test_what_nobody_can_endorse_is_told(world):
    await world.define("OR('Org3MSP.peer')")
    for name in ("basic", "nocc"):
        assert (await world.layouts(ChaincodeCall(name=name))).startswith(
            "failed constructing descriptor for chaincodes"
        )
    unknown = ChaincodeCall(name="basic", collection_names=["none"])
    assert (await world.layouts(unknown)).startswith("failed constructing")


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ({"channel": "nochannel"}, "access denied"),
        ({}, "unknown or missing request type"),
        ({"channel": CHANNEL}, "unknown or missing request type"),
        (
            {"channel": CHANNEL, "cc_query": messages.ChaincodeQuery()},
            "chaincode query must have at least one chaincode interest",
        ),
        (
            {
                "channel": CHANNEL,
                "cc_query": messages.ChaincodeQuery(interests=[ChaincodeInterest()]),
            },
            "chaincode interest must contain at least one chaincode",
        ),
        (
            {
                "channel": CHANNEL,
                "cc_query": messages.ChaincodeQuery(
                    interests=[ChaincodeInterest(chaincodes=[ChaincodeCall()])]
                ),
            },
            "chaincode name in interest cannot be empty",
        ),
    ],
)
async def test_a_query_that_makes_no_sense_gets_an_error_of_its_own(world, query, text):
    good = messages.Query(channel=CHANNEL, config_query=messages.ConfigQuery())
    wrong, right = await world.ask(messages.Query(**query), good)
    assert wrong.error.content == text
    assert right.HasField("config_result")


async def test_only_writers_and_local_admins_are_told(world):
    config = messages.Query(channel=CHANNEL, config_query=messages.ConfigQuery())
    local = messages.Query(local_peers=messages.LocalPeerQuery())

    async def allowed(**how: Any) -> list[bool]:
        return [
            not one.HasField("error") for one in await world.ask(config, local, **how)
        ]

    assert await allowed() == [True, True]
    assert await allowed(signer=world.org.user("User1")) == [True, False]
    assert await allowed(signer=world.other.admin) == [True, False]
    assert await allowed(signer=world.org.peer) == [False, False]

    def forge(signed: messages.SignedRequest) -> None:
        signed.signature = world.org.admin.sign(b"another request")

    assert await allowed(change=forge) == [False, False]


async def test_under_mutual_tls_a_request_belongs_to_its_connection(world):
    der = ssl.PEM_cert_to_DER_cert(world.org.tls[1].decode())
    shown = SimpleNamespace(certificate=der)
    world.discovery._binds = True
    for claimed, allowed in ((sha256(der).digest(), True), (b"", False)):
        authentication = messages.AuthInfo(
            client_identity=world.org.admin.creator, client_tls_cert_hash=claimed
        )
        payload = messages.Request(authentication=authentication).SerializeToString()
        signed = messages.SignedRequest(
            payload=payload, signature=world.org.admin.sign(payload)
        )
        asked = world.discovery.discover(signed.SerializeToString(), shown)
        if allowed:
            await asked
        else:
            with pytest.raises(Refusal, match="doesn't match computed TLS hash"):
                await asked


async def test_no_bytes_do_more_than_be_refused(world):
    kept = []
    query = messages.Query(channel=CHANNEL, config_query=messages.ConfigQuery())
    await world.ask(query, change=lambda one: kept.append(one.SerializeToString()))
    (good,) = kept
    chance = random.Random(7)
    requests = [b"", b"\xff" * 9, *(good[:size] for size in range(0, len(good), 7))]
    for _ in range(300):
        changed = bytearray(good)
        changed[chance.randrange(len(changed))] = chance.randrange(256)
        requests.append(bytes(changed))
    told = set()
    for request in requests:
        try:
            answer = await world.discovery.discover(request)
        except Refusal as refusal:
            told.add(refusal.text.split(":")[0].split(",")[0])
        else:
            for one in messages.Response.FromString(answer).results:
                told.add(one.error.content or "told")
    assert told <= {
        "access denied",
        "failed parsing request",
        "grpc",
        "told",
        "unknown or missing request type",
    }
    with pytest.raises(Refusal, match="at most 20 queries"):
        await world.ask(*[query] * 21)
    interests = messages.ChaincodeQuery(interests=[ChaincodeInterest()] * 11)
    query = messages.Query(channel=CHANNEL, cc_query=interests)
    with pytest.raises(Refusal, match="20 interests"):
        await world.ask(query, query)
    assert "failed constructing" in await world.layouts(*[ChaincodeCall(name="a")] * 21)


async def test_a_large_request_of_a_stranger_does_not_hold_the_loop(world):
    many = b"\x12\x00" * (1 << 20)  # queries
    request = messages.SignedRequest(payload=many).SerializeToString()
    with watched() as held, pytest.raises(Refusal, match="at most 128 KiB"):
        await world.discovery.discover(request)
    assert held.cpu_s < cpu_of(lambda: messages.Request.FromString(many)), held.what
