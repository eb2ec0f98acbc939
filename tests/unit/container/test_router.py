"""A package is built by the back end of its placement, or the reason is told."""

from __future__ import annotations

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.router import Router
from chaindock.errors import BuildFailed, EngineError
from support.doubles.fakes import InMemoryBuilder, fake_package
from support.doubles.faults import FailsToBuild
from support.doubles.launch_fakes import OneBackend

PACKAGE = fake_package()


def attempt() -> Attempt:
    return Attempt(PACKAGE.ccid)


async def test_the_back_end_of_the_placement_builds():
    builder = InMemoryBuilder()
    instance = await Router(OneBackend(builder)).build(PACKAGE, attempt())
    assert instance is builder.instances[0]


async def test_a_failed_build_is_told_as_it_is():
    with pytest.raises(BuildFailed):
        await Router(OneBackend(FailsToBuild())).build(PACKAGE, attempt())


async def test_a_removed_chaincode_is_purged_where_something_was_kept():
    class Keeps(InMemoryBuilder):
        keeps_builds = True
        purged = 0

        async def discard(self, ccid) -> None:
            self.purged += 1

    keeps = Keeps()
    await Router(OneBackend(keeps)).discard(PACKAGE.ccid)
    assert keeps.purged == 0
    await Router(OneBackend(keeps)).discard(PACKAGE.ccid, purge=True)
    assert keeps.purged == 1


async def test_a_build_that_cannot_be_removed_is_told():
    class Stuck(InMemoryBuilder):
        async def discard(self, ccid) -> None:
            raise EngineError("in use")

    with pytest.raises(EngineError, match="in use"):
        await Router(OneBackend(Stuck())).discard(PACKAGE.ccid)
