"""For tests of the Docker back end by itself: on each engine in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.engines.each import ENGINES, Target, backend_on, engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from support.engines.docker_backend import DockerBackend


@pytest.fixture(scope="module", params=ENGINES)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    with engine(request.param) as target:
        yield target


@pytest.fixture
async def backend(tmp_path: Path, target: Target) -> AsyncIterator[DockerBackend]:
    async with backend_on(tmp_path, target) as backend:
        yield backend
