"""The names of all metrics.

Owns:    name, kind, labels and help of each.
Not:     their values (metrics.py).
Entry:   METRICS
Holds:   Fabric's name and labels where the meaning is the same.
Source:  launch.md §8.2; docs/tasks/operations.md lists them, a meta test compares
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

STATES: Final = (
    *("down", "starting", "running", "stopping", "stopped", "failed", "back-off"),
    "crash-loop",
)
"""Every state that `ps` shows."""
_COUNTER, _GAUGE, _HISTOGRAM = "counter", "gauge", "histogram"


@dataclass(frozen=True)
class Named:
    """A metric.

    Args:
        name: without what belongs to the kind (`_bucket`, and `_total` of ours).
        labels: in the order of the values.
        fabric: name, labels and meaning are Fabric's.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str
    fabric: bool = True

    @property
    def shown(self) -> str:
        """The name as it is scraped; of a histogram, the stem."""
        ours = self.kind == _COUNTER and not self.fabric
        return f"{self.name}_total" if ours else self.name


def _named() -> Iterator[Named]:
    shim = ("type", "channel", "chaincode")
    call = ("channel", "chaincode")
    done = ("chaincode", "success")
    for name, kind, labels, text in (
        ("chaincode_launch_duration", _HISTOGRAM, done, "Seconds of a launch."),
        ("chaincode_launch_failures", _COUNTER, done[:1], "Launches that failed."),
        ("chaincode_launch_timeouts", _COUNTER, done[:1], "Those that took too long."),
        (
            "chaincode_execute_timeouts",
            _COUNTER,
            done[:1],
            "Invocations without an answer in time.",
        ),
        (
            "chaincode_shim_requests_received",
            _COUNTER,
            shim,
            "Requests of chaincode to the node.",
        ),
        (
            "chaincode_shim_requests_completed",
            _COUNTER,
            (*shim, "success"),
            "Those that were answered.",
        ),
        (
            "chaincode_shim_request_duration",
            _HISTOGRAM,
            (*shim, "success"),
            "Seconds until the answer.",
        ),
        (
            "dockercontroller_chaincode_container_build_duration",
            _HISTOGRAM,
            done,
            "Seconds of a build with a container engine; one that was there is none.",
        ),
        ("endorser_proposals_received", _COUNTER, (), "Proposals."),
        ("endorser_successful_proposals", _COUNTER, (), "Those that were endorsed."),
        (
            "endorser_proposal_validation_failures",
            _COUNTER,
            (),
            "Those that broke a rule.",
        ),
        (
            "endorser_proposal_duration",
            _HISTOGRAM,
            (*call, "success"),
            "Seconds from its arrival to the answer.",
        ),
        (
            "endorser_proposal_acl_failures",
            _COUNTER,
            call,
            "Those whose signer may not do this.",
        ),
        (
            "endorser_proposal_simulation_failures",
            _COUNTER,
            call,
            "Those without an answer of the chaincode.",
        ),
        (
            "endorser_duplicate_transaction_failures",
            _COUNTER,
            call,
            "Those whose transaction id was used before.",
        ),
        (
            "endorser_endorsement_failures",
            _COUNTER,
            (*call, "chaincodeerror"),
            "Those that the chaincode answered with an error.",
        ),
        ("ledger_blockchain_height", _GAUGE, ("channel",), "Blocks on the channel."),
        (
            "ledger_block_processing_time",
            _HISTOGRAM,
            ("channel",),
            "Seconds to validate and store a block.",
        ),
        (
            "ledger_transaction_count",
            _COUNTER,
            ("channel", "transaction_type", "chaincode", "validation_code"),
            "Transactions of blocks; `chaincode` is name:version.",
        ),
        ("logging_entries_checked", _COUNTER, ("level",), "Log lines asked for."),
        ("logging_entries_written", _COUNTER, ("level",), "Log lines let through."),
        ("fabric_version", _GAUGE, ("version",), "Always 1; version of Chaindock."),
    ):
        yield Named(name, kind, labels, text)
    one = ("chaincode",)
    for name, kind, labels, text in (
        ("chaincode_up", _GAUGE, one, "1 while it takes calls, else 0."),
        ("chaincode_state", _GAUGE, (*one, "state"), "1 for its state, else 0."),
        (
            "chaincode_restarts",
            _COUNTER,
            one,
            "Launches after an end or failure that nobody wanted.",
        ),
        (
            "chaincode_exits",
            _COUNTER,
            (*one, "cause"),
            "Ends after it was ready.",
        ),
        ("open_calls", _GAUGE, one, "Invocations under way."),
        (
            "phase_duration_seconds",
            _HISTOGRAM,
            ("phase", "success"),
            "Seconds of a phase of a launch.",
        ),
        (
            "build_duration_seconds",
            _HISTOGRAM,
            ("builder", "success"),
            "Seconds of a build; one that was there is none.",
        ),
        ("custodian_chores", _GAUGE, ("state",), "Launches and stops to do."),
        ("node_ready", _GAUGE, (), "1 while /readyz says so, else 0."),
    ):
        yield Named(f"chaindock_{name}", kind, labels, text, fabric=False)


METRICS: Final[Mapping[str, Named]] = {one.name: one for one in _named()}
PROCESS: Final = (
    "process_virtual_memory_bytes",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
)
"""Of the node's own process, on Linux; the client library's."""
