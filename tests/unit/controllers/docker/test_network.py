"""What keeps an engine from something just now does not decide what chaincode reaches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from structlog.testing import capture_logs

from chaindock.container.contracts import NodeLabels
from chaindock.controllers.docker import names, network
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import FirewallRule, HostFirewall
from chaindock.controllers.docker.network import Networks, Route, get_network
from chaindock.controllers.docker.options import SandboxOptions
from chaindock.errors import EngineError, EngineTimeout, NotFound, StartFailed

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.container.contracts import CallbackListener

NODE = NodeLabels("node1", "peer0", "dev")
GATEWAY = "203.0.113.1"
"""Never an address of this machine: a network is held up by a container, or not here."""
PASSES = [
    EngineTimeout("no answer"),
    EngineError("no space left on device", retryable=True),
]


class Moody:
    """An engine with networks; `refuses` tells what fails, and how, once each."""

    container = Engine.container
    address = "unix:///engine.sock"

    def __init__(self, **refuses: EngineError | NotFound) -> None:
        self.refuses = refuses
        self.networks: dict[str, dict[str, Any]] = {}
        self.containers: list[str] = []

    def _do(self, what: str) -> None:
        error = self.refuses.pop(what, None)
        if error is not None:
            raise error

    async def inspect_network(self, name: str) -> dict[str, Any]:
        if name not in self.networks:
            raise NotFound(f"no network {name}")
        return self.networks[name]

    async def create_network(self, body: dict[str, Any]) -> str:
        name: str = body["Name"]
        try:
            self._do("create_network")
        except EngineError as error:
            if error.facts.get("status") == 409:
                self.add(name, "another")
            raise
        self.add(name, NODE.node_id, body.get("Options"))
        return name

    def add(self, name: str, owner: str, options: object = None) -> None:
        self.networks[name] = {
            "Labels": {names.NODE: owner},
            "Options": options,
            "IPAM": {"Config": [{"Gateway": GATEWAY}]},
        }

    async def remove_network(self, name: str) -> bool:
        self._do("remove_network")
        del self.networks[name]
        return True

    async def create_container(self, _name: None, _body: dict[str, Any]) -> str:
        self._do("create_container")
        self.containers.append("anchor")
        return "anchor"

    async def start_container(self, _container: str) -> None:
        self._do("start_container")

    async def remove_container(self, container: str) -> None:
        self.containers.remove(container)


class Listener:
    async def address_on(self, host: str, *names: str) -> str:
        return f"{host}:7052"


async def bridge(engine: Moody) -> Route:
    return await get_network(cast("Engine", engine), NODE, internal=True)


@pytest.mark.parametrize("error", PASSES, ids=lambda error: error.slug)
@pytest.mark.parametrize("when", ["create_container", "start_container"])
async def test_a_network_that_leads_nowhere_is_not_given_up_for_what_passes(
    error: EngineError, when: str, tmp_path: Path
):
    engine = Moody(**{when: error})
    filter_ = HostFirewall("node1", str(tmp_path))
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), filter_)
    with pytest.raises(type(error), match=error.message):
        await networks.attach(
            cast("CallbackListener", Listener()), "base", calls_back=True
        )
    assert list(engine.networks) == [names.network_name(NODE)], "an ordinary one"
    assert engine.containers == []


@pytest.mark.parametrize("error", PASSES, ids=lambda error: error.slug)
async def test_containers_are_not_let_together_for_what_passes(error: EngineError):
    engine = Moody(create_network=error)
    with pytest.raises(type(error)):
        await bridge(engine)
    assert (await bridge(engine)).separate


async def test_an_engine_that_cannot_keep_them_apart_makes_the_network_all_the_same():
    engine = Moody(create_network=EngineError("unknown option", status=400))
    assert (await bridge(engine)).gateway == GATEWAY


async def test_a_network_that_somebody_else_made_just_now_is_not_used():
    engine = Moody(create_network=EngineError("it exists", status=409))
    with pytest.raises(StartFailed, match="not ours"):
        await bridge(engine)


@pytest.mark.parametrize(
    ("advertised", "peer"),
    [("", "127.0.0.1:7052"), ("node.example", "node.example:7052")],
)
async def test_containers_dial_what_is_advertised(
    advertised: str, peer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Advertising:
        async def address_on(self, host: str, *_names: str) -> str:
            return f"{advertised or host}:7052"

    engine = Moody()
    engine.add(names.network_name(NODE), NODE.node_id)
    monkeypatch.setitem(
        engine.networks[names.network_name(NODE)],
        "IPAM",
        {"Config": [{"Gateway": "127.0.0.1"}]},
    )
    firewall = HostFirewall("node1", str(tmp_path))
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), firewall)
    listener = cast("CallbackListener", Advertising())
    assert (await networks.attach(listener, "base", calls_back=True)).peer == peer


async def test_builds_use_a_network_of_their_own_if_it_is_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine, filter_ = Moody(), HostFirewall("node1", str(tmp_path))
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), filter_)
    assert await networks.for_builds() == "default"
    assert engine.networks == {}
    here = iter([{}, {GATEWAY: "cd-1"}])
    monkeypatch.setattr(network, "addresses", lambda: next(here))
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), filter_)
    assert await networks.for_builds() == f"{names.network_name(NODE)}-build"


POOLS_USED_UP = "could not find an available, non-overlapping IPv4 address pool"


async def test_firewall_rules_name_the_interface_that_the_network_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An engine may take a bridge down with its last container, and up with the next."""
    rules: list[FirewallRule] = []

    async def enforce(_self: HostFirewall, rule: FirewallRule) -> str:
        rules.append(rule)
        return ""

    engine, filter_ = Moody(), HostFirewall("node1", str(tmp_path))
    engine.add(names.network_name(NODE), NODE.node_id)
    here = {GATEWAY: "cd-1"}
    monkeypatch.setattr(network, "addresses", here.copy)
    monkeypatch.setattr(HostFirewall, "enforce", enforce)
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), filter_)
    listener = cast("CallbackListener", Listener())
    for _ in range(2):
        attached = await networks.attach(listener, "base", calls_back=True)
        assert "nothing else" in attached.isolation
        here.clear()
    assert rules == [FirewallRule("cd-1", GATEWAY, 7052)] * 2


