"""The SDK before the Gateway service, which plans endorsements itself."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from support.clients.driver import Driver, Fault, driver
from support.clients.network import CHANNEL, Network, deploy, network

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
MODES = {
    "discovered": {"discovery": True, "as_localhost": True},
    "discovered by name": {"discovery": True, "as_localhost": False},
    "from the profile": {"discovery": False, "as_localhost": True},
}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("old"), "Org2") as net:
        deploy(net, "basic", "AND('Org1MSP.member', 'Org2MSP.member')")
        yield net


@pytest.fixture(scope="module", params=MODES)
def client(request: pytest.FixtureRequest, net: Network) -> Iterator[Driver]:
    with driver("old") as client:
        profile = net.profile("Org1", "basic")
        fields: dict[str, Any] = {"who": "me", "channel": CHANNEL, "profile": profile}
        client.ask("connect", **fields, **net.identity("Org1"), **MODES[request.param])
        yield client


def call(client: Driver, op: str, fn: str, *args: str, **other: object) -> Any:
    fields = {"who": "me", "contract": "basic", "fn": fn, "args": args, **other}
    return client.ask(op, **fields)


def test_a_transaction_is_submitted_and_read(client: Driver):
    key = uuid.uuid4().hex
    call(client, "submit", "put", key, "ledger")
    assert call(client, "evaluate", "get", key)["result"] == "ledger"


def test_transient_data_reach_the_contract(client: Driver):
    answer = call(client, "submit", "echoTransient", transient={"a": "1"})
    assert answer["result"] == '{"a":"1"}'


def test_an_error_of_the_contract_is_told(client: Driver):
    for verb in ("evaluate", "submit"):
        with pytest.raises(Fault, match="tell me"):
            call(client, verb, "errorMessage", "tell me")


def test_a_listener_is_told(client: Driver):
    fields = {"who": "me", "contract": "basic"}
    for kind in ("chaincode", "full", "filtered"):
        client.ask("listen", stream=kind, kind=kind, **fields)
    payload = uuid.uuid4().hex
    done = call(client, "submit", "event", "told", payload)
    # Listeners begin with the newest block, which may be that of another test's event.
    while (event := client.event("chaincode"))["tx_id"] != done["tx_id"]:
        assert event["payload"] != payload
    assert (event["name"], event["payload"]) == ("told", payload)
    for kind in ("full", "filtered"):
        while client.event(kind)["block"] != event["block"]:
            pass
    for kind in ("chaincode", "full", "filtered"):
        client.ask("close", stream=kind)
