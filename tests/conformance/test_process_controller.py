"""ProcessController keeps the contracts of Builder and Instance, in a sandbox and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.processes.sandbox import find_bwrap
from support.doubles.conformance import BuilderSuite, InstanceSuite
from support.need import missing
from support.nodes.process_backend import ProcessBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=["require", "off"])
async def backend(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[ProcessBackend]:
    tool, why = find_bwrap(request.param)
    if request.param == "require" and not tool:
        missing(why)
    async with ProcessBackend(tmp_path, sandbox=request.param) as backend:
        yield backend


class TestProcessBuilder(BuilderSuite):
    """The whole suite."""


class TestProcessInstance(InstanceSuite):
    """The whole suite."""
