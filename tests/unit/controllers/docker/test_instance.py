"""How the end of a container is told, against an engine with faults."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, cast

import pytest

from chaindock.aio import Tasks
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Cause, NodeLabels, PeerConnection
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.images import BaseImage, BuiltImage
from chaindock.controllers.docker.instance import DockerInstance, EngineSession
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions
from chaindock.controllers.docker.sandbox import Attachment, IsolationAudit
from chaindock.platforms.base import Connection, LaunchCommand
from support.doubles.fake_engine import fake_engine
from support.doubles.fakes import fake_package

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.controllers.docker.network import Networks
    from support.doubles.fake_engine import Request

CCID = fake_package().ccid
LINE = b"\1\0\0\0\0\0\0\5line\n"


class OneNetwork:
    """Networks where every container is connected at once."""

    async def attach(self, *_: object, **__: object) -> Attachment:
        return Attachment("net", "10.0.0.1:7052", "internal network")


class DyingEngine:
    """An engine whose container ends when told to, and whose output goes on after it."""

    def __init__(self) -> None:
        self.dead = asyncio.Event()
        self.state: dict[str, Any] = {"OOMKilled": False}
        self.code = 2
        self.pause_s = 0.2
        self.replies = {
            "POST create": self._answers({"Id": "c1"}),
            "POST start": self._answers({}),
            "POST stop": self._answers({}),
            "POST wait": self._wait,
            "GET logs": self._logs,
            "GET info": self._answers({}),
            "GET json": self._inspect,
            "DELETE c1": self._remove,
        }
        self._removed = False

    @staticmethod
    def _answers(value: Any) -> Any:
        async def reply(request: Request) -> None:
            await request.json(value)

        return reply

    async def _wait(self, request: Request) -> None:
        await self.dead.wait()
        await request.json({"StatusCode": self.code})

    async def _inspect(self, request: Request) -> None:
        if self._removed:
            await request.json({"message": "no such container"}, 404)
            return
        await request.json(
            {"Id": "c1", "State": self.state, "NetworkSettings": {}, "HostConfig": {}}
        )

    async def _remove(self, request: Request) -> None:
        self._removed = True
        await request.json({})

    async def _logs(self, request: Request) -> None:
        if "follow" not in request.path:
            await request.stream()
            return
        await request.stream(LINE)
        with contextlib.suppress(ConnectionError):
            while True:  # as the engine does while a fork keeps the output open
                request.writer.write(LINE)
                await request.writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.pause_s):
                        await request.reader.read()
                        return


@pytest.fixture
async def dying() -> DyingEngine:
    return DyingEngine()


@pytest.fixture
async def instance(tmp_path: Path, dying: DyingEngine) -> AsyncIterator[DockerInstance]:
    options = DockerOptions(
        endpoint=EndpointOptions(docker_host=f"unix://{tmp_path / 's'}")
    )
    async with fake_engine(tmp_path / "s", dying.replies), Tasks("test") as tasks:
        engine = await Engine.connect(options.endpoint)
        session = EngineSession(
            engine,
            NodeLabels("node1", "peer0", "dev"),
            options,
            cast("Networks", OneNetwork()),
            tasks,
            IsolationAudit(engine),
        )
        launch = LaunchCommand(("run",), "/", Connection.CALLS_BACK)
        base = BaseImage("base:1", "sha256:1")
        yield DockerInstance(session, BuiltImage(CCID, "image", "/out", launch, base))
        await engine.aclose()


async def started(instance: DockerInstance) -> Attempt:
    attempt = Attempt(CCID)
    peer = PeerConnection(cast("Any", None), "Org1MSP")
    await instance.start(peer, attempt)
    return attempt


async def test_the_end_is_told_at_once_though_output_still_comes(
    instance: DockerInstance, dying: DyingEngine
):
    attempt = await started(instance)
    dying.dead.set()
    async with asyncio.timeout(5):
        assert (await instance.wait()).code == 2
    before = len(attempt.tail())
    await asyncio.sleep(1)
    assert len(attempt.tail()) > before, "what is written later is kept, too"


@pytest.mark.parametrize("oom", [False, True])
async def test_a_crash_stays_a_crash_when_it_is_stopped_before_its_output_ended(
    instance: DockerInstance, dying: DyingEngine, oom: bool
):
    """Who looks after contracts restarts those that crashed, not those it stopped."""
    dying.state["OOMKilled"] = oom
    await started(instance)
    dying.dead.set()
    await asyncio.sleep(0.5)
    async with asyncio.timeout(50):
        waiting = asyncio.ensure_future(instance.wait())
        dying.pause_s = 60
        await instance.stop(0)
        end = await waiting
    assert end.cause is (Cause.OOM if oom else Cause.EXITED)


async def test_a_run_that_was_asked_to_end_is_told_as_stopped(
    instance: DockerInstance, dying: DyingEngine
):
    await started(instance)
    dying.code, dying.pause_s = 143, 60
    asyncio.get_running_loop().call_later(0.3, dying.dead.set)
    async with asyncio.timeout(50):
        await instance.stop(5)
        end = await instance.wait()
    assert (end.cause, end.signal) == (Cause.STOPPED, 15)
