"""Who is asked, who is chosen, and what is said when nobody takes a package."""

from __future__ import annotations

from typing import Any

import pytest

from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Declined
from chaindock.container.router import Router
from chaindock.errors import (
    BuildFailed,
    ConfigInvalid,
    EngineUnavailable,
    ImageNotFound,
    NotFound,
    Unsupported,
)
from support.doubles.fakes import InMemoryBuilder, fake_package
from support.doubles.faults import DeclinesAll, FailsToBuild

PACKAGE = fake_package()


def attempt() -> Attempt:
    return Attempt(PACKAGE.ccid)


class EngineAway(InMemoryBuilder):
    name = "docker"

    async def discard(self, ccid) -> int:
        return 0

    async def reap(self) -> int:
        raise EngineUnavailable("no engine")


class Leftovers(InMemoryBuilder):
    async def discard(self, ccid) -> int:
        return 0

    async def reap(self) -> int:
        return 2


async def test_the_first_that_does_not_decline_gets_the_package():
    taker, later = InMemoryBuilder(), InMemoryBuilder()
    router = Router([DeclinesAll(), taker, later], lambda _: None)
    instance = await router.build(PACKAGE, attempt())
    assert instance is taker.instances[0]
    assert later.builds == 0


async def test_the_instance_is_kept_until_forgotten():
    router = Router([InMemoryBuilder()], lambda _: None)
    instance = await router.build(PACKAGE, attempt())
    assert router.instance(PACKAGE.ccid) is instance
    router.forget(PACKAGE.ccid)
    router.forget(PACKAGE.ccid)
    with pytest.raises(NotFound, match=PACKAGE.ccid):
        router.instance(PACKAGE.ccid)


async def test_an_unclaimed_package_lists_each_builder_with_its_verdict():
    class Other(DeclinesAll):
        name = "process"

    router = Router([DeclinesAll(), Other()], lambda _: None)
    with pytest.raises(Unsupported) as caught:
        await router.build(PACKAGE, attempt())
    reason = "does not take 'script'"
    assert caught.value.verdicts == {"declines": reason, "process": reason}
    assert "declines: does not take" in caught.value.message
    assert "process: does not take" in caught.value.message
    assert "'script'" in caught.value.message


async def test_only_the_chosen_builder_is_asked():
    taker = InMemoryBuilder()
    router = Router([taker, DeclinesAll()], lambda _: "declines")
    with pytest.raises(Unsupported):
        await router.build(PACKAGE, attempt())
    assert taker.builds == 0


class LacksItsImage(DeclinesAll):
    name = "docker"

    async def build(self, package: Any, attempt: Any) -> Declined:
        reason = "no image 'x'"
        return Declined(reason, ImageNotFound(reason, image="x"))


async def test_a_builder_that_cannot_now_is_passed_over_and_that_is_told():
    taker, told = InMemoryBuilder(), attempt()
    router = Router([LacksItsImage(), taker], lambda _: None)
    await router.build(PACKAGE, told)
    assert taker.builds == 1
    assert told.reused == ["not with docker: no image 'x'"]
    assert router.declined(PACKAGE.ccid) == "docker: no image 'x'"


async def test_a_chosen_builder_that_cannot_now_says_why():
    router = Router([LacksItsImage(), InMemoryBuilder()], lambda _: "docker")
    with pytest.raises(ImageNotFound, match="no image 'x'"):
        await router.build(PACKAGE, attempt())


async def test_an_unknown_choice_names_what_there_is():
    router = Router([InMemoryBuilder(), DeclinesAll()], lambda _: "podman")
    with pytest.raises(ConfigInvalid, match=r"'podman'.*memory, declines"):
        await router.build(PACKAGE, attempt())


async def test_no_builder_at_all_is_said():
    with pytest.raises(Unsupported, match="there is none"):
        await Router([], lambda _: None).build(PACKAGE, attempt())


async def test_a_failed_build_does_not_fall_through_to_the_next():
    later = InMemoryBuilder()
    router = Router([FailsToBuild(), later], lambda _: None)
    with pytest.raises(BuildFailed):
        await router.build(PACKAGE, attempt())
    assert later.builds == 0


async def test_a_failed_rebuild_keeps_the_earlier_instance():
    router = Router([builder := FailsToBuild(times=0)], lambda _: None)
    instance = await router.build(PACKAGE, attempt())
    builder.times = 1
    builder.world.built.clear()
    with pytest.raises(BuildFailed):
        await router.build(PACKAGE, attempt())
    assert router.instance(PACKAGE.ccid) is instance


async def test_reap_asks_every_builder_even_if_an_engine_is_away():
    router = Router([EngineAway(), Leftovers()], lambda _: None)
    assert await router.reap() == 2


class ComesBack(InMemoryBuilder):
    """Its engine is away at first."""

    def __init__(self) -> None:
        super().__init__()
        self.away, self.reaped = True, 0

    async def reap(self) -> int:
        if self.away:
            raise EngineUnavailable("no engine")
        self.reaped += 1
        return 1


async def test_who_could_not_be_reaped_is_before_its_first_build():
    builder = ComesBack()
    router = Router([builder], lambda _: None)
    await router.reap()
    builder.away = False
    await router.build(PACKAGE, attempt())
    await router.build(PACKAGE, attempt())
    assert builder.reaped == 1


async def test_what_one_took_stays_with_it_until_it_is_discarded():
    class Leaves(InMemoryBuilder):
        """Takes packages until its engine goes away."""

        name = "docker"
        away = False

        async def build(self, package, attempt) -> Any:
            if self.away:
                return Declined("no engine", EngineUnavailable("no engine"))
            return await super().build(package, attempt)

    first, second = Leaves(), InMemoryBuilder()
    router = Router([first, second], lambda _: None)
    await router.build(PACKAGE, attempt())
    first.away = True
    router.forget(PACKAGE.ccid)
    with pytest.raises(EngineUnavailable) as caught:
        await router.build(PACKAGE, attempt())
    assert caught.value.retryable
    await router.discard(PACKAGE.ccid)
    await router.build(PACKAGE, attempt())
    assert second.builds == 1


async def test_a_removed_chaincode_is_purged_where_something_was_kept():
    class Keeps(InMemoryBuilder):
        purged = 0

        async def purge(self, ccid) -> int:
            self.purged += 1
            return 1

    keeps = Keeps()
    await Router([InMemoryBuilder(), keeps], lambda _: None).purge(PACKAGE.ccid)
    assert keeps.purged == 1
