"""DockerController keeps the contracts of Builder and Instance, on a real engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.testing.conformance import BuilderSuite, InstanceSuite
from support.docker_backend import DockerBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.docker, pytest.mark.timeout(180)]


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[DockerBackend]:
    async with DockerBackend(tmp_path) as backend:
        yield backend


class TestDockerBuilder(BuilderSuite):
    """The whole suite."""


class TestDockerInstance(InstanceSuite):
    """The whole suite."""
