"""A running node as client applications see it: its addresses, and calls over gRPC alone.

The client libraries of Fabric are in test_clients_*.py.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2 as pb

from chaindock.identity.organization import Organization
from support.gateways.client import Client, status_request
from support.gateways.node import endorse_request, evaluate_request
from support.nodes.node import FIXTURES, PROCESS, Node, started

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.identity.msp import SigningIdentity

pytestmark = [pytest.mark.slow, pytest.mark.golang, pytest.mark.timeout(300)]
_VARIABLE = "CORE_PEER_LISTENADDRESS"


def client_of(place: Mapping[str, Any], name: str = "") -> Client:
    return Client(place["address"], Path(place["ca"]), name)


def user_of(node: Node, mspid: str = "Org1MSP") -> SigningIdentity:
    domain = f"{mspid.removesuffix('MSP').lower()}.example.com"
    folder = node.home / "organizations"
    org = Organization.open(folder, mspid, domain, orders=mspid == "Org1MSP")
    return org.user("User1")


async def put(client: Client, user: SigningIdentity, key: bytes) -> int:
    """Commit a value; return the validation code."""
    endorsed = await client.call(
        "Endorse", endorse_request(user, "plain", b"put", key, b"v")
    )
    envelope = endorsed.prepared_transaction
    envelope.signature = user.sign(envelope.payload)
    header = common_pb2.Payload.FromString(envelope.payload).header.channel_header
    tx_id = common_pb2.ChannelHeader.FromString(header).tx_id
    submit = pb.SubmitRequest(channel_id="mychannel", prepared_transaction=envelope)
    await client.call("Submit", submit)
    status = await client.call("CommitStatus", status_request(user, "mychannel", tx_id))
    return int(status.result)


async def get(client: Client, user: SigningIdentity, key: bytes) -> bytes:
    answer = await client.call("Evaluate", evaluate_request(user, "plain", b"get", key))
    return bytes(answer.result.payload)


async def use(place: Mapping[str, Any], user: SigningIdentity, key: bytes) -> None:
    """Write and read a value, by the address and by the TLS name."""
    async with client_of(place) as client:
        assert await put(client, user, key) == 0
    async with client_of(place, place["tls_name"]) as client:
        assert await get(client, user, key) == b"v"


def test_clients_of_every_organisation_reach_the_node(tmp_path: Path) -> None:
    with started(PROCESS, tmp_path) as node:
        node.deploy(FIXTURES / "conformance" / "go", "plain")
        place = node.status["gateway"]
        asyncio.run(use(place, user_of(node), b"a"))
        (row,) = node.ask("block", "ls", "--limit", "1")
        (tx,) = node.ask("block", "show", str(row["number"]))["transactions"]
        # What applications submit is timed like the calls of the command line.
        assert node.ask("tx", "show", tx["tx_id"])["requests"]["PUT_STATE"][0] == 1
        made = node.ask("org", "add", "Org2")
        assert made["mspid"] == "Org2MSP"
        for key in (b"b", b"c"):
            status = node.ask("status")
            first, second = status["gateways"]
            assert {**first, **status["gateway"]} == first
            listed = [one["address"] for one in node.ask("org", "ls")]
            assert listed == [first["address"], second["address"]]
            asyncio.run(use(first, user_of(node), b"1" + key))
            asyncio.run(use(second, user_of(node, "Org2MSP"), b"2" + key))
            told = node.cli("up", "-d").out.decode()
            for one in (first, second):
                assert f"gateway {one['mspid']}" in told
                assert one["address"] in told
                assert one["tls_name"] in told
            node.cli("down")
            node.up()


def take(usual: socket.socket) -> None:
    """Take the usual port; a node of another test may have it for a while."""
    usual.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for _ in range(60):
        try:
            usual.bind(("127.0.0.1", 7051))
            usual.listen()
        except OSError:
            time.sleep(0.5)
        else:
            return
    # It is taken by somebody who stays.


def test_the_usual_port_is_taken(tmp_path: Path) -> None:
    with started(PROCESS, tmp_path) as node:
        node.cli("down")
        node.env = {k: v for k, v in node.env.items() if k != _VARIABLE}
        with socket.socket() as usual:
            take(usual)
            up = node.up()
            address = up["gateway"]["address"]
            assert address != "127.0.0.1:7051"
            assert any("127.0.0.1:7051 is taken" in one for one in up["warnings"])
            told = node.ask("up", "--set", f"peer.listenAddress={address}", code=None)
            assert told["error"] == "node-already-running"
        node.env = {**node.env, _VARIABLE: "127.0.0.1:0"}
