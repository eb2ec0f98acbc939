"""needs.md row 13: what keeps a container from the node, each by a name of its own."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import NodeLabels, RunSettings
from chaindock.controllers.docker import names, network, reach
from chaindock.controllers.docker.options import SandboxOptions
from chaindock.controllers.docker.sandbox import idle_body
from chaindock.errors import NameUnresolved, NetworkMissing, NodeUnreachable
from support.doubles.backend import in_background
from support.doubles.scripts import call, hang
from support.nodes.packets import dropped

if TYPE_CHECKING:
    from chaindock.container.contracts import Instance, PeerConnection
    from support.engines.docker_backend import DockerBackend

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


async def listening(backend: DockerBackend, instance: Instance) -> str:
    """Return where the node listens for a container that runs."""
    found = await backend.engine.inspect_container(instance.describe()["container"])
    (name,) = found["NetworkSettings"]["Networks"]
    config = (await backend.engine.inspect_network(name))["IPAM"]["Config"]
    gateway = str(config[0]["Gateway"]).partition("/")[0]
    return await backend.listener.address_on(gateway)


async def probes(backend: DockerBackend) -> list[str]:
    """Return the containers of this node that try something out."""
    label = f"{names.NODE}={backend.node_id}"
    all_ = set(await backend.engine.find_containers(label))
    return [
        one
        for one in await backend.engine.find_containers(f"{names.ROLE}=probe")
        if one in all_
    ]


def joining(backend: DockerBackend, other: str) -> PeerConnection:
    return replace(backend.peer, settings=RunSettings(network=other))


async def test_a_network_that_is_not_there_is_named(backend: DockerBackend):
    instance, package = await backend.built(hang())
    other = f"{backend.node_id}-nowhere"
    async with backend.within():
        with pytest.raises(NetworkMissing, match="has none of that name") as caught:
            await instance.start(joining(backend, other), Attempt(package.ccid))
        assert caught.value.network == other
        assert await backend.owned(backend.node_id) == set()
        made = await backend.engine.create_network({"Name": other})
        try:
            await instance.start(joining(backend, other), Attempt(package.ccid))
            await instance.stop(0)
        finally:
            await backend.engine.remove_network(made)


async def test_a_name_that_nobody_knows_is_told(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
):
    """As with an engine in a virtual machine that has no name for this one."""
    monkeypatch.setattr(network, "addresses", lambda: {"127.0.0.1": "lo"})
    monkeypatch.setattr(reach, "_NAMES", ("no-such-host.invalid",))
    async with backend.controller() as controller, backend.within():
        instance, package = await backend.built(call(), builder=controller)
        with pytest.raises(NameUnresolved, match="no-such-host") as caught:
            await instance.start(backend.peer, Attempt(package.ccid))
        assert caught.value.hosts == ["no-such-host.invalid"]
        assert await backend.owned(backend.node_id) == set()


async def test_a_packet_filter_in_the_way_is_told(backend: DockerBackend):
    instance, package = await backend.built(call(), hang())
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        address = await listening(backend, instance)
        assert await instance.probe() is None
        with dropped(address):
            kept = await instance.probe()
        assert isinstance(kept, NodeUnreachable)
        host, _, port = address.rpartition(":")
        assert (kept.hosts, kept.port) == ([host], port)
        assert "firewall of this machine" in (kept.hint or "")
        assert await instance.probe() is None
        assert await probes(backend) == []


async def test_looking_that_is_cancelled_leaves_no_container(backend: DockerBackend):
    instance, package = await backend.built(call(), hang())
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        with dropped(await listening(backend, instance)):
            async with in_background(instance.probe()) as looking:
                async with asyncio.timeout(30):
                    # Killed now, the node would find it by its label.
                    while not await probes(backend):
                        assert not looking.done()
            assert looking.cancelled()
        assert await probes(backend) == []


async def test_a_node_that_ends_meanwhile_leaves_no_container(backend: DockerBackend):
    builder = await backend.builder()
    instance, package = await backend.built(call(), hang(), builder=builder)
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        with dropped(await listening(backend, instance)):
            async with in_background(instance.probe()) as looking:
                async with asyncio.timeout(30):
                    while not await probes(backend):
                        assert not looking.done()
                await backend.lose(builder)
        assert await (await backend.builder()).reap() >= 1
        assert await probes(backend) == []


async def test_builds_and_other_networks_do_not_reach_the_listener(
    backend: DockerBackend,
):
    instance, package = await backend.built(call(), hang())
    label = f"{names.NODE}={backend.node_id}"
    own = {one["Name"] for one in await backend.engine.find_networks(label)}
    own = {one for one in own if one.endswith("-build")}
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        if "nothing else" not in instance.describe()["isolation"]:
            pytest.skip("no firewall rules here")
        host, _, port = (await listening(backend, instance)).rpartition(":")
        image = instance.describe()["base"].rpartition(" ")[2]
        for name in (*own, "bridge"):
            node = NodeLabels(backend.node_id, "", "")
            body = idle_body(SandboxOptions(), node, name, image, "probe")
            kept = await reach.try_address(backend.engine, body, host, port)
            assert isinstance(kept, NodeUnreachable)
        with socket.create_connection((host, int(port)), timeout=5):
            pass
        assert await instance.probe() is None
