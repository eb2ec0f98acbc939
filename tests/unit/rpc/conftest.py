"""A server of some calls, and nothing that outlives a test."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from support.eventually import eventually
from support.rpc.calls import Calls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def calls() -> AsyncIterator[Calls]:
    """Fail when a task or a connection is left, or a callback of the loop raised."""
    before, faults = asyncio.all_tasks(), list[dict[str, Any]]()

    def fault(_: object, what: dict[str, Any]) -> None:
        # gRPC's own package may tell of the loop of an earlier test.
        if "PollerCompletionQueue" not in what["message"]:
            faults.append(what)

    asyncio.get_running_loop().set_exception_handler(fault)
    async with Calls() as calls:
        yield calls
    this = asyncio.current_task()
    await eventually(lambda: not asyncio.all_tasks() - before - {this}, 1)
    await eventually(lambda: not calls.server._guests, 1)
    assert not faults
