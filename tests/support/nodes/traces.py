"""What a node has on the machine, and things that look like it and are not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Protocol, Self

import psutil

from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.firewall import HostFirewall
from chaindock.controllers.docker.options import EndpointOptions
from support.engines.volumes import find_volumes, remove_volume
from support.need import need_docker
from support.nodes.killable import alive

if TYPE_CHECKING:
    from pathlib import Path

    from support.nodes.killable import CrashNode

NODE, CCID, ROLE = "org.chaindock.node", "org.chaindock.ccid", "org.chaindock.role"
_SLEEP = "import time; time.sleep(3600)"
# Grows or changes while a node runs, and is bounded elsewhere.
_CHANGES = re.compile(
    r"ledgers/.*|node\.log.*|output/.+|desired\.db-.*|"
    r"organizations/.*/User1@.*|incoming"
)
_RUN = re.compile(r"(process/runs/[0-9a-f]+)/(?:\d+-)?[0-9a-f]{12}(\.json)?")
_HASH = re.compile(r"\b[0-9a-f]{64}\b")


def files_of(home: Path) -> list[str]:
    """Return every path that has to be the same after each start, names of runs masked."""
    found = []
    for path in home.rglob("*"):
        name = str(path.relative_to(home))
        if not _CHANGES.fullmatch(name):
            found.append(_HASH.sub("HASH", _RUN.sub(r"\1/RUN\2", name)))
    return sorted(found)


class Traces(Protocol):
    """What a back end of a node started, seen from outside."""

    async def runs(self) -> dict[str, list[str]]:
        """Return ccid → running instances."""

    async def all(self) -> set[str]:
        """Return what there is, each by a name that is never used again."""

    async def mislead(self) -> None:
        """Leave something that names what is not the node's as if it were."""

    async def check_foreign(self) -> None:
        """What is not the node's is as it was."""

    async def other(self) -> list[str]:
        """Return what else there is and must not grow."""


