"""Real chaincode of each language, built and started in containers."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Phase
from chaindock.container.contracts import NodeLabels, PeerConnection
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.engine import Engine
from support.doubles.backend import CountingListener, WatchedAttempt, built
from support.engines.docker_backend import clean
from support.engines.docker_languages import (
    EXAMPLES,
    environment,
    language_options,
    packaged,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.container.contracts import Instance
    from chaindock.packaging.store import StoredPackage

pytestmark = [
    pytest.mark.docker,
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]
EDITED = {"go": "main.go", "node": "index.js", "python": "coldchain.py"}
COMMENT = {"go": "//", "node": "//", "python": "#"}


OFFLINE = {
    "go": {"GOPROXY": "off"},
    "node": {"npm_config_offline": "true"},
    "python": {},  # pip asks its index even when it has all files
}


@pytest.fixture
async def node() -> AsyncIterator[NodeLabels]:
    node = NodeLabels(uuid.uuid4().hex[:12], uuid.uuid4().hex[:8], "lang")
    yield node
    engine = await Engine.connect(language_options().endpoint)
    await clean(engine, node.node_id)
    await engine.aclose()


@pytest.mark.parametrize("language", ["go", "node", "python"])
async def test_a_contract_is_built_started_and_rebuilt_from_its_caches(
    node: NodeLabels, tmp_path: Path, language: str
):
    source = tmp_path / "source"
    shutil.copytree(EXAMPLES / language, source)
    # The engine may have an equal image, of whatever node: this source is new.
    append(source / EDITED[language], f"{COMMENT[language]} {uuid.uuid4().hex}")
    package = await asyncio.to_thread(packaged, source, tmp_path / "store", "first")
    attempt = WatchedAttempt(package)
    online = environment()
    async with DockerController(
        language_options(), node, environment=online
    ) as controller:
        instance = await built(controller, package, attempt)
        attempt.over()
        await comes_up(instance, package)
    assert {Phase.DEPENDENCIES, Phase.IMAGE} <= {p.phase for p in attempt.phases}

    append(source / EDITED[language], f"{COMMENT[language]} one more line")
    edited = await asyncio.to_thread(packaged, source, tmp_path / "store", "first")
    assert edited.ccid != package.ccid
    attempt = WatchedAttempt(edited)
    offline = replace(online, variables={**online.variables, **OFFLINE[language]})
    async with DockerController(
        language_options(), node, environment=offline
    ) as controller:
        instance = await built(controller, edited, attempt)
        await comes_up(instance, edited)


def append(file: Path, line: str) -> None:
    file.write_text(f"{file.read_text()}\n{line}\n")


async def comes_up(instance: Instance, package: StoredPackage) -> None:
    """Start it, see it dial the node or take a connection, stop it."""
    listener, attempt = CountingListener(), WatchedAttempt(package)
    try:
        async with asyncio.timeout(60):
            answer = await instance.start(PeerConnection(listener, "Org1MSP"), attempt)
            if answer is None:
                await listener.called()
            else:
                await dialled(answer.address)
    except TimeoutError:
        pytest.fail("\n".join(attempt.tail()))
    finally:
        await instance.stop(2)
        await listener.aclose()


async def dialled(address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
