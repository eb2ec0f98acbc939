"""Chores: their order, and that none holds up another."""

import asyncio
from typing import Any

import pytest

from chaindock.container.attempt import Attempt
from chaindock.errors import (
    EngineTimeout,
    LaunchFailed,
    LaunchTimeout,
    NodeError,
    StartFailed,
)
from chaindock.ids import Ccid
from chaindock.lifecycle import slots
from chaindock.lifecycle.custodian import Custodian, CustodianOptions

A, B = Ccid("a:" + "1" * 64), Ccid("b:" + "2" * 64)
DIED = LaunchFailed("it was up and exited with 1")
FAST = CustodianOptions(retry_first_s=0.01, retry_cap_s=0.02, retries=3)


class Runtime:
    """Records what is asked; a gate holds launches, an error fails them."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.gates: dict[Any, Any] = {}
        self.errors: dict[Any, Any] = {}
        self.running = 0
        self.most = 0
        self.changed = asyncio.Condition()

    async def note(self, *entry: Any) -> Any:
        self.log.append(entry)
        async with self.changed:
            self.changed.notify_all()

    async def until(self, test: Any) -> Any:
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(test)

    def hold(self, ccid: Any) -> Any:
        self.gates[ccid] = asyncio.Event()
        return self.gates[ccid]

    async def launch(self, ccid: Any, attempt: Any = None) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.note("launch", ccid)
            if ccid in self.gates:
                await self.gates[ccid].wait()
            if ccid in self.errors:
                raise self.errors[ccid]
            await self.note("up", ccid)
        finally:
            self.running -= 1

    async def stop(self, ccid: Any, grace_s: Any, drain_s: Any = None) -> Any:
        await self.note("stop", ccid)
        if ("stop", ccid) in self.gates:
            await self.gates["stop", ccid].wait()

    async def forget(self, ccid: Any, grace_s: Any, drain_s: Any = None) -> Any:
        await self.note("forget", ccid)


@pytest.fixture
def runtime() -> Any:
    return Runtime()


@pytest.fixture
async def custodian(runtime: Any) -> Any:
    async with Custodian(runtime, lambda _: True, FAST) as custodian:
        yield custodian


async def test_chores_of_one_chaincode_run_in_order(custodian, runtime):
    await custodian.launch(A)
    stop = asyncio.ensure_future(custodian.stop(A))
    launch = asyncio.ensure_future(custodian.launch(A))
    await asyncio.gather(stop, launch)
    assert runtime.log == [
        ("launch", A), ("up", A), ("stop", A), ("launch", A), ("up", A)
    ]  # fmt: skip


async def test_equal_chores_that_wait_are_one(custodian, runtime):
    gate = runtime.hold(A)
    launches = [asyncio.ensure_future(custodian.launch(A)) for _ in range(5)]
    await runtime.until(lambda: runtime.log)
    gate.set()
    await asyncio.gather(*launches)
    assert runtime.log == [("launch", A), ("up", A)]


async def test_who_joins_a_launch_is_told(custodian, runtime):
    gate = runtime.hold(A)
    first = asyncio.ensure_future(custodian.launch(A))
    await runtime.until(lambda: runtime.log)
    spare = Attempt(A)
    second = asyncio.ensure_future(custodian.launch(A, spare))
    await asyncio.sleep(0)
    assert spare.reused == ["it is being launched already"]
    gate.set()
    await asyncio.gather(first, second)


async def test_a_hanging_launch_delays_no_other(custodian, runtime):
    runtime.hold(A)
    hanging = asyncio.ensure_future(custodian.launch(A))
    await runtime.until(lambda: runtime.log)
    async with asyncio.timeout(0.1):
        await custodian.launch(B)
    hanging.cancel()


async def test_who_waits_for_a_place_and_leaves_keeps_nobody_out(runtime, monkeypatch):
    monkeypatch.setattr(slots, "processors_idle_s", lambda: 0.0)
    gate = runtime.hold(A)
    c = Ccid("c:" + "6" * 64)
    async with Custodian(runtime, lambda _: True, CustodianOptions(parallel=1)) as cust:
        first = asyncio.ensure_future(cust.launch(A))
        await runtime.until(lambda: runtime.running == 1)
        leaves = asyncio.ensure_future(cust.launch(B))
        stays = asyncio.ensure_future(cust.launch(c))
        await asyncio.sleep(0.01)
        await cust.stop(B)
        with pytest.raises(StartFailed):
            await leaves
        gate.set()
        await asyncio.gather(first, stays)
    assert ("launch", B) not in runtime.log


async def test_only_so_many_launches_begin_side_by_side(runtime, monkeypatch):
    monkeypatch.setattr(slots, "processors_idle_s", lambda: 0.0)  # all are busy
    ccids = [Ccid(f"c{n}:" + "3" * 64) for n in range(10)]
    gates = [runtime.hold(c) for c in ccids]
    async with Custodian(runtime, lambda _: True, CustodianOptions(parallel=2)) as cust:
        launches = [asyncio.ensure_future(cust.launch(c)) for c in ccids]
        await runtime.until(lambda: runtime.running == 2)
        gates[0].set()
        await runtime.until(lambda: ("launch", ccids[2]) in runtime.log)
        assert runtime.most == 2
        for gate in gates:
            gate.set()
        await asyncio.gather(*launches)
    assert runtime.most == 2


async def test_many_that_hang_delay_no_other_by_more_than_100_ms(runtime, monkeypatch):
    """They hold every place and use no processor."""
    loop = asyncio.get_running_loop()
    # As on a machine whose two processors have nothing to do.
    monkeypatch.setattr(slots, "processors_idle_s", lambda: 2 * loop.time())
    hung = [Ccid(f"h{n}:" + "4" * 64) for n in range(8)]
    for ccid in hung:
        runtime.hold(ccid)
    options = CustodianOptions(parallel=2)
    async with Custodian(runtime, lambda _: True, options) as custodian:
        waiting = [asyncio.ensure_future(custodian.launch(c)) for c in hung]
        await runtime.until(lambda: runtime.running == len(hung))
        began = loop.time()
        await custodian.launch(B)
        assert loop.time() - began < 0.1
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_many_that_spin_delay_no_other_by_more_than_100_ms(runtime, monkeypatch):
    """They hold every place and use every processor, as a build in a loop does."""
    monkeypatch.setattr(slots, "processors_idle_s", lambda: 0.0)
    hung = [Ccid(f"h{n}:" + "4" * 64) for n in range(15)]
    for ccid in hung:
        runtime.hold(ccid)
    options = CustodianOptions(parallel=2)
    async with Custodian(runtime, lambda _: True, options) as custodian:
        waiting = [asyncio.ensure_future(custodian.launch(c)) for c in hung]
        await runtime.until(lambda: runtime.running == len(hung))
        began = asyncio.get_running_loop().time()
        await custodian.launch(B)
        assert asyncio.get_running_loop().time() - began < 0.1
        assert not any(one.done() for one in waiting)
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_behind_those_that_spin_a_crowd_is_not_delayed_one_by_one(
    runtime, monkeypatch
):
    monkeypatch.setattr(slots, "processors_idle_s", lambda: 0.0)
    hung = [Ccid(f"h{n}:" + "4" * 64) for n in range(2)]
    for ccid in hung:
        runtime.hold(ccid)
    others = [Ccid(f"c{n}:" + "3" * 64) for n in range(40)]
    options = CustodianOptions(parallel=2)
    async with Custodian(runtime, lambda _: True, options) as custodian:
        waiting = [asyncio.ensure_future(custodian.launch(c)) for c in hung]
        await runtime.until(lambda: runtime.running == len(hung))
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(custodian.launch(c) for c in others))
        assert asyncio.get_running_loop().time() - began < 0.15
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_those_that_spin_are_bounded_in_number(runtime, monkeypatch):
    """Beyond eight times the limit who comes waits until one gives up its place."""
    monkeypatch.setattr(slots, "processors_idle_s", lambda: 0.0)
    hung = [Ccid(f"h{n}:" + "4" * 64) for n in range(8)]
    for ccid in hung:
        runtime.hold(ccid)
    options = CustodianOptions(parallel=1, patience_s=2.0)
    async with Custodian(runtime, lambda _: True, options) as custodian:
        waiting = [asyncio.ensure_future(custodian.launch(c)) for c in hung]
        await runtime.until(lambda: runtime.running == len(hung))
        late = asyncio.ensure_future(custodian.launch(B))
        await asyncio.sleep(0.15)
        assert ("launch", B) not in runtime.log
        async with asyncio.timeout(5):
            await late
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_who_waits_when_all_ends_is_told_that(runtime, monkeypatch, capsys):
    monkeypatch.setattr(slots, "processors_idle_s", lambda: 0.0)
    ccids = [Ccid(f"c{n}:" + "3" * 64) for n in range(5)]
    for ccid in ccids:
        runtime.hold(ccid)
    custodian = Custodian(runtime, lambda _: True, CustodianOptions(parallel=1))
    launches = [asyncio.ensure_future(custodian.launch(c)) for c in ccids]
    await runtime.until(lambda: runtime.running == 1)
    await custodian.aclose()
    ends = await asyncio.gather(*launches, return_exceptions=True)
    assert all("going down" in str(end) for end in ends), ends
    assert "task failed" not in capsys.readouterr().out


async def test_launches_that_hang_give_up_their_places(runtime):
    options = CustodianOptions(parallel=2, patience_s=0.02)
    hung = [Ccid(f"h{n}:" + "4" * 64) for n in range(2)]
    for ccid in hung:
        runtime.hold(ccid)
    async with Custodian(runtime, lambda _: True, options) as custodian:
        waiting = [asyncio.ensure_future(custodian.launch(c)) for c in hung]
        await runtime.until(lambda: runtime.running == 2)
        async with asyncio.timeout(1):
            await custodian.launch(B)
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, NodeError) for error in done)


async def test_a_stop_overtakes_the_launch_under_way(custodian, runtime):
    runtime.hold(A)
    launch = asyncio.ensure_future(custodian.launch(A))
    await runtime.until(lambda: runtime.log)
    async with asyncio.timeout(1):
        await custodian.stop(A)
    with pytest.raises(StartFailed, match="was stopped while it started"):
        await launch
    assert runtime.log == [("launch", A), ("stop", A)]


async def test_a_stop_drops_the_launch_that_waits(custodian, runtime):
    gate = runtime.gates["stop", A] = asyncio.Event()
    first = asyncio.ensure_future(custodian.stop(A))
    await runtime.until(lambda: runtime.log)
    launch = asyncio.ensure_future(custodian.launch(A))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(custodian.stop(A))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, second)
    with pytest.raises(StartFailed):
        await launch
    assert ("launch", A) not in runtime.log


async def test_a_stop_right_after_a_launch_was_asked_for_starts_nothing(
    custodian, runtime
):
    launch = asyncio.ensure_future(custodian.launch(A))
    stop = asyncio.ensure_future(custodian.stop(A))
    await stop
    with pytest.raises(StartFailed):
        await launch
    assert ("up", A) not in runtime.log
    await custodian.launch(A)
    assert runtime.log[-1] == ("up", A)


async def test_a_stop_that_hangs_is_given_up_and_the_lane_goes_on(runtime):
    options = CustodianOptions(stop_grace_s=0.01, stop_limit_s=0.02, drain_s=0)
    runtime.gates["stop", A] = asyncio.Event()
    async with Custodian(runtime, lambda _: True, options) as custodian:
        with pytest.raises(EngineTimeout, match="was not stopped within"):
            await custodian.stop(A)
        await custodian.launch(A)


async def test_all_waiters_get_the_error_of_the_launch(custodian, runtime):
    runtime.errors[A] = LaunchTimeout("too slow")
    results = await asyncio.gather(
        *(custodian.launch(A) for _ in range(3)), return_exceptions=True
    )
    assert results == [runtime.errors[A]] * 3


async def test_who_leaves_does_not_end_the_launch(custodian, runtime):
    gate = runtime.hold(A)
    launch = asyncio.ensure_future(custodian.launch(A))
    await runtime.until(lambda: runtime.log)
    launch.cancel()
    gate.set()
    await runtime.until(lambda: ("up", A) in runtime.log)


async def test_at_the_start_everything_wanted_is_launched_and_failures_are_retried(
    custodian, runtime
):
    runtime.errors[A] = LaunchTimeout("registry is down")
    custodian.restore([A, B])
    await runtime.until(lambda: runtime.log.count(("launch", A)) == 2)
    assert ("up", B) in runtime.log
    del runtime.errors[A]
    await runtime.until(lambda: ("up", A) in runtime.log)


async def test_a_crash_loop_ends_and_an_explicit_launch_begins_anew(custodian, runtime):
    runtime.errors[A] = LaunchTimeout("always")
    custodian.restore([A])
    await runtime.until(lambda: runtime.log.count(("launch", A)) == 1 + FAST.retries)
    await asyncio.sleep(0.08)
    assert runtime.log.count(("launch", A)) == 1 + FAST.retries
    del runtime.errors[A]
    await custodian.launch(A)
    custodian.lost(A, DIED)
    await runtime.until(lambda: runtime.log.count(("up", A)) == 2)


async def test_a_run_that_ended_by_itself_is_started_again(custodian, runtime):
    await custodian.launch(A)
    custodian.lost(A, DIED)
    custodian.lost(A, DIED)
    await runtime.until(lambda: runtime.log.count(("up", A)) == 2)
    await asyncio.sleep(0.05)
    assert runtime.log.count(("launch", A)) == 2


async def test_what_is_not_wanted_is_not_started_again(runtime):
    wanted = {A}
    async with Custodian(runtime, wanted.__contains__, FAST) as custodian:
        await custodian.launch(A)
        custodian.lost(A, DIED)
        wanted.clear()
        await asyncio.sleep(0.05)
        custodian.lost(A, DIED)
        await asyncio.sleep(0.05)
    assert runtime.log.count(("launch", A)) == 1


async def test_stopping_ends_the_retries(custodian, runtime):
    await custodian.launch(A)
    custodian.lost(A, DIED)
    await custodian.stop(A)
    await asyncio.sleep(0.05)
    assert runtime.log == [("launch", A), ("up", A), ("stop", A)]


async def test_after_closing_nothing_starts(runtime):
    custodian = Custodian(runtime, lambda _: True, FAST)
    runtime.hold(A)
    launch = asyncio.ensure_future(custodian.launch(A))
    waiting = asyncio.ensure_future(custodian.stop(B))
    await runtime.until(lambda: ("launch", A) in runtime.log)
    await waiting
    await custodian.aclose()
    with pytest.raises(NodeError, match="going down"):
        await launch
    with pytest.raises(NodeError):
        await custodian.launch(B)
    custodian.lost(A, DIED)
    assert runtime.running == 0


async def test_twenty_launch_in_little_more_time_than_the_slowest(runtime):
    class Slow(Runtime):
        async def launch(self, ccid: Any, attempt: Any = None) -> Any:
            await asyncio.sleep(0.05)

    options = CustodianOptions(parallel=20)
    loop = asyncio.get_running_loop()
    async with Custodian(Slow(), lambda _: True, options) as custodian:
        begin = loop.time()
        ccids = [Ccid(f"c{n}:" + "5" * 64) for n in range(20)]
        await asyncio.gather(*(custodian.launch(c) for c in ccids))
        assert loop.time() - begin < 0.25
