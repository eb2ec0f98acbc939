"""Metrics for Prometheus.

Owns:    the values of all metrics; the text that is scraped.
Not:     their names (catalogue.py), counting (tallies.py), HTTP (http.py).
Entry:   Metrics.text
Holds:   what a chaincode that is gone had goes with it; values are looked up when they
         are asked for.
Source:  launch.md §8.2
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from fabric_protos.peer import transaction_pb2
from fabric_protos.peer.chaincode_shim_pb2 import ChaincodeMessage

import chaindock
from chaindock import telemetry
from chaindock.endorser.observer import End
from chaindock.operations.catalogue import METRICS, STATES, Named

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry, Metric

    from chaindock.ids import Ccid
    from chaindock.operations.facade import Running
    from chaindock.operations.tallies import Histogram, Tallies

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_LOG_LEVELS: Final = {"warning": "warn", "critical": "fatal"}


class Measured(Protocol):
    """What is asked when somebody scrapes; all of it quick, none of it raises."""

    @property
    def channel(self) -> str:
        """Name of the channel."""

    @property
    def height(self) -> int:
        """Blocks on it."""

    @property
    def ready(self) -> bool:
        """What /readyz says."""

    def chaincodes(self) -> Sequence[Running]:
        """Return what `ps` shows."""

    def open_calls(self, ccid: Ccid) -> int:
        """Return how many invocations of a package are under way."""

    def chores(self) -> Mapping[str, int]:
        """Return how many launches and stops are `running` and `waiting`."""


class Metrics:
    """All metrics of a node.

    Args:
        tallies: what was counted.
        measured: what is looked up; None while the node starts.
    """

    def __init__(self, tallies: Tallies) -> None:
        self._tallies = tallies
        self.measured: Measured | None = None
        self._registry: CollectorRegistry | None = None

    def text(self) -> bytes:
        """Return what Prometheus reads."""
        from prometheus_client import exposition  # noqa: PLC0415  # memory: not all scrape

        return _headings(exposition.generate_latest(self._registered()))

    def _registered(self) -> CollectorRegistry:
        from prometheus_client import (  # noqa: PLC0415  # memory: not all scrape
            CollectorRegistry,
            ProcessCollector,
        )

        if self._registry is None:
            self._registry = CollectorRegistry()
            self._registry.register(self)
            ProcessCollector(registry=self._registry)
        return self._registry

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics as they are now."""
        tallies, page = self._tallies, _Page()
        _add_chaincodes(page, tallies)
        _add_proposals(page, tallies)
        for kind, counts in (
            ("checked", telemetry.counts().checked),
            ("written", telemetry.counts().written),
        ):
            for level, count in counts.items():
                shown = _LOG_LEVELS.get(level, level)
                page.add(f"logging_entries_{kind}", count, shown)
        page.add("fabric_version", 1, chaindock.__version__)
        self._add_measured(page)
        yield from page.filled()

    def _add_measured(self, page: _Page) -> None:
        measured, blocks = self.measured, self._tallies.blocks
        page.add("chaindock_node_ready", int(measured is not None and measured.ready))
        if measured is None:
            return
        page.add("ledger_blockchain_height", measured.height, measured.channel)
        page.observed(
            "ledger_block_processing_time", blocks.processing, measured.channel
        )
        for (kind, chaincode, code), count in blocks.transactions.items():
            labels = kind, chaincode, transaction_pb2.TxValidationCode.Name(code)
            page.add("ledger_transaction_count", count, measured.channel, *labels)
        for state, count in measured.chores().items():
            page.add("chaindock_custodian_chores", count, state)
        names = self._tallies.chaincodes.by_name
        for row in measured.chaincodes():
            page.add("chaindock_chaincode_up", int(row.state == "running"), row.name)
            for state in dict.fromkeys((*STATES, row.state)):
                now = int(state == row.state)
                page.add("chaindock_chaincode_state", now, row.name, state)
            calls = measured.open_calls(row.package_id)  # type: ignore[arg-type]  # text in JSON
            page.add("chaindock_open_calls", calls, row.name)
            one = names.get(row.name)
            restarts = 0 if one is None else one.restarts
            page.add("chaindock_chaincode_restarts", restarts, row.name)
            for cause, count in () if one is None else one.exits.items():
                page.add("chaindock_chaincode_exits", count, row.name, cause)


