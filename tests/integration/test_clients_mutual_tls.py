"""A node that asks clients for certificates, and the client library of Node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.clients.driver import Driver, Fault, driver
from support.clients.network import Network, deploy, network

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
UNAVAILABLE = 14
FLAGS = ("--set", "peer.tls.clientAuthRequired=true")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("mutual"), "Org2", flags=FLAGS) as net:
        deploy(net, "basic", "OR('Org1MSP.member', 'Org2MSP.member')")
        yield net


@pytest.fixture
def client() -> Iterator[Driver]:
    with driver("node") as client:
        yield client


def pair(net: Network, org: str) -> dict[str, str]:
    """Return the files of a user's TLS certificate."""
    told = net.node.ask("connect", "basic", "--org", f"{org}MSP")["client_tls"]
    return {"client_cert": told["certificate"], "client_key": told["key"]}


def test_a_client_without_a_certificate_is_not_let_in(net: Network, client: Driver):
    who = net.connect(client)
    with pytest.raises(Fault) as told:
        client.ask("evaluate", who=who, contract="basic", fn="echo", args=["x"])
    assert told.value.code == UNAVAILABLE


@pytest.mark.parametrize("org", ["Org1", "Org2"])
def test_members_call_and_listen(net: Network, client: Driver, org: str):
    who = net.connect(client, org, at="Org1", hashed="yes", **pair(net, org))
    fields = {"who": who, "contract": "basic"}
    call = {"fn": "event", "args": ["told", org], **fields}
    streams = ("chaincode", "block")
    for kind in streams:
        client.ask("listen", stream=kind, kind=kind, **fields)
    client.ask("submit", **call)
    assert client.event("chaincode")["payload"] == org
    assert len(client.event("block")["tx_ids"]) == 1
    for kind in streams:
        client.ask("close", stream=kind)


def test_blocks_are_for_who_asks_with_the_hash_of_the_certificate(
    net: Network, client: Driver
):
    who = net.connect(client, **pair(net, "Org1"))
    client.ask("listen", stream="s", kind="block", who=who, start=0)
    assert "Unexpected status response: 400" in client.ended("s")["message"]
