"""Which images and containers a build needs, and which it does not take for its own."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from chaindock.controllers.docker import names
from chaindock.errors import BuildFailed
from chaindock.platforms.base import LanguageImages
from support.doubles.backend import WatchedAttempt, built
from support.doubles.scripts import hang, say
from support.engines.docker_backend import DockerBackend
from support.engines.registry import Registry
from support.engines.volumes import find_volumes
from support.need import need_docker, need_image
from support.nodes.node import FIXTURES, Node, started
from support.nodes.remains import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
SHIM = FIXTURES / "foreign" / "node-shim"


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[DockerBackend]:
    async with DockerBackend(tmp_path) as backend:
        yield backend


async def made_since(began: float, label: str) -> list[dict[str, Any]]:
    """Return the creations of containers and volumes that the engine tells of."""
    socket = need_docker()
    if not socket.startswith("unix://"):
        pytest.skip("needs an engine on a unix socket")
    connector = aiohttp.UnixConnector(socket.removeprefix("unix://"))
    filters = {"event": ["create"], "label": [label]}
    asked = {
        "since": f"{began:.6f}",
        "until": f"{time.time():.6f}",
        "filters": json.dumps(filters),
    }
    async with (
        aiohttp.ClientSession("http://engine", connector=connector) as client,
        client.get("/events", params=asked) as answer,
    ):
        return [json.loads(line) async for line in answer.content if line.strip()]


async def test_a_build_is_one_container_of_which_nothing_stays(backend: DockerBackend):
    """launch.md W39, W40: no probe before it, no intermediate one after it."""
    began = time.time() - 1
    package = await backend.packages.make(
        hang(), build=[say("one"), say("two")], label="lean"
    )
    async with backend.within():
        await built(await backend.builder(), package)
    label = f"{names.NODE}={backend.node_id}"
    made = await made_since(began, label)
    assert len([one for one in made if one["Type"] == "container"]) == 1
    assert await backend.owned(backend.node_id) == set()
    dangling = await backend.engine.find_images(
        dangling="true", label=f"{names.BUILT_BY}={backend.node_id}"
    )
    assert dangling == []
    volumes = await find_volumes(backend.engine, label)
    assert [one for one in volumes if "-cache-" not in one] == []


async def test_an_image_that_only_has_the_right_name_is_not_run(backend: DockerBackend):
    """launch.md W35: somebody planted one under the name that a peer would give it."""
    async with backend.controller() as controller, backend.within():
        package = await backend.packages.make(hang(), build=[say("built")], label="own")
        name = names.image_name(controller._node, package.ccid)
        await backend.engine.tag_image(need_image("runtime"), name, "latest")
        try:
            attempt = WatchedAttempt(package)
            instance = await built(controller, package, attempt)
            assert "built" in attempt.of("build")
            assert instance.describe()["image"] != f"{name}:latest"
        finally:
            await backend.engine.remove_image(f"{name}:latest")


async def test_asking_for_a_pull_refreshes_the_image_that_compiles_too(
    backend: DockerBackend,
):
    """launch.md W30: both are there, under tags that have moved since."""
    here = need_image("runtime")
    old = (await backend.engine.inspect_image(here))["Id"]
    async with Registry().serve() as host:
        pair = [f"{host}/{backend.node_id}-{role}:1" for role in ("build", "run")]
        for one in pair:
            await backend.engine.tag_image(here, one.removesuffix(":1"), "1")
        images = {"script": LanguageImages(pair[0], pair[1])}
        backend.options = replace(backend.options, pull="always", images=images)
        package = await backend.packages.make(hang(), build=[say("built")])
        async with backend.within():
            with pytest.raises(BuildFailed):  # the new ones are empty
                await built(await backend.builder(), package)
            found = [await backend.engine.inspect_image(one) for one in pair]
            for one in pair:
                await backend.engine.remove_image(one)
    assert old not in {one["Id"] for one in found}


@pytest.mark.slow
@pytest.mark.nodejs
@pytest.mark.network
def test_a_chaincode_whose_image_was_removed_is_built_again(tmp_path: Path):
    """launch.md W21."""
    with started("docker", tmp_path) as node:
        node.deploy(SHIM, "notes")
        node.invoke("notes", "put", "n1", "kept")
        image = image_of(node)
        node.cli("stop", "notes")
        ask(lambda engine: engine.remove_image(image))
        node.cli("start", "notes")
        assert node.query("notes", "get", "n1") == b"kept"
        again = image_of(node)
        assert ask(lambda engine: engine.inspect_image(again))


def image_of(node: Node) -> str:
    line = node.ps("notes")
    assert line is not None
    return str(line["details"]["image"])
