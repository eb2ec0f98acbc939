"""The calls of the `peer` command against a node of two organisations."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING

import pytest
from fabric_protos.common import common_pb2

from support.clients.network import CHANNEL, SCENARIOS, Network, network
from support.nodes.node import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.clients.peer_cli import PeerCli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
LIFECYCLE = ("lifecycle", "chaincode")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("peer"), "Org2") as net:
        yield net


@pytest.fixture(scope="module")
def package(peer: PeerCli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("package") / "basic.tgz"
    words = ("--path", SCENARIOS, "--lang", "node", "--label", "basic_1")
    peer(*LIFECYCLE, "package", file, *words)
    return file


def definition(sequence: int = 1) -> list[str]:
    words = ["-C", CHANNEL, "-n", "basic", "--version", "1.0"]
    return [*words, "--sequence", str(sequence)]


@pytest.fixture(scope="module")
def committed(net: Network, peer: PeerCli, package: Path) -> str:
    """The contract `basic`, installed, approved and committed; its package's id."""
    package_id = ""
    for org in ("Org1", "Org2"):
        said = peer(*LIFECYCLE, "install", package, org=org)
        found = re.search(r"Chaincode code package identifier: (basic_1:\w{64})", said)
        assert found, said
        package_id = found[1]
        listed = peer(*LIFECYCLE, "queryinstalled", org=org)
        assert f"Package ID: {package_id}, Label: basic_1" in listed
    orderer = peer.orderer()
    chosen = ["--package-id", package_id]
    said = peer(*LIFECYCLE, "approveformyorg", *definition(), *chosen, *orderer)
    assert "committed with status (VALID)" in said
    ready = ("checkcommitreadiness", *definition(), "--output", "json")
    approvals = {"Org1MSP": True, "Org2MSP": False}
    assert _json(peer(*LIFECYCLE, *ready)) == {"approvals": approvals}
    said = peer(*LIFECYCLE, "commit", *definition(), *orderer, code=1)
    assert "ENDORSEMENT_POLICY_FAILURE" in said or "not agreed to" in said
    words = ("approveformyorg", *definition(), *chosen, *orderer)
    peer(*LIFECYCLE, *words, org="Org2")
    assert _json(peer(*LIFECYCLE, *ready)) == {
        "approvals": {"Org1MSP": True, "Org2MSP": True}
    }
    both = peer.peers("Org1", "Org2")
    said = peer(*LIFECYCLE, "commit", *definition(), *both, *orderer)
    assert said.count("committed with status (VALID)") == 2
    eventually(partial(is_running, net, package_id), "the contract runs", 240)
    return package_id


def is_running(net: Network, package_id: str) -> bool:
    """Whether `ps` shows that the package of `basic` runs."""
    line = net.node.ps("basic") or {}
    return (line.get("package_id"), line.get("state")) == (package_id, "running")


def _json(said: str) -> object:
    return json.loads(said[said.index("{") : said.rindex("}") + 1])


@pytest.mark.statement(78, of="client", by="own")
def test_what_was_committed_is_told(committed: str, peer: PeerCli):
    words = (*LIFECYCLE, "querycommitted", "-C", CHANNEL)
    said = peer(*words, "--name", "basic")
    expected = (
        "Version: 1.0, Sequence: 1, Endorsement Plugin: escc, Validation Plugin: vscc, "
        "Approvals: [Org1MSP: true, Org2MSP: true]"
    )
    assert expected in said
    assert "Name: basic, Version: 1.0, Sequence: 1" in peer(*words)
    approved = peer(*LIFECYCLE, "queryapproved", "-C", CHANNEL, "--name", "basic")
    assert f"package-id: {committed}" in approved


def test_an_installed_package_comes_back(
    committed: str, peer: PeerCli, package: Path, tmp_path: Path
):
    words = ("--package-id", committed, "--output-directory", tmp_path)
    peer(*LIFECYCLE, "getinstalledpackage", *words)
    (file,) = tmp_path.iterdir()
    assert file.read_bytes() == package.read_bytes()


