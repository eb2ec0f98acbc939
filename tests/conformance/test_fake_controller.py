"""The fakes keep the same contracts as the real back ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from support.doubles.conformance import Backend, BuilderSuite, InstanceSuite
from support.doubles.fakes import InMemoryBuilder, InMemoryInstance, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from chaindock.container.contracts import Builder, Instance


class FakeBackend(Backend):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.world = World()

    async def open_builder(self, node_id: str) -> Builder:
        return InMemoryBuilder(node_id=node_id, world=self.world)

    async def close_builder(self, builder: Builder) -> None:
        await cast(InMemoryBuilder, builder).__aexit__(None, None, None)

    async def abandon(self, builder: Builder) -> None:
        del builder

    async def owned(self, node_id: str) -> set[str]:
        return self.world.owned(node_id)

    async def signal(self, instance: Instance, number: int) -> None:
        assert number == 9
        run = cast(InMemoryInstance, instance).run
        assert run is not None
        run.kill()


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[FakeBackend]:
    async with FakeBackend(tmp_path) as backend:
        yield backend
        await backend.world.tasks.aclose()


class TestInMemoryBuilder(BuilderSuite):
    """The whole suite."""


class TestInMemoryInstance(InstanceSuite):
    """The whole suite."""