@pytest.mark.parametrize(
    "refused", [NotFound(POOLS_USED_UP), EngineError("unknown driver", status=400)]
)
async def test_builds_use_the_usual_network_when_none_can_be_made_for_them(
    refused: EngineError | NotFound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def refuse(_body: object) -> str:
        raise refused

    engine, filter_ = Moody(), HostFirewall("node1", str(tmp_path))
    monkeypatch.setattr(engine, "create_network", refuse)
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), filter_)
    with capture_logs() as logs:
        assert await networks.for_builds() == "default"
    assert [line["reason"] for line in logs][-1] == refused.message


@pytest.mark.parametrize("error", PASSES, ids=lambda error: error.slug)
async def test_builds_do_not_leave_their_network_for_what_passes(
    error: EngineError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = Moody(create_network=error)
    filter_ = HostFirewall("node1", str(tmp_path))
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), filter_)
    with pytest.raises(type(error)):
        await networks.for_builds()
    here = iter([{}, {GATEWAY: "cd-1"}])
    monkeypatch.setattr(network, "addresses", lambda: next(here))
    assert await networks.for_builds() == f"{names.network_name(NODE)}-build"


@pytest.mark.parametrize("error", [*PASSES, NotFound("gone")], ids=lambda one: one.slug)
async def test_a_build_goes_on_when_the_network_that_it_does_not_use_stays(
    error: EngineError | NotFound, tmp_path: Path
):
    engine = Moody(remove_network=error)
    filter_ = HostFirewall("node1", str(tmp_path))
    networks = Networks(cast("Engine", engine), NODE, SandboxOptions(), filter_)
    with capture_logs() as logs:
        assert await networks.for_builds() == "default"
    assert [line["reason"] for line in logs][-1] == error.message


async def test_used_up_addresses_are_said_with_what_frees_them(
    monkeypatch: pytest.MonkeyPatch,
):
    async def refuse(_body: object) -> str:
        raise NotFound(POOLS_USED_UP)

    engine = Moody()
    monkeypatch.setattr(engine, "create_network", refuse)
    with pytest.raises(EngineError, match=POOLS_USED_UP) as caught:
        await bridge(engine)
    assert "docker network prune" in str(caught.value.hint)
