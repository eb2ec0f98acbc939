"""Organisations for tests of the services to clients."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from chaindock.identity.organization import Organization
from support.gateways.delivering import Place, open_place
from support.gateways.two import Gateways, gateways
from support.peers import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("organizations")


@pytest.fixture(scope="session")
def org(folder: Path) -> Organization:
    return Organization.open(folder, "Org1MSP", "org1.example.com")


@pytest.fixture(scope="session")
def other(folder: Path) -> Organization:
    return Organization.open(folder, "Org2MSP", "org2.example.com", orders=False)


@pytest.fixture
async def world(
    tmp_path: Path, org: Organization, other: Organization
) -> AsyncIterator[World]:
    async with World.opened(tmp_path, org, other) as world:
        yield world


@pytest.fixture
async def place(tmp_path: Path, org: Organization) -> AsyncIterator[Place]:
    """A channel with the blocks 0 to 4."""
    async with AsyncExitStack() as stack:
        found = await open_place(stack, tmp_path, org)
        for _ in range(4):
            await found.commit()
        yield found


@pytest.fixture
async def one(world: World) -> AsyncIterator[Gateways]:
    """The second organisation is no member of the channel."""
    async with gateways(world) as found:
        await found.define("OR('Org1MSP.peer')")
        yield found


@pytest.fixture
async def two(world: World) -> AsyncIterator[Gateways]:
    await world.let_second_join()
    async with gateways(world) as found:
        yield found
