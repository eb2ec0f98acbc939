"""One connection to the engine: how a call is made, bounded and translated.

Owns:    the HTTP session, the API version, the mapping of the engine's errors to ours.
Not:     the calls themselves (engine.py), finding the engine (endpoints.py).
Entry:   Link
Holds:   nothing waits for ever: plain calls have a limit, streams end when nothing
         comes, or is taken, for their limit of silence; an error that comes inside a stream counts.
Source:  launch.md §3.10, §11; needs.md row 6, tables 1a, 1b
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import aiodocker
import aiohttp

from chaindock.controllers.docker.streams import CHUNK_BYTES, JsonObjects
from chaindock.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ImageNotFound,
    NotFound,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from chaindock.controllers.docker.endpoints import Candidate

    Body = Callable[[], AsyncIterator[bytes]]

LOWEST_API, HIGHEST_API = (1, 40), (1, 51)
FULL = "no space left"
"""What an engine says when its disk is full: its text is the only sign."""
_CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_UNREACHABLE = 900  # aiodocker's status for "no connection"
_USUAL = -1.0


class Link:
    """One container engine. Opened: connected, its version agreed.

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
        self._was_lost = False
        self._unsure = False
        """A call was cut off, so more or less may exist than we know of."""

    async def open(self) -> None:
        """Connect, and agree on the API version.

        Raises: EngineUnavailable, EngineTimeout, EngineError.
        """
        self._docker = aiodocker.Docker(
            url=self._where.base_url,
            connector=self._where.connector(),
            timeout=_CLIENT_TIMEOUT,
        )
        await self._agree()

    async def _agree(self) -> None:
        async with (
            self._bounded("version", "", self._call_s),
            self.api.session.get(f"{self._where.base_url}/version") as answer,
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
        self.api.api_version = f"v{_text(agreed)}"
        self.arch = str(about.get("Arch", ""))
        self.name = f"{about.get('Version', '?')} API {_text(agreed)}"
        self._was_lost = False

    async def aclose(self) -> None:
        """Close all connections. Containers go on."""
        if self._docker is not None:
            docker, self._docker = self._docker, None
            await docker.close()
            # The connector is ours, so the client leaves it open.
            await docker.connector.close()

    # --- how a call is made --------------------------------------------------------

    @property
    def api(self) -> aiodocker.Docker:
        """The client, for calls inside of `calling`. Raises: EngineUnavailable."""
        if self._docker is None:
            raise EngineUnavailable(
                f"the connection to {self.address} is closed", endpoint=self.address
            )
        return self._docker

    @contextlib.asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        what: str = "",
        limit_s: float | None = _USUAL,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give the answer to a request as soon as its head is there."""
        api = self.api
        what = what or f"{method} {path}"
        async with self.calling(what, limit_s=limit_s) as limit:
            upload = None if data is None or isinstance(data, bytes) else data
            if upload is not None:
                data = _while_taken(upload, limit, self._call_s)
            answer = await api.session.request(
                method,
                f"{api.docker_host}/{api.api_version}/{path}",
                params=params,
                data=data,
                headers={"Content-Type": content_type, **(headers or {})},
                timeout=_CLIENT_TIMEOUT,
                expect100=upload is not None,
            )
            if answer.status >= 400:
                with contextlib.closing(answer):
                    raise aiodocker.DockerError(answer.status, await _message(answer))
        try:
            async with self.calling(what, limit_s=None):
                yield answer
        finally:
            answer.close()

    @contextlib.asynccontextmanager
    async def upload(
        self, method: str, path: str, params: Mapping[str, str], body: Body
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """As `answer`, for a tar that is sent once the engine asks for it.

        An engine that refuses an upload answers and hangs up, and what is written just
        then takes the answer down with the connection. So the head goes first.
        """
        async with self.answer(
            method,
            path,
            params=params,
            data=body(),
            content_type="application/x-tar",
        ) as answer:
            yield answer

    async def json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Return the JSON that answers a plain call."""
        data = None if body is None else json.dumps(body).encode()
        async with (
            self.answer(method, path, data=data, params=params) as answer,
            self.calling(f"{method} {path}"),
        ):
            found: dict[str, Any] = await answer.json(content_type=None)
            return found

    async def data(
        self, answer: aiohttp.ClientResponse, silence_s: float | None
    ) -> AsyncGenerator[bytes]:
        """Yield the body of an answer as it comes.

        Raises: EngineTimeout when nothing comes for `silence_s`.
        """
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

    async def progress(
        self, answer: aiohttp.ClientResponse, what: str, silence_s: float
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the objects of a progress stream. Raises: EngineError for its errors."""
        objects = JsonObjects()
        async for data in self.data(answer, silence_s):
            for event in objects.feed(data):
                yield self._checked(event, what)
        for event in objects.end():
            yield self._checked(event, what)

    def _checked(self, event: dict[str, Any], what: str) -> dict[str, Any]:
        detail = event.get("errorDetail")
        if detail is None and "error" not in event:
            return event
        text = detail.get("message") if isinstance(detail, dict) else None
        raise self._refused(f"{what}: {text or event.get('error') or detail}", 200)

    @contextlib.asynccontextmanager
    async def calling(
        self,
        what: str,
        *,
        image: str = "",
        limit_s: float | None = _USUAL,
        extra_s: float = 0.0,
    ) -> AsyncIterator[asyncio.Timeout]:
        """Bound a call in time (None = not at all) and translate its errors."""
        limit = self._call_s + extra_s if limit_s == _USUAL else limit_s
        if self._was_lost:
            await self._agree()  # whoever restarted it may have updated it
        async with self._bounded(what, image, limit) as clock:
            yield clock

    @contextlib.asynccontextmanager
    async def _bounded(
        self, what: str, image: str, limit: float | None
    ) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with asyncio.timeout(limit) as clock:
                yield clock
        except TimeoutError as error:
            self._unsure = True
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
        return self._refused(f"{what}: {error.message}", error.status)

    def _refused(self, text: str, status: int) -> EngineError:
        full = FULL in text.lower()
        return EngineError(
            text,
            hint="make room where the engine keeps its data" if full else None,
            status=status,
            endpoint=self.address,
            retryable=full,
        )

    def _lost(self, what: str, error: Exception) -> EngineUnavailable:
        self._was_lost = self._unsure = True
        return EngineUnavailable(
            f"{what}: lost the connection to the engine at {self.address}: {error}",
            hint="check that the engine runs",
            endpoint=self.address,
        )


async def _while_taken(
    body: AsyncIterator[bytes], limit: asyncio.Timeout, silence_s: float
) -> AsyncIterator[bytes]:
    """Yield a body; its call goes on while the engine takes a part per `silence_s`."""
    loop = asyncio.get_running_loop()
    async for part in body:
        with contextlib.suppress(RuntimeError):  # the answer came before the end
            limit.reschedule(loop.time() + silence_s)
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
