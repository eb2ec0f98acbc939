"""What clients read of a channel: its configuration, by Fabric's rules, and discovery.

The program checks a configuration before it uses it: see docs/fabric/peer.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.common import common_pb2, configtx_pb2
from fabric_protos.common.configuration_pb2 import Capabilities, Capability
from fabric_protos.discovery import protocol_pb2 as messages
from fabric_protos.orderer.configuration_pb2 import BatchTimeout
from fabric_protos.peer import configuration_pb2
from fabric_protos.peer.proposal_response_pb2 import ChaincodeCall, ChaincodeInterest
from google.protobuf.json_format import Parse

from support.clients.network import CHANNEL, Network, deploy, network
from support.clients.wire import UNARY, signer, wire
from support.config_updates import leaves, update
from support.nodes.node import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.clients.peer_cli import PeerCli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("node"), "Org2") as net:
        deploy(net, "both", "AND('Org1MSP.peer', 'Org2MSP.peer')")
        yield net


def asked(peer: PeerCli, name: str, *args: str) -> bytes:
    """Return what a system chaincode answers to `peer chaincode query … -x`."""
    words = ("-C", CHANNEL, "-n", name, "-c", json.dumps({"Args": args}), "-x")
    return bytes.fromhex(peer("chaincode", "query", *words).splitlines()[0])


def refused(peer: PeerCli, name: str, *args: str) -> str:
    words = ("-C", CHANNEL, "-n", name, "-c", json.dumps({"Args": args}))
    return peer("chaincode", "query", *words, code=1)


def test_system_chaincodes_are_asked_like_others(peer: PeerCli):
    assert asked(peer, "qscc", "GetChainInfo", CHANNEL)
    assert CHANNEL.encode() in asked(peer, "cscc", "GetChannels", "")


def test_what_a_peer_refuses_is_shown_with_its_text(peer: PeerCli):
    missing = "make sure the chaincode nocc has been successfully defined on"
    assert missing in refused(peer, "nocc", "x")
    said = refused(peer, "qscc", "GetChainInfo", "other")
    assert "Invalid chain ID, other" in said


def test_the_peer_has_joined_its_channels(peer: PeerCli, tmp_path: Path):
    block = tmp_path / "genesis.block"
    block.write_bytes(asked(peer, "qscc", "GetBlockByNumber", CHANNEL, "0"))
    assert "Successfully submitted" in peer("channel", "join", "-b", block)
    block.write_bytes(asked(peer, "cscc", "GetConfigBlock", CHANNEL))
    assert "already exists" in peer("channel", "join", "-b", block, code=1)


def test_the_orderer_is_found_where_it_listens_now(net: Network, peer: PeerCli):
    said = peer(
        *("chaincode", "invoke", "-C", CHANNEL, "-n", "both", "--waitForEvent"),
        *("--tls", "--cafile", net.place("Org1")["tls_ca"]),
        *peer.peers("Org1", "Org2"),
        *("-c", '{"Args":["put","tools","1"]}'),
    )
    port = net.place("Org1")["address"].rpartition(":")[2]
    assert f"orderer endpoint: localhost:{port}" in said
    assert said.count("committed with status (VALID)") == 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_configuration_fulfils_the_rules_and_survives_json(
    peer: PeerCli, tmp_path: Path, number: int
):
    """As JSON of another implementation it is read back to the same message."""
    raw = asked(peer, "qscc", "GetBlockByNumber", CHANNEL, str(number))
    block = common_pb2.Block.FromString(raw)
    envelope = common_pb2.Envelope.FromString(block.data.data[0])
    content = common_pb2.Payload.FromString(envelope.payload).data
    (tmp_path / "config").write_bytes(content)
    shown = peer("inspect", "config", tmp_path / "config")
    found = configtx_pb2.ConfigEnvelope.FromString(content)
    assert Parse(shown, configtx_pb2.ConfigEnvelope()) == found
    members = found.config.channel_group.groups["Application"].groups
    assert sorted(members) == ["Org1MSP", "Org2MSP"][: 1 + number]


async def test_discovery_tells_peers_orderers_and_layouts(net: Network):
    """Asked with messages of our own, on a connection to the peer of Org1."""
    interest = ChaincodeInterest(chaincodes=[ChaincodeCall(name="both")])
    layouts = messages.ChaincodeQuery(interests=[interest])
    who = signer(net.identity("Org1"))
    request = messages.Request(
        authentication=messages.AuthInfo(client_identity=who.creator),
        queries=[
            messages.Query(channel=CHANNEL, peer_query=messages.PeerMembershipQuery()),
            messages.Query(channel=CHANNEL, config_query=messages.ConfigQuery()),
            messages.Query(channel=CHANNEL, cc_query=layouts),
            messages.Query(local_peers=messages.LocalPeerQuery()),
        ],
    ).SerializeToString()
    signed = messages.SignedRequest(payload=request, signature=who.sign(request))
    places = [net.place(org) for org in ("Org1", "Org2")]
    async with wire(places[0]) as connection:
        raw = await connection.call(UNARY["Discover"], signed.SerializeToString())
    peers, config, found, local = messages.Response.FromString(raw).results
    for told in (peers.members, local.members):
        assert set(told.peers_by_org) == {"Org1MSP", "Org2MSP"}
    config = config.config_result
    assert set(config.msps) == {"Org1MSP", "Org2MSP"}
    (endpoint,) = config.orderers["Org1MSP"].endpoint
    assert f"127.0.0.1:{endpoint.port}" == places[0]["address"]
    (both,) = found.cc_query_res.content
    (layout,) = both.layouts
    assert set(layout.quantities_by_group.values()) == {1}
    assert len(both.endorsers_by_groups) == 2


# --- changes, as `peer channel update` sends them -----------------------------------


def fetched(peer: PeerCli, folder: Path, channel: str = CHANNEL) -> configtx_pb2.Config:
    """Return the configuration that `peer channel fetch config` gives."""
    file = folder / "config.block"
    peer("channel", "fetch", "config", file, "-c", channel, *peer.orderer())
    block = common_pb2.Block.FromString(file.read_bytes())
    payload = common_pb2.Envelope.FromString(block.data.data[0]).payload
    content = common_pb2.Payload.FromString(payload).data
    found: configtx_pb2.Config = configtx_pb2.ConfigEnvelope.FromString(content).config
    return found


def written(
    peer: PeerCli, folder: Path, change: Callable[[Any], object], channel: str = CHANNEL
) -> Path:
    """Write the update that `configtxlator` makes of a change, not signed yet."""
    asked = update(fetched(peer, folder, channel), change, channel)
    header = common_pb2.ChannelHeader(
        type=common_pb2.CONFIG_UPDATE, channel_id=channel
    ).SerializeToString()
    signed = configtx_pb2.ConfigUpdateEnvelope(config_update=asked.SerializeToString())
    payload = common_pb2.Payload(
        header=common_pb2.Header(channel_header=header), data=signed.SerializeToString()
    )
    made = common_pb2.Envelope(payload=payload.SerializeToString())
    file = folder / "update.pb"
    file.write_bytes(made.SerializeToString())
    return file


def sent(
    peer: PeerCli, file: Path, org: str = "Org1", code: int = 0, channel: str = CHANNEL
) -> str:
    named = "-c", channel, *peer.orderer()
    return peer("channel", "update", "-f", file, *named, org=org, code=code)


def placed(group: Any, name: str, value: Any) -> None:
    group.values[name].value = value.SerializeToString()
    group.values[name].mod_policy = "Admins"


def test_each_organisation_sets_its_anchor_peers(peer: PeerCli, tmp_path: Path):
    for org in ("Org1", "Org2"):

        def anchored(group: Any, mspid: str = f"{org}MSP") -> None:
            one = configuration_pb2.AnchorPeer(host=f"peer0.{mspid}", port=7051)
            member = group.groups["Application"].groups[mspid]
            value = configuration_pb2.AnchorPeers(anchor_peers=[one])
            placed(member, "AnchorPeers", value)

        file = written(peer, tmp_path, anchored)
        assert "Successfully submitted channel update" in sent(peer, file, org)
        found = fetched(peer, tmp_path).channel_group.groups["Application"]
        value = found.groups[f"{org}MSP"].values["AnchorPeers"].value
        assert f"peer0.{org}MSP".encode() in value
        stale = sent(peer, file, org, code=1)
        assert "BAD_REQUEST -- error applying config update to existing" in stale
        assert f"/Channel/Application/{org}MSP be at version 0, but it is" in stale


def test_a_majority_of_the_admins_changes_access_and_the_time_of_batches(
    net: Network, peer: PeerCli, tmp_path: Path
):
    def closed(group: Any) -> None:
        policy = configuration_pb2.APIResource(policy_ref="/Channel/Application/Admins")
        acls = configuration_pb2.ACLs(acls={"qscc/GetTransactionByID": policy})
        placed(group.groups["Application"], "ACLs", acls)
        placed(group.groups["Orderer"], "BatchTimeout", BatchTimeout(timeout="300ms"))

    file = written(peer, tmp_path, closed)
    alone = file.read_bytes()
    few = sent(peer, file, code=1)
    assert "policy for [Group]  /Channel/Application not satisfied: implicit" in few
    file.write_bytes(alone)
    peer("channel", "signconfigtx", "-f", file, org="Org2")
    # The orderer is of the first organisation alone, whose admin sends the update.
    assert "Successfully submitted channel update" in sent(peer, file)
    words = ("chaincode", "query", "-C", CHANNEL, "-n", "qscc", "-c")
    question = json.dumps({"Args": ["GetTransactionByID", CHANNEL, "x"]})
    assert "access denied for [GetTransactionByID]" in peer(*words, question, code=1)
    net.node.cli("down")
    net.node.up()
    assert "access denied for [GetTransactionByID]" in peer(*words, question, code=1)
    group = fetched(peer, tmp_path).channel_group.groups["Orderer"]
    timeout = BatchTimeout.FromString(group.values["BatchTimeout"].value)
    assert timeout.timeout == "300ms"


def test_what_the_node_cannot_follow_is_told(peer: PeerCli, tmp_path: Path):
    file = written(peer, tmp_path, leaves("Org1MSP"))
    peer("channel", "signconfigtx", "-f", file, org="Org2")
    said = sent(peer, file, code=1)
    assert "NOT_IMPLEMENTED -- this node does not change [Group]" in said


# --- a channel whose application has the capability V2_0 ----------------------------


@pytest.fixture(scope="module")
def old(net: Network) -> str:
    """Its contract is that of the other channel, so there is nothing to build."""
    words = ("--orgs", "Org1", "--capability", "V2_0")
    net.node.cli("channel", "create", "old", *words)
    deploy(net, "both", "OR('Org1MSP.peer')", "--channel", "old")
    return "old"


def enabled(name: str) -> Callable[[Any], object]:
    made = Capabilities(capabilities={name: Capability()})
    return lambda group: placed(group.groups["Application"], "Capabilities", made)


@pytest.mark.statement(54, by="node")
def test_a_contract_purges_once_the_channel_has_the_capability(
    net: Network, peer: PeerCli, old: str, tmp_path: Path
):
    (found,) = (one for one in net.node.ask("channel", "ls") if one["name"] == old)
    assert found["capability"] == "V2_0"
    purge = ("both", "purge", "_implicit_org_Org1MSP", "k", "--channel", old)
    refused = net.node.cli("invoke", *purge, code=1)
    assert (
        "purge private data is not enabled, channel application capability of V2_5 or "
        "later is required"
    ) in refused.err
    file = written(peer, tmp_path, enabled("V2_5"), old)
    assert "Successfully submitted channel update" in sent(peer, file, channel=old)
    net.node.cli("invoke", *purge)
    file = written(peer, tmp_path, enabled("V1_4_2"), old)
    lower = sent(peer, file, code=1, channel=old)
    assert "NOT_IMPLEMENTED -- Application capability V1_4_2 is required but" in lower


def test_a_peer_is_on_the_channel_as_long_as_its_organisation_is_a_member(
    net: Network, peer: PeerCli, old: str, tmp_path: Path
):
    member = configtx_pb2.ConfigGroup()
    application = fetched(peer, tmp_path).channel_group.groups["Application"]
    member.CopyFrom(application.groups["Org2MSP"])

    def joins(group: Any) -> None:
        group.groups["Application"].groups["Org2MSP"].CopyFrom(member)

    def joined() -> list[str]:
        return peer("channel", "list", org="Org2").split()

    def serving_org2() -> list[str]:
        return [one["name"] for row in net.node.ask("ps") for one in row["others"]]

    deploy(net, "alone", "OR('Org1MSP.peer')", "--channel", old)
    query = ("query", "alone", "getPeerOrg", "--channel", old, "--at", "Org2MSP")
    assert old not in joined()
    sent(peer, written(peer, tmp_path, joins, old), channel=old)
    assert old in joined()
    assert net.node.cli(*query).out.strip() == b"Org2MSP"
    assert "alone@Org2MSP" in serving_org2()
    file = written(peer, tmp_path, leaves("Org2MSP"), old)
    peer("channel", "signconfigtx", "-f", file, org="Org2")
    sent(peer, file, channel=old)
    assert old not in joined()
    net.node.cli(*query, code=5)
    eventually(lambda: "alone@Org2MSP" not in serving_org2(), "its process ends")
