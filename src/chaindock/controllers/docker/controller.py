"""Run chaincode in containers of a Docker Engine.

Owns:    DockerController: the way from a package to an instance, reaping, leaving.
Not:     each step of it (images.py, compile.py, network.py, containers.py).
Entry:   DockerController
Holds:   equal input is built once; nothing that is not labelled as ours is ever removed.
Source:  launch.md §3, §9 W17, W20-W41; needs.md rows 12, 16, 35
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

import chaindock
from chaindock.aio import Tasks, finish
from chaindock.container.attempt import Phase
from chaindock.container.contracts import BuildEnvironment, Declined
from chaindock.container.environment import CONTENT_VARIABLES
from chaindock.controllers.docker import images, names
from chaindock.controllers.docker.compile import Compiler
from chaindock.controllers.docker.containers import Built, DockerInstance, Parts
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.filter import HostFilter
from chaindock.controllers.docker.network import Networks
from chaindock.controllers.docker.walls import Walls
from chaindock.errors import (
    ChaindockError,
    EngineError,
    ImageNotFound,
    Unsupported,
)
from chaindock.platforms import registry
from chaindock.platforms.fingerprint import modules_hash, planner_fingerprint
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Instance, NodeLabels
    from chaindock.controllers.docker.images import BaseImage
    from chaindock.controllers.docker.options import DockerOptions
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage
    from chaindock.platforms.base import BuildPlan, LaunchCommand, Platform

_log = get_logger("docker")
CLOSE_GRACE_S = 2.0
REAP_WIDTH = 4
"""Removals side by side: as many as an engine makes use of (docs/performance.md)."""
CLOSE_LIMIT_S = 45.0
"""What is not in order by then, the next start removes."""


class DockerController:
    """The Docker back end of one node; implements `container.contracts.Builder`.

    Entered: the engine was found and answers. Left: what it started has ended.

    Args:
        environment: what builds need to reach package registries.
        platforms: gives the platform of a package type, or raises Unsupported.

    Raises: EngineUnavailable on entering, with every place that was tried.
    """

    name = "docker"

    def __init__(
        self,
        options: DockerOptions,
        node: NodeLabels,
        *,
        environment: BuildEnvironment | None = None,
        platforms: Callable[[str], Platform] = registry.platform_for,
    ) -> None:
        self._options, self._node = options, node
        self._environment = environment or BuildEnvironment()
        self._platforms = platforms
        self._scratch = f"chaindock-{Path(node.node_id).name}-"
        self._tasks = Tasks("docker")
        self._instances: dict[Ccid, list[DockerInstance]] = defaultdict(list)
        self._builds: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._parts: Parts | None = None

    async def __aenter__(self) -> Self:
        engine = await Engine.connect(self._options.endpoint, self._options.call_s)
        self._host = HostFilter(self._node.node_id, self._options.path)
        networks = Networks(engine, self._node, self._options.sandbox, self._host)
        walls = Walls(engine)
        self._parts = Parts(
            engine, self._node, self._options, networks, self._tasks, walls
        )
        self._bases = images.BaseImages(engine, self._options)
        self._compiler = Compiler(
            engine, self._node, self._options.compile, self._environment, walls
        )
        _log.info("engine found", endpoint=engine.address, version=engine.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop what this object started, remove the node's empty networks, disconnect.

        Idempotent. An engine that does not answer does not keep anybody from leaving.
        """
        parts, self._parts = self._parts, None
        if parts is None:
            return
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._put_in_order(parts.engine, parts.networks)
        except ChaindockError as error:
            _log.error("engine left in disorder", error=error.message)
        except TimeoutError:
            _log.error("engine left in disorder", limit_s=CLOSE_LIMIT_S)
        finally:
            self._instances.clear()
            await self._tasks.aclose()
            await parts.engine.aclose()

    async def _put_in_order(self, engine: Engine, networks: Networks) -> None:
        ours = [one for many in self._instances.values() for one in many]
        ends = await asyncio.gather(
            *(one.stop(CLOSE_GRACE_S) for one in ours), return_exceptions=True
        )
        await networks.aclose()
        await engine.tidy(self._label)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    @property
    def _label(self) -> str:
        return f"{names.NODE}={self._node.node_id}"

    @property
    def endpoint(self) -> str:
        """Where the engine is."""
        return self._entered.engine.address

    async def check(self) -> None:
        """Ask the engine whether it answers (container.contracts.Checkable)."""
        await self._entered.engine.ping()

    # --- build ---------------------------------------------------------------------

    async def build(
        self, package: StoredPackage, attempt: Attempt
    ) -> Instance | Declined:
        """Make the image of a package, or find it (container.contracts.Builder)."""
        try:
            platform = self._platforms(package.package_type)
        except Unsupported as error:
            return Declined(error.message)
        language = self._options.images.get(platform.name)
        if language is None:
            return Declined(f"no images are set for the language {platform.name!r}")
        attempt.enter(Phase.PACKAGE)
        parts = self._entered
        try:
            await parts.engine.tidy(self._label)
            builder, runtime = await self._bases.resolve(language, attempt)
        except (EngineError, ImageNotFound) as error:
            return Declined(error.message, error)
        key = self._key(package, platform, builder, runtime)
        async with self._builds[key]:
            found = await images.find_launch(
                parts.engine, self._node, package.ccid, key, attempt
            )
            if found is not None:
                attempt.note(f"image of an equal build is reused: {found[0]}")
            else:
                found = await self._make(
                    package, platform, (builder, runtime), key, attempt
                )
        image, launch = found
        built = Built(package.ccid, image, platform.image_output, launch, runtime)
        instance = DockerInstance(parts, built)
        self._instances[package.ccid].append(instance)
        return instance

    def _key(
        self,
        package: StoredPackage,
        platform: Platform,
        builder: BaseImage,
        runtime: BaseImage,
    ) -> str:
        """Return the hash of all that the image is made of.

        The plan and the launch command follow from the code and the planner.
        """
        flags = self._environment.variables
        return names.build_key(
            {
                "code": package.code_digest,
                "path": package.import_path,
                "type": package.package_type,
                "planner": _revision(platform),
                "builder": builder.id,
                "runtime": runtime.id,
                "user": self._options.compile.user,
                "fabric": self._options.fabric_version,
                **{name: flags.get(name, "") for name in CONTENT_VARIABLES},
            }
        )

    async def _make(
        self,
        package: StoredPackage,
        platform: Platform,
        bases: tuple[BaseImage, BaseImage],
        key: str,
        attempt: Attempt,
    ) -> tuple[str, LaunchCommand]:
        engine, (builder, runtime) = self._entered.engine, bases
        attempt.enter(Phase.PACKAGE)
        # Not in a thread: a cancellation could not tell what to remove.
        folder = Path(tempfile.mkdtemp(prefix=self._scratch))
        image = f"{names.usable_image_name(self._node, package.ccid)}:{key}"
        try:
            tree = folder / "tree"
            await package.unpack(tree)
            plan = await asyncio.to_thread(platform.plan, tree, package.import_path)
            with (folder / "artifact.tar").open("w+b") as artifact:
                await self._compiler.run(
                    plan, tree, builder, attempt, artifact, platform.is_retryable
                )
                labels = self._labels(package, plan, key)
                await images.make_image(
                    engine,
                    image,
                    runtime,
                    platform.image_output,
                    labels,
                    artifact,
                    attempt,
                )
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
        await images.remove_images(engine, self._node, package.ccid, keep=image)
        return image, plan.launch

    def _labels(
        self, package: StoredPackage, plan: BuildPlan, key: str
    ) -> dict[str, str]:
        return {
            names.FABRIC_TYPE: package.package_type.upper(),
            names.FABRIC_VERSION: self._options.fabric_version,
            names.BUILT_BY: self._node.node_id,
            names.PACKAGE: package.ccid,
            names.BUILD_KEY: key,
            names.LAUNCH: images.launch_label(plan.launch),
        }

    # --- leftovers -----------------------------------------------------------------

    async def reap(self) -> int:
        """Remove what an earlier process of this node left; return how many containers.

        That is containers, networks, rules of the packet filter, and directories of
        builds. For the start, when nothing is built. Anchors of a network (network.py)
        go with it and do not count.
        """
        await asyncio.to_thread(self._remove_scratch)
        engine = self._entered.engine
        label = self._label
        containers = await engine.find_containers(label)
        anchors = set(await engine.find_containers(f"{names.ROLE}=anchor"))
        turns = asyncio.Semaphore(REAP_WIDTH)

        async def remove(container: str) -> None:
            async with turns:
                await engine.remove_container(container)

        ends = await asyncio.gather(*map(remove, containers), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end
        for network in await engine.find_networks(label):
            await engine.remove_network(str(network["Id"]))
        await self._host.remove()
        count = len(set(containers) - anchors)
        if count:
            _log.info("removed leftovers", containers=count)
        return count

    def _remove_scratch(self) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{self._scratch}*"):
            shutil.rmtree(path, ignore_errors=True)

    async def discard(self, ccid: Ccid) -> int:
        """Remove the images of an uninstalled chaincode. Return how many.

        Raises: EngineError.
        """
        for instance in self._instances.pop(ccid, ()):
            await instance.stop(CLOSE_GRACE_S)
        return await images.remove_images(self._entered.engine, self._node, ccid)

    @property
    def _entered(self) -> Parts:
        if self._parts is None:
            raise EngineError("the Docker back end is not open: enter it first")
        return self._parts


def _revision(platform: Platform) -> str:
    """Return what changes when plans, or their execution, may come out differently."""
    planner, here = planner_fingerprint(type(platform)), Path(__file__).parent
    return f"{chaindock.__version__} {planner} {modules_hash(here)}"
