"""What the node writes for clients: connection profiles, and the facts behind them."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from chaindock.errors import InvalidInput, NotFound, StorageError
from chaindock.identity.organization import Organization, Organizations, full_mspid
from chaindock.node.connections import Connections

ORG1, ORG2 = "org1.example.com", "org2.example.com"


class OneChannel(dict[str, Any]):
    def require(self, _name: str | None) -> Any:
        return self["mychannel"]


class Network:
    """Two organisations, of which the first is served at first."""

    def __init__(self, home: Path, *, tls: bool = True, client_auth: bool = False):
        first = Organization.open(home / "organizations", "Org1MSP", ORG1)
        self.organizations = Organizations(home / "organizations", first)
        self.addresses = {"Org1MSP": "127.0.0.1:7051"}
        self.members = ["Org1MSP"]
        self.tls, self.folder = tls, home / "connections"
        channel: Any = SimpleNamespace(id="mychannel", members=self)
        self.channels = {"mychannel": channel}
        channels: Any = OneChannel(self.channels)
        clients: Any = self
        self.connections = Connections(
            self.folder, self.organizations, channels, clients, client_auth=client_auth
        )
        self.connections.write()

    @property
    def peers(self) -> list[str]:
        return self.members

    def get(self, mspid: str | None) -> Organization:
        wanted = full_mspid(mspid or "Org1MSP", self.members)
        found = self.organizations.find(wanted)
        if found is None or found.mspid not in self.members:
            raise NotFound(f"no organisation {mspid}")
        return found

    def connection(self, mspid: str) -> dict[str, str | None]:
        found = self.organizations.find(mspid)
        assert found is not None
        name = f"peer0.{found.domain}" if self.tls else None
        ca = str(found.path / "peers" / name / "tls" / "ca.crt") if name else None
        return {"address": self.addresses[mspid], "tls_name": name, "ca": ca}

    def join(self) -> None:
        self.organizations.make("Org2")
        self.addresses["Org2MSP"] = "127.0.0.1:9051"
        self.members.append("Org2MSP")

    def profile(self, name: str = "org1") -> Any:
        return json.loads((self.folder / f"connection-{name}.json").read_bytes())

    def describe(self, org: str | None = None, user: str = "User1") -> dict[str, Any]:
        return self.connections.describe(user, org)


@pytest.fixture
def network(tmp_path) -> Network:
    return Network(tmp_path)


def test_the_profile_has_the_shape_of_fabrics_test_network(network):
    network.connections.write()
    profile = network.profile()
    assert profile["version"] == "1.0.0"
    assert profile["client"]["organization"] == "Org1"
    peer = f"peer0.{ORG1}"
    own = {"mspid": "Org1MSP", "peers": [peer]}
    assert profile["organizations"] == {"Org1": own}
    assert profile["peers"][peer] == {
        "url": "grpcs://127.0.0.1:7051",
        "tlsCACerts": {"pem": network.organizations.first.tls[0].decode()},
        "grpcOptions": {"ssl-target-name-override": peer, "hostnameOverride": peer},
    }
    orderer = profile["orderers"][f"orderer.{ORG1}"]
    assert orderer["url"] == "grpcs://127.0.0.1:7051"
    channel = profile["channels"]["mychannel"]
    assert channel["orderers"] == [f"orderer.{ORG1}"]
    assert set(channel["peers"]) == {peer}
    assert all(channel["peers"][peer].values())


def test_yaml_and_json_say_the_same_and_yaml_is_legible(network):
    network.connections.write()
    text = (network.folder / "connection-org1.yaml").read_text()
    assert yaml.safe_load(text) == network.profile()
    assert "pem: |\n" in text


def test_the_first_users_and_the_directory_of_the_peer_command_are_there(network):
    network.connections.write()
    first = network.organizations.first
    for user in ("Admin", "User1"):
        assert (first.user_msp(user) / "config.yaml").exists()
    core = yaml.safe_load((network.folder / "peer" / "core.yaml").read_text())
    assert core["peer"]["BCCSP"]["Default"] == "SW"


def test_each_organisation_that_joins_gets_a_profile_that_knows_all(network):
    network.connections.write()
    network.join()
    network.connections.write()
    for name in ("org1", "org2"):
        profile = network.profile(name)
        assert profile["client"]["organization"] == name.title()
        peers = {f"peer0.{ORG1}", f"peer0.{ORG2}"}
        assert set(profile["peers"]) == peers
        assert set(profile["channels"]["mychannel"]["peers"]) == peers
        assert set(profile["orderers"]) == {f"orderer.{ORG1}"}
    second = network.organizations.find("Org2MSP")
    assert second is not None
    assert second.user_msp("User1").exists()


def test_files_are_written_again_only_when_something_changed(network):
    network.connections.write()
    before = {p: p.stat().st_mtime_ns for p in network.folder.rglob("*.*")}
    network.connections.write()
    assert {p: p.stat().st_mtime_ns for p in network.folder.rglob("*.*")} == before
    network.addresses["Org1MSP"] = "127.0.0.1:40001"
    network.connections.write()
    for ending in ("json", "yaml"):
        text = (network.folder / f"connection-org1.{ending}").read_text()
        assert "grpcs://127.0.0.1:40001" in text
        assert "7051" not in text


def test_many_may_ask_at_once_when_an_address_has_changed(network):
    with ThreadPoolExecutor(8) as pool:
        for port in range(7100, 7103):
            network.addresses["Org1MSP"] = f"127.0.0.1:{port}"
            found = list(pool.map(lambda _: network.describe(), range(8)))
            assert {one["address"] for one in found} == {f"127.0.0.1:{port}"}
            assert f":{port}" in json.dumps(network.profile())


def test_what_was_removed_is_written_again(network):
    network.connections.write()
    (network.folder / "connection-org1.json").unlink()
    network.connections.write()
    assert network.profile()["version"] == "1.0.0"


def test_the_facts_are_what_an_application_needs(network):
    found = network.describe(user="clerk")
    msp = network.organizations.first.user_msp("clerk")
    assert (found["mspid"], found["user"]) == ("Org1MSP", "clerk")
    assert (found["address"], found["tls_name"]) == ("127.0.0.1:7051", f"peer0.{ORG1}")
    assert found["channel"] == "mychannel"
    assert Path(found["msp"]) == msp
    for key in ("certificate", "key", "ca", "profile"):
        assert Path(found[key]).is_file()
    assert (Path(found["peer_config"]) / "core.yaml").is_file()
    assert found["orderer"]["tls_name"] == f"orderer.{ORG1}"
    assert Path(found["orderer"]["ca"]).read_bytes() == Path(found["ca"]).read_bytes()
    assert found["client_tls"] is None


@pytest.mark.parametrize("org", ["Org2", "Org2MSP"])
def test_an_organisation_may_be_named_with_or_without_msp(network, org):
    network.join()
    found = network.describe(org)
    assert (found["mspid"], found["address"]) == ("Org2MSP", "127.0.0.1:9051")
    assert found["orderer"]["address"] == "127.0.0.1:7051"


def test_strangers_are_refused(network):
    with pytest.raises(NotFound):
        network.describe("Org9")
    with pytest.raises(InvalidInput):
        network.describe(user="../x")


def test_mutual_tls_comes_with_a_pair(tmp_path):
    found = Network(tmp_path, client_auth=True).describe()
    for path in found["client_tls"].values():
        assert b"-----BEGIN" in Path(path).read_bytes()


def test_without_tls_nothing_names_a_certificate_authority(tmp_path):
    network = Network(tmp_path, tls=False)
    found = network.describe()
    assert (found["ca"], found["tls_name"]) == (None, None)
    assert found["orderer"] == {
        "address": "127.0.0.1:7051",
        "tls_name": None,
        "ca": None,
    }
    assert network.profile()["peers"] == {
        f"peer0.{ORG1}": {"url": "grpc://127.0.0.1:7051"}
    }


def test_a_home_that_cannot_be_written_is_named(network):
    shutil.rmtree(network.folder)
    network.folder.write_text("in the way")
    with pytest.raises(StorageError, match="connections"):
        network.connections.write()


def test_channels_and_members_may_come_while_files_are_written(network):
    """The files are written in a thread."""

    class Growing(list[str]):
        def __iter__(self) -> Any:
            channels = network.connections._channels
            channels[f"more{len(channels)}"] = channels["mychannel"]
            return super().__iter__()

    network.members = Growing(network.members)
    network.connections.write()
    assert "mychannel" in network.profile()["channels"]
