"""ProcessController keeps the contracts of Builder and Instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.doubles.conformance import BuilderSuite, InstanceSuite
from support.nodes.process_backend import ProcessBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[ProcessBackend]:
    async with ProcessBackend(tmp_path) as backend:
        yield backend


class TestProcessBuilder(BuilderSuite):
    """The whole suite."""


class TestProcessInstance(InstanceSuite):
    """The whole suite."""
