"""Fetch an image from its registry or a mirror, with the credentials of the Docker CLI."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

from chaindock.container.attempt import Phase
from chaindock.controllers.docker.client import FULL
from chaindock.controllers.docker.names import DEFAULT_REGISTRY, full_image
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
    from pathlib import Path

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


async def pull_image(
    engine: Engine, options: DockerOptions, where: Sequence[str], attempt: Attempt
) -> str:
    """Fetch an image from the first place that gives it; return that place.

    The progress is output of the build, and so is why a place did not give the image.

    Raises: as the first place failed: ImageNotFound, ImagePlatformMissing; RateLimited,
        RegistryDenied, RegistryUnavailable, EngineTimeout and other EngineErrors.
        EngineUnavailable, and EngineError for a full disk, at once.
    """
    attempt.enter(Phase.PULL)
    failures: list[tuple[str, ChaindockError]] = []
    for place in where:
        try:
            await _pull_from(engine, options, place, attempt)
        except EngineUnavailable:
            raise
        except (ImageNotFound, EngineError) as error:
            if FULL in error.message.lower():
                raise
            failures.append((place, error))
            _log.info("image not pulled", image=place, why=error.message)
            attempt.output(error.message, "build")
        else:
            return place
    raise _all_of(failures)


async def _pull_from(
    engine: Engine, options: DockerOptions, reference: str, attempt: Attempt
) -> None:
    auth = await registry_auth(reference, options.endpoint.login_files())
    shown: dict[str, str] = {}
    pull = engine.pull(_tagged(reference), auth, options.pull_silence_s)
    try:
        async with contextlib.aclosing(pull):
            async for event in pull:
                layer = str(event.get("id", ""))
                status = str(event.get("status", ""))
                if status and shown.get(layer) != status:
                    shown[layer] = status
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
    """Return one error for all places, of the class that the first one has."""
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
    """Return the error that a failed pull of `image` means; None = no special one."""
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


_log = get_logger("docker.credentials")
HELPER_S = 20.0
_DEFAULT_REGISTRY_SUFFIX = "/v1/"  # only the default registry's key still ends so


async def registry_auth(image: str, files: Sequence[Path]) -> str | None:
    """Return the X-Registry-Auth header to pull `image`; None = anonymous.

    `files` are the CLI's config.json and what else has its form; the first that knows
    the registry counts.
    """
    for file in files:
        if (found := await _in_file(image, file)) is not None:
            text = json.dumps(found)
            return base64.urlsafe_b64encode(text.encode()).decode()
    return None


async def _in_file(image: str, file: Path) -> dict[str, str] | None:
    try:
        settings = json.loads(file.read_bytes())
        auths = dict(settings.get("auths") or {})
        helpers = dict(settings.get("credHelpers") or {})
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    store = settings.get("credsStore")
    key = _key_for(image, [*auths, *helpers])
    if key is None and store:
        # A store may know more than the file lists.
        registry = full_image(image).partition("/")[0]
        key = None if registry == DEFAULT_REGISTRY else registry
    if key is None:
        return None
    helper = helpers.get(key) or store
    found = await _from_helper(str(helper), key) if helper else None
    found = found or _from_entry(auths.get(key))
    return None if found is None else {**found, "serveraddress": key}


def _key_for(image: str, keys: list[str]) -> str | None:
    """Return the key of the longest part of an image's name that has one."""
    path = full_image(image)
    default = path.startswith(f"{DEFAULT_REGISTRY}/")
    best, size = None, 0
    for key in keys:
        host = (key.partition("://")[2] or key).rstrip("/")
        if default and key.endswith(_DEFAULT_REGISTRY_SUFFIX):
            host = DEFAULT_REGISTRY
        elif "://" in key or host.partition("/")[2].startswith("v"):
            host = host.partition("/")[0]  # an address of its API, not a part of it
        if f"{path}/".startswith(f"{host}/") and len(host) > size:
            best, size = key, len(host)
    return best


def _from_entry(entry: Any) -> dict[str, str] | None:
    if not isinstance(entry, dict):
        return None
    if token := entry.get("identitytoken"):
        return {"identitytoken": str(token)}
    try:
        user, _, password = base64.b64decode(entry["auth"]).decode().partition(":")
    except (KeyError, ValueError, TypeError):
        return None
    return {"username": user, "password": password}


async def _from_helper(helper: str, key: str) -> dict[str, str] | None:
    program = shutil.which(f"docker-credential-{helper}")
    if program is None:
        _log.warning("credential helper is missing", helper=helper, registry=key)
        return None
    pipe = asyncio.subprocess.PIPE
    try:
        child = await asyncio.create_subprocess_exec(
            program, "get", stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
        )
    except OSError as error:
        _log.warning("credential helper cannot be run", helper=helper, error=str(error))
        return None
    try:
        async with asyncio.timeout(HELPER_S):
            text, _ = await child.communicate(key.encode())
        found = json.loads(text)
        user, secret = str(found["Username"]), str(found["Secret"])
    except (TimeoutError, ValueError, KeyError, TypeError):
        _log.warning("credential helper gave nothing", helper=helper, registry=key)
        return None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if user == "<token>":
        return {"identitytoken": secret}
    return {"username": user, "password": secret}
