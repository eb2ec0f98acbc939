"""What every Instance must do.

Owns:    InstanceSuite.
Not:     what an implementation provides (backend.py), the chaincode (scripts.py).
Entry:   InstanceSuite, through conformance.py
Source:  container/contracts.py; launch.md §9 W7, W15-W18, W46-W48; needs.md rows 3, 12
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Dial
from support.doubles.backend import WatchedAttempt, built, ended_by, in_background
from support.doubles.scripts import (
    call,
    flood,
    fork,
    hang,
    ignore_term,
    leave,
    say,
    serve,
)

if TYPE_CHECKING:
    from support.doubles.backend import Backend

SIGKILL = 9


class InstanceSuite:
    """What every Instance must do. Provide the fixture `backend`."""

    async def test_the_exit_code_is_reported(self, backend: Backend) -> None:
        instance, package = await backend.built(leave(3))
        async with backend.within():
            await instance.start(backend.peer, Attempt(package.ccid))
            assert (await instance.wait()).code == 3

    async def test_the_signal_that_ended_it_is_reported(self, backend: Backend) -> None:
        instance, package = await backend.built(say("up"), ignore_term())
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            await attempt.until(lambda: bool(attempt.lines))
            await backend.signal(instance, SIGKILL)
            result = await instance.wait()
        assert ended_by(result, SIGKILL), result

    async def test_phases_of_a_start_are_told(self, backend: Backend) -> None:
        instance, package = await backend.built(hang())
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            await instance.stop(1)
        wanted = [Phase.CREATE, Phase.START]
        assert [p for p in attempt.entered if p in wanted] == wanted

    async def test_output_comes_line_for_line_from_both_streams(
        self, backend: Backend
    ) -> None:
        said = [f"out {n} äöü" for n in range(50)]
        instance, package = await backend.built(
            *(say(line) for line in said), say("  err", "stderr"), leave(0)
        )
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            await instance.wait()
            await instance.stop(0)
        assert attempt.of("stdout") == said
        assert attempt.of("stderr") == ["  err"]

    async def test_a_flood_of_output_does_not_hold_up_the_node(
        self, backend: Backend
    ) -> None:
        instance, package = await backend.built(flood(2), say("last"), leave(0))
        attempt = WatchedAttempt(package)
        async with asyncio.timeout(backend.patience_s + 30):
            await instance.start(backend.peer, attempt)
            assert (await instance.wait()).code == 0
            await instance.stop(0)
        assert attempt.tail()[-1] == "last", "after the stop nothing of it is missing"

    async def test_many_wait_and_all_get_the_exit(self, backend: Backend) -> None:
        instance, package = await backend.built(hang())
        async with backend.within():
            await instance.start(backend.peer, Attempt(package.ccid))
            waiters = asyncio.gather(*(instance.wait() for _ in range(5)))
            await asyncio.sleep(0)
            await instance.stop(backend.patience_s)
            assert len(set(await waiters)) == 1

    async def test_a_cancelled_waiter_leaves_the_run_alone(
        self, backend: Backend
    ) -> None:
        instance, package = await backend.built(hang())
        async with backend.within():
            await instance.start(backend.peer, Attempt(package.ccid))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await instance.wait()
            assert await backend.owned(backend.node_id)
            await instance.stop(1)

    async def test_stop_before_start_is_harmless(self, backend: Backend) -> None:
        instance, package = await backend.built(leave(4))
        async with backend.within():
            await instance.stop(1)
            await instance.wait()
            await instance.start(backend.peer, Attempt(package.ccid))
            assert (await instance.wait()).code == 4

    async def test_stop_twice_is_harmless(self, backend: Backend) -> None:
        instance, package = await backend.built(hang())
        async with backend.within():
            await instance.start(backend.peer, Attempt(package.ccid))
            await asyncio.gather(instance.stop(5), instance.stop(5))
            await instance.stop(1)
            await instance.wait()
        assert await backend.owned(backend.node_id) == set()

    async def test_stop_asks_politely_first(self, backend: Backend) -> None:
        instance, package = await backend.built(say("up"), hang())
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            await attempt.until(lambda: bool(attempt.lines))
            began = time.monotonic()
            await instance.stop(backend.patience_s)
            assert time.monotonic() - began < backend.patience_s / 2
            assert not ended_by(await instance.wait(), SIGKILL)

    async def test_who_ignores_sigterm_is_killed_after_the_grace(
        self, backend: Backend
    ) -> None:
        instance, package = await backend.built(say("up"), ignore_term())
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            await attempt.until(lambda: bool(attempt.lines))
            began = time.monotonic()
            await instance.stop(1.0)
            assert time.monotonic() - began >= 0.9
            assert ended_by(await instance.wait(), SIGKILL)
        assert await backend.owned(backend.node_id) == set()

    async def test_a_forked_grandchild_is_gone_after_stop(
        self, backend: Backend
    ) -> None:
        instance, package = await backend.built(fork(), say("up"), hang())
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            await attempt.until(lambda: bool(attempt.lines))
            await instance.stop(5)
        assert await backend.owned(backend.node_id) == set()

    async def test_a_grandchild_that_keeps_the_output_open_does_not_hold_up_wait(
        self, backend: Backend
    ) -> None:
        instance, package = await backend.built(fork(), say("bye"), leave(5))
        attempt = WatchedAttempt(package)
        async with backend.within():
            await instance.start(backend.peer, attempt)
            assert (await instance.wait()).code == 5
            assert attempt.of("stdout") == ["bye"]
            await instance.stop(0)
        assert await backend.owned(backend.node_id) == set()

    async def test_a_second_start_replaces_the_first(self, backend: Backend) -> None:
        instance, package = await backend.built(hang())
        async with backend.within():
            await instance.start(backend.peer, Attempt(package.ccid))
            count = len(await backend.owned(backend.node_id))
            await instance.start(backend.peer, Attempt(package.ccid))
            assert len(await backend.owned(backend.node_id)) == count
            await instance.stop(1)

    async def test_a_start_after_a_crash_works(self, backend: Backend) -> None:
        instance, package = await backend.built(leave(1))
        async with backend.within():
            for _ in range(3):
                await instance.start(backend.peer, Attempt(package.ccid))
                assert (await instance.wait()).code == 1

    async def test_start_removes_what_an_earlier_builder_of_the_node_left(
        self, backend: Backend
    ) -> None:
        lost = await backend.builder()
        package = await backend.packages.make(hang())
        old = await built(lost, package)
        new = await built(await backend.builder(), package)
        async with backend.within():
            await old.start(backend.peer, Attempt(package.ccid))
            count = len(await backend.owned(backend.node_id))
            await backend.lose(lost)
            await new.start(backend.peer, Attempt(package.ccid))
            assert len(await backend.owned(backend.node_id)) == count
            await new.stop(1)
            await backend.until_gone()

    async def test_two_run_side_by_side(self, backend: Backend) -> None:
        builder = await backend.builder()
        one, first = await backend.built(hang(), builder=builder)
        two, second = await backend.built(hang(), builder=builder)
        async with backend.within():
            await one.start(backend.peer, Attempt(first.ccid))
            alone = len(await backend.owned(backend.node_id))
            await two.start(backend.peer, Attempt(second.ccid))
            await one.stop(1)
            assert len(await backend.owned(backend.node_id)) == alone
            await two.stop(1)
        assert await backend.owned(backend.node_id) == set()

    async def test_who_calls_back_gets_an_address_it_can_reach(
        self, backend: Backend
    ) -> None:
        instance, package = await backend.built(call(), leave(0))
        async with backend.within():
            answer = await instance.start(backend.peer, Attempt(package.ccid))
            assert answer is None
            assert (await instance.wait()).code == 0
            await backend.listener.called()

    async def test_who_is_dialled_can_be_reached(self, backend: Backend) -> None:
        instance, package = await backend.built(serve(), serves=True)
        async with backend.within():
            answer = await instance.start(backend.peer, Attempt(package.ccid))
            assert isinstance(answer, Dial)
            writer = await _connect(answer.address)
            writer.close()
            await instance.stop(1)

    async def test_a_cancelled_start_leaves_nothing(self, backend: Backend) -> None:
        instance, package = await backend.built(hang())
        async with backend.within():
            for delay in (0, 0.0005, 0.001, 0.002, 0.004, 0.008):
                attempt = Attempt(package.ccid)
                async with in_background(instance.start(backend.peer, attempt)) as run:
                    await asyncio.sleep(delay)
                await asyncio.gather(run, return_exceptions=True)
                if not run.cancelled():
                    await instance.stop(1)
                assert await backend.owned(backend.node_id) == set()

    async def test_facts_are_given_before_and_while_it_runs(
        self, backend: Backend
    ) -> None:
        instance, package = await backend.built(hang())
        async with backend.within():
            assert instance.describe()["backend"]
            await instance.start(backend.peer, Attempt(package.ccid))
            assert all(isinstance(v, str) for v in instance.describe().values())
            await instance.stop(1)


async def _connect(address: str) -> asyncio.StreamWriter:
    """Dial until it answers: a served chaincode may still be booting."""
    host, _, port = address.rpartition(":")
    while True:
        try:
            if host == "unix":
                return (await asyncio.open_unix_connection(port))[1]
            return (await asyncio.open_connection(host, int(port)))[1]
        except OSError:
            await asyncio.sleep(0.05)
