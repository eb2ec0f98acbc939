"""Run chaincode in containers of a Docker-compatible engine."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

import chaindock
from chaindock.aio import KeyedLocks, Tasks, finish
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import BuildEnvironment, Instance, NodeLabels
from chaindock.container.environment import CONTENT_VARIABLES
from chaindock.controllers.docker import images, names
from chaindock.controllers.docker.compile import Compiler
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import HostFirewall
from chaindock.controllers.docker.images import Bases
from chaindock.controllers.docker.instance import DockerInstance, EngineSession
from chaindock.controllers.docker.network import BUILDS, Networks
from chaindock.controllers.docker.options import DockerOptions
from chaindock.controllers.docker.sandbox import IsolationAudit
from chaindock.errors import ChaindockError, EngineUnavailable
from chaindock.ids import Ccid
from chaindock.packaging.store import StoredPackage
from chaindock.platforms import registry
from chaindock.platforms.base import (
    LaunchCommand,
    Platform,
    modules_hash,
    planner_fingerprint,
)
from chaindock.processes.folders import remove_leftovers
from chaindock.telemetry import get_logger

_log = get_logger("docker")
REMOVALS = 4
"""Removals side by side: as many as an engine makes use of (docs/performance.md)."""
CLOSE_LIMIT_S = 45.0
"""Seconds for the removal at the stop; the next start removes the rest."""


class DockerController:
    """The Docker back end of one node; implements `container.contracts.Builder`.

    Until it is connected only `connect`, `aclose` and `connected` may be used. Builds get
    the `environment`; `platforms` gives the platform of a type, or raises Unsupported.
    """

    name = "docker"
    keeps_builds = False

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
        self._builds: KeyedLocks[str] = KeyedLocks()
        self._firewall = HostFirewall(node.node_id, options.path)
        self._connecting = asyncio.Lock()
        self._session: EngineSession | None = None

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def connected(self) -> bool:
        """Whether an engine was found."""
        return self._session is not None

    async def connect(self) -> None:
        """Find the engine, once. The first time, `reap` removes what was left.

        Raises: EngineUnavailable, with every place that was tried; EngineError when
            there is no API version in common.
        """
        async with self._connecting:
            if self._session is not None:
                return
            node, options = self._node, self._options
            engine = await Engine.connect(options.endpoint, options.call_s)
            networks = Networks(engine, node, options.sandbox, self._firewall)
            audit = IsolationAudit(engine)
            self._bases = images.BaseImages(engine, options)
            _log.info("engine found", endpoint=engine.address, version=engine.name)
            self._session = EngineSession(
                engine, node, options, networks, self._tasks, audit
            )

    async def aclose(self) -> None:
        """Remove the node's containers, networks and firewall rules; disconnect.

        If the engine does not answer in time, the next start removes what is left.
        """
        session, self._session = self._session, None
        if session is None:
            return
        try:
            async with asyncio.timeout(CLOSE_LIMIT_S):
                await self._remove_all(session.engine)
        except (ChaindockError, TimeoutError) as error:
            why = str(error) or f"the engine took longer than {CLOSE_LIMIT_S:g} s"
            _log.error("containers or networks not removed", error=why)
        finally:
            await self._tasks.aclose()
            await session.engine.aclose()

    async def _remove_all(self, engine: Engine) -> int:
        """Remove everything but images; return how many containers, without anchors."""
        containers = set(await engine.find_containers(self._label))
        anchors = set(await engine.find_containers(f"{names.ROLE}=anchor"))
        turns = asyncio.Semaphore(REMOVALS)

        async def remove(container: str) -> None:
            async with turns:
                await engine.remove_container(container)

        ends = await asyncio.gather(*map(remove, containers), return_exceptions=True)
        for end in filter(None, ends):
            raise end
        # By name: Podman 4.3 removes a network that is in use when it is named by its id.
        networks = [one["Name"] for one in await engine.find_networks(self._label)]
        used = [one for one in networks if not await engine.remove_network(one)]
        rules = any(not one.endswith(BUILDS) for one in used)  # for networks of runs
        if used:
            _log.warning("networks are still in use", networks=used, rules_stay=rules)
        if not rules:
            await self._firewall.remove()
        return len(containers - anchors)

    @property
    def _label(self) -> str:
        return f"{names.NODE}={self._node.node_id}"

    @property
    def endpoint(self) -> str:
        """Where the engine is."""
        return self._entered.engine.address

    async def check(self) -> None:
        """Ask the engine whether it answers. Raises: EngineError."""
        await self._entered.engine.ping()

    # --- build ---------------------------------------------------------------------

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        """Make the image of a package, or find it (container.contracts.Builder)."""
        platform = self._platforms(package.package_type)
        language = self._options.images[platform.name]
        attempt.enter(Phase.PACKAGE)
        session = self._entered
        await session.engine.remove_lost_containers(self._label)
        bases = await self._bases.resolve(language, attempt)
        key = self._key(package, platform, bases)
        node, ccid, engine = self._node, package.ccid, session.engine
        async with self._builds.hold(key):
            found = await images.find_launch(engine, node, ccid, key, attempt)
            if found is None:
                found = await self._make(package, platform, bases, key, attempt)
            else:
                attempt.note(f"image of an equal build is reused: {found[0]}")
        image, launch = found
        output = platform.image_output
        return DockerInstance(
            session, images.BuiltImage(attempt.ccid, image, output, launch, bases[1])
        )

    def _key(self, package: StoredPackage, platform: Platform, bases: Bases) -> str:
        """Return the hash of all that image, plan and launch command follow from."""
        builder, runtime = bases
        flags = self._environment.variables
        planner, here = planner_fingerprint(type(platform)), Path(__file__).parent
        return names.build_key(
            {
                "code": package.code_digest,
                "path": package.import_path,
                "type": package.package_type,
                "planner": f"{chaindock.__version__} {planner} {modules_hash(here)}",
                "builder": builder.id,
                "runtime": runtime.id,
                "user": self._options.compile.user,
                "fabric": names.FABRIC,
                **{name: flags.get(name, "") for name in CONTENT_VARIABLES},
            }
        )

    async def _make(
        self,
        package: StoredPackage,
        platform: Platform,
        bases: Bases,
        key: str,
        attempt: Attempt,
    ) -> tuple[str, LaunchCommand]:
        engine, (builder, runtime) = self._entered.engine, bases
        attempt.enter(Phase.PACKAGE)
        # Not in a thread: a cancellation could not tell what to remove.
        folder = Path(tempfile.mkdtemp(prefix=self._scratch))
        image = f"{names.image_name(self._node, package.ccid)}:{key}"
        try:
            tree = folder / "tree"
            await package.unpack(tree)
            plan = await asyncio.to_thread(platform.plan, tree, package.import_path)
            labels = {
                names.FABRIC_TYPE: package.package_type.upper(),
                names.FABRIC_VERSION: names.FABRIC,
                names.BUILT_BY: self._node.node_id,
                names.PACKAGE: package.ccid,
                names.BUILD_KEY: key,
                names.LAUNCH: msgspec.json.encode(plan.launch).decode(),
            }
            output = platform.image_output
            with (folder / "artifact.tar").open("w+b") as artifact:
                compiler = Compiler(self._entered, self._environment, attempt)
                await compiler.run(plan, platform, tree, builder, artifact)
                await images.make_image(
                    engine, image, runtime, output, labels, artifact, attempt
                )
        finally:
            await finish(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))
        await images.remove_images(engine, self._node, package.ccid, keep=image)
        return image, plan.launch

    # --- leftovers -----------------------------------------------------------------

    async def reap(self) -> int:
        """Remove what an earlier process left; return how many containers."""
        await asyncio.to_thread(remove_leftovers, self._scratch)
        return await self._remove_all(self._entered.engine)

    async def discard(self, ccid: Ccid) -> None:
        """Remove the images of an uninstalled chaincode."""
        await images.remove_images(self._entered.engine, self._node, ccid)

    @property
    def _entered(self) -> EngineSession:
        if self._session is None:
            raise EngineUnavailable("no container engine was found yet")
        return self._session
