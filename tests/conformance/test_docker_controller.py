"""DockerController keeps the contracts of Builder and Instance, on real engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.doubles.conformance import BuilderSuite, InstanceSuite
from support.engines.each import ENGINES, ROOTLESS, Target, backend_on, engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.engines.docker_backend import DockerBackend

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


@pytest.fixture(scope="module", params=[*ENGINES, ROOTLESS])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with engine(request.param) as target:
        yield target


@pytest.fixture
async def backend(tmp_path: Path, target: Target) -> AsyncIterator[DockerBackend]:
    async with backend_on(tmp_path, target) as backend:
        yield backend


class TestDockerBuilder(BuilderSuite):
    """The whole suite."""


class TestDockerInstance(InstanceSuite):
    """The whole suite."""
