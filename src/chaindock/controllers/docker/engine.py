"""Our adapter over the engine's API: typed errors, and every call bounded in time.

Owns:    the connection, the API version, the mapping of the engine's errors to ours.
Not:     finding the engine (endpoints.py), what is asked of it (the other modules).
Entry:   Engine
Holds:   nothing waits for ever: plain calls have a limit, streams end when nothing
         comes for their limit of silence; an error that comes inside a stream counts.
Source:  launch.md §3.10, §11; needs.md row 6, tables 1a, 1b
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import aiodocker
import aiohttp

from chaindock.controllers.docker.endpoints import find_engine
from chaindock.controllers.docker.streams import CHUNK_BYTES, JsonObjects
from chaindock.errors import (
    ContainerExists,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ImageNotFound,
    NotFound,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from chaindock.controllers.docker.endpoints import Candidate
    from chaindock.controllers.docker.options import EndpointOptions

    Body = Callable[[], AsyncIterator[bytes]]

LOWEST_API, HIGHEST_API = (1, 40), (1, 51)
_CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_UNREACHABLE = 900  # aiodocker's status for "no connection"


class Engine:
    """One container engine. Entered: connected, its version agreed.

    Args:
        where: an engine that answers, from `find_engine`.
        call_s: how long a plain call may take.
    """

    def __init__(self, where: Candidate, call_s: float = 60.0) -> None:
        self.address = where.address
        self.arch = ""
        self.name = ""
        self._where, self._call_s = where, call_s
        self._docker: aiodocker.Docker | None = None

    @classmethod
    async def connect(cls, options: EndpointOptions, call_s: float = 60.0) -> Engine:
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

    async def open(self) -> None:
        """Connect, and agree on the API version.

        Raises: EngineUnavailable, EngineTimeout, EngineError.
        """
        self._docker = aiodocker.Docker(
            url=self._where.base_url,
            connector=self._where.connector(),
            timeout=_CLIENT_TIMEOUT,
        )
        async with (
            self._calling("version"),
            self._docker.session.get(f"{self._where.base_url}/version") as answer,
        ):
            about = await answer.json(content_type=None)
            theirs = _version(about["ApiVersion"])
            oldest = _version(about.get("MinAPIVersion") or "1.12")
        agreed = min(theirs, HIGHEST_API)
        if agreed < max(LOWEST_API, oldest):
            raise EngineError(
                f"no API version in common with the engine at {self.address}: it speaks "
                f"{_text(oldest)} to {_text(theirs)}, we speak {_text(LOWEST_API)} to "
                f"{_text(HIGHEST_API)}",
                hint="update the engine" if theirs < LOWEST_API else "update Chaindock",
                endpoint=self.address,
            )
        self._docker.api_version = f"v{_text(agreed)}"
        self.arch = str(about.get("Arch", ""))
        self.name = f"{about.get('Version', '?')} API {_text(agreed)}"

    async def aclose(self) -> None:
        """Close all connections. Containers go on."""
        if self._docker is not None:
            docker, self._docker = self._docker, None
            await docker.close()
            # The connector is ours, so the client leaves it open.
            await docker.connector.close()

    # --- containers ----------------------------------------------------------------

    async def create_container(self, name: str | None, body: Mapping[str, Any]) -> str:
        """Return the id of a new container.

        Raises: ContainerExists; ImageNotFound; EngineError.
        """
        image = str(body.get("Image", ""))
        async with self._calling(f"create container {name or image}", image=image):
            try:
                made = await self._api.containers.create(dict(body), name=name)
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
        async with self._calling(f"start container {container}"):
            await self._api.containers.container(container).start()

    async def stop_container(self, container: str, grace_s: int) -> None:
        """Ask a container to end, then kill it. Raises: NotFound; EngineError."""
        async with self._calling(f"stop container {container}", extra_s=grace_s):
            await self._api.containers.container(container).stop(t=grace_s)

    async def remove_container(self, container: str) -> None:
        """Kill and remove a container with its anonymous volumes; gone is fine."""
        one = self._api.containers.container(container)
        with contextlib.suppress(NotFound):
            async with self._calling(f"remove container {container}"):
                try:
                    await one.delete(force=True, v=True)
                except aiodocker.DockerError as error:
                    if error.status != 409:
                        raise
                    # Somebody else removes it just now.
                    await one.wait(condition="removed")

    async def inspect_container(self, container: str) -> dict[str, Any]:
        """Return what the engine knows of a container. Raises: NotFound."""
        async with self._calling(f"inspect container {container}"):
            return await self._api.containers.container(container).show()

    async def wait_container(self, container: str) -> int:
        """Return the exit code once the container has ended; unbounded.

        Raises: NotFound; EngineUnavailable when the connection breaks.
        """
        async with self._calling(f"wait for container {container}", limit_s=None):
            answer = await self._api.containers.container(container).wait()
            return int(answer["StatusCode"])

    async def find_containers(self, label: str) -> list[str]:
        """Return the ids of all containers, running or not, with `key=value`."""
        filters = json.dumps({"label": [label]})
        async with self._calling("list containers"):
            found = await self._api.containers.list(all=1, filters=filters)
        return [one.id for one in found]

    async def put_archive(self, container: str, path: str, tar: Body) -> None:
        """Unpack a tar at `path` in a container; owners are kept."""
        async with self._upload(
            "PUT", f"containers/{container}/archive", {"path": path}, tar
        ) as answer:
            await answer.read()

    async def get_archive(
        self, container: str, path: str, silence_s: float
    ) -> AsyncGenerator[bytes]:
        """Yield the tar of `path` in a container. Raises: NotFound."""
        async with self._answer(
            "GET", f"containers/{container}/archive", params={"path": path}
        ) as answer:
            async for data in self._data(answer, silence_s):
                yield data

    async def follow_logs(
        self, container: str, since: float = 0.0
    ) -> AsyncGenerator[bytes]:
        """Yield the multiplexed output until the container ends; silence is fine."""
        params = {"follow": "1", "stdout": "1", "stderr": "1"}
        if since:
            params["since"] = f"{since:.9f}"
        async with self._answer(
            "GET", f"containers/{container}/logs", params=params
        ) as answer:
            async for data in self._data(answer, None):
                yield data

    async def execute(
        self, container: str, body: Mapping[str, Any], silence_s: float
    ) -> AsyncGenerator[bytes | int]:
        """Run a program in a container: yield multiplexed output, last the exit code.

        Raises: EngineTimeout when nothing comes for `silence_s`.
        """
        made = (await self._json("POST", f"containers/{container}/exec", body))["Id"]
        async with self._answer(
            "POST", f"exec/{made}/start", data=b'{"Detach": false, "Tty": false}'
        ) as answer:
            async for data in self._data(answer, silence_s):
                yield data
        code = (await self._json("GET", f"exec/{made}/json")).get("ExitCode")
        yield -1 if code is None else int(code)

    # --- images --------------------------------------------------------------------

    async def inspect_image(self, image: str) -> dict[str, Any]:
        """Return what the engine knows of an image. Raises: ImageNotFound."""
        async with self._calling(f"inspect image {image}", image=image):
            return await self._api.images.inspect(image)

    async def find_images(self, **filters: str) -> list[dict[str, Any]]:
        """Return images by `label` or `reference`."""
        wanted = {key: [value] for key, value in filters.items()}
        async with self._calling("list images"):
            found: list[dict[str, Any]] = await self._api.images.list(filters=wanted)
        return found

    async def tag_image(self, image: str, repository: str, tag: str) -> None:
        """Give an image one more name. Raises: ImageNotFound."""
        async with self._calling(f"tag image {image}", image=image):
            await self._api.images.tag(image, repository, tag=tag)

    async def remove_image(self, image: str) -> None:
        """Take a name off an image, and the image when it was its last; gone is fine."""
        with contextlib.suppress(ImageNotFound):
            async with self._calling(f"remove image {image}", image=image):
                await self._api.images.delete(image)

    async def pull(
        self, image: str, auth: str | None, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the progress of fetching an image.

        `auth` is the value of X-Registry-Auth; None = anonymous.

        Raises: EngineError, also for an error inside the progress; EngineTimeout when
            nothing comes for `silence_s`.
        """
        async with self._answer(
            "POST",
            "images/create",
            params={"fromImage": image},
            headers={"X-Registry-Auth": auth} if auth else {},
        ) as answer:
            async for event in self._progress(answer, f"pull {image}", silence_s):
                yield event

    async def build_image(
        self, params: Mapping[str, str], context: Body, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the progress of a classic build of a tar context.

        Raises: as `pull`.
        """
        async with self._upload("POST", "build", params, context) as answer:
            async for event in self._progress(answer, "build image", silence_s):
                yield event

    # --- networks and volumes ------------------------------------------------------

    async def find_networks(self, label: str) -> list[dict[str, Any]]:
        """Return the networks with `key=value`."""
        async with self._calling("list networks"):
            return await self._api.networks.list(filters={"label": [label]})

    async def create_network(self, body: Mapping[str, Any]) -> str:
        """Return the id of a new network. Raises: EngineError."""
        async with self._calling(f"create network {body.get('Name')}"):
            return str((await self._json("POST", "networks/create", body))["Id"])

    async def inspect_network(self, network: str) -> dict[str, Any]:
        """Return what the engine knows of a network. Raises: NotFound."""
        return await self._json("GET", f"networks/{network}")

    async def remove_network(self, network: str) -> bool:
        """Remove a network; False when it is in use. Gone is fine."""
        try:
            async with self._answer("DELETE", f"networks/{network}"):
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
        await self._json("POST", "volumes/create", body)

    async def find_volumes(self, label: str) -> list[str]:
        """Return the names of the volumes with `key=value`."""
        filters = json.dumps({"label": [label]})
        async with self._answer(
            "GET", "volumes", params={"filters": filters}
        ) as answer:
            found = (await answer.json(content_type=None)).get("Volumes") or []
        return [str(one["Name"]) for one in found]

    async def remove_volume(self, name: str) -> None:
        """Remove a volume; gone is fine. Raises: EngineError when it is in use."""
        with contextlib.suppress(NotFound):
            async with self._answer("DELETE", f"volumes/{name}"):
                pass

    # --- how a call is made --------------------------------------------------------

    @property
    def _api(self) -> aiodocker.Docker:
        if self._docker is None:
            raise EngineUnavailable(
                f"the connection to {self.address} is closed", endpoint=self.address
            )
        return self._docker

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        limit_s: float | None = -1.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give the answer to a request as soon as its head is there."""
        api = self._api
        async with self._calling(f"{method} {path}", limit_s=limit_s) as limit:
            upload = data is not None and not isinstance(data, bytes)
            answer = await api.session.request(
                method,
                f"{api.docker_host}/{api.api_version}/{path}",
                params=params,
                data=_unbounded(data, limit) if upload else data,
                headers={"Content-Type": content_type, **(headers or {})},
                timeout=_CLIENT_TIMEOUT,
                expect100=upload,
            )
            if answer.status >= 400:
                with contextlib.closing(answer):
                    raise aiodocker.DockerError(answer.status, await _message(answer))
        try:
            async with self._calling(f"{method} {path}", limit_s=None):
                yield answer
        finally:
            answer.close()

    @contextlib.asynccontextmanager
    async def _upload(
        self, method: str, path: str, params: Mapping[str, str], body: Body
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """As `_answer`, for a tar that is sent once the engine asks for it.

        An engine that refuses an upload answers and hangs up, and what is written just
        then takes the answer down with the connection. So the head goes first.
        """
        async with self._answer(
            method,
            path,
            params=params,
            data=body(),
            content_type="application/x-tar",
        ) as answer:
            yield answer

    async def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        async with self._answer(method, path, data=data) as answer:
            found: dict[str, Any] = await answer.json(content_type=None)
            return found

    async def _data(
        self, answer: aiohttp.ClientResponse, silence_s: float | None
    ) -> AsyncGenerator[bytes]:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    data = await answer.content.readany()
            except TimeoutError as error:
                raise EngineTimeout(
                    f"nothing came for {silence_s:g} s",
                    endpoint=self.address,
                    limit_s=silence_s,
                ) from error
            if not data:
                return
            # Data that waits already does not yield to the loop; a flood must.
            await asyncio.sleep(0)
            yield data

    async def _progress(
        self, answer: aiohttp.ClientResponse, what: str, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        objects = JsonObjects()
        async for data in self._data(answer, silence_s):
            for event in objects.feed(data):
                yield self._checked(event, what)
        for event in objects.end():
            yield self._checked(event, what)

    def _checked(self, event: dict[str, Any], what: str) -> dict[str, Any]:
        detail = event.get("errorDetail")
        if detail is None and "error" not in event:
            return event
        text = detail.get("message") if isinstance(detail, dict) else None
        raise EngineError(
            f"{what}: {text or event.get('error') or detail}",
            status=200,
            endpoint=self.address,
        )

    @contextlib.asynccontextmanager
    async def _calling(
        self,
        what: str,
        *,
        image: str = "",
        limit_s: float | None = -1.0,
        extra_s: float = 0.0,
    ) -> AsyncIterator[asyncio.Timeout]:
        """Bound a call in time (-1 = the usual limit) and translate its errors."""
        limit = self._call_s + extra_s if limit_s == -1.0 else limit_s
        try:
            async with asyncio.timeout(limit) as clock:
                yield clock
        except TimeoutError as error:
            raise EngineTimeout(
                f"{what}: no answer within {limit or 0:g} s",
                endpoint=self.address,
                limit_s=limit,
                hint="look at the engine's own log; restart it when it hangs",
            ) from error
        except aiodocker.DockerError as error:
            raise self._translated(error, what, image) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._lost(what, error) from error
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"{what}: the engine's answer is none of its API: {error!r}",
                endpoint=self.address,
            ) from error

    def _translated(
        self, error: aiodocker.DockerError, what: str, image: str
    ) -> Exception:
        if error.status == _UNREACHABLE:
            return self._lost(what, error)
        if error.status == 404 and image:
            return ImageNotFound(
                f"the engine has no image {image!r}",
                hint=f"fetch it with: docker pull {image}",
                image=image,
            )
        if error.status == 404:
            return NotFound(f"{what}: {error.message}")
        return EngineError(
            f"{what}: {error.message}", status=error.status, endpoint=self.address
        )

    def _lost(self, what: str, error: Exception) -> EngineUnavailable:
        return EngineUnavailable(
            f"{what}: lost the connection to the engine at {self.address}: {error}",
            hint="check that the engine runs",
            endpoint=self.address,
        )


async def _unbounded(
    body: AsyncIterator[bytes], limit: asyncio.Timeout
) -> AsyncIterator[bytes]:
    """Yield a body; from its first byte on, the call takes as long as it takes."""
    limit.reschedule(None)
    async for part in body:
        yield part


async def _message(answer: aiohttp.ClientResponse) -> str:
    """Return the text of a refusal, JSON or not, at most 64 KiB."""
    text = (await answer.content.read(CHUNK_BYTES // 4)).decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text.strip()
    message = found.get("message") if isinstance(found, dict) else None
    return str(message or text.strip())


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
