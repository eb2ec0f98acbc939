"""DockerController on the real engine, ready for the conformance suites."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar, Self, cast

from chaindock.container.contracts import NodeLabels
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import HostFirewall
from chaindock.controllers.docker.names import BUILD_KEY, BUILT_BY, own_tags
from chaindock.controllers.docker.options import DockerOptions, EndpointOptions
from chaindock.platforms.base import LanguageImages
from support.doubles.conformance import Backend, platform_for_scripts
from support.engines.kept import SCRIPT_IMAGES, is_kept
from support.engines.volumes import find_volumes, remove_volume
from support.need import need_docker, need_image

if TYPE_CHECKING:
    from pathlib import Path

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import BuildEnvironment, Builder, Instance
    from chaindock.packaging.store import StoredPackage
    from support.doubles.scripts import Act


def docker_options(endpoint: str = "", **images: LanguageImages) -> DockerOptions:
    """Return options for an engine, which must never pull; "" = that of the tests."""
    where = EndpointOptions(docker_host=endpoint or need_docker())
    return DockerOptions(endpoint=where, images=images, pull="never")


class KnownEngine(Engine):
    """An engine that is asked for its version once: Podman starts programs for that."""

    _agreed: ClassVar[dict[str, tuple[str, str, str]]] = {}

    async def _agree(self) -> None:
        if self.address not in self._agreed:
            await super()._agree()
            self._agreed[self.address] = self._api, self.arch, self.name
        self._api, self.arch, self.name = self._agreed[self.address]
        self._was_lost = False


class CountingController(DockerController):
    """Counts the builds that it was asked for."""

    builds = 0

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        self.builds += 1
        return await super().build(package, attempt)


async def clean(engine: Engine, node_id: str, *, images: bool = True) -> None:
    """Remove everything of a node: containers, networks, volumes, and its images.

    An engine that lists its images looks at each: that takes 0.1 s of a processor.
    """
    label = f"org.chaindock.node={node_id}"
    for container in await engine.find_containers(label):
        await engine.remove_container(container)
    for network in await engine.find_networks(label):
        await engine.remove_network(network["Id"])
    for image in await engine.find_images(label=BUILD_KEY) if images else ():
        ours = image["Labels"].get(BUILT_BY) == node_id
        for tag in own_tags(image):
            if tag.startswith(SCRIPT_IMAGES):
                gone = not is_kept(image)
            else:
                gone = ours or node_id in tag
            if gone:
                await engine.remove_image(tag)
    for volume in await find_volumes(engine, label):
        await remove_volume(engine, volume)


class DockerBackend(Backend):
    """Scripts in containers. What `built` gives is built once for all tests of an engine."""

    patience_s = 60.0
    salt = "shared"

    def __init__(self, folder: Path, options: DockerOptions | None = None) -> None:
        super().__init__(folder)
        script = LanguageImages(need_image("runtime"))
        self.options = options or docker_options(script=script)
        self.engine = cast("Engine", None)
        self._stack = contextlib.AsyncExitStack()
        self._nodes: set[str] = set()
        self._images: list[str] = []
        """Those of `built`: where there are no others, the engine need not list all."""
        self._controllers: list[CountingController] = []

    async def __aenter__(self) -> Self:
        self.engine = await KnownEngine.connect(self.options.endpoint)
        self._stack.push_async_callback(self.engine.aclose)
        return self

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        others = sum(one.builds for one in self._controllers) > len(self._images)
        for node_id in self._nodes:
            await clean(self.engine, node_id, images=others)
            await HostFirewall(node_id, self.options.path).remove()
        for image in self._images:
            await self.engine.remove_image(image)
        await self._stack.aclose()

    async def built(
        self, *acts: Act, builder: Builder | None = None, serves: bool = False
    ) -> tuple[Instance, StoredPackage]:
        """Keep the image under a name of the tests."""
        instance, package = await super().built(*acts, builder=builder, serves=serves)
        image = instance.describe()["image"]
        key = (await self.engine.inspect_image(image))["Config"]["Labels"][BUILD_KEY]
        await self.engine.tag_image(image, SCRIPT_IMAGES, key)
        self._images.append(image)
        return instance, package

    async def open_builder(self, node_id: str) -> Builder:
        return await self.controller(node_id).__aenter__()

    def controller(
        self, node_id: str = "", environment: BuildEnvironment | None = None
    ) -> DockerController:
        """Return a controller that nobody entered yet; its objects are removed later."""
        # Short names would meet those of other runs on the same engine.
        unique = self._unique(node_id or self.node_id)
        self._nodes.add(unique)
        made = CountingController(
            self.options,
            NodeLabels(unique, node_id, self.node_id),
            environment=environment,
            platforms=platform_for_scripts,
        )
        self._controllers.append(made)
        return made

    async def close_builder(self, builder: Builder) -> None:
        await cast("DockerController", builder).aclose()

    async def abandon(self, builder: Builder) -> None:
        controller = cast("DockerController", builder)
        await controller._tasks.aclose()
        await controller._entered.engine.aclose()

    async def owned(self, node_id: str) -> set[str]:
        label = f"org.chaindock.node={self._unique(node_id)}"
        # An anchor belongs to the network, which stays until the node ends.
        anchors = await self.engine.find_containers("org.chaindock.role=anchor")
        return set(await self.engine.find_containers(label)) - set(anchors)

    async def signal(self, instance: Instance, number: int) -> None:
        name = instance.describe()["container"]
        await self.engine.call("POST", f"containers/{name}/kill?signal={number}")

    def _unique(self, node_id: str) -> str:
        return node_id if node_id == self.node_id else f"{self.node_id}-{node_id}"
