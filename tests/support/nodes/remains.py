"""What there is of a node outside of its process, and after its end: should be nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import HostFirewall
from chaindock.controllers.docker.names import BUILD_KEY, CCID, NODE, ROLE
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.errors import ImageNotFound, NotFound
from chaindock.processes.spawner import Records
from chaindock.processes.table import find
from support.engines.volumes import find_volumes, remove_volume
from support.need import need_docker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

    import psutil

    from chaindock.processes.child import Record

T = TypeVar("T")
KEPT_IMAGES, KEPT_S = "chaindock-test/nodes", 2 * 24 * 3600.0
_OWN = {"home", "r"}
"""Links in the directory for temporary files: to a home with a long name, and to runs."""


@dataclass(frozen=True)
class Remains:
    """What carries the mark of one node.

    Args:
        home, temp: directories of the node alone.
        cache: the user's cache directory, which nodes share.
    """

    node_id: str
    home: Path
    temp: Path
    cache: Path
    backend: str

    def all(self) -> list[str]:
        """Name everything there is, but caches."""
        found = [f"process {process.pid}" for process in self.processes()]
        found += [f"file {path}" for path in self.files()]
        if self.backend == "docker":
            found += [f"{role} {one[:12]}" for one, role in self.containers().items()]
            found += [f"network {name}" for name in self.networks()]
            found += [f"volume {one}" for one in self.volumes() if "-cache-" not in one]
            found += [f"filter rule {rule}" for rule in filter_rules(self.node_id)]
        return found

    def beside(self, running: Iterable[str]) -> list[str]:
        """Name everything a node should not have while it runs these package ids."""
        found = [f"run of {ccid}" for ccid in self.runs() - set(running)]
        runs = [record.run_id for record in self.records()]
        for path in self.files():
            socket = path.is_dir() and {one.name for one in path.iterdir()} <= _OWN
            run = any(run_id in path.name for run_id in runs)
            if not (run or socket or path.name in _OWN):
                found.append(f"file {path}")
        return found

    def runs(self) -> set[str]:
        """Return the package ids of all that runs or is being built."""
        if self.backend == "docker":
            found = [inspect(one)["Config"]["Labels"] for one in self.containers()]
            return {one[CCID] for one in found if CCID in one}
        return {record.ccid for record in self.records()}

    def records(self) -> list[Record]:
        folder = self.home / "process" / "runs" / self.node_id
        return Records(folder, self.node_id).all()

    def processes(self) -> list[psutil.Process]:
        groups = find(self.node_id, [])
        return [process for group in groups.values() for process in group]

    def files(self) -> list[Path]:
        """Return temporary files: of builds, runs, packages and sockets."""
        places = [
            *self.temp.glob("*"),
            *self.home.glob("process/runs/*/*"),
            *self.home.glob("incoming/*"),
            *self.home.rglob("*.new"),
            *self.cache.glob(f"chaindock/builds/.tmp-{self.node_id}-*"),
            *(self.home / name for name in _OWN),
        ]
        return [path for path in places if path.exists()]

    # --- on the engine ----------------------------------------------------------------

    def containers(self) -> dict[str, str]:
        """Return the ids of the node's containers, and what each is for."""

        async def look(engine: Engine) -> dict[str, str]:
            roles = {}
            for one in await engine.find_containers(self._label):
                try:
                    labels = (await engine.inspect_container(one))["Config"]["Labels"]
                except NotFound:
                    continue
                roles[one] = labels[ROLE]
            return roles

        return ask(look)

    def networks(self) -> list[str]:
        found = ask(lambda engine: engine.find_networks(self._label))
        return [one["Name"] for one in found]

    def volumes(self, known: list[str] | None = None) -> list[str]:
        """Return the volumes of this node; or which of the `known` ones still exist."""
        if self.backend != "docker":
            return []
        if known is None:
            return ask(lambda engine: find_volumes(engine, self._label))
        return [name for name in known if self._has_volume(name)]

    def anonymous_volumes(self) -> list[str]:
        """Return the volumes without a label that the node's containers have."""
        if self.backend != "docker":
            return []
        return [
            mount["Name"]
            for one in self.containers()
            for mount in inspect(one)["Mounts"]
            if mount["Type"] == "volume" and "-cache-" not in mount["Name"]
        ]

    def container_of(self, name: str) -> str:
        """Return the id of a container; "" when it is gone."""
        try:
            return str(inspect(name)["Id"])
        except NotFound:
            return ""

    def images_of(self, label: str) -> list[str]:
        """Return the names of images that this node made of packages with this label."""

        async def look(engine: Engine) -> list[str]:
            images = await engine.find_images(label=BUILD_KEY)
            return [tag for image in images for tag in image.get("RepoTags") or []]

        return [tag for tag in ask(look) if self.node_id in tag and label in tag]

    def remove(self) -> None:
        """Take away what a failed test left, and the caches of this node alone.

        The images it made stay under a name of the tests, for the next run.
        """
        for process in self.processes():
            process.kill()
        if self.backend != "docker":
            return

        filters = HostFirewall(self.node_id, "/usr/sbin:/sbin:/usr/bin")
        asyncio.run(filters.remove())

        async def clear(engine: Engine) -> None:
            for one in await engine.find_containers(self._label):
                await engine.remove_container(one)
            for network in await engine.find_networks(self._label):
                await engine.remove_network(network["Id"])
            for volume in await find_volumes(engine, self._label):
                await remove_volume(engine, volume)
            await self._keep_images(engine)

        ask(clear)

    async def _keep_images(self, engine: Engine) -> None:
        for image in await engine.find_images(label=BUILD_KEY):
            old = image["Created"] < time.time() - KEPT_S
            for tag in image.get("RepoTags") or []:
                if self.node_id in tag:
                    key = image["Labels"][BUILD_KEY]
                    await engine.tag_image(image["Id"], KEPT_IMAGES, key)
                    await engine.remove_image(tag)
                elif old and KEPT_IMAGES in tag:
                    await engine.remove_image(tag)

    @property
    def _label(self) -> str:
        return f"{NODE}={self.node_id}"

    def _has_volume(self, name: str) -> bool:
        async def look(engine: Engine) -> bool:
            try:
                await engine.call("GET", f"volumes/{name}")
            except (NotFound, ImageNotFound):
                return False
            return True

        return ask(look)


