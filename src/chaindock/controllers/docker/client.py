"""One connection to a container engine: how a call is made, limited in time, translated.

Source: docs/adr/0006-own-engine-client.md
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import aiohttp

from chaindock.controllers.docker.endpoints import Candidate
from chaindock.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    ImageNotFound,
    NotFound,
)

LOWEST_API, HIGHEST_API = (1, 40), (1, 51)
FULL = "no space left"
"""What an engine says when its disk is full: its text is the only sign."""
MAX_OBJECT_BYTES = 4 * 1024 * 1024
_MAX_REFUSAL_BYTES = 64 * 1024
_CLIENT_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_USUAL = -1.0
_TAR = {"Content-Type": "application/x-tar"}


class EngineClient:
    """One container engine over HTTP; `call_s` is the limit of a plain call.

    Every call raises EngineUnavailable, EngineTimeout and other EngineErrors.
    """

    def __init__(self, where: Candidate, call_s: float = 60.0) -> None:
        self.address, self.arch, self.name = where.address, "", ""
        self._where, self._call_s = where, call_s
        self._session: aiohttp.ClientSession | None = None
        self._api, self._was_lost = "", False
        self._unsure = False
        """A call was interrupted: containers may exist that this process does not know."""

    async def open(self) -> None:
        """Connect, and agree on the API version."""
        self._session = aiohttp.ClientSession(
            connector=self._where.connector(), timeout=_CLIENT_TIMEOUT
        )
        await self._agree()

    async def _agree(self) -> None:
        async with self._translated("version", self._call_s):
            async with await self._send(
                "GET", f"{self._where.base_url}/version"
            ) as answer:
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
        self._api = f"{self._where.base_url}/v{_text(agreed)}"
        self.arch = str(about.get("Arch", ""))
        self.name = f"{about.get('Version', '?')} API {_text(agreed)}"
        self._was_lost = False

    async def aclose(self) -> None:
        """Close all connections. Containers go on."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _send(self, method: str, url: str, **how: Any) -> aiohttp.ClientResponse:
        if self._session is None:
            text = f"the connection to {self.address} is closed"
            raise EngineUnavailable(text, endpoint=self.address)
        return await self._session.request(method, url, **how)

    # --- how a call is made --------------------------------------------------------

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        what: str = "",
        limit_s: float | None = _USUAL,
        **request: Any,
    ) -> Any:
        """Return the JSON that answers; None when the answer is empty.

        `what` is the call in words, for errors; `limit_s` is for the whole answer.
        """
        what = what or f"{method} {path}"
        data = None if body is None else json.dumps(body).encode()
        async with self._bounded(what, limit_s):
            async with await self._request(
                method, path, what, data=data, **request
            ) as answer:
                text = await answer.read()
            return json.loads(text) if text.strip() else None

    @contextlib.asynccontextmanager
    async def answer(
        self,
        method: str,
        path: str,
        *,
        data: bytes | AsyncIterator[bytes] | None = None,
        what: str = "",
        **request: Any,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Give the answer to a request as soon as its head is there.

        `data` that is not bytes is a tar, sent once the engine asks for it: an engine
        that refuses an upload answers and closes the connection, and writing on would
        lose the answer. So the head goes first.
        """
        what = what or f"{method} {path}"
        async with self._bounded(what, _USUAL) as clock:
            if data is not None and not isinstance(data, bytes):
                data = _while_taken(data, clock, self._call_s)
                request |= {"expect100": True, "headers": _TAR}
            answer = await self._request(method, path, what, data=data, **request)
        try:
            async with self._bounded(what, None):
                yield answer
        finally:
            answer.close()

    async def _request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        image: str = "",
        headers: Mapping[str, str] | None = None,
        **rest: Any,
    ) -> aiohttp.ClientResponse:
        """Return an answer that is no refusal; a 404 speaks of `image` if that is set."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        url = f"{self._api}/{path}"
        answer = await self._send(method, url, headers=headers, **rest)
        if answer.status < 400:
            return answer
        with contextlib.closing(answer):
            raw = await answer.content.read(_MAX_REFUSAL_BYTES)
        message = raw.decode("utf-8", "replace").strip()
        with contextlib.suppress(ValueError, AttributeError):
            message = str(json.loads(message).get("message") or message)
        if answer.status == 404 and image:
            raise ImageNotFound(
                f"the engine has no image {image!r}",
                hint=f"fetch it with: docker pull {image}",
                image=image,
            )
        if answer.status == 404:
            raise NotFound(f"{what}: {message}")
        raise self._refused(f"{what}: {message}", answer.status)

    async def stream(
        self, method: str, path: str, silence_s: float | None, **request: Any
    ) -> AsyncGenerator[bytes]:
        """Yield the body of an answer as it comes; EngineTimeout after `silence_s`."""
        async with self.answer(method, path, **request) as answer:
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
        self, path: str, silence_s: float, what: str, **request: Any
    ) -> AsyncGenerator[dict[str, Any]]:
        """Post a request and yield its progress; an error inside that is raised."""
        stream = self.stream("POST", path, silence_s, what=what, **request)
        async with contextlib.aclosing(stream):
            async for event in json_objects(stream):
                detail = event.get("errorDetail")
                if detail is not None or "error" in event:
                    text = detail.get("message") if isinstance(detail, dict) else None
                    told = text or event.get("error") or detail
                    raise self._refused(f"{what}: {told}", 200)
                yield event

    # --- limits and errors ---------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _bounded(
        self, what: str, limit_s: float | None
    ) -> AsyncIterator[asyncio.Timeout]:
        """Limit a call in time (None = not at all) and translate its errors."""
        if self._was_lost:
            await self._agree()  # whoever restarted it may have updated it
        limit_s = self._call_s if limit_s == _USUAL else limit_s
        async with self._translated(what, limit_s) as clock:
            yield clock

    @contextlib.asynccontextmanager
    async def _translated(
        self, what: str, limit_s: float | None
    ) -> AsyncIterator[asyncio.Timeout]:
        try:
            async with asyncio.timeout(limit_s) as clock:
                yield clock
        except TimeoutError as error:
            self._unsure = True
            raise EngineTimeout(
                f"{what}: no answer within {limit_s or 0:g} s",
                endpoint=self.address,
                limit_s=limit_s,
                hint="look at the engine's own log; restart it when it hangs",
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            self._was_lost = self._unsure = True
            raise EngineUnavailable(
                f"{what}: lost the connection to the engine at {self.address}: {error}",
                hint="check that the engine runs",
                endpoint=self.address,
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise EngineError(
                f"{what}: the engine's answer does not follow its API: {error!r}",
                endpoint=self.address,
            ) from error

    def _refused(self, text: str, status: int) -> EngineError:
        full = FULL in text.lower()
        return EngineError(
            text,
            hint="make room where the engine keeps its data" if full else None,
            status=status,
            endpoint=self.address,
            retryable=full,
        )


async def json_objects(stream: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield progress: one JSON object per line. Other lines are skipped."""
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[:MAX_OBJECT_BYTES]
        for line in lines:
            if (found := _object(line)) is not None:
                yield found
    if (found := _object(rest)) is not None:
        yield found


def _object(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        return found if isinstance(found, dict) else None
    return None


async def _while_taken(
    body: AsyncIterator[bytes], limit: asyncio.Timeout, silence_s: float
) -> AsyncIterator[bytes]:
    """Yield a body; its call goes on while the engine takes a part per `silence_s`."""
    loop = asyncio.get_running_loop()
    async for part in body:
        with contextlib.suppress(RuntimeError):  # the answer came before the end
            limit.reschedule(loop.time() + silence_s)
        yield part


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)


def _text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
