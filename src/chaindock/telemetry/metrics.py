"""All metrics, by the name under which Prometheus scrapes them.

The code in which a thing happens counts it here. Memory is bounded: the values of a package
go when the package does (`remove`), and names that a caller chooses go through `bounded`.
Source: docs/fabric/operations.md#metrics
"""

from __future__ import annotations

import re
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SHORT_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Buckets of calls and requests: Fabric's, and some below and above."""
LONG_S: Final = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
    *(30.0, 60.0, 120.0, 300.0, 600.0, 1200.0),
)
"""Buckets of launches: Fabric's end at 10 s, and most cold launches take longer."""
MOST_PACKAGES: Final = 200
"""With more packages, the values of those launched longest ago are dropped."""
MOST_NAMES: Final = 400
OTHER: Final = "(other)"
"""Label value for every name after the first `MOST_NAMES`."""

_TOTAL: Final = re.compile(
    r"^((?:# HELP |# TYPE |)(?!chaindock_|process_)\w+)_total\b", re.MULTILINE
)
"""The client library appends this to the name of every counter; Fabric does not."""

REGISTRY: Final = CollectorRegistry()
disable_created_metrics()  # type: ignore[no-untyped-call]
ProcessCollector(registry=REGISTRY)


_counter: Final = partial(Counter, registry=REGISTRY)
_gauge: Final = partial(Gauge, registry=REGISTRY)
_short: Final = partial(Histogram, registry=REGISTRY, buckets=SHORT_S)
_long: Final = partial(Histogram, registry=REGISTRY, buckets=LONG_S)

# ---- by package: the label `chaincode` is the package id

LAUNCH_DURATION: Final = _long(
    "chaincode_launch_duration", "Seconds of a launch.", ("chaincode", "success")
)
LAUNCH_FAILURES: Final = _counter(
    "chaincode_launch_failures", "Launches that failed.", ("chaincode",)
)
LAUNCH_TIMEOUTS: Final = _counter(
    "chaincode_launch_timeouts", "Launches that took too long.", ("chaincode",)
)
EXECUTE_TIMEOUTS: Final = _counter(
    "chaincode_execute_timeouts",
    "Invocations without an answer in time.",
    ("chaincode",),
)
SHIM_REQUESTS_RECEIVED: Final = _counter(
    "chaincode_shim_requests_received",
    "Requests of chaincode to the node.",
    ("type", "channel", "chaincode"),
)
SHIM_REQUESTS_COMPLETED: Final = _counter(
    "chaincode_shim_requests_completed",
    "Requests that were answered.",
    ("type", "channel", "chaincode", "success"),
)
SHIM_REQUEST_DURATION: Final = _short(
    "chaincode_shim_request_duration",
    "Seconds until the answer.",
    ("type", "channel", "chaincode", "success"),
)
DOCKER_BUILD_DURATION: Final = _long(
    "dockercontroller_chaincode_container_build_duration",
    "Seconds of a build with a container engine; a reused build is not counted.",
    ("chaincode", "success"),
)

# ---- by name: the label `chaincode` is the name

