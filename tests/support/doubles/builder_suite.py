"""What every Builder must do.

Owns:    BuilderSuite.
Not:     what an implementation provides (backend.py), the chaincode (scripts.py).
Entry:   BuilderSuite, through conformance.py
Source:  container/contracts.py; launch.md §9 W17, W20, W24, W43-W48; needs.md rows 3, 12
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt, Phase
from chaindock.errors import BuildFailed
from support.doubles.backend import WatchedAttempt, built, in_background
from support.doubles.scripts import flood, fork, hang, leave, say

if TYPE_CHECKING:
    from chaindock.container.attempt import Event
    from support.doubles.backend import Backend


class BuilderSuite:
    """What every Builder must do. Provide the fixture `backend`."""

    async def test_a_package_is_built_and_its_phases_are_told(
        self, backend: Backend
    ) -> None:
        package = await backend.packages.make(
            hang(), dependencies=[say("fetching")], build=[say("compiling", "stderr")]
        )
        attempt = WatchedAttempt(package)
        async with backend.within():
            await built(await backend.builder(), package, attempt)
        assert attempt.of("build") == ["fetching", "compiling"]
        wanted = [Phase.PACKAGE, Phase.DEPENDENCIES, Phase.COMPILE]
        assert [p for p in attempt.entered if p in wanted] == wanted

    async def test_a_second_build_reuses_the_first(self, backend: Backend) -> None:
        package = await backend.packages.make(hang(), build=[say("compiling")])
        builder = await backend.builder()
        again = WatchedAttempt(package)
        async with backend.within():
            await built(builder, package)
            await built(builder, package, again)
        assert again.of("build") == []
        assert again.reused

    async def test_another_builder_of_the_node_reuses_the_build(
        self, backend: Backend
    ) -> None:
        package = await backend.packages.make(hang(), build=[say("compiling")])
        again = WatchedAttempt(package)
        async with backend.within():
            await built(await backend.builder(), package)
            await built(await backend.builder(), package, again)
        assert again.of("build") == []

    async def test_an_edit_is_built_again(self, backend: Backend) -> None:
        builder = await backend.builder()
        old = await backend.packages.make(hang(), label="cc", build=[say("one")])
        new = await backend.packages.make(hang(), label="cc", build=[say("two")])
        attempt = WatchedAttempt(new)
        async with backend.within():
            await built(builder, old)
            await built(builder, new, attempt)
        assert attempt.of("build") == ["two"]

    async def test_a_failed_step_is_named_with_its_output(
        self, backend: Backend
    ) -> None:
        package = await backend.packages.make(
            build=[say("no such module 'asset'", "stderr"), leave(3)]
        )
        builder = await backend.builder()
        async with backend.within():
            with pytest.raises(BuildFailed, match=r"build\.sh") as caught:
                await built(builder, package)
        assert caught.value.exit_code == 3
        assert caught.value.ccid == package.ccid
        assert "no such module 'asset'" in caught.value.output
        assert await backend.owned(backend.node_id) == set()

    async def test_steps_after_a_failed_one_are_not_run(self, backend: Backend) -> None:
        package = await backend.packages.make(
            dependencies=[leave(1)], build=[say("compiling")]
        )
        attempt = WatchedAttempt(package)
        async with backend.within():
            with pytest.raises(BuildFailed, match=r"deps\.sh"):
                await built(await backend.builder(), package, attempt)
        assert attempt.of("build") == []

    async def test_a_failed_build_is_tried_again(self, backend: Backend) -> None:
        package = await backend.packages.make(build=[say("try"), leave(1)])
        builder = await backend.builder()
        for _ in range(2):
            attempt = WatchedAttempt(package)
            async with backend.within():
                with pytest.raises(BuildFailed):
                    await built(builder, package, attempt)
            assert attempt.of("build") == ["try"]

    async def test_a_cancelled_build_leaves_nothing(self, backend: Backend) -> None:
        package = await backend.packages.make(build=[say("busy"), fork(), hang()])
        attempt = WatchedAttempt(package)
        builder = await backend.builder()
        async with (
            backend.within(),
            in_background(built(builder, package, attempt)) as build,
        ):
            await attempt.until(lambda: bool(attempt.of("build")))
            assert await backend.owned(backend.node_id)
            build.cancel()
            with pytest.raises(asyncio.CancelledError):
                await build
        assert await backend.owned(backend.node_id) == set()

    async def test_a_flood_of_output_does_not_stall(self, backend: Backend) -> None:
        """More than a pipe, a log or an engine's first burst takes."""
        much = [flood(1), flood(20, width=1000), say("done")]
        package = await backend.packages.make(hang(), build=much)
        attempt, last = Attempt(package.ccid), [""]

        def keep(event: Event) -> None:
            if event.kind == "output":
                last[0] = event.data["line"]

        attempt.watch(keep)
        async with asyncio.timeout(backend.patience_s + 30):
            await built(await backend.builder(), package, attempt)
        assert last == ["done"]

    async def test_equal_builds_side_by_side_both_succeed(
        self, backend: Backend
    ) -> None:
        pair = [
            await backend.packages.make(hang(), build=[say("b")], salt="same", label=n)
            for n in ("left", "right")
        ]
        builder = await backend.builder()
        async with backend.within():
            await asyncio.gather(*(built(builder, package) for package in pair))
        assert await backend.owned(backend.node_id) == set()

    async def test_reap_removes_what_a_killed_node_left_and_only_that(
        self, backend: Backend
    ) -> None:
        lost, bystander = await backend.builder(), await backend.builder("n2")
        mine, one = await backend.built(fork(), hang(), builder=lost)
        other, two = await backend.built(hang(), builder=bystander)
        async with backend.within():
            await mine.start(backend.peer, Attempt(one.ccid))
            await other.start(backend.peer, Attempt(two.ccid))
            await backend.lose(lost)
            assert await backend.owned(backend.node_id)
            assert await (await backend.builder()).reap() == 1
            await backend.until_gone()
            assert await backend.owned("n2")
            await other.stop(0)

    async def test_reap_finds_nothing_after_a_clean_end(self, backend: Backend) -> None:
        first = await backend.open_builder(backend.node_id)
        instance, package = await backend.built(hang(), builder=first)
        async with backend.within():
            await instance.start(backend.peer, Attempt(package.ccid))
            await backend.close_builder(first)
            assert await backend.owned(backend.node_id) == set()
            assert await (await backend.builder()).reap() == 0
