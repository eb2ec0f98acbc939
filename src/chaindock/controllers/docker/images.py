"""Base images and the images of chaincode: found, made, removed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaindock.container.attempt import Phase
from chaindock.controllers.docker import names
from chaindock.controllers.docker.body import chunks_of
from chaindock.controllers.docker.pulls import places, pull_image
from chaindock.errors import EngineError, ImageNotFound
from chaindock.platforms.base import Connection, LaunchCommand

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from typing import BinaryIO

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import NodeLabels
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.options import (
        DockerOptions,
        LanguageImages,
        Pull,
    )
    from chaindock.ids import Ccid

BUILD_SILENCE_S = 300.0


@dataclass(frozen=True)
class BaseImage:
    """An image that is on the engine.

    Args:
        reference: its name, which is that of a mirror if it came from there.
        id: the engine's id of its content.
    """

    reference: str
    id: str


class BaseImages:
    """Fetches the images that languages are built on, each once at a time."""

    def __init__(self, engine: Engine, options: DockerOptions) -> None:
        self._engine, self._options = engine, options
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def resolve(
        self, language: LanguageImages, attempt: Attempt
    ) -> tuple[BaseImage, BaseImage]:
        """Return (builder, runtime), fetched as the pull policy says.

        Raises: as `pull_image`; ImageNotFound when the policy is `never`.
        """
        policy = self._options.pull if language.pull == "default" else language.pull
        builder = await self._get(language.builder, policy, attempt)
        if language.runtime in {"", language.builder}:
            return builder, builder
        return builder, await self._get(language.runtime, policy, attempt)

    async def _get(self, text: str, policy: Pull, attempt: Attempt) -> BaseImage:
        options = self._options
        reference = names.expand_image(
            text,
            arch=self._engine.arch,
            docker_ns=options.docker_ns,
            version=options.fabric_version,
        )
        lock = self._locks[reference]
        if lock.locked():
            attempt.enter(Phase.PULL)  # another attempt pulls it: this one waits
        async with lock:
            where = places(reference, options.mirrors)
            found = None if policy == "always" else await self._look(where)
            if found is None and policy == "never":
                raise ImageNotFound(
                    f"the engine has no image {reference!r} and may not pull it",
                    hint=f"fetch it with: docker pull {reference}, or allow pulling",
                    image=reference,
                )
            if found is None:
                place = await pull_image(self._engine, options, where, attempt)
                image = await self._engine.inspect_image(place)
                found = BaseImage(place, str(image["Id"]))
        if found.reference != reference:
            attempt.note(f"{reference} comes from a mirror: {found.reference}")
        return found

    async def _look(self, where: Sequence[str]) -> BaseImage | None:
        """Return what the engine has from one of these places; the first counts."""
        for place in where:
            with contextlib.suppress(ImageNotFound):
                found = await self._engine.inspect_image(place)
                return BaseImage(place, str(found["Id"]))
        return None


async def find_launch(
    engine: Engine, node: NodeLabels, ccid: Ccid, key: str, attempt: Attempt
) -> tuple[str, LaunchCommand] | None:
    """Return (image, launch command) of an equal build; None when there is none."""
    name = names.image_name(node, ccid)
    image = f"{name}:{key}"
    try:
        found = await engine.inspect_image(image)
    except ImageNotFound:
        same = await engine.find_images(label=f"{names.BUILD_KEY}={key}")
        if not same:
            return None
        # Equal code under another label: the image only needs one more name.
        attempt.enter(Phase.IMAGE)
        try:
            await engine.tag_image(str(same[0]["Id"]), name, key)
            found = await engine.inspect_image(image)
        except ImageNotFound:
            return None
    labels = (found.get("Config") or {}).get("Labels") or {}
    launch = _launch_from(labels.get(names.LAUNCH))
    if labels.get(names.BUILD_KEY) != key or launch is None:
        return None
    return image, launch


async def make_image(
    engine: Engine,
    image: str,
    base: BaseImage,
    output: str,
    labels: dict[str, str],
    artifact: BinaryIO,
    attempt: Attempt,
) -> None:
    """Make the image `name:key` of a chaincode from what its build left behind.

    The tar `artifact` goes to the directory `output` of the image.

    Raises: EngineError, also when the engine reports it inside the progress.
    """
    attempt.enter(Phase.IMAGE)
    version = labels[names.FABRIC_VERSION]
    dockerfile = (
        # By id: somebody may move the tag between the look at it and this.
        f"FROM {base.id}\nADD binpackage.tar {output}\n"
        f"ENV CORE_CHAINCODE_BUILDLEVEL={version}\n"
    )
    params = {"t": image, "rm": "1", "forcerm": "1", "labels": json.dumps(labels)}
    progress = engine.build_image(
        params, lambda: image_context(dockerfile, artifact), BUILD_SILENCE_S
    )
    async with contextlib.aclosing(progress):
        async for _ in progress:
            pass  # its errors are raised, the rest is of no interest


async def remove_images(
    engine: Engine, node: NodeLabels, ccid: Ccid, keep: str = ""
) -> int:
    """Remove the images of a chaincode but `keep`; those in use stay. Return how many.

    A Fabric peer may have given an image the same name; its tag is no build key.
    """
    name, count = names.image_name(node, ccid), 0
    # By label: engines differ in what a reference without a registry matches.
    for found in await engine.find_images(label=names.BUILD_KEY):
        key = (found.get("Labels") or {}).get(names.BUILD_KEY)
        tag = f"{name}:{key}"
        if tag in names.own_tags(found) and tag != keep:
            with contextlib.suppress(EngineError):
                await engine.remove_image(tag)
                count += 1
    return count


def launch_label(launch: LaunchCommand) -> str:
    """Return a launch command as the text of a label."""
    return json.dumps({**vars(launch), "env": dict(launch.env)})


def _launch_from(label: Any) -> LaunchCommand | None:
    try:
        found = json.loads(label)
        found["argv"] = tuple(found["argv"])
        found["connection"] = Connection(found["connection"])
        return LaunchCommand(**found)
    except (KeyError, TypeError, ValueError):
        return None


async def image_context(dockerfile: str, artifact: BinaryIO) -> AsyncIterator[bytes]:
    """Yield the tar context of an image: Dockerfile and binpackage.tar."""
    text = dockerfile.encode()
    yield _header("Dockerfile", len(text)) + text + _padding(len(text))
    size = artifact.seek(0, 2)
    yield _header("binpackage.tar", size)
    async for chunk in chunks_of(artifact):
        yield chunk
    yield _padding(size) + bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