@pytest.mark.statement(79, of="client", by="own")
def test_a_sequence_that_is_not_the_next_is_refused(committed: str, peer: PeerCli):
    words = (*definition(3), *peer.orderer())
    said = peer(*LIFECYCLE, "commit", *words, code=1)
    assert "requested sequence is 3, but new definition must be sequence 2" in said


def test_a_transaction_is_submitted_and_read(committed: str, peer: PeerCli):
    call = json.dumps({"Args": ["put", "k", "from the peer command"]})
    words = ("-C", CHANNEL, "-n", "basic", "-c")
    both, orderer = peer.peers("Org1", "Org2"), peer.orderer()
    said = peer("chaincode", "invoke", *words, call, "--waitForEvent", *both, *orderer)
    assert "Chaincode invoke successful. result: status:200" in said
    assert said.count("committed with status (VALID)") == 2
    said = peer("chaincode", "query", *words, '{"Args":["get","k"]}')
    assert "from the peer command" in said


def test_one_endorsement_of_two_is_told(committed: str, peer: PeerCli):
    call = json.dumps({"Args": ["put", "k", "x"]})
    words = ("-C", CHANNEL, "-n", "basic", "-c", call, "--waitForEvent")
    alone, orderer = peer.peers("Org1"), peer.orderer()
    said = peer("chaincode", "invoke", *words, *alone, *orderer, code=1)
    assert "transaction invalidated with status (ENDORSEMENT_POLICY_FAILURE)" in said


@pytest.mark.statement(80, of="client", by="own")
def test_an_error_of_the_contract_is_told(committed: str, peer: PeerCli):
    words = ("-C", CHANNEL, "-n", "basic", "-c")
    call = '{"Args":["errorMessage","tell me"]}'
    said = peer("chaincode", "query", *words, call, code=1)
    assert "endorsement failure during query" in said
    assert "tell me" in said
    invoke = ("chaincode", "invoke", *words, call)
    said = peer(*invoke, *peer.peers("Org1"), *peer.orderer(), code=1)
    assert "tell me" in said


@pytest.mark.statement(77, of="client", by="own")
def test_a_client_may_not_ask_what_is_installed(net: Network, peer: PeerCli):
    net.node.cli("env", "peer", "--org", "Org1MSP", "--user", "User1")
    said = peer(*LIFECYCLE, "queryinstalled", user="User1", code=1)
    assert "access denied" in said or "failed ACL check" in said


def height(peer: PeerCli) -> int:
    """Return how many blocks `getinfo` tells of."""
    said = peer("channel", "getinfo", "-c", CHANNEL)
    info = json.loads(said[said.index("Blockchain info: ") + 17 :].splitlines()[0])
    assert info["currentBlockHash"]
    found: int = info["height"]
    return found


def test_the_channel_is_listed_and_shown(net: Network, peer: PeerCli):
    assert f"Channels peers has joined: \n{CHANNEL}" in peer("channel", "list")
    assert net.node.ask("block", "show", str(height(peer) - 1))
    net.node.ask("block", "show", str(height(peer)), code=5)


@pytest.mark.parametrize("at", ["peer", "orderer"])
def test_blocks_are_fetched(peer: PeerCli, tmp_path: Path, at: str):
    orderer = peer.orderer() if at == "orderer" else []
    wanted = {"oldest": 0, "newest": height(peer) - 1, "1": 1, "config": None}
    for which, number in wanted.items():
        file = tmp_path / which
        peer("channel", "fetch", which, file, "-c", CHANNEL, *orderer)
        block = common_pb2.Block.FromString(file.read_bytes())
        if number is not None:
            assert block.header.number == number
        else:
            envelope = common_pb2.Envelope.FromString(block.data.data[0])
            payload = common_pb2.Payload.FromString(envelope.payload)
            header = common_pb2.ChannelHeader.FromString(payload.header.channel_header)
            assert header.type == common_pb2.HeaderType.CONFIG


def test_joining_what_was_joined_is_fine(peer: PeerCli, tmp_path: Path):
    file = tmp_path / "genesis.block"
    peer("channel", "fetch", "oldest", file, "-c", CHANNEL)
    assert "Successfully submitted" in peer("channel", "join", "-b", file)