PROPOSALS_RECEIVED: Final = _counter("endorser_proposals_received", "Proposals.")
SUCCESSFUL_PROPOSALS: Final = _counter(
    "endorser_successful_proposals", "Proposals that were endorsed."
)
PROPOSAL_VALIDATION_FAILURES: Final = _counter(
    "endorser_proposal_validation_failures", "Proposals that broke a rule."
)
PROPOSAL_DURATION: Final = _short(
    "endorser_proposal_duration",
    "Seconds from arrival to answer.",
    ("channel", "chaincode", "success"),
)
PROPOSAL_ACL_FAILURES: Final = _counter(
    "endorser_proposal_acl_failures",
    "Proposals whose signer lacks the permission.",
    ("channel", "chaincode"),
)
PROPOSAL_SIMULATION_FAILURES: Final = _counter(
    "endorser_proposal_simulation_failures",
    "Proposals without an answer of the chaincode.",
    ("channel", "chaincode"),
)
DUPLICATE_TRANSACTION_FAILURES: Final = _counter(
    "endorser_duplicate_transaction_failures",
    "Proposals whose transaction id was used before.",
    ("channel", "chaincode"),
)
ENDORSEMENT_FAILURES: Final = _counter(
    "endorser_endorsement_failures",
    "Proposals that the chaincode answered with an error.",
    ("channel", "chaincode", "chaincodeerror"),
)
BLOCKCHAIN_HEIGHT: Final = _gauge(
    "ledger_blockchain_height", "Blocks on the channel.", ("channel",)
)
BLOCK_PROCESSING_TIME: Final = _short(
    "ledger_block_processing_time",
    "Seconds to validate and store a block.",
    ("channel",),
)
TRANSACTION_COUNT: Final = _counter(
    "ledger_transaction_count",
    "Transactions of blocks; `chaincode` is name:version.",
    ("channel", "transaction_type", "chaincode", "validation_code"),
)
LOG_ENTRIES_CHECKED: Final = _counter(
    "logging_entries_checked", "Log lines before filtering.", ("level",)
)
LOG_ENTRIES_WRITTEN: Final = _counter(
    "logging_entries_written", "Log lines written.", ("level",)
)
VERSION: Final = _gauge(
    "fabric_version", "Always 1; version of Chaindock.", ("version",)
)

CHAINCODE_UP: Final = _gauge(
    "chaindock_chaincode_up", "1 while chaincode takes calls, else 0.", ("chaincode",)
)
CHAINCODE_STATE: Final = _gauge(
    "chaindock_chaincode_state", "1 in this state, else 0.", ("chaincode", "state")
)
RESTARTS: Final = _counter(
    "chaindock_chaincode_restarts",
    "Launches after an exit or failure that was not asked for.",
    ("chaincode",),
)
EXITS: Final = _counter(
    "chaindock_chaincode_exits",
    "Exits of runs that were ready.",
    ("chaincode", "cause"),
)
HELD_BYTES: Final = _gauge(
    "chaindock_held_bytes", "Memory that the node holds for open calls.", ("chaincode",)
)
OPEN_CALLS: Final = _gauge(
    "chaindock_open_calls", "Invocations that run now.", ("chaincode",)
)
PHASE_DURATION: Final = _long(
    "chaindock_phase_duration_seconds",
    "Seconds of a phase of a launch.",
    ("phase", "success"),
)
BUILD_DURATION: Final = _long(
    "chaindock_build_duration_seconds",
    "Seconds of a build; a reused build is not counted.",
    ("builder", "success"),
)
CHORES: Final = _gauge("chaindock_custodian_chores", "Launches and stops.", ("state",))
NODE_READY: Final = _gauge(
    "chaindock_node_ready", "1 while /readyz answers 200, else 0."
)

# ---- packages: their values are bounded and go when the package does

_OF_PACKAGE: Final = (
    *(LAUNCH_DURATION, LAUNCH_FAILURES, LAUNCH_TIMEOUTS, EXECUTE_TIMEOUTS),
    *(SHIM_REQUESTS_RECEIVED, SHIM_REQUESTS_COMPLETED, SHIM_REQUEST_DURATION),
    *(DOCKER_BUILD_DURATION, HELD_BYTES),
)


@dataclass
class Package:
    """What is known of a package.

    `succeeded`: whether a launch did, None = none has ended; `failed`: the last launch
    or run ended without a stop. A scrape shows the counts `restarts` and `exits`, which
    are by cause, under the names of the package.
    """

    succeeded: bool | None = None
    failed: bool = False
    restarts: int = 0
    exits: Tally[str] = field(default_factory=Tally)


packages: Final[dict[str, Package]] = {}
"""By package id; the one that was launched longest ago is first."""


def success(ok: bool) -> str:
    """Return the value of a label `success`."""
    return "true" if ok else "false"


def launch_begun(ccid: str) -> None:
    """Count a launch, as a restart if the last launch or run ended without a stop."""
    package = _admit(ccid)
    packages[ccid] = packages.pop(ccid)  # the newest now
    package.restarts += package.failed
    for counter in (LAUNCH_FAILURES, LAUNCH_TIMEOUTS, EXECUTE_TIMEOUTS):
        counter.labels(ccid)  # A value of 0 is shown from now on.


