"""What the controller asks of a container engine, one method per call."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Self

from chaindock.aio import finish
from chaindock.controllers.docker.client import EngineClient
from chaindock.controllers.docker.endpoints import Candidate, find_engine
from chaindock.controllers.docker.options import EndpointOptions
from chaindock.errors import ContainerExists, EngineError, ImageNotFound, NotFound
from chaindock.telemetry import get_logger

_log = get_logger("docker")


class Engine(EngineClient):
    """One container engine. Removing something that is gone is no error.

    Anything else that is missing raises NotFound or ImageNotFound.
    """

    def __init__(self, where: Candidate, call_s: float = 60.0) -> None:
        super().__init__(where, call_s)
        self._no_init, self._creating = False, 0
        self._known: set[str] = set()
        self._creating_now = asyncio.Lock()

    @classmethod
    async def connect(cls, options: EndpointOptions, call_s: float = 60.0) -> Self:
        """Find an engine and agree on a version; the caller closes it."""
        engine = cls(await find_engine(options), call_s)
        try:
            await engine.open()
        except BaseException:
            await engine.aclose()
            raise
        return engine

    async def ping(self) -> None:
        """Ask whether the engine answers."""
        async with self.answer("GET", "_ping"):
            pass

    async def info(self) -> dict[str, Any]:
        """Return what the engine says about itself."""
        return dict(await self.call("GET", "info"))

    # --- containers ----------------------------------------------------------------

    async def remove_lost_containers(self, label: str) -> None:
        """After a call was cut off, remove the containers with `label` not known here.

        The engine may have made a container whose id never came, or kept one whose
        removal it never did. Nothing is created meanwhile.
        """
        async with self._creating_now:
            if not self._unsure or self._creating:
                return
            self._unsure = False
            lost = set(await self.find_containers(label)) - self._known
            for container in lost:
                await self.remove_container(container)
            if lost:
                _log.info("removed containers of broken calls", containers=len(lost))

    async def create_container(self, name: str | None, body: Mapping[str, Any]) -> str:
        """Return the id of a new container; it counts as known until it is removed.

        Where the engine has no init program of its own, the container is made without
        one (its `Init` then says so). Cancelled: there is no container.

        Raises: ContainerExists; ImageNotFound.
        """
        async with self._creating_now:
            self._creating += 1
        try:
            made = self._create_anyhow(name, body)
            container = await finish(made, self.remove_container)
            self._known.add(container)
            return container
        finally:
            self._creating -= 1

    async def _create_anyhow(self, name: str | None, body: Mapping[str, Any]) -> str:
        host = body.get("HostConfig") or {}
        plain = {**body, "HostConfig": {**host, "Init": False}}
        if self._no_init or not host.get("Init"):
            return await self._create(name, plain)
        try:
            return await self._create(name, body)
        except EngineError as error:
            if error.retryable or error.facts.get("status") != 500:
                raise
            # Any other problem would fail again without the init program.
            with contextlib.suppress(EngineError, ContainerExists, NotFound):
                made = await self._create(name, plain)
                self._no_init = True
                _log.info("the engine has no init program", reason=error.message)
                return made
            raise

    async def _create(self, name: str | None, body: Mapping[str, Any]) -> str:
        image = str(body.get("Image", ""))
        try:
            made = await self.call(
                "POST",
                "containers/create",
                body,
                params={"name": name} if name else None,
                what=f"create container {name or image}",
                image=image,
            )
        except EngineError as error:
            if error.facts.get("status") != 409:
                raise
            raise ContainerExists(
                f"container name {name!r} is taken: {error.message}", container=name
            ) from error
        return str(made["Id"])

    @contextlib.asynccontextmanager
    async def container(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        """Give the id of a container that is removed when the block is left."""
        made = await self.create_container(None, body)
        try:
            yield made
        finally:
            await finish(self.remove_container(made))

    async def start_container(self, container: str) -> None:
        """Start a container."""
        await self._act("start", container)

    async def stop_container(self, container: str, grace_s: int) -> None:
        """Ask a container to end, then kill it."""
        limit_s, params = self._call_s + grace_s, {"t": str(grace_s)}
        await self._act("stop", container, params=params, limit_s=limit_s)

    async def _act(self, act: str, container: str, **request: Any) -> Any:
        what = f"{act} container {container}"
        path = f"containers/{container}/{act}"
        return await self.call("POST", path, what=what, **request)

    async def remove_container(self, container: str) -> None:
        """Kill and remove a container with its anonymous volumes."""
        self._known.discard(container)
        with contextlib.suppress(NotFound):
            try:
                await self.call(
                    "DELETE",
                    f"containers/{container}",
                    params={"force": "1", "v": "1"},
                    what=f"remove container {container}",
                )
            except EngineError as error:
                if error.facts.get("status") != 409:
                    self._unsure = True  # the next start tries again
                    raise
                # Another caller removes it just now.
                await self._act("wait", container, params={"condition": "removed"})

    async def inspect_container(self, container: str) -> dict[str, Any]:
        """Return what the engine knows of a container."""
        what = f"inspect container {container}"
        return dict(await self.call("GET", f"containers/{container}/json", what=what))

    async def wait_container(self, container: str) -> int:
        """Return the exit code once the container has ended; unbounded."""
        answer = await self._act("wait", container, limit_s=None)
        return int(answer["StatusCode"])

    async def find_containers(self, label: str) -> list[str]:
        """Return the ids of all containers, running or not, with `key=value`."""
        params = {"all": "1", "filters": _filters(label=label)}
        found = await self.call("GET", "containers/json", params=params)
        return [str(one["Id"]) for one in found]

    async def put_archive(
        self, container: str, path: str, tar: AsyncIterator[bytes]
    ) -> None:
        """Unpack a tar at `path` in a container; owners are kept."""
        where = f"containers/{container}/archive"
        async with self.answer("PUT", where, params={"path": path}, data=tar):
            pass

    def get_archive(
        self, container: str, path: str, silence_s: float
    ) -> AsyncGenerator[bytes]:
        """Yield the tar of `path` in a container."""
        where = f"containers/{container}/archive"
        return self.stream("GET", where, silence_s, params={"path": path})

    def logs(
        self, container: str, silence_s: float | None, **which: str
    ) -> AsyncGenerator[bytes]:
        """Yield multiplexed output: `follow` it, `since` a time, or its `tail`."""
        params = {"stdout": "1", "stderr": "1", **which}
        where = f"containers/{container}/logs"
        return self.stream("GET", where, silence_s, params=params)

    async def execute(
        self, container: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[bytes | int]:
        """Run a program in a container: yield multiplexed output, last the exit code."""
        made = (await self.call("POST", f"containers/{container}/exec", body))["Id"]
        start = b'{"Detach": false, "Tty": false}'
        output = self.stream("POST", f"exec/{made}/start", None, data=start)
        async with contextlib.aclosing(output):
            async for data in output:
                yield data
        code = (await self.call("GET", f"exec/{made}/json")).get("ExitCode")
        yield -1 if code is None else int(code)

    # --- images --------------------------------------------------------------------

    async def inspect_image(self, image: str) -> dict[str, Any]:
        """Return what the engine knows of an image."""
        return dict(await self.call("GET", f"images/{image}/json", image=image))

    async def find_images(self, **filters: str) -> list[dict[str, Any]]:
        """Return images by `label` or `reference`."""
        params = {"filters": _filters(**filters)}
        return list(await self.call("GET", "images/json", params=params))

    async def tag_image(self, image: str, repository: str, tag: str) -> None:
        """Give an image one more name."""
        params = {"repo": repository, "tag": tag}
        await self.call("POST", f"images/{image}/tag", params=params, image=image)

    async def remove_image(self, image: str) -> None:
        """Take a name off an image, and remove the image when it was its last."""
        with contextlib.suppress(ImageNotFound):
            await self.call("DELETE", f"images/{image}", image=image)

    def pull(
        self, image: str, auth: str | None, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the progress of fetching an image; `auth` is for X-Registry-Auth."""
        return self.progress(
            "images/create",
            silence_s,
            f"pull {image}",
            params={"fromImage": image},
            headers={"X-Registry-Auth": auth} if auth else {},
        )

    def build_image(
        self, params: Mapping[str, str], tar: AsyncIterator[bytes], silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the progress of a classic build of a tar context."""
        return self.progress("build", silence_s, "build image", params=params, data=tar)

    # --- networks ------------------------------------------------------------------

    async def find_networks(self, label: str) -> list[dict[str, Any]]:
        """Return the networks with `key=value`."""
        params = {"filters": _filters(label=label)}
        return list(await self.call("GET", "networks", params=params))

    async def create_network(self, body: Mapping[str, Any]) -> str:
        """Return the id of a new network."""
        what = f"create network {body.get('Name')}"
        made = await self.call("POST", "networks/create", body, what=what)
        return str(made["Id"])

    async def inspect_network(self, network: str) -> dict[str, Any]:
        """Return what the engine knows of a network."""
        return dict(await self.call("GET", f"networks/{network}"))

    async def connect_network(self, network: str, container: str) -> None:
        """Put a container on one more network."""
        body = json.dumps({"Container": container}).encode()
        # Podman answers with text that is no JSON.
        async with self.answer("POST", f"networks/{network}/connect", data=body):
            pass

    async def remove_network(self, network: str) -> bool:
        """Remove a network; False when it is in use."""
        try:
            await self.call("DELETE", f"networks/{network}")
        except NotFound:
            return True
        except EngineError as error:
            if error.facts.get("status") in {403, 409}:
                return False
            raise
        return True


def _filters(**wanted: str) -> str:
    return json.dumps({key: [value] for key, value in wanted.items()})
