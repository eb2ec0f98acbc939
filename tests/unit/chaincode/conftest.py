"""Streams in both models; nothing may be left behind by a test."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from chaindock.identity.organization import Organization
from support.doubles.launch_world import World
from support.shims.endorsing import EndorsingNode
from support.shims.session import Session
from support.shims.stream_node import MODELS, StreamNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Fail when a test leaves a task running."""
    before = asyncio.all_tasks()
    yield
    left: set[asyncio.Task[Any]] = set()
    for _ in range(50):
        left = asyncio.all_tasks() - before
        left.discard(asyncio.current_task())
        if not left:
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"tasks left: {left}")


@pytest.fixture(params=MODELS)
async def node(
    request: pytest.FixtureRequest, no_task_is_left: None
) -> AsyncIterator[StreamNode]:
    """A node; tests that use it run once per model."""
    async with StreamNode(request.param) as node:
        yield node


@pytest.fixture
async def session(node: StreamNode) -> Session:
    return await Session(node, await node.ready()).start()


@pytest.fixture
async def listening(no_task_is_left: None) -> AsyncIterator[StreamNode]:
    """A node that chaincode dials."""
    async with StreamNode() as node:
        yield node


@pytest.fixture
async def world(no_task_is_left: None) -> AsyncIterator[World]:
    """A launcher, and a builder that the test prepares."""
    async with World() as world:
        yield world


@pytest.fixture(scope="session")
def org(tmp_path_factory: pytest.TempPathFactory) -> Organization:
    folder = tmp_path_factory.mktemp("organizations")
    return Organization.open(folder, "Org1MSP", "org1.example.com")


@pytest.fixture
async def endorsing(
    tmp_path: Path, org: Organization, no_task_is_left: None
) -> AsyncIterator[EndorsingNode]:
    async with EndorsingNode(tmp_path, org) as node:
        yield node
