"""Listeners of Fabric's client libraries: each library against one node."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from support.clients.driver import LANGUAGES, Driver, Fault, driver
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
KINDS = ("chaincode", "block", "filtered", "private")


@dataclass
class Listening:
    """A connected client, and one kind of listener."""

    client: Driver
    kind: str

    def emit(self) -> tuple[str, str]:
        """Submit a transaction with an event; return its id and the event's payload."""
        payload = uuid.uuid4().hex
        words = {"contract": "basic", "fn": "event", "args": ["told", payload]}
        endorsed = self.client.ask("endorse", **words, who="Org1@Org1")
        assert self.client.ask("commit", tx_id=endorsed["tx_id"])["successful"]
        return endorsed["tx_id"], payload

    def listen(self, **other: Any) -> str:
        stream = uuid.uuid4().hex
        fields = {"who": "Org1@Org1", "stream": stream, "kind": self.kind, **other}
        self.client.ask("listen", contract="basic", **fields)
        return stream

    def close(self, stream: str) -> None:
        self.client.ask("close", stream=stream)
        self.client.ended(stream)

    def next(self, stream: str, emitted: tuple[str, str]) -> int:
        """Take the next event, which is that of `emit`; return its block."""
        tx_id, payload = emitted
        event = self.client.event(stream)
        block: int = event.pop("block")
        if self.kind == "chaincode":
            assert event == {"tx_id": tx_id, "name": "told", "payload": payload}
        else:
            assert event["tx_ids"] == [tx_id]
        return block


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with network(tmp_path_factory.mktemp("events"), "Org2") as net:
        deploy(net, "basic", "AND('Org1MSP.member', 'Org2MSP.member')")
        yield net


@pytest.fixture(
    scope="module",
    params=[(language, kind) for language in LANGUAGES for kind in KINDS],
    ids="-".join,
)
def listening(request: pytest.FixtureRequest, net: Network) -> Iterator[Listening]:
    language, kind = request.param
    with driver(language) as client:
        net.connect(client)
        yield Listening(client, kind)


def test_a_listener_is_told(listening: Listening):
    stream = listening.listen()
    listening.next(stream, listening.emit())
    listening.close(stream)


def test_an_earlier_event_is_told_again(listening: Listening):
    first = listening.listen()
    emitted = listening.emit()
    block = listening.next(first, emitted)
    second = listening.listen(start=block)
    assert listening.next(second, emitted) == block
    listening.close(first)
    listening.close(second)


def test_a_new_listener_is_told_what_is_new(listening: Listening):
    stream = listening.listen()
    listening.next(stream, listening.emit())
    listening.close(stream)
    stream = listening.listen()
    listening.next(stream, listening.emit())
    listening.close(stream)


def test_one_of_two_listeners_goes(listening: Listening):
    gone, stays = listening.listen(), listening.listen()
    listening.close(gone)
    listening.next(stays, listening.emit())
    listening.close(stays)


def test_a_checkpoint_finds_what_was_missed(listening: Listening):
    checkpoint = uuid.uuid4().hex
    stream = listening.listen(checkpoint=checkpoint)
    seen = listening.next(stream, listening.emit())
    listening.close(stream)
    missed = listening.emit()
    stream = listening.listen(checkpoint=checkpoint)
    assert listening.next(stream, missed) == seen + 1
    listening.close(stream)


@pytest.mark.statement(64, of="client", by="go java node")
def test_a_listener_may_be_signed_elsewhere(net: Network, listening: Listening):
    client, who = listening.client, "keyless"
    net.connect(client, who=who, key="")
    with pytest.raises(Fault):
        listening.listen(who=who)
    # A connection of its own may be slower than the transaction: it asks for the block.
    first = listening.listen()
    emitted = listening.emit()
    block = listening.next(first, emitted)
    listening.close(first)
    stream = listening.listen(who=who, key=net.identity("Org1")["key"], start=block)
    assert listening.next(stream, emitted) == block
    listening.close(stream)
    other = listening.listen(who=who, key=net.identity("Org2")["key"])
    client.ended(other)  # a refusal; the library for Go does not tell more
