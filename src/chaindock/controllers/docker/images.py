"""Base images and chaincode images.

Owns:    which base images a language uses, pulling them; making, finding and removing
         the image of a chaincode.
Not:     compiling (compile.py), running (containers.py).
Entry:   BaseImages.resolve, make_image, find_launch
Holds:   an image is found by the hash of all that went into it, never by its name
         alone; its label says how it is started.
Source:  launch.md §3.2, §3.3, §3.6, §9 W21, W23, W27, W29, W30, W38, W39
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaindock.container.attempt import Phase
from chaindock.controllers.docker import names
from chaindock.controllers.docker.archives import image_context
from chaindock.controllers.docker.credentials import registry_auth
from chaindock.errors import EngineError, ImageNotFound, NotFound
from chaindock.platforms.base import Connection, LaunchCommand

if TYPE_CHECKING:
    from typing import BinaryIO

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import NodeLabels
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.options import DockerOptions, LanguageImages
    from chaindock.ids import Ccid

BUILD_SILENCE_S = 300.0


@dataclass(frozen=True)
class BaseImage:
    """An image that is on the engine.

    Args:
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

        Raises: ImageNotFound; EngineError, EngineTimeout of the pull.
        """
        builder = await self._get(language.builder, attempt)
        if language.runtime in {"", language.builder}:
            return builder, builder
        return builder, await self._get(language.runtime, attempt)

    async def _get(self, text: str, attempt: Attempt) -> BaseImage:
        options = self._options
        reference = names.expand_image(
            text,
            arch=self._engine.arch,
            docker_ns=options.docker_ns,
            version=options.fabric_version,
        )
        async with self._locks[reference]:
            if options.pull == "always":
                await self._pull(reference, attempt)
            try:
                found = await self._engine.inspect_image(reference)
            except ImageNotFound as error:
                if options.pull == "never":
                    raise ImageNotFound(
                        f"the engine has no image {reference!r} and may not pull it",
                        hint=f"fetch it with: docker pull {reference}, or allow pulling",
                        image=reference,
                    ) from error
                await self._pull(reference, attempt)
                found = await self._engine.inspect_image(reference)
        return BaseImage(reference, str(found["Id"]))

    async def _pull(self, reference: str, attempt: Attempt) -> None:
        attempt.enter(Phase.PULL)
        options = self._options
        config = options.endpoint.docker_config or (
            options.endpoint.home and options.endpoint.home / ".docker"
        )
        auth = await registry_auth(reference, config)
        if ":" not in reference.rpartition("/")[2] and "@" not in reference:
            reference += ":latest"  # without a tag an engine fetches all of them
        said: dict[str, str] = {}
        pull = self._engine.pull(reference, auth, options.pull_silence_s)
        try:
            async with contextlib.aclosing(pull):
                async for event in pull:
                    layer = str(event.get("id", ""))
                    status = str(event.get("status", ""))
                    if status and said.get(layer) != status:
                        said[layer] = status
                        text = f"{layer}: {status}" if layer else status
                        attempt.output(text, "build")
        except NotFound as error:
            raise ImageNotFound(
                error.message,
                hint="check its name and tag, and whether the registry wants a login",
                image=reference,
            ) from error


async def find_launch(
    engine: Engine, node: NodeLabels, ccid: Ccid, key: str
) -> tuple[str, LaunchCommand] | None:
    """Return (image, launch command) of an equal build; None when there is none."""
    name = names.usable_image_name(node, ccid)
    image = f"{name}:{key}"
    try:
        found = await engine.inspect_image(image)
    except ImageNotFound:
        same = await engine.find_images(label=f"{names.BUILD_KEY}={key}")
        if not same:
            return None
        # Equal code under another label: the image only needs one more name.
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
        f"FROM {base.reference}\nADD binpackage.tar {output}\n"
        f"ENV CORE_CHAINCODE_BUILDLEVEL={version}\n"
    )
    params = {"t": image, "rm": "1", "forcerm": "1", "labels": json.dumps(labels)}
    progress = engine.build_image(
        params, lambda: image_context(dockerfile, artifact), BUILD_SILENCE_S
    )
    async with contextlib.aclosing(progress):
        async for _ in progress:
            pass  # the steps of the assembly tell nobody anything; its errors are raised


async def remove_images(
    engine: Engine, node: NodeLabels, ccid: Ccid, keep: str = ""
) -> int:
    """Remove the images of a chaincode but `keep`; those in use stay. Return how many.

    A Fabric peer may have given an image the same name; its tag is no build key.
    """
    name, count = names.usable_image_name(node, ccid), 0
    for found in await engine.find_images(reference=name):
        key = (found.get("Labels") or {}).get(names.BUILD_KEY)
        tag = f"{name}:{key}"
        if tag in (found.get("RepoTags") or []) and tag != keep:
            with contextlib.suppress(EngineError):
                await engine.remove_image(tag)
                count += 1
    return count


def launch_label(launch: LaunchCommand) -> str:
    """Return a launch command as the text of a label."""
    return json.dumps(
        {
            "argv": launch.argv,
            "cwd": launch.cwd,
            "connection": launch.connection,
            "env": dict(launch.env),
            "concurrency": launch.concurrency,
        }
    )


def _launch_from(label: Any) -> LaunchCommand | None:
    try:
        found = json.loads(label)
        return LaunchCommand(
            argv=tuple(found["argv"]),
            cwd=found["cwd"],
            connection=Connection(found["connection"]),
            env=found["env"],
            concurrency=found["concurrency"],
        )
    except (KeyError, TypeError, ValueError):
        return None
