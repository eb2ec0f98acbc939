"""What chaincode in a container can and cannot do, on the real engine."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import (
    ClientTls,
    Dial,
    NodeLabels,
    PeerConnection,
)
from chaindock.controllers.docker import network
from chaindock.controllers.docker.archives import TLS_FOLDER
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.options import SandboxOptions
from chaindock.errors import ContainerExists, ImageNotFound, StartFailed
from chaindock.testing.backend import WatchedAttempt, built
from chaindock.testing.conformance import platform_for_scripts
from chaindock.testing.scripts import hang, leave, serve
from support.docker_backend import DockerBackend, clean

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.controllers.docker.containers import DockerInstance
    from chaindock.controllers.docker.network import Networks
    from chaindock.packaging.store import StoredPackage

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]
TLS = ClientTls("KEY\n", "CERT\n", "ROOT\n")


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[DockerBackend]:
    async with DockerBackend(tmp_path) as backend:
        yield backend


async def run(backend: DockerBackend, script: str, **more: Any) -> dict[str, str]:
    """Run a shell script as chaincode; return what it printed as `name value`."""
    package = await shell(backend, script)
    instance = await built(await backend.builder(), package)
    attempt = WatchedAttempt(package)
    peer = replace(backend.peer, **more)
    async with backend.within():
        await instance.start(peer, attempt)
        await instance.wait()
        await instance.stop(0)
    return dict(line.partition(" ")[::2] for _, line in attempt.lines)


async def shell(backend: DockerBackend, script: str) -> StoredPackage:
    # `say` quotes; a here-document run by sh does not need more than that.
    return await backend.packages.make(
        ("say", "begin"), build=[("say", "b")], salt=script
    ) if not script else await backend.packages.make(
        cast(Any, ("raw", script)), build=()
    )


async def instance_of(backend: DockerBackend, *acts: Any, **more: Any) -> Any:
    return await backend.built(*acts, **more)
