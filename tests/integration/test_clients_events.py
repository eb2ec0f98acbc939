"""Listeners of Fabric's client libraries: each library against one node."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from support.clients.driver import Driver, Fault, driver
from support.clients.network import Network, deploy, network

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.nodejs,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(600),
]
KINDS = {
    "node": ("chaincode", "block", "filtered", "private"),
    "go": ("chaincode", "block", "filtered"),
    "java": ("chaincode",),
}


@dataclass
class Listening:
    """A connected client, and one kind of listener."""

    client: Driver
    kind: str

    def emit(self) -> str:
        """Submit a transaction with an event; return its payload."""
        payload = uuid.uuid4().hex
        words = {"contract": "basic", "fn": "event", "args": ["told", payload]}
        self.client.ask("submit", **words, who="Org1@Org1")
        return payload

    def listen(self, **other: Any) -> str:
        stream = uuid.uuid4().hex
        fields = {"who": "Org1@Org1", "stream": stream, "kind": self.kind, **other}
        self.client.ask("listen", contract="basic", **fields)
        return stream

    def close(self, stream: str) -> None:
        self.client.ask("close", stream=stream)
        self.client.ended(stream)

    def next(self, stream: str) -> dict[str, Any]:
        event = self.client.event(stream)
        if self.kind == "chaincode":
            assert event["name"] == "told"
        else:
            assert event["transactions"] == 1
        return event

    def is_of(self, event: dict[str, Any], payload: str) -> bool:
        """Whether an event may be that of `emit`; blocks do not show payloads here."""
        return self.kind != "chaincode" or event["payload"] == payload


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("events"), "Org2") as net:
        deploy(net, "basic", "AND('Org1MSP.member', 'Org2MSP.member')")
        yield net


@pytest.fixture(
    scope="module",
    params=[(language, kind) for language, kinds in KINDS.items() for kind in kinds],
    ids="-".join,
)
def listening(request: pytest.FixtureRequest, net: Network) -> Iterator[Listening]:
    language, kind = request.param
    with driver(language) as client:
        net.connect(client)
        yield Listening(client, kind)


def test_a_listener_is_told(listening: Listening):
    stream = listening.listen()
    payload = listening.emit()
    assert listening.is_of(listening.next(stream), payload)
    listening.close(stream)


def test_an_earlier_event_is_told_again(listening: Listening):
    first = listening.listen()
    payload = listening.emit()
    block = listening.next(first)["block"]
    second = listening.listen(start=block)
    again = listening.next(second)
    assert again["block"] == block
    assert listening.is_of(again, payload)
    listening.close(first)
    listening.close(second)


def test_a_new_listener_is_told_what_is_new(listening: Listening):
    stream = listening.listen()
    listening.emit()
    before = listening.next(stream)
    listening.close(stream)
    stream = listening.listen()
    payload = listening.emit()
    event = listening.next(stream)
    assert event["block"] > before["block"]
    assert listening.is_of(event, payload)
    listening.close(stream)


def test_one_of_two_listeners_goes(listening: Listening):
    gone, stays = listening.listen(), listening.listen()
    listening.close(gone)
    payload = listening.emit()
    assert listening.is_of(listening.next(stays), payload)
    listening.close(stays)


def test_a_checkpoint_finds_what_was_missed(listening: Listening):
    checkpoint = uuid.uuid4().hex
    stream = listening.listen(checkpoint=checkpoint)
    listening.emit()
    seen = listening.next(stream)
    listening.close(stream)
    missed = listening.emit()
    stream = listening.listen(checkpoint=checkpoint)
    event = listening.next(stream)
    assert event["block"] == seen["block"] + 1
    assert listening.is_of(event, missed)
    listening.close(stream)


@pytest.mark.statement(64, of="client", by="node")
@pytest.mark.parametrize("kind", KINDS["node"])
def test_a_listener_may_be_signed_elsewhere(net: Network, kind: str):
    key, who = net.identity("Org1")["key"], "keyless"
    with driver("node") as client:
        net.connect(client)
        net.connect(client, who=who, key="")
        listening = Listening(client, kind)
        with pytest.raises(Fault):
            listening.listen(who=who)
        stream = listening.listen(who=who, key=key)
        payload = listening.emit()
        assert listening.is_of(listening.next(stream), payload)
        listening.close(stream)
        other = listening.listen(who=who, key=net.identity("Org2")["key"])
        assert client.ended(other) is not None
