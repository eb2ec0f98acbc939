"""The engine goes away after the node found it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import NodeLabels
from chaindock.container.router import Router
from chaindock.controllers.docker import controller
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.options import (
    DockerOptions,
    EndpointOptions,
    LanguageImages,
)
from chaindock.errors import EngineUnavailable
from support.doubles.conformance import platform_for_scripts
from support.doubles.fake_engine import fake_engine
from support.doubles.fakes import InMemoryBuilder, fake_package

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


async def test_what_may_run_elsewhere_does_and_the_reason_is_told(
    orphan: DockerController,
):
    taker, told = InMemoryBuilder(), Attempt(PACKAGE.ccid)
    router = Router([orphan, taker], lambda _: None)
    assert await router.build(PACKAGE, told) is taker.instances[0]
    assert "lost the connection to the engine" in router.declined(PACKAGE.ccid)
    assert any("not with docker" in note for note in told.reused)


async def test_what_was_asked_of_docker_fails_as_unavailable(orphan: DockerController):
    router = Router([orphan, taker := InMemoryBuilder()], lambda _: "docker")
    with pytest.raises(EngineUnavailable, match="lost the connection") as caught:
        await router.build(PACKAGE, Attempt(PACKAGE.ccid))
    assert caught.value.hint
    assert taker.builds == 0


async def test_an_engine_that_hangs_keeps_nobody_from_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    async def hangs(request: Request) -> None:
        await request.reader.read()

    monkeypatch.setattr(controller, "CLOSE_LIMIT_S", 0.2)
    socket = tmp_path / "s"
    async with (
        fake_engine(socket, {"DELETE anchor": hangs}),
        asyncio.timeout(5),
        docker(socket, call_s=60) as entered,
    ):
        entered._entered.networks._anchors.append("anchor")
