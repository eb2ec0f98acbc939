"""Metrics after launches, ends and calls, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chaindock.chaincode.options import CallOptions
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Exit
from chaindock.endorser.observer import End
from chaindock.errors import (
    BuildFailed,
    ExecuteTimeout,
    ExitedEarly,
    LaunchFailed,
    LaunchTimeout,
)
from chaindock.ids import Ccid, TxId
from chaindock.ledger.committer import CommittedBlock, CommittedTx
from chaindock.operations.catalogue import METRICS
from chaindock.operations.facade import Running
from chaindock.operations.metrics import Metrics
from chaindock.operations.tallies import (
    LONG_S,
    MOST_CHAINCODES,
    MOST_NAMES,
    OTHER,
    Histogram,
    Tallies,
)
from support.doubles.launch_fakes import (
    FakeInstance,
    dies_at_once,
    keeps_working,
    never_registers,
    registered,
)
from support.doubles.launch_world import World
from support.doubles.memory_state import CHANNEL, invocation
from support.eventually import eventually
from support.nodes.scrape import Scrape
from support.shims.peer import Kind
from support.shims.stream_node import CCID

NAME = "basic"


class Measured:
    """A node with one chaincode."""

    channel, height, ready = CHANNEL, 7, True

    def __init__(self, ccid: str = CCID) -> None:
        self.rows = [Running(NAME, "1", 1, ccid, "running", "process")]

    def chaincodes(self) -> list[Running]:
        return self.rows

    def open_calls(self, ccid: Ccid) -> int:
        return 3

    def chores(self) -> dict[str, int]:
        return {"running": 1, "waiting": 2}


@pytest.fixture
def tallies() -> Tallies:
    tallies = Tallies()
    tallies.chaincodes.names_of = lambda _: [NAME]
    return tallies


def scraped(tallies: Tallies, measured: Measured | None = None) -> Scrape:
    metrics = Metrics(tallies)
    metrics.measured = measured
    scrape = Scrape(metrics.text().decode())
    scrape.check()
    return scrape


@pytest.fixture
async def world(tallies: Tallies) -> Any:
    async with World(connect_timeout_s=0.3) as world:
        world.registry.observer = tallies.chaincodes
        yield world


# --- launches -------------------------------------------------------------------------


async def test_a_launch_counts_once_however_many_waited(world: World, tallies: Tallies):
    """launch.md W67."""
    world.builder.prepare(CCID)
    await asyncio.gather(*(world.launcher.launch(CCID) for _ in range(20)))
    found = scraped(tallies)
    count = "chaincode_launch_duration_count"
    assert found.value(count, chaincode=CCID, success="true") == 1
    assert found.value(count, chaincode=CCID, success="false") is None
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 0


async def test_an_early_exit_counts_as_a_failure(world: World, tallies: Tallies):
    """launch.md W67."""
    world.builder.prepare(CCID, dies_at_once)
    launches = [world.launcher.launch(CCID) for _ in range(5)]
    for outcome in await asyncio.gather(*launches, return_exceptions=True):
        assert isinstance(outcome, ExitedEarly)
    found = scraped(tallies)
    duration = "chaincode_launch_duration_count"
    assert found.value(duration, chaincode=CCID, success="false") == 1
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 1
    assert found.value("chaincode_launch_timeouts", chaincode=CCID) == 0
    assert "exited with 2" in (tallies.chaincodes.trouble(CCID) or "")


async def test_a_timeout_counts_as_both(world: World, tallies: Tallies):
    world.builder.prepare(CCID, never_registers)
    with pytest.raises(LaunchTimeout):
        await world.launcher.launch(CCID)
    found = scraped(tallies)
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 1
    assert found.value("chaincode_launch_timeouts", chaincode=CCID) == 1
    spent = "chaindock_phase_duration_seconds_count"
    assert found.value(spent, phase="connect", success="false") == 1
    assert found.value(spent, phase="compile", success="true") == 1


async def test_a_launch_that_was_given_up_is_no_failure(world: World, tallies: Tallies):
    world.builder.prepare(CCID, never_registers)
    launch = asyncio.ensure_future(world.launcher.launch(CCID))
    await eventually(lambda: CCID in tallies.chaincodes.by_ccid)
    await world.launcher.stop(CCID, 0)
    with pytest.raises(LaunchFailed):
        await launch
    found = scraped(tallies)
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 0
    assert tallies.chaincodes.trouble(CCID) is None


async def test_a_failed_build_is_told_and_a_success_ends_the_trouble(
    world: World, tallies: Tallies
):
    world.builder.prepare(CCID)
    world.builder.errors.append(BuildFailed("step compile ended with 1"))
    with pytest.raises(BuildFailed):
        await world.launcher.launch(CCID)
    assert "step compile" in (tallies.chaincodes.trouble(CCID) or "")
    await world.launcher.launch(CCID)
    assert tallies.chaincodes.trouble(CCID) is None


async def test_ends_and_restarts_are_told_by_name(world: World, tallies: Tallies):
    instance = world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    await instance.crash(Exit(None, signal=9, oom=True))
    await eventually(lambda: bool(world.exits))
    await world.launcher.launch(CCID)
    await world.launcher.stop(CCID, 1)
    await world.launcher.launch(CCID)
    found = scraped(tallies, Measured())
    exits = "chaindock_chaincode_exits_total"
    assert found.value(exits, chaincode=NAME, cause="oom") == 1
    assert found.value("chaindock_chaincode_restarts_total", chaincode=NAME) == 1
    causes = {dict(labels)["cause"] for labels in found.samples[exits]}
    assert len(causes) == 2


async def test_what_is_forgotten_is_shown_no_more(world: World, tallies: Tallies):
    world.builder.prepare(CCID)
    await world.launcher.launch(CCID)
    measured = Measured()
    assert CCID in Metrics(tallies).text().decode()
    await world.launcher.forget(CCID, 1)
    measured.rows.clear()
    metrics = Metrics(tallies)
    metrics.measured = measured
    text = metrics.text().decode()
    assert CCID not in text
    assert f'"{NAME}"' not in text


# --- calls ----------------------------------------------------------------------------


async def test_requests_are_counted_by_type_channel_and_outcome(
    world: World, tallies: Tallies
):
    async def asks(instance: FakeInstance) -> Exit:
        peer = await registered(instance)
        message = await peer.next()
        own = {"txid": message.txid, "channel": message.channel_id}
        await peer.send(Kind.GET_STATE, b"\x0a\x01k", **own)
        await peer.next()
        await peer.send(Kind.GET_QUERY_RESULT, b"\x0a\x01q", **own)
        await peer.next()
        await peer.send(Kind.GET_STATE, b"\x0a\x01k", txid="0" * 64, channel="made-up")
        await peer.next()
        await peer.complete(message, b"done")
        await peer.next()
        return Exit(0)

    world.builder.prepare(CCID, asks)
    await world.execute()
    found = scraped(tallies)
    labels = {"chaincode": CCID, "channel": CHANNEL}
    received, completed = (
        f"chaincode_shim_requests_{x}" for x in ("received", "completed")
    )
    assert found.value(received, type="GET_STATE", **labels) == 1
    assert found.value(completed, type="GET_STATE", success="true", **labels) == 1
    assert (
        found.value(completed, type="GET_QUERY_RESULT", success="false", **labels) == 1
    )
    # A channel that the chaincode made up does not become a label.
    assert found.value(completed, type="GET_STATE", success="false", channel="") == 1
    assert "made-up" not in Metrics(tallies).text().decode()
    duration = "chaincode_shim_request_duration_count"
    assert found.value(duration, type="GET_STATE", success="true", **labels) == 1


async def test_invocations_that_are_given_up_are_counted(
    world: World, tallies: Tallies
):
    world.builder.prepare(CCID, keeps_working)
    support = ChaincodeSupport(
        world.registry, world.launcher, CallOptions(execute_timeout_s=0.1)
    )
    with pytest.raises(ExecuteTimeout):
        await support.execute(CCID, invocation("f"))
    assert scraped(tallies).value("chaincode_execute_timeouts", chaincode=CCID) == 1


# --- everything else ------------------------------------------------------------------


def test_every_metric_is_named_as_fabric_names_it(tallies: Tallies):
    fill(tallies)
    metrics = Metrics(tallies)
    metrics.measured = Measured()
    text = metrics.text().decode()
    assert Scrape(text).check() == set(METRICS)
    assert "# TYPE chaincode_launch_failures counter\n" in text
    assert "# TYPE chaindock_chaincode_restarts_total counter\n" in text
    assert "# TYPE process_cpu_seconds_total counter\n" in text
    assert '\nfabric_version{version="' in text
    assert f'\nledger_blockchain_height{{channel="{CHANNEL}"}} 7.0\n' in text
    assert '\nchaindock_chaincode_up{chaincode="basic"} 1.0\n' in text
    assert (
        '\nendorser_endorsement_failures{chaincode="a",chaincodeerror="true",'
        'channel="c"} 1.0\n'
    ) in text


def fill(tallies: Tallies) -> None:
    """Let everything happen once."""
    counted, attempt = tallies.chaincodes, Attempt(CCID)
    counted.launching(attempt)
    attempt.enter(Phase.IMAGE)
    counted.built("docker", attempt, 65.0, ok=True)
    attempt.over()
    counted.launched(attempt, None)
    counted.ended(attempt, Exit(1), asked=False)
    stream = counted.stream(CCID)
    stream.received(Kind.GET_STATE, "c")
    stream.completed(Kind.GET_STATE, "c", 0.001, ok=True)
    stream.timed_out()
    for end in End:
        tallies.proposals.received()
        tallies.proposals.done(end, "c", "a", 0.01)
    block = CommittedBlock(1, (CommittedTx(TxId("t"), 0, 0),), b"", 0.002)
    tallies.blocks.committed(block)


def test_cold_launches_have_buckets(tallies: Tallies):
    """launch.md W67: Fabric's end at 10 s."""
    fill(tallies)
    name = "dockercontroller_chaincode_container_build_duration_bucket"
    found = scraped(tallies)
    assert found.value(name, le="60", chaincode=CCID) == 0
    assert found.value(name, le="120", chaincode=CCID) == 1