class ProcessTraces:
    """Processes by their marker, with look-alikes of another owner."""

    def __init__(self, node: CrashNode, cache: Path) -> None:
        self._node, self._cache = node, cache
        self._foreign: list[subprocess.Popen[bytes]] = []

    async def __aenter__(self) -> Self:
        node_id = self._node.node_id
        for env in (
            {"CHAINDOCK_NODE": f"{node_id}0", "CHAINDOCK_RUN": "0123456789ab"},
            {"CHAINDOCK_NODE": node_id[:-1]},
            {"OTHER_NODE": node_id},
        ):
            self._foreign.append(
                subprocess.Popen(  # noqa: ASYNC220  # asyncio would want to know its end
                    [sys.executable, "-c", _SLEEP, "chaindock-gate", node_id],
                    cwd=self._node.home,
                    env={**os.environ, **env},  # noqa: TID251  # as a user's program
                    start_new_session=True,
                )
            )
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._foreign:
            process.kill()
            process.wait()

    async def mislead(self) -> None:
        # What a killed node leaves whose child's pid was given to another since.
        foreign, node_id = self._foreign[0], self._node.node_id
        record = {
            "run_id": "ba9876543210",
            "node_id": node_id,
            "ccid": f"conformance:{'0' * 64}",
            "attempt": "0" * 12,
            "kind": "run",
            "pid": foreign.pid,
            "created": psutil.Process(foreign.pid).create_time() - 100,
        }
        folder = self._node.home / "process" / "runs" / node_id
        path = folder / f"{foreign.pid}-{record['run_id']}.json"
        path.write_text(json.dumps(record))

    async def runs(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        folder = self._node.home / "process" / "runs" / self._node.node_id
        marked = await asyncio.to_thread(self._marked)
        names = {
            run: path for path in folder.glob("*.json") for run in [path.stem[-12:]]
        }
        for run in {run for _, run in marked}:
            # Something without a record could never be found again.
            assert run in names, f"run {run!r} has no record: {marked}"
            record = json.loads(names[run].read_text())
            found.setdefault(record["ccid"], []).append(run)
        return found

    async def all(self) -> set[str]:
        found = await asyncio.to_thread(self._marked)
        return {
            f"{process.pid} {process.create_time()} {run}" for process, run in found
        }

    def _marked(self) -> list[tuple[psutil.Process, str]]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                if environment.get("CHAINDOCK_NODE") == self._node.node_id:
                    found.append((process, environment["CHAINDOCK_RUN"]))
        return [(process, run) for process, run in found if alive(process.pid)]

    async def check_foreign(self) -> None:
        for process in self._foreign:
            assert process.poll() is None, "a foreign process was ended"

    async def other(self) -> list[str]:
        scratch = self._cache.glob(f"builds/.tmp-{self._node.node_id}-*")
        return sorted(path.name for path in scratch)


class DockerTraces:
    """Containers, networks and volumes by their label, with look-alikes.

    Args:
        node: whose.
        prefix: `<networkId>-<peerId>` of the node.
        image: something that can sleep.
    """

    def __init__(self, node: CrashNode, prefix: str, image: str) -> None:
        self._node, self._prefix, self._image = node, prefix, image
        self._engine: Engine
        self._foreign: dict[str, str] = {}
        self._network = ""

    async def __aenter__(self) -> Self:
        endpoint = EndpointOptions(docker_host=need_docker())
        self._engine = await Engine.connect(endpoint)
        node_id, prefix = self._node.node_id, self._prefix
        labels: tuple[dict[str, str], ...]
        labels = ({NODE: f"{node_id}0"}, {NODE: "another"}, {"node": node_id}, {})
        names = (f"{prefix}-like-{number}" for number in range(4))
        for name, label in zip(names, labels, strict=True):
            body = {
                "Image": self._image,
                "Cmd": ["sleep", "3600"],
                "Labels": {**label, CCID: "conformance"},
            }
            container = await self._engine.create_container(name, body)
            await self._engine.start_container(container)
            self._foreign[container] = name
        self._network = await self._engine.create_network(
            {"Name": f"chaindock-{node_id}-like", "Labels": {NODE: f"{node_id}0"}}
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        label = f"{NODE}={self._node.node_id}"
        for container in [*self._foreign, *await self._engine.find_containers(label)]:
            await self._engine.remove_container(container)
        ours = [str(n["Id"]) for n in await self._engine.find_networks(label)]
        for network in (self._network, *ours):
            await self._engine.remove_network(network)
        # An image may have been another node's first; the name is ours.
        for image in await self._engine.find_images():
            for tag in image.get("RepoTags") or []:
                if tag.startswith(f"{self._prefix}-"):
                    await self._engine.remove_image(tag)
        for volume in await find_volumes(self._engine, label):
            await remove_volume(self._engine, volume)
        await HostFirewall(self._node.node_id, "/usr/sbin:/sbin:/usr/bin").remove()
        await self._engine.aclose()

    async def runs(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for container in await self._containers():
            labels = container["Config"]["Labels"]
            if labels.get(ROLE) != "anchor":
                ccid = labels[CCID]
                found.setdefault(ccid, []).append(container["Id"])
        return found

    async def all(self) -> set[str]:
        label = f"{NODE}={self._node.node_id}"
        return set(await self._engine.find_containers(label))

    async def mislead(self) -> None:
        return None

    async def _containers(self) -> list[dict[str, Any]]:
        found = []
        label = f"{NODE}={self._node.node_id}"
        for container in await self._engine.find_containers(label):
            with contextlib.suppress(Exception):
                found.append(await self._engine.inspect_container(container))
        return found

    async def check_foreign(self) -> None:
        for container in self._foreign:
            state = (await self._engine.inspect_container(container))["State"]
            assert state["Running"], f"a foreign container was ended: {container}"
        await self._engine.inspect_network(self._network)

    async def other(self) -> list[str]:
        label = f"{NODE}={self._node.node_id}"
        return sorted(
            [
                *(str(n["Name"]) for n in await self._engine.find_networks(label)),
                *(await find_volumes(self._engine, label)),
            ]
        )
