"""A chaincode that runs in another time zone for a comparison."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from chaindock.container.contracts import RunSettings
from chaindock.lifecycle.states import Target
from chaindock.node import facade
from chaindock.node.elsewhere import Elsewhere
from support.doubles.deployments import CHANNEL, Node, package


@pytest.fixture
async def node(tmp_path: Any) -> Any:
    async with Node(tmp_path) as node:
        yield node


async def test_it_runs_elsewhere_and_then_as_usual(node):
    ccid = (await node.deployer.deploy(package("one"), "basic")).ccid
    elsewhere, usual = Elsewhere(node.fleet), RunSettings()
    running = elsewhere.of(CHANNEL, "basic", node.custodian)
    assert running is not None
    async with running():
        assert "TZ" in elsewhere.settings(ccid, usual).env
        assert node.runtime.running == {ccid}
    assert elsewhere.settings(ccid, usual) is usual
    assert node.runtime.running == {ccid}
    assert elsewhere.of(CHANNEL, "other", node.custodian) is None


async def test_what_a_user_stopped_or_removed_meanwhile_stays_down(node):
    for target in (Target.STOPPED, Target.REMOVED):
        await node.deployer.deploy(package("one"), "basic")
        running = Elsewhere(node.fleet).of(CHANNEL, "basic", node.custodian)
        assert running is not None
        async with running():
            if target is Target.STOPPED:
                await node.deployer.stop("basic")
            else:
                await node.deployer.remove("basic")
        await node.quiet()
        assert node.runtime.running == set()


async def test_of_two_comparisons_at_once_the_second_waits(
    monkeypatch: pytest.MonkeyPatch,
):
    fleet: Any = SimpleNamespace(all=list)
    channel = SimpleNamespace(id=CHANNEL, caller=None)
    node: Any = SimpleNamespace(
        channel=lambda _name: channel,
        custodian=None,
        elsewhere=Elsewhere(fleet),
        _told=lambda *_: asyncio.sleep(0, {}),
    )
    seen = []

    async def compare(_caller: Any, name: str, *_: Any, **__: Any) -> list[Any]:
        seen.append(f"{name} begins")
        await asyncio.sleep(0.01)
        seen.append(f"{name} ends")
        return []

    monkeypatch.setattr(facade, "compare", compare)
    calls: list[Any] = [
        SimpleNamespace(channel=None, name=name, args=(), is_init=False)
        for name in ("one", "two")
    ]
    await asyncio.gather(*(facade.Node.compare(node, call) for call in calls))
    assert seen == ["one begins", "one ends", "two begins", "two ends"]
