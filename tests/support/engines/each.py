"""The engines that one test runs on, one after the other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaindock.platforms.base import LanguageImages
from support.engines.docker_backend import DockerBackend, docker_options
from support.engines.own_engine import own_podman
from support.engines.rootless import rootless_podman
from support.need import need_docker, need_image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROOTLESS = "rootless podman"
ENGINES = ("docker", "podman")


@dataclass(frozen=True)
class Target:
    """One of them.

    Args:
        registry_port: where it takes a registry without TLS, on loopback; 0 = anywhere.
    """

    kind: str
    endpoint: str
    registry_port: int = 0


@contextlib.contextmanager
def engine(kind: str) -> Iterator[Target]:
    """Give an engine that has the runtime image."""
    if kind == "docker":
        yield Target(kind, need_docker())
        return
    if kind == ROOTLESS:
        with rootless_podman("runtime") as podman:
            yield Target(kind, podman.endpoint)
        return
    with own_podman("runtime") as podman:
        yield Target(kind, podman.endpoint, podman.registry_port)


def backend_on(folder: Path, target: Target) -> DockerBackend:
    """Return the backend of the suites on one of these engines."""
    script = LanguageImages(need_image("runtime"))
    return DockerBackend(folder, docker_options(target.endpoint, script=script))
