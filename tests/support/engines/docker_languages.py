"""Real chaincode of each language, packaged, and a controller with real base images."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from chaindock.config.sections import build_environment
from chaindock.packaging.store import PackageStore
from chaindock.packaging.writer import write_package
from chaindock.platforms.base import LanguageImages
from chaindock.platforms.registry import recognise
from support.engines.docker_backend import docker_options
from support.need import need_image

if TYPE_CHECKING:
    from chaindock.container.contracts import BuildEnvironment
    from chaindock.controllers.docker.options import DockerOptions
    from chaindock.packaging.store import StoredPackage

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


def language_options() -> DockerOptions:
    """Return options with the base images of the tests."""
    return docker_options(
        golang=LanguageImages(need_image("golang"), need_image("runtime")),
        node=LanguageImages(need_image("node")),
        python=LanguageImages(need_image("python")),
    )


def environment() -> BuildEnvironment:
    """Return what this machine needs to reach package registries."""
    return build_environment(dict(os.environ))[0]  # noqa: TID251  # no config here


def packaged(source: Path, store: Path, label: str) -> StoredPackage:
    """Package a source directory and keep it. Blocking."""
    out = io.BytesIO()
    write_package(recognise(source).select(source), label, out)
    return PackageStore(store).add(out.getvalue())
