"""Successful builds are reused, failed ones are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from chaindock.chaincode.launcher import RuntimeLauncher
from chaindock.chaincode.registry import HandlerRegistry
from chaindock.container.attempt import Attempt
from chaindock.container.router import Router
from chaindock.errors import BuildFailed
from support.doubles.fakes import InMemoryBuilder, fake_package
from support.doubles.faults import FailsToBuild
from support.doubles.launch_fakes import OneBackend

if TYPE_CHECKING:
    from chaindock.container.contracts import PeerConnection

PACKAGE = fake_package()


def launcher_of(builder: InMemoryBuilder) -> RuntimeLauncher:
    async def package_of(ccid):
        return PACKAGE

    router = Router(OneBackend(builder))
    return RuntimeLauncher(HandlerRegistry(), package_of, router, no_peer)


def no_peer(_: Attempt) -> PeerConnection:
    raise AssertionError("nothing is started")


async def build(launcher: RuntimeLauncher):
    return await launcher.build(PACKAGE.ccid, Attempt(PACKAGE.ccid))


async def test_success_is_remembered_until_forgotten():
    launcher = launcher_of(InMemoryBuilder())
    first = await build(launcher)
    assert await build(launcher) is first
    launcher.forget(PACKAGE.ccid)
    assert await build(launcher) is not first


async def test_a_failure_is_never_remembered():
    builder = FailsToBuild(times=1)
    launcher = launcher_of(builder)
    with pytest.raises(BuildFailed):
        await build(launcher)
    await build(launcher)
    assert builder.builds == 2
