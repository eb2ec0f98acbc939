"""Processes of a node of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.nodes.process_backend import ProcessBackend

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[ProcessBackend]:
    async with ProcessBackend(tmp_path) as backend:
        yield backend
