"""An engine that ends and comes back: nobody waits for ever, nothing is left over.

The node's side of it (calls, supervision) is in tests/faults/test_engine_faults.py.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Cause
from chaindock.errors import ChaindockError
from support.doubles.backend import WatchedAttempt, built, in_background
from support.doubles.scripts import hang, leave, say
from support.engines.each import Target, backend_on
from support.engines.own_engine import own_docker, own_podman

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.engines.docker_backend import DockerBackend
    from support.engines.own_engine import OwnEngine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(240)]
GONE_S = 5.0
"""An act that meets an engine that is gone ends within this."""


@pytest.fixture(scope="module", params=["docker", "docker with live-restore", "podman"])
def engine(request: pytest.FixtureRequest) -> Iterator[OwnEngine]:
    """Yield an engine of our own; the last two leave containers running."""
    if request.param == "podman":
        with own_podman("runtime") as engine:
            yield engine
    else:
        with own_docker("runtime", live_restore="live" in request.param) as engine:
            yield engine


@pytest.fixture
async def backend(tmp_path: Path, engine: OwnEngine) -> AsyncIterator[DockerBackend]:
    engine.start()
    target = Target(engine.kind, engine.endpoint)
    async with backend_on(tmp_path, target) as backend:
        yield backend
    assert engine.containers() == []


@pytest.fixture(params=["stopped", "killed"])
def how(request: pytest.FixtureRequest, engine: OwnEngine) -> str:
    """How the engine ends; the same to us where its containers live on."""
    if request.param == "stopped" and lives_on(engine):
        pytest.skip("as if it were killed")
    found: str = request.param
    return found


async def end(engine: OwnEngine, how: str) -> None:
    await asyncio.to_thread(engine.kill if how == "killed" else engine.stop)


def lives_on(engine: OwnEngine) -> bool:
    return engine.kind == "podman" or "--live-restore" in engine.flags


async def test_chaincode_that_runs_dies_or_lives_on_and_either_is_known(
    backend: DockerBackend, engine: OwnEngine, how: str
):
    instance, package = await backend.built(say("up"), hang())
    attempt = WatchedAttempt(package)
    async with backend.within():
        await instance.start(backend.peer, attempt)
        await attempt.until(lambda: bool(attempt.lines))
        await end(engine, how)
        await asyncio.to_thread(engine.start)
        if lives_on(engine):
            assert len(await backend.owned(backend.node_id)) == 1
            await instance.stop(5)
            result = await instance.wait()
            assert result.cause is Cause.STOPPED
        else:
            result = await instance.wait()
            # An engine that stops in order may still tell how its containers ended.
            told = {Cause.ENGINE_GONE} | ({Cause.EXITED} if how == "stopped" else set())
            assert result.cause in told
        await instance.start(backend.peer, Attempt(package.ccid))
        assert len(await backend.owned(backend.node_id)) == 1
        await instance.stop(1)
        assert await backend.owned(backend.node_id) == set()


async def test_a_build_fails_at_once_and_the_next_one_succeeds(
    backend: DockerBackend, engine: OwnEngine, how: str
):
    builder = await backend.builder()
    stuck = await backend.packages.make(leave(0), build=[say("busy"), hang()])
    good = await backend.packages.make(leave(0))
    attempt = WatchedAttempt(stuck)
    async with backend.within(), in_background(built(builder, stuck, attempt)) as build:
        await attempt.until(lambda: bool(attempt.of("build")))
        await end(engine, how)
        with pytest.raises(ChaindockError) as caught:
            async with asyncio.timeout(GONE_S):
                await build
        assert caught.value.retryable, caught.value
        assert caught.value.hint
        await asyncio.to_thread(engine.start)
        instance = await built(builder, good)
        # The container of the build that was cut off is gone, too.
        assert await backend.owned(backend.node_id) == set()
        await instance.start(backend.peer, Attempt(good.ccid))
        assert (await instance.wait()).code == 0
        await instance.stop(0)


@pytest.mark.parametrize("after_s", [0.02, 0.15])
async def test_a_start_fails_at_once_and_the_next_one_succeeds(
    backend: DockerBackend, engine: OwnEngine, how: str, after_s: float
):
    instance, package = await backend.built(hang())
    async with (
        backend.within(),
        in_background(instance.start(backend.peer, Attempt(package.ccid))) as start,
    ):
        await asyncio.wait([start], timeout=after_s)
        await end(engine, how)
        async with asyncio.timeout(GONE_S):
            await asyncio.wait([start])
        if start.exception() is not None:
            assert isinstance(start.exception(), ChaindockError), start.exception()
        await asyncio.to_thread(engine.start)
        await instance.start(backend.peer, Attempt(package.ccid))
        assert len(await backend.owned(backend.node_id)) == 1
        await instance.stop(1)
        assert await backend.owned(backend.node_id) == set()


async def test_an_engine_that_is_gone_is_told_at_once_whatever_is_asked(
    backend: DockerBackend, engine: OwnEngine
):
    instance, package = await backend.built(hang())
    async with backend.within():
        await instance.start(backend.peer, Attempt(package.ccid))
        await instance.stop(1)
        await end(engine, "stopped")
        async with asyncio.timeout(GONE_S):
            with pytest.raises(ChaindockError) as caught:
                await instance.start(backend.peer, Attempt(package.ccid))
            assert caught.value.slug == "engine-unavailable"
            assert engine.endpoint in str(caught.value)
            await instance.stop(0)
        await asyncio.to_thread(engine.start)
