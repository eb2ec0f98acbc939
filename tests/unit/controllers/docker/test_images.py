"""Which images are removed with a chaincode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.container.contracts import NodeLabels
from chaindock.controllers.docker import images, names
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.ids import Ccid
from support.doubles.fake_engine import fake_engine

if TYPE_CHECKING:
    from pathlib import Path

    from support.doubles.fake_engine import Reply, Request

CCID = Ccid("basic:" + "0" * 64)
NODE = NodeLabels("node1", "peer0", "dev")
NAME = names.image_name(NODE, CCID)
LISTED: list[dict[str, object]] = [
    {"RepoTags": [f"{NAME}:{key}", "other:1"], "Labels": {names.BUILD_KEY: key}}
    for key in ("old", "new")
]


async def removed(folder: Path, listed: list[dict[str, object]]) -> list[str]:
    async def answer(request: Request) -> None:
        await request.json(listed if request.method == "GET" else [])

    socket = folder / "s"
    replies: dict[str, Reply] = {"GET json": answer}
    replies |= {f"DELETE {NAME}:{tag}": answer for tag in ("old", "new", "latest")}
    async with fake_engine(socket, replies) as fake:
        engine = await Engine.connect(EndpointOptions(docker_host=f"unix://{socket}"))
        await images.remove_images(engine, NODE, CCID, keep=f"{NAME}:new")
        await engine.aclose()
    gone = [path.split("?")[0] for path in fake.seen if path.startswith("DELETE")]
    return [path.rpartition("/")[2] for path in gone]


async def test_images_of_older_builds_go_and_the_newest_stays(tmp_path: Path):
    assert await removed(tmp_path, LISTED) == [f"{NAME}:old"]


async def test_the_image_that_a_fabric_peer_made_under_the_same_name_stays(
    tmp_path: Path,
):
    theirs: dict[str, object] = {"RepoTags": [f"{NAME}:latest"], "Labels": None}
    assert await removed(tmp_path, [theirs]) == []
