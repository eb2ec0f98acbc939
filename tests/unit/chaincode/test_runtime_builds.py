"""Successful builds are reused, failed ones are not."""

from __future__ import annotations

import pytest

from chaindock.chaincode.runtime import ContainerRuntime
from chaindock.container.attempt import Attempt
from chaindock.container.router import Router
from chaindock.errors import BuildFailed
from support.doubles.fakes import InMemoryBuilder, fake_package
from support.doubles.faults import FailsToBuild
from support.doubles.launch_fakes import OneBackend

PACKAGE = fake_package()


class _Packages:
    async def get(self, ccid):
        return PACKAGE


def runtime_of(builder: InMemoryBuilder) -> ContainerRuntime:
    return ContainerRuntime(_Packages(), Router(OneBackend(builder)))


async def build(runtime: ContainerRuntime):
    return await runtime.build(PACKAGE.ccid, Attempt(PACKAGE.ccid))


async def test_success_is_remembered_until_forgotten():
    runtime = runtime_of(InMemoryBuilder())
    first = await build(runtime)
    assert await build(runtime) is first
    runtime.forget(PACKAGE.ccid)
    assert await build(runtime) is not first


async def test_a_failure_is_never_remembered():
    builder = FailsToBuild(times=1)
    runtime = runtime_of(builder)
    with pytest.raises(BuildFailed):
        await build(runtime)
    await build(runtime)
    assert builder.builds == 2
