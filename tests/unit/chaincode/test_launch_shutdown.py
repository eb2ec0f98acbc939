"""The launcher is left while launches begin, go on and end: launch.md W19, W71."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from chaindock.errors import ChaindockError, NodeStopping
from chaindock.ids import Ccid
from support.doubles.launch_fakes import serves
from support.doubles.launch_world import World

if TYPE_CHECKING:
    from support.doubles.launch_fakes import FakeInstance

CCIDS = [Ccid(f"c{number}:" + f"{number:02d}" * 32) for number in range(20)]


@pytest.mark.parametrize("seed", range(5))
async def test_leaving_amid_launches_ends_every_one_of_them(seed: int):
    """Launches come in while the ones before are being stopped."""
    chance = random.Random(seed)
    async with World() as world:

        async def some_time() -> None:
            await asyncio.sleep(chance.choice((0, 0, 0.01, 0.05)))

        instances: list[FakeInstance] = []
        for ccid in CCIDS:
            instance = world.builder.prepare(ccid, serves)
            instance.start_takes = instance.stop_takes = some_time
            instances.append(instance)
        world.builder.takes = some_time

        async def launch(ccid: Ccid) -> None:
            await asyncio.sleep(chance.uniform(0, 0.1))
            await world.launch(ccid)

        launches = [asyncio.ensure_future(launch(ccid)) for ccid in CCIDS]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            await world.custodian.aclose()
            results = await asyncio.gather(*launches, return_exceptions=True)
        assert not any(instance.running for instance in instances)
        told = [one for one in results if one is not None]
        assert all(isinstance(one, ChaindockError) for one in told)
        for ccid in CCIDS:
            assert world.registry.find(ccid) is None


async def test_after_leaving_no_launch_begins():
    async with World() as world:
        instance = world.builder.prepare(CCIDS[0], serves)
        await world.custodian.aclose()
        with pytest.raises(NodeStopping, match="the node is stopping"):
            await world.launch(CCIDS[0])
    assert instance.starts == 0
