"""A node that is up before its engine."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import NodeLabels
from chaindock.container.router import Router
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.late import LOOK_EVERY_S, LateDockerController
from chaindock.controllers.docker.options import (
    DockerOptions,
    EndpointOptions,
    LanguageImages,
)
from chaindock.errors import (
    EngineUnavailable,
    ImageNotFound,
)
from support.doubles.conformance import platform_for_scripts
from support.doubles.fake_engine import fake_engine
from support.doubles.fakes import InMemoryBuilder, fake_package

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PACKAGE = fake_package()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def late(
    socket: Path, clock: Clock, kept: Callable[[], bool] = lambda: False
) -> LateDockerController:
    options = DockerOptions(
        endpoint=EndpointOptions(docker_host=f"unix://{socket}"),
        images={"script": LanguageImages("base:1")},
        pull="never",
    )
    node = NodeLabels("node1", "peer0", "dev")
    docker = DockerController(options, node, platforms=platform_for_scripts)
    return LateDockerController(docker, clock, kept)


async def test_until_there_is_an_engine_others_are_used_and_the_reason_is_told(
    tmp_path: Path,
):
    async with late(tmp_path / "s", Clock()) as docker:
        taker = InMemoryBuilder()
        router = Router([docker, taker], lambda _: None)
        await router.build(PACKAGE, Attempt(PACKAGE.ccid))
        assert taker.builds == 1
        assert "no container engine answers" in router.declined(PACKAGE.ccid)
        assert docker.away
        assert await docker.reap() == await docker.discard(PACKAGE.ccid) == 0
        await docker.check()


async def test_who_asks_for_containers_meanwhile_gets_the_reason(tmp_path: Path):
    async with late(tmp_path / "s", Clock()) as docker:
        router = Router([docker, InMemoryBuilder()], lambda _: "docker")
        with pytest.raises(EngineUnavailable) as caught:
            await router.build(PACKAGE, Attempt(PACKAGE.ccid))
    assert caught.value.hint


async def test_while_a_known_engine_is_away_nothing_becomes_a_process(tmp_path: Path):
    """docs/security.md: what `auto` means does not change with the moment."""
    async with AsyncExitStack() as engine:
        await engine.enter_async_context(fake_engine(tmp_path / "s"))
        async with late(tmp_path / "s", Clock()) as docker:
            assert not docker.away
            await engine.aclose()
            other = InMemoryBuilder()
            router = Router([docker, other], lambda _: None)
            with pytest.raises(EngineUnavailable) as caught:
                await router.build(PACKAGE, Attempt(PACKAGE.ccid))
    assert caught.value.retryable
    assert "--backend process" in (caught.value.hint or "")
    assert other.builds == 0


async def test_an_engine_that_appears_is_used_from_the_next_build_on(tmp_path: Path):
    clock, attempt = Clock(), Attempt(PACKAGE.ccid)
    async with late(tmp_path / "s", clock) as docker:
        clock.now += LOOK_EVERY_S
        async with fake_engine(tmp_path / "s") as engine:
            with pytest.raises(ImageNotFound, match="base:1"):
                await docker.build(PACKAGE, attempt)
            assert not docker.away
            assert docker.endpoint == f"unix://{tmp_path / 's'}"
            looks = [line for line in engine.seen if "/containers/json" in line]
            assert looks, "leftovers of this node were not looked for"
    assert any("an engine answers now" in note for note in attempt.reused)


async def test_it_is_looked_for_once_however_many_build_at_a_time(tmp_path: Path):
    clock = Clock()
    async with (
        late(tmp_path / "s", clock) as docker,
        fake_engine(tmp_path / "s") as engine,
    ):
        await asyncio.gather(
            *(docker.build(PACKAGE, Attempt(PACKAGE.ccid)) for _ in range(5))
        )
        assert engine.seen == [], "too soon"
        clock.now += LOOK_EVERY_S
        await asyncio.gather(
            *(docker.build(PACKAGE, Attempt(PACKAGE.ccid)) for _ in range(5)),
            return_exceptions=True,
        )
        assert engine.seen.count("GET /_ping") == 1
