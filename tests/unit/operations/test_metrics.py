"""Metrics after launches, ends and calls, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaindock.chaincode.options import CallOptions
from chaindock.chaincode.support import ChaincodeSupport
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Exit
from chaindock.container.router import Router
from chaindock.endorser.endorser import Watch
from chaindock.errors import (
    Denied,
    ExecuteTimeout,
    ExitedEarly,
    LaunchFailed,
    LaunchTimeout,
    ProposalInvalid,
    TransactionExists,
)
from chaindock.ids import at_peer
from chaindock.ledger.committer import CommittedBlock, count
from chaindock.ledger.transaction import ParsedTransaction
from chaindock.lifecycle.states import Target
from chaindock.operations.facade import Running
from chaindock.operations.health import Health, Parts
from chaindock.telemetry import metrics
from support.doubles.fakes import InMemoryBuilder, fake_package
from support.doubles.launch_fakes import (
    FakeInstance,
    OneBackend,
    dies_at_once,
    keeps_working,
    never_registers,
    registered,
)
from support.doubles.launch_world import World
from support.doubles.memory_state import CHANNEL, invocation
from support.eventually import eventually
from support.nodes.scrape import METRICS, Scrape, reset_metrics
from support.shims.peer import Kind
from support.shims.stream_node import CCID

NAME = "basic"


class Measured:
    """A node with one chaincode."""

    def __init__(self, ccid: str = CCID) -> None:
        calls = [{"caller_left": left} for left in (False, True, False)]
        told = (NAME, "1", 1, ccid, "running", "process")
        self.rows = [Running(*told, calls=calls, channel=CHANNEL)]

    def scrape(self) -> str:
        none: Any = SimpleNamespace(all=list, pending=list)
        channel: Any = SimpleNamespace(ledger=SimpleNamespace(height=7))
        channels: Any = {CHANNEL: channel}
        health = Health()
        health.parts = Parts(channels, none, none, none, lambda: self.rows)
        return health.scrape().decode()


@pytest.fixture(autouse=True)
def _nothing_counted_before():
    reset_metrics()


def scraped(measured: Measured | None = None) -> Scrape:
    text = measured.scrape() if measured else Health().scrape().decode()
    found = Scrape(text)
    found.check()
    return found


@pytest.fixture
async def world() -> Any:
    async with World(connect_timeout_s=2) as world:
        yield world


# --- launches -------------------------------------------------------------------------


async def test_a_launch_counts_once_however_many_waited(world: World):
    world.builder.prepare(CCID)
    await asyncio.gather(*(world.launch(CCID) for _ in range(20)))
    found = scraped()
    count = "chaincode_launch_duration_count"
    assert found.value(count, chaincode=CCID, success="true") == 1
    assert found.value(count, chaincode=CCID, success="false") is None
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 0


async def test_an_early_exit_counts_as_a_failure(world: World):
    world.builder.prepare(CCID, dies_at_once)
    launches = [world.launch(CCID) for _ in range(5)]
    for outcome in await asyncio.gather(*launches, return_exceptions=True):
        assert isinstance(outcome, ExitedEarly)
    found = scraped()
    duration = "chaincode_launch_duration_count"
    assert found.value(duration, chaincode=CCID, success="false") == 1
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 1
    assert found.value("chaincode_launch_timeouts", chaincode=CCID) == 0


async def test_a_timeout_counts_as_both(world: World):
    world.builder.prepare(CCID, never_registers)
    with pytest.raises(LaunchTimeout):
        await world.launch(CCID)
    found = scraped()
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 1
    assert found.value("chaincode_launch_timeouts", chaincode=CCID) == 1
    spent = "chaindock_phase_duration_seconds_count"
    assert found.value(spent, phase="connect", success="false") == 1
    assert found.value(spent, phase="compile", success="true") == 1


async def test_a_launch_that_was_given_up_is_no_failure(world: World):
    world.builder.prepare(CCID, never_registers)
    launch = asyncio.ensure_future(world.launch(CCID))
    await eventually(lambda: f'"{CCID}"' in metrics.text())
    await world.stop(CCID, 0)
    with pytest.raises(LaunchFailed):
        await launch
    found = scraped()
    assert found.value("chaincode_launch_failures", chaincode=CCID) == 0


async def test_ends_and_restarts_are_told_by_name(world: World):
    instance = world.builder.prepare(CCID)
    await world.launch(CCID)
    await instance.crash(Exit(None, signal=9, oom=True))
    await eventually(lambda: instance.starts == 2)
    await world.launch(CCID)
    await world.stop(CCID, 1)
    await world.launch(CCID)
    found = scraped(Measured())
    exits = "chaindock_chaincode_exits_total"
    assert found.value(exits, chaincode=NAME, cause="oom") == 1
    assert found.value("chaindock_chaincode_restarts_total", chaincode=NAME) == 1
    causes = {dict(labels)["cause"] for labels in found.samples[exits]}
    assert len(causes) == 2


async def test_what_is_forgotten_is_shown_no_more(world: World):
    world.builder.prepare(CCID)
    await world.launch(CCID)
    measured = Measured()
    assert CCID in measured.scrape()
    await world.custodian.stop(CCID, Target.REMOVED)
    measured.rows.clear()
    text = measured.scrape()
    assert CCID not in text
    assert f'"{NAME}"' not in text


async def test_a_failed_deployment_that_is_removed_is_shown_still(world: World):
    world.builder.prepare(CCID, dies_at_once)
    with pytest.raises(ExitedEarly):
        await world.launch(CCID)
    await world.custodian.stop(CCID, Target.REMOVED)
    assert scraped().value("chaincode_launch_failures", chaincode=CCID) == 1


# --- calls ----------------------------------------------------------------------------


async def test_requests_are_counted_by_type_channel_and_outcome(world: World):
    async def asks(instance: FakeInstance) -> Exit:
        peer = await registered(instance)
        message = await peer.next()
        own = {"txid": message.txid, "channel": message.channel_id}
        await peer.send(Kind.GET_STATE, b"\x0a\x01k", **own)
        await peer.next()
        await peer.send(Kind.PURGE_PRIVATE_DATA, b"\x0a\x01q", **own)
        await peer.next()
        await peer.send(Kind.GET_STATE, b"\x0a\x01k", txid="0" * 64, channel="made-up")
        await peer.next()
        await peer.complete(message, b"done")
        await peer.next()
        return Exit(0)

    world.builder.prepare(CCID, asks)
    world.custodian.resume(CCID)
    await world.execute()
    found = scraped()
    labels = {"chaincode": CCID, "channel": CHANNEL}
    received, completed = (
        f"chaincode_shim_requests_{x}" for x in ("received", "completed")
    )
    assert found.value(received, type="GET_STATE", **labels) == 1
    assert found.value(completed, type="GET_STATE", success="true", **labels) == 1
    assert (
        found.value(completed, type="PURGE_PRIVATE_DATA", success="false", **labels)
        == 1
    )
    # A channel that the chaincode made up does not become a label.
    assert found.value(completed, type="GET_STATE", success="false", channel="") == 1
    assert "made-up" not in Health().scrape().decode()
    duration = "chaincode_shim_request_duration_count"
    assert found.value(duration, type="GET_STATE", success="true", **labels) == 1


async def test_invocations_that_are_given_up_are_counted(world: World):
    world.builder.prepare(CCID, keeps_working)
    world.custodian.resume(CCID)
    support = ChaincodeSupport(
        world.registry, world.custodian.ready, CallOptions(execute_timeout_s=0.1)
    )
    with pytest.raises(ExecuteTimeout):
        await support.execute(CCID, invocation("f"))
    assert scraped().value("chaincode_execute_timeouts", chaincode=CCID) == 1


# --- everything else ------------------------------------------------------------------


def test_every_metric_is_named_as_fabric_names_it():
    fill()
    text = Measured().scrape()
    assert Scrape(text).check() == {one.shown for one in METRICS.values()}
    assert "# TYPE chaincode_launch_failures counter\n" in text
    assert "# TYPE chaindock_chaincode_restarts_total counter\n" in text
    assert "# TYPE process_cpu_seconds_total counter\n" in text
    assert '\nfabric_version{version="' in text
    assert f'\nledger_blockchain_height{{channel="{CHANNEL}"}} 7.0\n' in text
    assert '\nchaindock_chaincode_up{chaincode="basic"} 1.0\n' in text
    assert '\nchaindock_open_calls{chaincode="basic"} 2.0\n' in text
    assert (
        '\nendorser_endorsement_failures{chaincode="a",chaincodeerror="true",'
        'channel="c"} 1.0\n'
    ) in text


def fill() -> None:
    """Let everything happen once."""
    metrics.launch_begun(CCID)
    metrics.DOCKER_BUILD_DURATION.labels(CCID, "true").observe(65)
    metrics.BUILD_DURATION.labels("docker", "true").observe(65)
    metrics.launch_ended(CCID, [("image", 65.0)], ok=True)
    metrics.run_ended(CCID, "exited", asked=True)
    metrics.requests("GET_STATE", "c", CCID).inc()
    metrics.held_bytes(CCID, lambda: 5)
    metrics.request_answered("GET_STATE", "c", CCID, 0.001, ok=True)
    propose("a", endorsed=True)
    for error in (None, Denied("x"), TransactionExists("x"), ProposalInvalid("x")):
        propose("a", error)
    propose("a", asyncio.CancelledError())
    propose("a", ExecuteTimeout("x"), admitted=True)
    commit("a:1.0")


def propose(
    chaincode: str,
    error: BaseException | None = None,
    *,
    admitted: bool = False,
    endorsed: bool = False,
) -> None:
    proposal = SimpleNamespace(channel="c", name=chaincode, tx_id="t")
    with contextlib.suppress(BaseException), Watch(cast(Any, proposal)) as watch:
        watch.admitted, watch.endorsed = admitted, endorsed
        if error is not None:
            raise error


def commit(chaincode: str) -> None:
    tx = ParsedTransaction(b"", name=chaincode.partition(":")[0], version="1.0")
    count("c", CommittedBlock(1, bytes([0]), 0.002), [tx])


def test_cold_launches_have_buckets():
    """Fabric's buckets end at 10 s; a cold build takes longer."""
    fill()
    name = "dockercontroller_chaincode_container_build_duration_bucket"
    found = scraped()
    assert found.value(name, le="60.0", chaincode=CCID) == 0
    assert found.value(name, le="120.0", chaincode=CCID) == 1


