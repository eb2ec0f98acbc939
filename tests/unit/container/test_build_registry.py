"""Builds happen once, failures are forgotten, cancellations poison nothing."""

from __future__ import annotations

import asyncio

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.build_registry import BuildRegistry
from chaindock.errors import BuildFailed
from support.doubles.fakes import InMemoryBuilder, fake_package
from support.doubles.faults import FailsToBuild, SlowToBuild

PACKAGE = fake_package()


def builds_with(builder: InMemoryBuilder):
    async def build():
        return await builder.build(PACKAGE, Attempt(PACKAGE.ccid))

    return build


async def test_many_callers_share_one_build():
    registry, builder = BuildRegistry(), SlowToBuild()
    async with asyncio.TaskGroup() as group:
        calls = [
            group.create_task(registry.build_once(PACKAGE.ccid, builds_with(builder)))
            for _ in range(5)
        ]
        await builder.waiting.wait()
        builder.release.set()
    assert builder.builds == 1
    assert len({id(call.result()) for call in calls}) == 1


async def test_success_is_remembered_until_forgotten():
    registry, builder = BuildRegistry(), InMemoryBuilder()
    first = await registry.build_once(PACKAGE.ccid, builds_with(builder))
    assert await registry.build_once(PACKAGE.ccid, builds_with(builder)) is first
    registry.forget(PACKAGE.ccid)
    assert await registry.build_once(PACKAGE.ccid, builds_with(builder)) is not first


async def test_a_failure_is_never_remembered():
    registry, builder = BuildRegistry(), FailsToBuild(times=1)
    with pytest.raises(BuildFailed):
        await registry.build_once(PACKAGE.ccid, builds_with(builder))
    await registry.build_once(PACKAGE.ccid, builds_with(builder))
    assert builder.builds == 2


async def test_everybody_who_waited_gets_the_failure():
    registry = BuildRegistry()
    begun, go = asyncio.Event(), asyncio.Event()

    async def fails():
        begun.set()
        await go.wait()
        raise BuildFailed("no")

    builder = asyncio.ensure_future(registry.build_once(PACKAGE.ccid, fails))
    await begun.wait()
    waiter = asyncio.ensure_future(registry.build_once(PACKAGE.ccid, fails))
    await asyncio.sleep(0)
    go.set()
    results = await asyncio.gather(builder, waiter, return_exceptions=True)
    assert [type(result) for result in results] == [BuildFailed, BuildFailed]


async def test_a_waiter_takes_over_when_the_builder_is_cancelled():
    registry, slow, quick = BuildRegistry(), SlowToBuild(), InMemoryBuilder()
    first = asyncio.ensure_future(registry.build_once(PACKAGE.ccid, builds_with(slow)))
    await slow.waiting.wait()
    waiters = [
        asyncio.ensure_future(registry.build_once(PACKAGE.ccid, builds_with(quick)))
        for _ in range(3)
    ]
    await asyncio.sleep(0)
    first.cancel()
    instances = await asyncio.gather(*waiters)
    assert first.cancelled()
    assert quick.builds == 1
    assert len(set(map(id, instances))) == 1


async def test_a_cancelled_waiter_leaves_the_build_alone():
    registry, slow = BuildRegistry(), SlowToBuild()
    first = asyncio.ensure_future(registry.build_once(PACKAGE.ccid, builds_with(slow)))
    await slow.waiting.wait()
    waiter = asyncio.ensure_future(registry.build_once(PACKAGE.ccid, builds_with(slow)))
    await asyncio.sleep(0)
    waiter.cancel()
    slow.release.set()
    await first
    assert slow.builds == 1


async def test_a_build_forgotten_under_way_is_not_remembered():
    registry, slow = BuildRegistry(), SlowToBuild()
    first = asyncio.ensure_future(registry.build_once(PACKAGE.ccid, builds_with(slow)))
    await slow.waiting.wait()
    registry.forget(PACKAGE.ccid)
    slow.release.set()
    old = await first
    new = await registry.build_once(PACKAGE.ccid, builds_with(InMemoryBuilder()))
    assert new is not old
