"""Fabric's own commands against a node: two generations of `peer`, and its tools.

What they print is what a user sees. They load the channel's configuration with Fabric's
code, and refuse one that breaks its rules.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from support.clients.network import Network, deploy, network
from support.clients.peer_cli import SOURCE
from support.shims import builds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(900),
]
NEW = builds.FIXTURES / "fabrictools"
CHANNEL = ("-C", "mychannel")
CORE = "peer: {BCCSP: {Default: SW, SW: {Hash: SHA2, Security: 256}}}\n"
PATIENCE_S = 120


class Tools:
    """The commands, run as the admin of Org1 at its peer."""

    def __init__(self, net: Network, folder: Path) -> None:
        self.net, self.folder = net, folder
        self.place = net.place("Org1")
        (folder / "core.yaml").write_text(CORE)

    def environment(self, user: str = "Admin") -> dict[str, str]:
        msp = self.net.folder("Org1") / "users" / f"{user}@org1.example.com" / "msp"
        return {
            **os.environ,  # noqa: TID251  # tests have no config
            "FABRIC_CFG_PATH": str(self.folder),
            "CORE_PEER_TLS_ENABLED": "true",
            "CORE_PEER_LOCALMSPID": "Org1MSP",
            "CORE_PEER_ADDRESS": self.place["address"],
            "CORE_PEER_TLS_ROOTCERT_FILE": self.place["tls_ca"],
            "CORE_PEER_MSPCONFIGPATH": str(msp),
        }

    def run(
        self,
        name: str,
        *args: str | Path,
        source: Path = NEW,
        user: str = "Admin",
        fails: bool = False,
    ) -> str:
        """Run a command; return what it printed on both streams."""
        package = f"github.com/hyperledger/fabric/cmd/{name}"
        done = subprocess.run(
            [builds.go_program(source, package), *map(str, args)],
            env=self.environment(user),
            cwd=self.folder,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert bool(done.returncode) == fails, said
        return said

    def discover(self, *args: str) -> Any:
        identity = self.net.identity("Org1")
        place = self.place["address"].replace("127.0.0.1", "localhost")
        who = ("--userKey", identity["key"], "--userCert", identity["cert"])
        tls = ("--peerTLSCA", self.place["tls_ca"])
        options = (*who, *tls, "--MSP", "Org1MSP", *args, "--server", place)
        return json.loads(self.run("discover", *options))


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    with network(tmp_path_factory.mktemp("tools"), "Org2") as net:
        deploy(net, "both", "AND('Org1MSP.peer', 'Org2MSP.peer')")
        yield Tools(net, tmp_path_factory.mktemp("cli"))


@pytest.fixture(params=["2.1", "main"])
def peer(request: pytest.FixtureRequest, tools: Tools) -> Any:
    source = SOURCE if request.param == "2.1" else NEW
    return partial(tools.run, "peer", source=source)


def test_channels_and_their_chains_are_told(peer):
    assert "mychannel" in peer("channel", "list").splitlines()
    assert '"height":' in peer("channel", "getinfo", "-c", "mychannel")
    for name, function, channel in (
        ("qscc", "GetChainInfo", "mychannel"),
        ("cscc", "GetChannels", ""),
    ):
        call = json.dumps({"Args": [function, channel]})
        assert peer("chaincode", "query", *CHANNEL, "-n", name, "-c", call, "-x")


def test_what_a_peer_refuses_is_shown_with_its_text(peer):
    call = ("-c", '{"Args":["x"]}')
    said = peer("chaincode", "query", *CHANNEL, "-n", "nocc", *call, fails=True)
    assert "make sure the chaincode nocc has been successfully defined on" in said
    call = ("-c", '{"Args":["GetChainInfo","other"]}')
    said = peer("chaincode", "query", *CHANNEL, "-n", "qscc", *call, fails=True)
    assert "Invalid chain ID, other" in said


def test_the_peer_has_joined_its_channels(peer, tools):
    block = tools.folder / "genesis.block"
    call = json.dumps({"Args": ["GetBlockByNumber", "mychannel", "0"]})
    shown = peer("chaincode", "query", *CHANNEL, "-n", "qscc", "-c", call, "-x")
    block.write_bytes(bytes.fromhex(shown.splitlines()[0]))
    assert "Successfully submitted" in peer("channel", "join", "-b", block)
    call = json.dumps({"Args": ["GetConfigBlock", "mychannel"]})
    shown = peer("chaincode", "query", *CHANNEL, "-n", "cscc", "-c", call, "-x")
    block.write_bytes(bytes.fromhex(shown.splitlines()[0]))
    assert "already exists" in peer("channel", "join", "-b", block, fails=True)


def test_the_orderer_is_found_where_it_listens_now(tools):
    # The command checks the whole configuration before it reads the address in it.
    other = tools.net.place("Org2")
    peers = []
    for place in (tools.place, other):
        peers += ["--peerAddresses", place["address"]]
        peers += ["--tlsRootCertFiles", place["tls_ca"]]
    said = tools.run(
        *("peer", "chaincode", "invoke", *CHANNEL, "-n", "both"),
        *("--tls", "--cafile", tools.place["tls_ca"], *peers, "--waitForEvent"),
        *("-c", '{"Args":["put","tools","1"]}'),
    )
    assert "orderer endpoint: localhost:" in said
    assert said.count("committed with status (VALID)") == 2


def test_the_blocks_can_be_taken_apart_and_put_together_again(tools):
    folder = tools.folder
    for number in ("0", "1"):
        call = json.dumps({"Args": ["GetBlockByNumber", "mychannel", number]})
        query = ("chaincode", "query", *CHANNEL, "-n", "qscc", "-c", call, "-x")
        raw = bytes.fromhex(tools.run("peer", *query).splitlines()[0])
        (folder / "one.block").write_bytes(raw)
        shown = tools.run("configtxgen", "-inspectBlock", "one.block")
        assert '"Application"' in shown
        words = ("--type", "common.Block", "--input")
        tools.run(
            "configtxlator", "proto_decode", *words, "one.block", "--output", "one.json"
        )
        block = json.loads((folder / "one.json").read_text())
        config = block["data"]["data"][0]["payload"]["data"]["config"]
        groups = config["channel_group"]["groups"]["Application"]["groups"]
        assert list(groups) == ["Org1MSP", "Org2MSP"][: 1 + int(number)]
        tools.run(
            "configtxlator", "proto_encode", *words, "one.json", "--output", "two.block"
        )
        tools.run(
            "configtxlator", "proto_decode", *words, "two.block", "--output", "two.json"
        )
        assert json.loads((folder / "two.json").read_text()) == block


def test_discover_shows_peers_configuration_and_layouts(tools):
    channel = ("--channel", "mychannel")
    peers = tools.discover("peers", *channel)
    assert {one["MSPID"] for one in peers} == {"Org1MSP", "Org2MSP"}
    assert all(one["Chaincodes"] == ["both"] for one in peers)
    ports = {one["Endpoint"].rpartition(":")[2] for one in peers}
    places = [tools.net.place(org)["address"] for org in ("Org1", "Org2")]
    assert ports == {address.rpartition(":")[2] for address in places}
    config = tools.discover("config", *channel)
    assert set(config["msps"]) == {"Org1MSP", "Org2MSP"}
    (endpoint,) = config["orderers"]["Org1MSP"]["endpoint"]
    assert f"127.0.0.1:{endpoint['port']}" == tools.place["address"]
    (found,) = tools.discover("endorsers", *channel, "--chaincode", "both")
    (layout,) = found["Layouts"]
    assert set(layout["quantities_by_group"].values()) == {1}
    assert len(found["EndorsersByGroups"]) == 2
    assert len(tools.discover("peers")) == 2  # those of no channel