def test_a_bucket_holds_its_upper_end():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.total_s == 14.0


def test_memory_is_bounded_whatever_comes(tallies: Tallies):
    tallies.chaincodes.names_of = lambda _: ()
    for number in range(MOST_CHAINCODES * 3):
        attempt = Attempt(Ccid(f"cc{number}_1:{number:064x}"))
        tallies.chaincodes.launching(attempt)
        tallies.chaincodes.ended(attempt, Exit(1), asked=False)
        tallies.proposals.done(End.NOT_SIMULATED, "c", f"cc{number}", 0.1)
        tx = CommittedTx(TxId("t"), 0, 0, chaincode=f"cc{number}:1.0")
        tallies.blocks.committed(CommittedBlock(number, (tx,), b""))
    assert len(tallies.chaincodes.by_ccid) == MOST_CHAINCODES
    assert len(tallies.chaincodes.by_name) <= MOST_NAMES
    names = {name for _, name, _ in tallies.proposals.durations}
    assert len(names) == MOST_NAMES + 1
    assert OTHER in names
    assert len(tallies.blocks.transactions) == MOST_NAMES + 1


def test_one_that_was_there_is_no_build(tallies: Tallies):
    attempt = Attempt(CCID)
    attempt.enter(Phase.PACKAGE)
    tallies.chaincodes.built("docker", attempt, 0.01, ok=True)
    assert tallies.chaincodes.builds == {}
    assert LONG_S[-1] >= 600


def test_before_the_node_is_up_there_are_metrics_too(tallies: Tallies):
    found = scraped(tallies)
    assert found.value("chaindock_node_ready") == 0
    assert found.value("ledger_blockchain_height") is None


def test_what_a_label_holds_cannot_break_the_text(tallies: Tallies):
    tallies.proposals.done(End.ENDORSED, "c", 'a"} 1\nb\\', 0.1)
    found = scraped(tallies)
    name = "endorser_proposal_duration_count"
    assert found.value(name, chaincode='a"} 1\nb\\') == 1
