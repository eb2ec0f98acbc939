"""A node that is asked to go down under load keeps its word to everybody."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ChaindockError, NodeError, NodeNotRunning, NodeStopping
from support.nodes.lives import NAME, Lives, lives_of
from support.nodes.load import Load
from support.nodes.node import BACKENDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

pytestmark = [
    pytest.mark.slow,
    pytest.mark.golang,
    pytest.mark.network,
    pytest.mark.timeout(300),
]

CLIENTS = 12
END_S = 15.0
"""AdminOptions.close_s, the grace of the chaincode, and a slow machine."""


@pytest.fixture(params=BACKENDS)
async def lives(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lives]:
    async with lives_of(request.param, tmp_path) as found:
        await found.begin("a")
        await found.start(0)
        yield found


async def down(lives: Lives) -> float:
    """Take it down; return how many seconds it took."""
    began = time.monotonic()
    assert (await lives.node.run("down"))["stopped"] is True
    await lives.node.gone()
    return time.monotonic() - began


async def slow_call(lives: Lives, milliseconds: int) -> Any:
    async with lives.node.admin() as admin:
        answer = asyncio.ensure_future(
            admin.call("invoke", NAME, "slow", str(milliseconds))
        )
        try:
            return await answer
        except ChaindockError as error:
            return error


async def test_what_was_acknowledged_stays_and_the_rest_is_told(lives: Lives) -> None:
    load = Load(lives.node, lives.account, NAME, "down", CLIENTS)
    calling = asyncio.ensure_future(load.run())
    await load.answered.wait()
    short = asyncio.ensure_future(slow_call(lives, 1000))
    long = asyncio.ensure_future(slow_call(lives, 25_000))
    await asyncio.sleep(0.2)  # both are in the chaincode
    assert await down(lives) < END_S
    await calling
    done, refused = await short, await long
    assert done["code"] == 0
    assert isinstance(refused, NodeError)
    assert "the node is stopping" in refused.message
    # A client that came too late was refused, or found nobody.
    kinds = {type(error) for error in lives.account.refused}
    assert kinds <= {NodeStopping, NodeNotRunning}, lives.account.refused
    assert lives.account.lost <= CLIENTS
    assert await lives.traces.all() == set()
    await lives.traces.check_foreign()
    await lives.start(1)
    # Nothing was in doubt: whatever is in the blocks was told, or refused.
    keys = set(lives.audit.values)
    assert keys == lives.account.kept, sorted(keys - lives.account.kept)


async def test_a_deployment_under_way_is_given_up(lives: Lives) -> None:
    before = await lives.traces.runs()
    package = lives.new_version("given up")

    async def deploy() -> ChaindockError | None:
        try:
            await lives.deploy(package)
        except ChaindockError as error:
            return error
        return None

    deploying = asyncio.ensure_future(deploy())
    await asyncio.sleep(0.3)
    assert await down(lives) < END_S
    error = await deploying
    assert await lives.traces.all() == set()
    await lives.start(1)
    if error is None:  # a quick machine
        assert lives.sequence == 2
    else:
        assert isinstance(error, NodeError), repr(error)
        assert list(await lives.traces.runs()) == list(before)
        assert lives.sequence == 1
