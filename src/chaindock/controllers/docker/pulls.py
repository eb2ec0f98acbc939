"""Fetch an image, from its registry or from a mirror of it.

Owns:    one pull: credentials, mirrors, what its failure means.
Not:     whether to pull (images.py), reading credentials (credentials.py).
Entry:   Puller.pull
Holds:   the image ends under the name that was asked for, wherever it came from; each
         kind of failure has an error of its own.
Source:  launch.md §9 W29, W30; needs.md rows 16 and 27
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from chaindock.container.attempt import Phase
from chaindock.controllers.docker.credentials import registry_auth, registry_of
from chaindock.errors import (
    ChaindockError,
    EngineError,
    ImageNotFound,
    ImagePlatformMissing,
    NotFound,
    RateLimited,
    RegistryDenied,
    RegistryUnavailable,
)
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from chaindock.container.attempt import Attempt
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.options import DockerOptions

_log = get_logger("docker.pulls")
_PASSES_ON = (ImageNotFound, RateLimited, RegistryDenied, RegistryUnavailable)
# Engines answer 500, or 200 with an error inside, for all of these, so their text is
# the only sign. What matches none stays an EngineError with that text.
_SIGNS: tuple[tuple[type[ChaindockError], str], ...] = (
    (RateLimited, r"toomanyrequests|too many requests|pull rate limit"),
    (ImagePlatformMissing, r"no matching manifest for|manifest list for architecture"),
    (ImageNotFound, r"manifest unknown|manifest for \S+ not found|name unknown"),
    (RegistryDenied, r"unauthorized|no basic auth credentials|access .{0,40}denied"),
    (
        RegistryUnavailable,
        (
            r"dial tcp|no such host|connection (refused|reset)|i/o timeout"
            r"|deadline exceeded|TLS handshake|Client\.Timeout|unexpected EOF"
            r"|network is unreachable|(502|503|504) "
        ),
    ),
)
_HINTS: dict[type[ChaindockError], str] = {
    RateLimited: "log in (docker login) for a higher limit, name a mirror in "
    "chaindock.docker.mirrors, or wait",
    ImagePlatformMissing: "name an image that exists for this processor",
    ImageNotFound: "check its name and tag, and whether the registry wants a login",
    RegistryDenied: "log in with: docker login, as the user of this node",
    RegistryUnavailable: "check the network and the proxy of the engine itself, or name a "
    "mirror in chaindock.docker.mirrors",
}
_WAIT = re.compile(r"(?:retry|wait|again|reset)\D{0,20}(\d+) ?(s|m|h)", re.IGNORECASE)
_UNITS = {"s": 1, "m": 60, "h": 3600}


class Puller:
    """Pulls for one controller."""

    def __init__(self, engine: Engine, options: DockerOptions) -> None:
        self._engine, self._options = engine, options

    async def pull(self, reference: str, attempt: Attempt) -> None:
        """Fetch an image; its progress is output of the build.

        Raises: ImageNotFound, ImagePlatformMissing; RateLimited, RegistryDenied,
            RegistryUnavailable, EngineTimeout and other EngineErrors.
        """
        attempt.enter(Phase.PULL)
        try:
            return await self._from(reference, attempt)
        except _PASSES_ON as error:
            first = error
        for mirror in self._mirrors(reference):
            attempt.note(f"{first.message}; trying the mirror {mirror}")
            try:
                await self._from(mirror, attempt)
            except _PASSES_ON as error:
                _log.info("mirror without the image", mirror=mirror, why=error.message)
                continue
            name, _, tag = _tagged(reference).rpartition(":")
            await self._engine.tag_image(mirror, name, tag)
            return None
        raise first

    def _mirrors(self, reference: str) -> list[str]:
        """Return where else an image of the engine's default registry may be."""
        if registry_of(reference) or "@" in reference:
            return []
        path = reference if "/" in reference else f"library/{reference}"
        return [f"{mirror.rstrip('/')}/{path}" for mirror in self._options.mirrors]

    async def _from(self, reference: str, attempt: Attempt) -> None:
        auth = await registry_auth(reference, self._options.endpoint.login_files())
        said: dict[str, str] = {}
        pull = self._engine.pull(_tagged(reference), auth, self._options.pull_silence_s)
        try:
            async with contextlib.aclosing(pull):
                async for event in pull:
                    layer = str(event.get("id", ""))
                    status = str(event.get("status", ""))
                    if status and said.get(layer) != status:
                        said[layer] = status
                        text = f"{layer}: {status}" if layer else status
                        attempt.output(text, "build")
        except NotFound as error:
            raise ImageNotFound(
                error.message, hint=_HINTS[ImageNotFound], image=reference
            ) from error
        except EngineError as error:
            if (found := failure_of(error, reference)) is None:
                raise
            raise found from error


def failure_of(error: EngineError, image: str) -> ChaindockError | None:
    """Return what a failed pull of `image` means; None = nothing more than it says."""
    for kind, sign in _SIGNS:
        if re.search(sign, error.message, re.IGNORECASE):
            facts = {"image": image}
            wait = _WAIT.search(error.message) if kind is RateLimited else None
            seconds = int(wait[1]) * _UNITS[wait[2].lower()] if wait else None
            if kind is RateLimited:
                facts["retry_after_s"] = seconds  # type: ignore[assignment]
            hint = _HINTS[kind] + (f" {seconds} s" if seconds else "")
            return kind(error.message, hint=hint, **facts)
    if "no space left" in error.message.lower():
        hint = "make room where the engine keeps its images"
        told = {**error.facts, "image": image, "transient": True}
        return EngineError(error.message, hint=hint, **told)
    return None


def _tagged(reference: str) -> str:
    """Return the reference with a tag: without one an engine fetches all of them."""
    bare = ":" not in reference.rpartition("/")[2] and "@" not in reference
    return f"{reference}:latest" if bare else reference
