"""What clients read of a channel: its configuration, by Fabric's rules, and discovery.

The program checks a configuration before it uses it: see docs/fabric/peer.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fabric_protos.common import common_pb2, configtx_pb2
from fabric_protos.discovery import protocol_pb2 as messages
from fabric_protos.peer.proposal_response_pb2 import ChaincodeCall, ChaincodeInterest
from google.protobuf.json_format import Parse

from support.clients.network import CHANNEL, Network, deploy, network
from support.clients.peer_cli import PeerCli
from support.clients.wire import UNARY, signer, wire

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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


@pytest.fixture(scope="module")
def peer(net: Network, tmp_path_factory: pytest.TempPathFactory) -> PeerCli:
    return PeerCli(net, tmp_path_factory.mktemp("cli"))


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
