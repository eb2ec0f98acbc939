"""DockerController beyond the common contract, on the real engine."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Cause, Dial
from chaindock.controllers.docker import network, reach
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.errors import (
    BuildFailed,
    ContainerExists,
    EngineUnavailable,
    ImageNotFound,
    NodeUnreachable,
)
from support.doubles.backend import (
    CountingListener,
    WatchedAttempt,
    built,
    in_background,
)
from support.doubles.flaky_socket import FlakySocket
from support.doubles.scripts import call, flood, hang, leave, say, serve
from support.engines.docker_shell import shell_package
from support.nodes.targets import need_root

if TYPE_CHECKING:
    from support.engines.docker_backend import DockerBackend
    from support.engines.each import Target

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


async def test_a_foreign_container_with_our_name_is_never_touched(
    backend: DockerBackend,
):
    instance, package = await backend.built(hang())
    name = instance.describe()["container"]
    image = instance.describe()["image"]
    body = {"Image": image, "Cmd": ["sleep", "60"]}
    foreign = await backend.engine.create_container(name, body)
    await backend.engine.start_container(foreign)
    try:
        async with backend.within():
            with pytest.raises(ContainerExists, match="not ours") as caught:
                await instance.start(backend.peer, Attempt(package.ccid))
        assert caught.value.container == name
        state = await backend.engine.inspect_container(foreign)
        assert state["State"]["Running"]
    finally:
        await backend.engine.remove_container(foreign)


async def test_an_image_that_vanished_is_reported_so_that_it_is_built_again(
    backend: DockerBackend,
):
    builder = await backend.builder()
    instance, package = await backend.built(leave(0), builder=builder)
    async with backend.within():
        await backend.engine.remove_image(instance.describe()["image"])
        with pytest.raises(ImageNotFound):
            await instance.start(backend.peer, Attempt(package.ccid))
        again = await built(builder, package)
        await again.start(backend.peer, Attempt(package.ccid))
        assert (await again.wait()).code == 0


async def test_a_pruned_network_is_made_again(backend: DockerBackend):
    instance, package = await backend.built(call(), leave(0))
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        await instance.wait()
        await instance.stop(0)
        label = f"org.chaindock.node={backend.node_id}"
        for found in await backend.engine.find_networks(label):
            assert await backend.engine.remove_network(found["Id"])
        await instance.start(backend.peer, Attempt(package.ccid))
        assert (await instance.wait()).code == 0


async def test_nothing_waits_for_ever_when_the_engine_restarts(
    backend: DockerBackend, target: Target
):
    if not target.endpoint.startswith("unix://"):
        pytest.skip("needs an engine on a unix socket")
    path = backend.folder / "flaky.sock"
    async with FlakySocket(path, target.endpoint.removeprefix("unix://")) as link:
        where = EndpointOptions(docker_host=f"unix://{path}")
        backend.options = replace(backend.options, endpoint=where)
        instance, package = await backend.built(say("up"), hang(), say("down"))
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            await attempt.until(lambda: bool(attempt.lines))
            async with in_background(instance.wait()) as waiter:
                await link.hang_up()
                await backend.signal(instance, 15)
                await link.listen()
                assert (await waiter).code == 0
            await instance.stop(0)


async def test_a_crash_stays_a_crash_when_it_is_stopped_while_its_output_still_comes(
    backend: DockerBackend,
):
    """Contracts that crashed are started again, those that were stopped are not."""
    instance, package = await backend.built(flood(30), leave(7))
    async with asyncio.timeout(backend.patience_s + 90):
        await instance.start(backend.peer, Attempt(package.ccid))
        name = instance.describe()["container"]
        await backend.engine.wait_container(name)
        await asyncio.sleep(1)  # the flood is read slowly, so that takes 5 s more
        await instance.stop(0)
        end = await instance.wait()
    assert (end.cause, end.code) == (Cause.EXITED, 7)


async def test_an_equal_build_under_another_label_is_reused(backend: DockerBackend):
    builder = await backend.builder()
    one = await backend.packages.make(leave(0), build=[say("b")], salt="s", label="one")
    two = await backend.packages.make(leave(0), build=[say("b")], salt="s", label="two")
    attempt = WatchedAttempt(two)
    async with backend.within():
        first, second = await built(builder, one), await built(builder, two, attempt)
    assert attempt.of("build") == []
    assert first.describe()["image"] != second.describe()["image"]


async def test_discarding_a_chaincode_removes_its_images_and_no_others(
    backend: DockerBackend,
):
    async with backend.controller() as controller, backend.within():
        pair = [await backend.packages.make(hang(), label=name) for name in "ab"]
        images = []
        for package in pair:
            instance = await built(controller, package)
            await instance.start(backend.peer, Attempt(package.ccid))
            images.append(instance.describe()["image"])
            await instance.stop(0)
        await controller.discard(pair[0].ccid)
        with pytest.raises(ImageNotFound):
            await backend.engine.inspect_image(images[0])
        assert await backend.engine.inspect_image(images[1])


async def test_reaping_removes_networks_and_spares_other_nodes(backend: DockerBackend):
    lost = await backend.builder()
    instance, package = await backend.built(hang(), builder=lost)
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        await backend.lose(lost)
        label = f"org.chaindock.node={backend.node_id}"
        foreign = {"Name": f"{backend.node_id}-x", "Labels": {"a": "b"}}
        other = await backend.engine.create_network(foreign)
        assert await (await backend.builder()).reap() == 1
        assert await backend.engine.find_networks(label) == []
        assert await backend.engine.inspect_network(other)
        await backend.engine.remove_network(other)


async def test_no_network_is_left_after_a_clean_end(backend: DockerBackend):
    async with backend.controller() as controller, backend.within():
        instance, package = await backend.built(hang(), builder=controller)
        await instance.start(backend.peer, Attempt(package.ccid))
        assert "internal network" in instance.describe()["isolation"]
        label = f"org.chaindock.node={backend.node_id}"
        made = {one["Name"] for one in await backend.engine.find_networks(label)}
        assert len({one for one in made if not one.endswith("-build")}) == 1
    assert await backend.engine.find_networks(label) == []
    assert await backend.owned(backend.node_id) == set()


# --- ways to reach the node -------------------------------------------------------------


def hide_gateways(monkeypatch: pytest.MonkeyPatch, until: int = 10**6) -> None:
    """Let this machine seem to have no bridge address before look number `until`."""
    real, looks = reach.addresses, iter(range(10**6))

    def addresses() -> dict[str, str]:
        return real() if next(looks) >= until else {"127.0.0.1": "lo"}

    monkeypatch.setattr(network, "addresses", addresses)


async def test_an_address_that_needs_a_container_on_the_network_is_held_up(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
):
    async with backend.controller() as controller, backend.within():
        instance, package = await backend.built(call(), leave(0), builder=controller)
        hide_gateways(monkeypatch, until=2)
        await instance.start(backend.peer, Attempt(package.ccid))
        assert (await instance.wait()).code == 0
        await instance.stop(0)
        label = f"org.chaindock.node={backend.node_id}"
        assert len(await backend.engine.find_containers(label)) == 1
    assert await backend.engine.find_containers(label) == []


class ElsewhereListener(CountingListener):
    """As an engine in a virtual machine: loopback here is its host gateway."""

    def __init__(self, host_gateway: str) -> None:
        super().__init__()
        self._gateway = host_gateway

    async def address_on(self, host: str, *names: str) -> str:
        if host != "127.0.0.1":
            return await super().address_on(host)
        address = await super().address_on(self._gateway)
        return f"{host}:{address.rpartition(':')[2]}"


async def host_gateway(backend: DockerBackend) -> str:
    bridge = await backend.engine.inspect_network("bridge")
    subnet = ipaddress.ip_network(bridge["IPAM"]["Config"][0]["Subnet"])
    return str(next(subnet.hosts()))


async def test_an_engine_elsewhere_is_reached_through_its_name_for_this_machine(
    backend: DockerBackend, target: Target, monkeypatch: pytest.MonkeyPatch
):
    if target.kind == "podman":
        pytest.skip("its name is an address that other machines reach, too")
    hide_gateways(monkeypatch)
    backend.listener = ElsewhereListener(await host_gateway(backend))
    async with backend.controller() as controller, backend.within():
        instance, package = await backend.built(call(), leave(0), builder=controller)
        await instance.start(backend.peer, Attempt(package.ccid))
        assert (await instance.wait()).code == 0
        assert "other machines are reachable" in instance.describe()["isolation"]
        served, package = await backend.built(serve(), serves=True, builder=controller)
        dial = await served.start(backend.peer, Attempt(package.ccid))
        assert isinstance(dial, Dial)
        assert dial.address.startswith("127.0.0.1:")
        host, _, port = dial.address.partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.close()


async def test_a_node_that_containers_cannot_reach_is_told_before_the_launch(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
):
    hide_gateways(monkeypatch)
    async with backend.controller() as controller, backend.within():
        instance, package = await backend.built(call(), leave(0), builder=controller)
        with pytest.raises(NodeUnreachable, match="cannot reach this machine"):
            await instance.start(backend.peer, Attempt(package.ccid))
    assert await backend.owned(backend.node_id) == set()


NOBODY = 65534


async def connects(address: str, user: int) -> bool:
    """Whether a program of a user of this machine can connect."""
    host, _, port = address.rpartition(":")
    dial = ("bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}")
    program = await asyncio.create_subprocess_exec(*dial, user=user, cwd="/")
    return await program.wait() == 0


async def test_only_the_nodes_user_connects_to_a_chaincode_that_is_dialled(
    backend: DockerBackend,
):
    need_root()
    async with backend.controller() as controller, backend.within():
        served, package = await backend.built(serve(), serves=True, builder=controller)
        dial = await served.start(backend.peer, Attempt(package.ccid))
        assert isinstance(dial, Dial)
        async with asyncio.timeout(20):
            while not await connects(dial.address, os.geteuid()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert not await connects(dial.address, NOBODY)
        assert await connects(await backend.listener.address_on("127.0.0.1"), NOBODY)
        told = served.describe()
        assert told["stream"].endswith(
            "only the node's user of this machine can connect"
        )
        assert "weaker" not in told or "can connect" not in told["weaker"]


async def test_where_users_cannot_be_told_apart_that_is_said(
    backend: DockerBackend, monkeypatch: pytest.MonkeyPatch
):
    need_root()
    monkeypatch.setattr("chaindock.controllers.docker.firewall._OWNER", "nosuchmatch")
    async with backend.controller() as controller, backend.within():
        served, package = await backend.built(serve(), serves=True, builder=controller)
        dial = await served.start(backend.peer, Attempt(package.ccid))
        assert isinstance(dial, Dial)
        told = served.describe()
        assert told["stream"].endswith("every user of this machine can connect")
        assert "every user of this machine can connect to it: " in told["weaker"]
        assert "nosuchmatch" in told["weaker"]


# --- builds -----------------------------------------------------------------------------


async def test_a_silent_build_ends_with_its_limit(backend: DockerBackend):
    compiling = replace(backend.options.compile, silence_s=1.0)
    backend.options = replace(backend.options, compile=compiling)
    package = await backend.packages.make(build=[say("begin"), hang()])
    async with backend.within():
        with pytest.raises(BuildFailed, match=r"build\.sh.*printed nothing for 1 s"):
            await built(await backend.builder(), package)
    assert await backend.owned(backend.node_id) == set()


async def test_a_build_that_leaves_too_much_is_refused(backend: DockerBackend):
    compiling = replace(backend.options.compile, artifact_bytes=1_000_000)
    backend.options = replace(backend.options, compile=compiling)
    package = shell_package(
        backend.folder / "p", "", 'head -c 3000000 /dev/zero > "$1/big"'
    )
    async with backend.within():
        with pytest.raises(BuildFailed, match="more than 1000000 bytes"):
            await built(await backend.builder(), package)


async def test_a_build_that_needs_too_much_memory_is_told_as_such(
    backend: DockerBackend,
):
    compiling = replace(backend.options.compile, memory_bytes=48 * 1024 * 1024)
    backend.options = replace(backend.options, compile=compiling)
    eat = "perl -e 'my $x = \"x\" x (200 * 1024 * 1024); print length $x'"
    package = shell_package(backend.folder / "p", "", eat)
    async with backend.within():
        with pytest.raises(BuildFailed) as caught:
            await built(await backend.builder(), package)
    assert caught.value.exit_code == 137


async def test_output_that_speaks_of_a_refused_connection_stays_what_it_is(
    backend: DockerBackend,
):
    text = "dial tcp 10.0.0.1:443: connect: connection refused"
    package = await backend.packages.make(build=[say(text, "stderr"), leave(1)])
    async with backend.within():
        with pytest.raises(BuildFailed, match="exited with 1") as caught:
            await built(await backend.builder(), package)
    assert text in caught.value.output


async def test_a_builder_image_without_the_tool_names_it(backend: DockerBackend):
    package = shell_package(backend.folder / "p", "", "no-such-compiler --version")
    async with backend.within():
        with pytest.raises(BuildFailed, match="exited with 127") as caught:
            await built(await backend.builder(), package)
    assert any("no-such-compiler" in line for line in caught.value.output)


# --- pulling ----------------------------------------------------------------------------


async def test_without_an_engine_entering_says_where_it_looked(backend: DockerBackend):
    endpoint = EndpointOptions(docker_host=f"unix://{backend.folder}/none.sock")
    backend.options = replace(backend.options, endpoint=endpoint)
    with pytest.raises(EngineUnavailable, match=r"none\.sock"):
        await backend.builder()