def launch_ended(
    ccid: str,
    phases: Iterable[tuple[str, float]],
    *,
    ok: bool,
    failed_phase: str | None = None,
    timed_out: bool = False,
) -> None:
    """Count the outcome of a launch that was not stopped; once, however many waited."""
    total_s = 0.0
    for phase, seconds in phases:
        total_s += seconds
        PHASE_DURATION.labels(phase, success(phase != failed_phase)).observe(seconds)
    LAUNCH_DURATION.labels(ccid, success(ok)).observe(total_s)
    LAUNCH_FAILURES.labels(ccid).inc(not ok)
    LAUNCH_TIMEOUTS.labels(ccid).inc(timed_out)
    package = _admit(ccid)
    package.succeeded = ok or bool(package.succeeded)
    package.failed = not ok


def run_ended(ccid: str, cause: str, *, asked: bool) -> None:
    """Count the end of a run that was ready; `asked` = by a stop."""
    package = _admit(ccid)
    package.exits[cause] += 1
    package.failed = not asked


def remove(ccid: str) -> None:
    """Drop the values of a package that is gone.

    A package that only ever failed keeps its values: a failed deployment is removed at
    once, and its failure is to be seen by the next scrape.
    """
    package = packages.get(ccid)
    if package is None or package.succeeded is not False:
        _drop(ccid)


def _admit(ccid: str) -> Package:
    if ccid not in packages and len(packages) >= MOST_PACKAGES:
        _drop(next(iter(packages)))
    return packages.setdefault(ccid, Package())


def _drop(ccid: str) -> None:
    packages.pop(ccid, None)
    for metric in _OF_PACKAGE:
        metric.remove_by_labels({"chaincode": ccid})
    requests.cache_clear()
    _answer.cache_clear()


# ---- requests of chaincode: a few hundred thousand a minute, so their children are kept


def held_bytes(ccid: str, held: Callable[[], int]) -> None:
    """Show what `held` returns at each scrape, in bytes."""
    _admit(ccid)
    HELD_BYTES.labels(ccid).set_function(held)


def request_answered(
    kind: str, channel: str, ccid: str, seconds: float, *, ok: bool
) -> None:
    """Count its answer; not `ok` = an ERROR."""
    completed, duration = _answer(kind, channel, ccid, ok)
    completed.inc()
    duration.observe(seconds)


@lru_cache(maxsize=1024)
def requests(kind: str, channel: str, ccid: str) -> Counter:
    """Return what counts requests; `channel` is "" for those of no running invocation."""
    _admit(ccid)  # in development mode there is no launch
    return SHIM_REQUESTS_RECEIVED.labels(kind, channel, ccid)


@lru_cache(maxsize=1024)
def _answer(kind: str, channel: str, ccid: str, ok: bool) -> tuple[Counter, Histogram]:
    labels = (kind, channel, ccid, success(ok))
    completed = SHIM_REQUESTS_COMPLETED.labels(*labels)
    return completed, SHIM_REQUEST_DURATION.labels(*labels)


@lru_cache(maxsize=1024)
def proposals(channel: str, name: str, ok: bool) -> Histogram:
    """Return what observes the seconds of proposals; not `ok` = not endorsed."""
    # A name that is bounded once stays so, and these children are never removed.
    return PROPOSAL_DURATION.labels(bounded(channel), bounded(name), success(ok))


# ---- names that a caller chooses

_names: Final[set[str]] = set()


def bounded(name: str) -> str:
    """Return `name` as a label value, or `OTHER` when there are too many names."""
    if len(_names) < MOST_NAMES:
        _names.add(name)
    return name if name in _names else OTHER


# ---- the text that Prometheus reads


def text() -> str:
    """Return all metrics in Prometheus' text format 0.0.4."""
    return _TOTAL.sub(r"\1", generate_latest(REGISTRY).decode())
