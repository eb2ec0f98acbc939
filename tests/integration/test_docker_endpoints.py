"""An engine on a port is as good as one on a socket, however its address is written."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaindock.aio import Tasks
from chaindock.controllers.docker.options import EndpointOptions
from support.doubles.backend import WatchedAttempt, built
from support.doubles.scripts import leave, say
from support.engines.docker_backend import DockerBackend
from support.need import need_docker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


@contextlib.asynccontextmanager
async def on_a_port() -> AsyncIterator[str]:
    """Give host:port of something that passes on to the engine of the tests."""
    target = need_docker()
    if not target.startswith("unix://"):
        pytest.skip("needs an engine on a unix socket")
    tasks = Tasks("port")

    async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                to.write(data)
                await to.drain()
            if to.can_write_eof():
                to.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far = await asyncio.open_unix_connection(target.removeprefix("unix://"))
        try:
            await asyncio.gather(pump(reader, far[1]), pump(far[0], writer))
        finally:
            for one in (writer, far[1]):
                one.transport.abort()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _ = tasks.start(serve(reader, writer), "connection")

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
    finally:
        server.close()
        await tasks.aclose()


@pytest.mark.parametrize("scheme", ["tcp", "http"])
async def test_builds_and_runs_with_their_output_work_through_a_port(
    tmp_path: Path, scheme: str
):
    """launch.md W66: Fabric's attach fails with the second form."""
    async with on_a_port() as place, DockerBackend(tmp_path) as backend:
        endpoint = EndpointOptions(docker_host=f"{scheme}://{place}")
        backend.options = replace(backend.options, endpoint=endpoint)
        package = await backend.packages.make(
            say("running"), leave(3), build=[say("building")]
        )
        attempt = WatchedAttempt(package)
        async with backend.within():
            instance = await built(await backend.builder(), package, attempt)
            await instance.start(backend.peer, attempt)
            assert (await instance.wait()).code == 3
            await attempt.until(lambda: "running" in attempt.of("stdout"))
        assert "building" in attempt.of("build")