def test_what_serves_the_peer_of_another_organisation_is_counted_for_itself():
    fill()
    other = at_peer(CCID, "Org2MSP")
    metrics.launch_begun(other)
    metrics.launch_ended(other, [], ok=False)
    metrics.launch_begun(other)
    measured = Measured()
    told = ("basic@Org2MSP", "1", 1, CCID, "back-off", "process")
    second = Running(*told, calls=[{"caller_left": False}], channel=CHANNEL)
    measured.rows = [replace(measured.rows[0], others=[second])]
    found = scraped(measured)
    for name, up, calls, restarts in (("basic", 1, 2, 0), (told[0], 0, 1, 1)):
        assert found.value("chaindock_chaincode_up", chaincode=name) == up
        assert found.value("chaindock_open_calls", chaincode=name) == calls
        counted = found.value("chaindock_chaincode_restarts_total", chaincode=name)
        assert counted == restarts


def test_memory_is_bounded_whatever_comes():
    for number in range(metrics.MOST_PACKAGES * 3):
        ccid = f"cc{number}_1:{number:064x}"
        metrics.launch_begun(ccid)
        metrics.requests("GET_STATE", "c", ccid).inc()
        metrics.launch_ended(ccid, [], ok=False)
        metrics.run_ended(ccid, "exited", asked=False)
        propose(f"cc{number}", ExecuteTimeout("x"), admitted=True)
        commit(f"cc{number}:1.0")
    found = scraped()
    launched = found.samples["chaincode_launch_failures"]
    assert len(launched) == metrics.MOST_PACKAGES
    asked = found.samples["chaincode_shim_requests_received"]
    assert len(asked) == metrics.MOST_PACKAGES
    assert len(metrics.packages) == metrics.MOST_PACKAGES
    counts = found.samples["endorser_proposal_duration_count"]
    names = {dict(labels)["chaincode"] for labels in counts}
    assert len(names) <= metrics.MOST_NAMES
    assert metrics.OTHER in names
    assert len(found.samples["ledger_transaction_count"]) <= metrics.MOST_NAMES


async def test_a_build_that_existed_is_not_counted():
    class Builds(InMemoryBuilder):
        phase = Phase.PACKAGE

        async def build(self, package, attempt):
            attempt.enter(self.phase)
            return await super().build(package, attempt)

    package = fake_package()
    builder = Builds()
    router = Router(OneBackend(builder))
    for builder.phase in (Phase.PACKAGE, Phase.COMPILE):
        await router.build(package, Attempt(package.ccid))
    found = scraped()
    count = "chaindock_build_duration_seconds_count"
    assert found.value(count, builder=Builds.name, success="true") == 1


def test_before_the_node_is_up_there_are_metrics_too():
    found = scraped()
    assert found.value("chaindock_node_ready") == 0
    assert found.value("ledger_blockchain_height") is None


def test_what_a_label_holds_cannot_break_the_text():
    propose('a"} 1\nb\\', endorsed=True)
    name = "endorser_proposal_duration_count"
    assert scraped().value(name, chaincode='a"} 1\nb\\') == 1
