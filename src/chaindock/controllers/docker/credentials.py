"""Registry credentials, found the way the Docker CLI finds them.

Owns:    the look into config.json and Podman's auth.json, credential helpers.
Not:     pulling (images.py).
Entry:   registry_auth
Holds:   credentials go to the engine in one header and nowhere else.
Source:  needs.md row 16; launch.md §9 W29
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from typing import TYPE_CHECKING, Any

from chaindock.controllers.docker.names import DEFAULT_REGISTRY, full_image
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