def filter_rules(node_id: str = "") -> list[str]:
    """Return the packet filter's rules of a node, or of all; none where we may not look.

    An iptables of ours is another one than the node's only by its rights.
    """
    rules: list[str] = []
    for name in ("iptables", "ip6tables"):
        program = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin")
        if program is not None and os.geteuid() == 0:
            done = subprocess.run(
                [program, "-w", "5", "-S"], capture_output=True, text=True, check=False
            )
            rules += done.stdout.splitlines()
    return [rule for rule in rules if f"chaindock:{node_id}" in rule]


def inspect(container: str) -> dict[str, Any]:
    """Return what the engine knows of a container."""
    return ask(lambda engine: engine.inspect_container(container))


def inspect_network(name: str) -> dict[str, Any]:
    """Return what the engine knows of a network."""
    return ask(lambda engine: engine.inspect_network(name))


_asking: ContextVar[_Line | None] = ContextVar("_asking", default=None)


@dataclass(frozen=True)
class _Line:
    runner: asyncio.Runner
    engine: Engine


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Questions within have one connection; Podman takes a second for each."""
    with asyncio.Runner() as runner:
        line = _Line(runner, runner.run(_connected()))
        token = _asking.set(line)
        try:
            yield
        finally:
            _asking.reset(token)
            runner.run(line.engine.aclose())


def ask(question: Callable[[Engine], Awaitable[T]]) -> T:
    """Ask the engine of the tests."""
    with contextlib.ExitStack() as stack:
        if (line := _asking.get()) is None:
            stack.enter_context(asking())
            line = _asking.get()
        assert line is not None
        return line.runner.run(_awaited(question(line.engine)))


async def _awaited(answer: Awaitable[T]) -> T:
    return await answer


async def _connected() -> Engine:
    return await Engine.connect(EndpointOptions(docker_host=need_docker()))