def _add_chaincodes(page: _Page, tallies: Tallies) -> None:
    counted = tallies.chaincodes
    for ccid, one in counted.by_ccid.items():
        for ok, launches in one.launches.items():
            page.observed("chaincode_launch_duration", launches, ccid, _said(ok))
        page.add("chaincode_launch_failures", one.failures, ccid)
        page.add("chaincode_launch_timeouts", one.timeouts, ccid)
        page.add("chaincode_execute_timeouts", one.requests.timeouts, ccid)
        for ok, builds in one.builds.items():
            page.observed(
                "dockercontroller_chaincode_container_build_duration",
                builds,
                ccid,
                _said(ok),
            )
        for (kind, channel), count in one.requests.arrived.items():
            name = ChaincodeMessage.Type.Name(kind)
            page.add("chaincode_shim_requests_received", count, name, channel, ccid)
        for (kind, channel, ok), times in one.requests.answered.items():
            labels = ChaincodeMessage.Type.Name(kind), channel, ccid, _said(ok)
            count = sum(times.counts)
            page.add("chaincode_shim_requests_completed", count, *labels)
            page.observed("chaincode_shim_request_duration", times, *labels)
    for (phase, ok), spent in counted.phases.items():
        page.observed("chaindock_phase_duration_seconds", spent, phase, _said(ok))
    for (builder, ok), spent in counted.builds.items():
        page.observed("chaindock_build_duration_seconds", spent, builder, _said(ok))


_ENDS: Final = {
    End.DENIED: "endorser_proposal_acl_failures",
    End.DUPLICATE: "endorser_duplicate_transaction_failures",
    End.NOT_SIMULATED: "endorser_proposal_simulation_failures",
    End.REFUSED: "endorser_endorsement_failures",
}


def _add_proposals(page: _Page, tallies: Tallies) -> None:
    counted = tallies.proposals
    page.add("endorser_proposals_received", counted.arrived)
    page.add("endorser_successful_proposals", counted.endorsed)
    page.add("endorser_proposal_validation_failures", counted.invalid)
    for (end, *labels), count in counted.ends.items():
        if end in _ENDS:
            more = ("true",) if end is End.REFUSED else ()
            page.add(_ENDS[end], count, *labels, *more)
    for (channel, chaincode, ok), times in counted.durations.items():
        page.observed(
            "endorser_proposal_duration", times, channel, chaincode, _said(ok)
        )


def _said(ok: bool) -> str:  # a label
    return "true" if ok else "false"


class _Page:
    """Samples of one scrape, by metric."""

    def __init__(self) -> None:
        from prometheus_client import Metric  # noqa: PLC0415  # memory: not all scrape

        self._metrics: dict[str, Any] = {
            name: Metric(name, one.help, one.kind) for name, one in METRICS.items()
        }

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add a value."""
        named = METRICS[name]
        self._metrics[name].add_sample(named.shown, _labels(named, labels), value)

    def observed(self, name: str, histogram: Histogram, *labels: str) -> None:
        """Add a histogram."""
        metric, named = self._metrics[name], _labels(METRICS[name], labels)
        count = 0
        bounds = [f"{bound:g}" for bound in histogram.bounds]
        for bound, one in zip([*bounds, "+Inf"], histogram.counts, strict=True):
            count += one
            metric.add_sample(f"{name}_bucket", {**named, "le": bound}, count)
        metric.add_sample(f"{name}_count", named, count)
        metric.add_sample(f"{name}_sum", named, histogram.total_s)

    def filled(self) -> Iterator[Metric]:
        """Yield the metrics that have a value."""
        yield from (metric for metric in self._metrics.values() if metric.samples)


def _labels(named: Named, values: Sequence[str]) -> dict[str, str]:
    return dict(zip(named.labels, values, strict=True))


_HEADING: Final = re.compile(rb"^# (HELP|TYPE) (\w+)_total ", re.MULTILINE)


def _headings(text: bytes) -> bytes:
    """Head Fabric's counters with their names: the library would have them end otherwise."""

    def head(found: re.Match[bytes]) -> bytes:
        named = METRICS.get(found[2].decode())
        ours = named is None or not named.fabric
        return found[0] if ours else b"# %s %s " % (found[1], found[2])

    return _HEADING.sub(head, text)
