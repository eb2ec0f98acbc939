"""Fetch an image, from its registry or from a mirror of it.

Owns:    one pull: places, credentials, what its failure means.
Not:     whether to pull (images.py), reading credentials (credentials.py).
Entry:   places, Puller.pull
Holds:   an image keeps the name of the place it came from; each kind of failure has an
         error of its own, and the last one tells what each place said.
Source:  launch.md §9 W29, W30; needs.md rows 16 and 27
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from chaindock.container.attempt import Phase
from chaindock.controllers.docker.credentials import registry_auth
from chaindock.controllers.docker.link import FULL
from chaindock.controllers.docker.names import full_image
from chaindock.errors import (
    ChaindockError,
    EngineError,
    EngineUnavailable,
    ImageNotFound,
    ImagePlatformMissing,
    NotFound,
    RateLimited,
    RegistryDenied,
    RegistryUnavailable,
)
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chaindock.container.attempt import Attempt
    from chaindock.controllers.docker.engine import Engine
    from chaindock.controllers.docker.options import DockerOptions, Mirror

_log = get_logger("docker.pulls")
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


def places(reference: str, mirrors: Sequence[Mirror]) -> list[str]:
    """Return where an image may be: as it is named, then its mirrors, in order."""
    name, found = full_image(reference), [reference]
    for mirror in mirrors:
        rest = name.removeprefix(mirror.of)
        if rest != name and rest[:1] in {"", "/", ":", "@"}:
            found.append(mirror.place + rest)
    return list(dict.fromkeys(found))


class Puller:
    """Pulls for one controller."""

    def __init__(self, engine: Engine, options: DockerOptions) -> None:
        self._engine, self._options = engine, options

    async def pull(self, where: Sequence[str], attempt: Attempt) -> str:
        """Fetch an image from the first place that gives it; return which one it was.

        The progress is output of the build, and so is why a place did not give it.

        Raises: as the first place failed: ImageNotFound, ImagePlatformMissing;
            RateLimited, RegistryDenied, RegistryUnavailable, EngineTimeout and other
            EngineErrors. EngineUnavailable, and EngineError for a full disk, at once.
        """
        attempt.enter(Phase.PULL)
        failures: list[tuple[str, ChaindockError]] = []
        for place in where:
            try:
                await self._from(place, attempt)
            except EngineUnavailable:
                raise
            except (ImageNotFound, EngineError) as error:
                if FULL in error.message.lower():
                    raise
                failures.append((place, error))
                _log.info("image not had", image=place, why=error.message)
                attempt.output(error.message, "build")
            else:
                return place
        raise _all_of(failures)

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


def _all_of(failures: Sequence[tuple[str, ChaindockError]]) -> ChaindockError:
    """Return one error for what all places said; the first is what was asked for."""
    _, first = failures[0]
    if len(failures) == 1:
        return first
    tried = [
        {"image": place, "error": one.slug, "why": one.message}
        for place, one in failures
    ]
    retryable = any(one.retryable for _, one in failures)
    return type(first)(
        "; ".join(one.message for _, one in failures),
        hint=first.hint,
        **{**first.facts, "tried": tried, "retryable": retryable},
    )


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
    return None


def _tagged(reference: str) -> str:
    """Return the reference with a tag: without one an engine fetches all of them."""
    bare = ":" not in reference.rpartition("/")[2] and "@" not in reference
    return f"{reference}:latest" if bare else reference
