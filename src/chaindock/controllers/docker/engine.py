"""What we ask of a container engine, as typed calls.

Owns:    one method per call.
Not:     how a call is made, bounded and translated (link.py).
Entry:   Engine.connect
Holds:   removing what is gone is fine; everything else that is missing is NotFound.
Source:  launch.md §3.4-§3.10; needs.md tables 1a, 1b
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Self

import aiodocker

from chaindock.controllers.docker.endpoints import find_engine
from chaindock.controllers.docker.link import Link
from chaindock.errors import ContainerExists, EngineError, ImageNotFound, NotFound
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from chaindock.controllers.docker.endpoints import Candidate
    from chaindock.controllers.docker.link import Body
    from chaindock.controllers.docker.options import EndpointOptions

_log = get_logger("docker")


class Engine(Link):
    """One container engine."""

    _no_init = False

    def __init__(self, where: Candidate, call_s: float = 60.0) -> None:
        super().__init__(where, call_s)
        self._known: set[str] = set()
        self._creating = 0
        self._creating_now = asyncio.Lock()

    @classmethod
    async def connect(cls, options: EndpointOptions, call_s: float = 60.0) -> Self:
        """Find an engine and agree on a version; the caller closes it.

        Raises: EngineUnavailable; EngineError when we share no version with it.
        """
        engine = cls(await find_engine(options), call_s)
        try:
            await engine.open()
        except BaseException:
            await engine.aclose()
            raise
        return engine

    async def ping(self) -> None:
        """Ask whether it answers. Raises: EngineError."""
        async with self.answer("GET", "_ping"):
            pass

    async def info(self) -> dict[str, Any]:
        """Return what the engine says about itself. Raises: EngineError."""
        return await self.json("GET", "info")

    # --- containers ----------------------------------------------------------------

    async def tidy(self, label: str) -> int:
        """After a call was cut off, remove the containers with `label` not known here.

        The engine may have made one whose id never came, or kept one whose removal it
        never did. Return how many. Nothing is created meanwhile.
        """
        async with self._creating_now:
            if not self._unsure or self._creating:
                return 0
            self._unsure = False
            lost = [
                c for c in await self.find_containers(label) if c not in self._known
            ]
            for container in lost:
                await self.remove_container(container)
            if lost:
                _log.info("removed what the engine lost us", containers=len(lost))
            return len(lost)

    async def create_container(self, name: str | None, body: Mapping[str, Any]) -> str:
        """Return the id of a new container; it counts as known until it is removed.

        Where the engine has no init program of its own, the container is made without
        (its `Init` then says so).

        Raises: ContainerExists; ImageNotFound; EngineError.
        """
        async with self._creating_now:
            self._creating += 1
        try:
            container = await self._create_anyhow(name, body)
            self._known.add(container)
            return container
        finally:
            self._creating -= 1

    async def _create_anyhow(self, name: str | None, body: Mapping[str, Any]) -> str:
        host = body.get("HostConfig") or {}
        if not host.get("Init"):
            return await self._create(name, body)
        plain = {**body, "HostConfig": {**host, "Init": False}}
        if self._no_init:
            return await self._create(name, plain)
        try:
            return await self._create(name, body)
        except EngineError as error:
            if error.retryable or error.facts.get("status") != 500:
                raise
            # Whatever it is, the same fails again unless it was the init program.
            with contextlib.suppress(EngineError, ContainerExists, NotFound):
                made = await self._create(name, plain)
                self._no_init = True
                _log.info("the engine has no init program", reason=error.message)
                return made
            raise

    async def _create(self, name: str | None, body: Mapping[str, Any]) -> str:
        image = str(body.get("Image", ""))
        async with self.calling(f"create container {name or image}", image=image):
            try:
                made = await self.api.containers.create(dict(body), name=name)
            except aiodocker.DockerError as error:
                # Engines answer 409; Docker 17.09 answered 400, and the text is then
                # the only sign (launch.md §3.10).
                if error.status == 409 or (
                    error.status == 400 and "Conflict." in error.message
                ):
                    raise ContainerExists(
                        f"container name {name!r} is taken: {error.message}",
                        container=name,
                    ) from error
                raise
        return made.id

    async def start_container(self, container: str) -> None:
        """Start a container. Raises: NotFound (it, or its network); EngineError."""
        async with self.calling(f"start container {container}"):
            await self.api.containers.container(container).start()

    async def stop_container(self, container: str, grace_s: int) -> None:
        """Ask a container to end, then kill it. Raises: NotFound; EngineError."""
        async with self.calling(f"stop container {container}", extra_s=grace_s):
            await self.api.containers.container(container).stop(t=grace_s)

    async def remove_container(self, container: str) -> None:
        """Kill and remove a container with its anonymous volumes; gone is fine."""
        self._known.discard(container)
        one = self.api.containers.container(container)
        with contextlib.suppress(NotFound):
            async with self.calling(f"remove container {container}"):
                try:
                    await one.delete(force=True, v=True)
                except aiodocker.DockerError as error:
                    if error.status != 409:
                        raise
                    # Somebody else removes it just now.
                    await one.wait(condition="removed")

    async def inspect_container(self, container: str) -> dict[str, Any]:
        """Return what the engine knows of a container. Raises: NotFound."""
        async with self.calling(f"inspect container {container}"):
            return await self.api.containers.container(container).show()

    async def wait_container(self, container: str) -> int:
        """Return the exit code once the container has ended; unbounded.

        Raises: NotFound; EngineUnavailable when the connection breaks.
        """
        async with self.calling(f"wait for container {container}", limit_s=None):
            answer = await self.api.containers.container(container).wait()
            return int(answer["StatusCode"])

    async def find_containers(self, label: str) -> list[str]:
        """Return the ids of all containers, running or not, with `key=value`."""
        filters = json.dumps({"label": [label]})
        async with self.calling("list containers"):
            found = await self.api.containers.list(all=1, filters=filters)
        return [one.id for one in found]

    async def put_archive(self, container: str, path: str, tar: Body) -> None:
        """Unpack a tar at `path` in a container; owners are kept."""
        async with self.upload(
            "PUT", f"containers/{container}/archive", {"path": path}, tar
        ):
            pass

    async def get_archive(
        self, container: str, path: str, silence_s: float
    ) -> AsyncGenerator[bytes]:
        """Yield the tar of `path` in a container. Raises: NotFound."""
        async with self.answer(
            "GET", f"containers/{container}/archive", params={"path": path}
        ) as answer:
            async for data in self.data(answer, silence_s):
                yield data

    async def follow_logs(
        self, container: str, since: float = 0.0
    ) -> AsyncGenerator[bytes]:
        """Yield the multiplexed output until the container ends; silence is fine."""
        params = {"follow": "1", "stdout": "1", "stderr": "1"}
        if since:
            params["since"] = f"{since:.9f}"
        async with self.answer(
            "GET", f"containers/{container}/logs", params=params
        ) as answer:
            async for data in self.data(answer, None):
                yield data

    async def read_logs(
        self, container: str, tail: str, silence_s: float
    ) -> AsyncGenerator[bytes]:
        """Yield the last `tail` lines ("all") that the engine kept, multiplexed."""
        params = {"stdout": "1", "stderr": "1", "tail": tail}
        async with self.answer(
            "GET", f"containers/{container}/logs", params=params
        ) as answer:
            async for data in self.data(answer, silence_s):
                yield data

    async def execute(
        self, container: str, body: Mapping[str, Any], silence_s: float
    ) -> AsyncGenerator[bytes | int]:
        """Run a program in a container: yield multiplexed output, last the exit code.

        Raises: EngineTimeout when nothing comes for `silence_s`.
        """
        made = (await self.json("POST", f"containers/{container}/exec", body))["Id"]
        async with self.answer(
            "POST", f"exec/{made}/start", data=b'{"Detach": false, "Tty": false}'
        ) as answer:
            async for data in self.data(answer, silence_s):
                yield data
        code = (await self.json("GET", f"exec/{made}/json")).get("ExitCode")
        yield -1 if code is None else int(code)

    # --- images --------------------------------------------------------------------

    async def inspect_image(self, image: str) -> dict[str, Any]:
        """Return what the engine knows of an image. Raises: ImageNotFound."""
        async with self.calling(f"inspect image {image}", image=image):
            return await self.api.images.inspect(image)

    async def find_images(self, **filters: str) -> list[dict[str, Any]]:
        """Return images by `label` or `reference`."""
        wanted = {key: [value] for key, value in filters.items()}
        async with self.calling("list images"):
            found: list[dict[str, Any]] = await self.api.images.list(filters=wanted)
        return found

    async def tag_image(self, image: str, repository: str, tag: str) -> None:
        """Give an image one more name. Raises: ImageNotFound."""
        async with self.calling(f"tag image {image}", image=image):
            await self.api.images.tag(image, repository, tag=tag)

    async def remove_image(self, image: str) -> None:
        """Take a name off an image, and the image when it was its last; gone is fine."""
        with contextlib.suppress(ImageNotFound):
            async with self.calling(f"remove image {image}", image=image):
                await self.api.images.delete(image)

    async def pull(
        self, image: str, auth: str | None, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the progress of fetching an image.

        `auth` is the value of X-Registry-Auth; None = anonymous.

        Raises: EngineError, also for an error inside the progress; EngineTimeout when
            nothing comes for `silence_s`.
        """
        async with self.answer(
            "POST",
            "images/create",
            params={"fromImage": image},
            headers={"X-Registry-Auth": auth} if auth else {},
            what=f"pull {image}",
        ) as answer:
            async for event in self.progress(answer, f"pull {image}", silence_s):
                yield event

    async def build_image(
        self, params: Mapping[str, str], context: Body, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the progress of a classic build of a tar context.

        Raises: as `pull`.
        """
        async with self.upload("POST", "build", params, context) as answer:
            async for event in self.progress(answer, "build image", silence_s):
                yield event

    # --- networks and volumes ------------------------------------------------------

    async def find_networks(self, label: str) -> list[dict[str, Any]]:
        """Return the networks with `key=value`."""
        async with self.calling("list networks"):
            return await self.api.networks.list(filters={"label": [label]})

    async def create_network(self, body: Mapping[str, Any]) -> str:
        """Return the id of a new network. Raises: EngineError."""
        async with self.calling(f"create network {body.get('Name')}"):
            return str((await self.json("POST", "networks/create", body))["Id"])

    async def inspect_network(self, network: str) -> dict[str, Any]:
        """Return what the engine knows of a network. Raises: NotFound."""
        return await self.json("GET", f"networks/{network}")

    async def connect_network(self, network: str, container: str) -> None:
        """Put a container on one more network. Raises: NotFound; EngineError."""
        body = {"Container": container}
        async with self.answer(
            "POST", f"networks/{network}/connect", data=json.dumps(body).encode()
        ):
            pass

    async def remove_network(self, network: str) -> bool:
        """Remove a network; False when it is in use. Gone is fine."""
        try:
            async with self.answer("DELETE", f"networks/{network}"):
                return True
        except NotFound:
            return True
        except EngineError as error:
            if error.facts.get("status") in {403, 409}:
                return False
            raise

    async def create_volume(self, name: str, labels: Mapping[str, str]) -> None:
        """Make a named volume; one that is there stays."""
        body = {"Name": name, "Labels": dict(labels)}
        await self.json("POST", "volumes/create", body)

    async def find_volumes(self, label: str) -> list[str]:
        """Return the names of the volumes with `key=value`."""
        filters = json.dumps({"label": [label]})
        found = await self.json("GET", "volumes", params={"filters": filters})
        return [str(one["Name"]) for one in found.get("Volumes") or []]

    async def remove_volume(self, name: str) -> None:
        """Remove a volume; gone is fine. Raises: EngineError when it is in use."""
        with contextlib.suppress(NotFound):
            async with self.answer("DELETE", f"volumes/{name}"):
                pass
