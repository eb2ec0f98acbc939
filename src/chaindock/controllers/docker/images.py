"""Base images and the images of chaincode: fetched, found, made, removed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import NodeLabels
from chaindock.controllers.docker import names
from chaindock.controllers.docker.client import FULL
from chaindock.controllers.docker.endpoints import login_files, registry_auth
from chaindock.controllers.docker.engine import Engine
from chaindock.controllers.docker.options import DockerOptions
from chaindock.controllers.docker.streams import image_context
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
from chaindock.ids import Ccid
from chaindock.platforms.base import LanguageImages, LaunchCommand
from chaindock.telemetry import get_logger

_log = get_logger("docker.pulls")
BUILD_SILENCE_S = 300.0
# Engines answer 500, or 200 with an error inside, for all of these, so their text is
# the only sign. What matches none stays an EngineError with that text.
_SIGNS: dict[type[ChaindockError], str] = {
    RateLimited: r"toomanyrequests|too many requests|pull rate limit",
    ImagePlatformMissing: r"no matching manifest for|manifest list for architecture",
    ImageNotFound: r"manifest unknown|manifest for \S+ not found|name unknown",
    RegistryDenied: r"unauthorized|no basic auth credentials|access .{0,40}denied",
    RegistryUnavailable: r"dial tcp|no such host|connection (refused|reset)|i/o timeout"
    r"|deadline exceeded|TLS handshake|Client\.Timeout|unexpected EOF"
    r"|network is unreachable|(502|503|504) ",
}
_HINTS: dict[type[ChaindockError], str] = {
    RateLimited: "log in (docker login) for a higher limit, name a mirror in "
    "chaindock.docker.mirrors, or wait",
    ImagePlatformMissing: "name an image that exists for this processor",
    ImageNotFound: "check its name and tag, and whether the registry wants a login",
    RegistryDenied: "log in with: docker login, as the user of this node",
    RegistryUnavailable: "check the network and the proxy of the engine itself, name a "
    "mirror in chaindock.docker.mirrors, or deploy with --backend process",
}
_WAIT = re.compile(r"(?:retry|wait|again|reset)\D{0,20}(\d+) ?(s|m|h)", re.IGNORECASE)
_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class BaseImage:
    """An image that is on the engine: its name (a mirror's, if it came from there)."""

    reference: str
    id: str


@dataclass(frozen=True)
class BuiltImage:
    """What is started: {output} lies at `output`; `base`, the image below, stays."""

    ccid: Ccid
    image: str
    output: str
    launch: LaunchCommand
    base: BaseImage


Bases = tuple[BaseImage, BaseImage]
"""Where a package is built, and where it runs."""


class BaseImages:
    """Fetches the images that languages are built on, each once at a time."""

    def __init__(self, engine: Engine, options: DockerOptions) -> None:
        self._engine, self._options = engine, options
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def resolve(self, language: LanguageImages, attempt: Attempt) -> Bases:
        """Return the images of a language, fetched as the pull policy says.

        Raises: as `pull_image`; ImageNotFound when the policy is `never`.
        """
        builder = await self._get(language.builder, attempt)
        if language.runtime in {"", language.builder}:
            return builder, builder
        return builder, await self._get(language.runtime, attempt)

    async def _get(self, text: str, attempt: Attempt) -> BaseImage:
        where = places(text, self._engine.arch, self._options)
        reference = where[0]
        lock = self._locks[reference]
        if lock.locked():
            attempt.enter(Phase.PULL)  # another attempt pulls it: this one waits
        async with lock:
            policy = self._options.pull
            found = None if policy == "always" else await self.look(where)
            if found is None and policy == "never":
                raise ImageNotFound(
                    f"the engine has no image {reference!r} and may not pull it",
                    hint=f"fetch it with: docker pull {reference}, or allow pulling",
                    image=reference,
                )
            if found is None:
                place = await pull_image(self._engine, self._options, where, attempt)
                found = await self._inspect(place)
        if found.reference != reference:
            attempt.note(f"{reference} comes from a mirror: {found.reference}")
        return found

    async def look(self, where: Sequence[str]) -> BaseImage | None:
        """Return what the engine has from one of these places; the first counts."""
        for place in where:
            with contextlib.suppress(ImageNotFound):
                return await self._inspect(place)
        return None

    async def _inspect(self, place: str) -> BaseImage:
        return BaseImage(place, str((await self._engine.inspect_image(place))["Id"]))


def places(text: str, arch: str, options: DockerOptions) -> list[str]:
    """Return where an image may be: as it is named, then its mirrors, in order.

    `text` may have placeholders; `arch` is that of the engine.
    """
    reference = names.expand_image(text, arch)
    name, found = names.full_image(reference), [reference]
    for mirror in options.mirrors:
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
    auth = await registry_auth(reference, login_files(options.endpoint))
    shown: dict[str, str] = {}
    # Without a tag an engine fetches all of them.
    bare = ":" not in reference.rpartition("/")[2] and "@" not in reference
    image = f"{reference}:latest" if bare else reference
    pull = engine.pull(image, auth, options.pull_silence_s)
    try:
        async with contextlib.aclosing(pull):
            async for event in pull:
                layer, status = str(event.get("id", "")), str(event.get("status", ""))
                if status and shown.get(layer) != status:
                    shown[layer] = status
                    text = f"{layer}: {status}" if layer else status
                    attempt.output(text, "build")
    except NotFound as error:
        hint = _HINTS[ImageNotFound]
        raise ImageNotFound(error.message, hint=hint, image=reference) from error
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
    for kind, sign in _SIGNS.items():
        if re.search(sign, error.message, re.IGNORECASE):
            hint, facts = _HINTS[kind], dict[str, Any](image=image)
            if kind is RateLimited:
                wait = _WAIT.search(error.message)
                seconds = int(wait[1]) * _UNITS[wait[2].lower()] if wait else None
                facts["retry_after_s"] = seconds
                hint += f" {seconds} s" if seconds else ""
            return kind(error.message, hint=hint, **facts)
    return None


# --- images of chaincode -------------------------------------------------------------


async def find_launch(
    engine: Engine, node: NodeLabels, ccid: Ccid, key: str, attempt: Attempt
) -> tuple[str, LaunchCommand] | None:
    """Return (image, launch command) of an equal build; None when there is none."""
    name = names.image_name(node, ccid)
    image = f"{name}:{key}"
    found: dict[str, Any] = {}
    with contextlib.suppress(ImageNotFound):
        found = await engine.inspect_image(image)
    equal = f"{names.BUILD_KEY}={key}"
    if not found and (same := await engine.find_images(label=equal)):
        # Equal code under another label: the image only needs one more name.
        attempt.enter(Phase.IMAGE)
        with contextlib.suppress(ImageNotFound):
            await engine.tag_image(str(same[0]["Id"]), name, key)
            found = await engine.inspect_image(image)
    labels = (found.get("Config") or {}).get("Labels") or {}
    launch = None
    with contextlib.suppress(msgspec.DecodeError):
        told = labels.get(names.LAUNCH) or ""
        launch = msgspec.json.decode(told, type=LaunchCommand)
    if labels.get(names.BUILD_KEY) != key or launch is None:
        return None
    return image, launch


async def make_image(
    engine: Engine,
    image: str,
    base: BaseImage,
    output: str,
    labels: dict[str, str],
    artifact: BinaryIO,
    attempt: Attempt,
) -> None:
    """Make the image of a chaincode: its build's tar `artifact` goes to `output`."""
    attempt.enter(Phase.IMAGE)
    dockerfile = (
        # By id: somebody may move the tag between the look at it and this.
        f"FROM {base.id}\nADD binpackage.tar {output}\n"
        f"ENV CORE_CHAINCODE_BUILDLEVEL={names.FABRIC}\n"
    )
    params = {"t": image, "rm": "1", "forcerm": "1", "labels": json.dumps(labels)}
    context = image_context(dockerfile, artifact)
    progress = engine.build_image(params, context, BUILD_SILENCE_S)
    async with contextlib.aclosing(progress):
        async for _ in progress:
            pass  # its errors are raised, the rest is of no interest


async def remove_images(
    engine: Engine, node: NodeLabels, ccid: Ccid, keep: str = ""
) -> None:
    """Remove the images of a chaincode but `keep`; those in use stay.

    A Fabric peer may have given an image the same name; its tag is no build key.
    """
    name = names.image_name(node, ccid)
    # By label: engines differ in what a reference without a registry matches.
    for found in await engine.find_images(label=names.BUILD_KEY):
        key = (found.get("Labels") or {}).get(names.BUILD_KEY)
        tag = f"{name}:{key}"
        if tag in names.own_tags(found) and tag != keep:
            with contextlib.suppress(EngineError):
                await engine.remove_image(tag)
