"""Successful builds are reused, failed ones are not."""

from __future__ import annotations

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.build_registry import BuildRegistry
from chaindock.errors import BuildFailed
from support.doubles.fakes import InMemoryBuilder, fake_package
from support.doubles.faults import FailsToBuild

PACKAGE = fake_package()


def builds_with(builder: InMemoryBuilder):
    async def build():
        return await builder.build(PACKAGE, Attempt(PACKAGE.ccid))

    return build


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
