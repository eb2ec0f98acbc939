"""The engine goes away after the node found it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import NodeLabels
from chaindock.container.router import Router
from chaindock.controllers.docker import controller
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import HostFirewall
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions
from chaindock.errors import EngineError, EngineUnavailable, Unsupported
from chaindock.platforms.base import LanguageImages
from support.doubles.conformance import platform_for_scripts
from support.doubles.fake_engine import fake_engine
from support.doubles.fakes import fake_package
from support.doubles.launch_fakes import OneBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from support.doubles.fake_engine import Request

PACKAGE = fake_package()


def docker(socket: Path, call_s: float = 5.0) -> DockerController:
    options = DockerOptions(
        endpoint=EndpointOptions(docker_host=f"unix://{socket}"),
        images={"script": LanguageImages("base:1")},
        call_s=call_s,
    )
    return DockerController(
        options, NodeLabels("node1", "peer0", "dev"), platforms=platform_for_scripts
    )


@pytest.fixture
async def orphan(tmp_path: Path) -> AsyncIterator[DockerController]:
    """Yield a controller whose engine has ended since."""
    async with contextlib.AsyncExitStack() as stack:
        async with fake_engine(tmp_path / "s"):
            orphan = await stack.enter_async_context(docker(tmp_path / "s"))
        yield orphan


async def test_a_build_fails_as_unavailable(orphan: DockerController):
    with pytest.raises(EngineUnavailable, match="lost the connection") as caught:
        await Router(OneBackend(orphan)).build(PACKAGE, Attempt(PACKAGE.ccid))
    assert caught.value.hint


async def test_only_packages_of_a_type_that_nobody_here_knows_are_refused():
    foreign = replace(PACKAGE, package_type="cobol")
    controller = DockerController(DockerOptions(), NodeLabels("node1", "p", "dev"))
    with pytest.raises(Unsupported, match="'cobol' cannot be built") as caught:
        await controller.build(foreign, Attempt(foreign.ccid))
    assert "golang or node or python" in (caught.value.hint or "")


async def test_connecting_fails_with_a_reason_and_works_once_the_engine_is_up(
    tmp_path: Path,
):
    controller = docker(tmp_path / "s")
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="DOCKER_HOST") as caught:
            await controller.connect()
        assert str(tmp_path / "s") in caught.value.message
        assert not controller.connected
    async with fake_engine(tmp_path / "s") as engine:
        await controller.connect()
        seen = len(engine.seen)
        await controller.connect()
        assert controller.connected
        assert len(engine.seen) == seen, "it is connected, so nothing is asked"
        await controller.aclose()


async def test_an_engine_that_hangs_keeps_nobody_from_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def hangs(request: Request) -> None:
        await request.reader.read()

    monkeypatch.setattr(controller, "CLOSE_LIMIT_S", 0.2)
    socket = tmp_path / "s"
    async with (
        fake_engine(socket, {"GET json": hangs}),
        asyncio.timeout(5),
        docker(socket, call_s=60) as entered,
    ):
        assert entered.connected


@pytest.mark.parametrize(
    ("used", "removed"), [("", True), ("-build", True), ("-open", False)]
)
async def test_firewall_rules_stay_for_the_networks_of_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used: str, removed: bool
):
    async def containers(request: Request) -> None:
        await request.json([])

    async def networks(request: Request) -> None:
        await request.json([{"Name": f"chaindock-node1{kind}"} for kind in kinds])

    async def gone(request: Request) -> None:
        await request.json({})

    async def in_use(request: Request) -> None:
        await request.json({"message": "it has active endpoints"}, 403)

    async def remove(_self: HostFirewall) -> int:
        removals.append(True)
        return 0

    kinds, removals = ("-build", "-open"), list[bool]()
    monkeypatch.setattr(HostFirewall, "remove", remove)
    replies = {"GET json": containers, "GET networks": networks}
    for kind in kinds:
        name = f"DELETE chaindock-node1{kind}"
        replies[name] = in_use if kind == used else gone
    async with fake_engine(tmp_path / "s", replies), docker(tmp_path / "s"):
        pass
    assert bool(removals) == removed


async def test_a_lost_container_is_removed_the_next_time_if_it_cannot_be_now(
    tmp_path: Path,
):
    """Podman, killed while it starts one, refuses its removal once."""
    tries: list[int] = []

    async def hangs_up(_request: Request) -> None:
        """Make a container whose id never comes."""

    async def listed(request: Request) -> None:
        await request.json([{"Id": "lost"}])

    async def remove(request: Request) -> None:
        tries.append(200 if tries else 500)
        await request.json({"message": "device or resource busy"}, tries[-1])

    replies = {"POST create": hangs_up, "GET json": listed, "DELETE lost": remove}
    async with fake_engine(tmp_path / "s", replies):
        options = EndpointOptions(docker_host=f"unix://{tmp_path / 's'}")
        async with contextlib.aclosing(await Engine.connect(options)) as engine:
            with pytest.raises(EngineUnavailable):
                await engine.create_container("n", {"Image": "x"})
            with pytest.raises(EngineError, match="device or resource busy"):
                await engine.remove_lost_containers("a=b")
            await engine.remove_lost_containers("a=b")
    assert tries == [500, 200]
