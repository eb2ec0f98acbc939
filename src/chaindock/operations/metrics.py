"""The text of /metrics: what the node counted, and what is looked up at each scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import chaindock
from chaindock import telemetry
from chaindock.lifecycle.states import LaunchState
from chaindock.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from prometheus_client import Counter

    from chaindock.ids import Ccid
    from chaindock.operations.facade import Running

STATES: Final = (*map(str, LaunchState), "stopped")
"""Every state that `ps` shows."""
_LOG_LEVELS: Final = {"warning": "warn", "critical": "fatal"}


class Measured(Protocol):
    """What is looked up when Prometheus scrapes. Every member is quick, none raises."""

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
        """Return how many invocations of a package run now."""

    def chores(self) -> Mapping[str, int]:
        """Return how many launches and stops are `running` and `waiting`."""


def scrape(measured: Measured | None) -> bytes:
    """Return the text that Prometheus reads.

    Args:
        measured: None while the node starts.
    """
    metrics.VERSION.labels(chaindock.__version__).set(1)
    counts = telemetry.counts()
    for level in counts.checked:
        shown = _LOG_LEVELS.get(level, level)
        _set(metrics.LOG_ENTRIES_CHECKED.labels(shown), counts.checked[level])
        _set(metrics.LOG_ENTRIES_WRITTEN.labels(shown), counts.written[level])
    metrics.NODE_READY.set(measured is not None and measured.ready)
    for metric in _OF_ROWS:
        metric.clear()
    if measured is not None:
        metrics.BLOCKCHAIN_HEIGHT.labels(measured.channel).set(measured.height)
        for state, count in measured.chores().items():
            metrics.CHORES.labels(state).set(count)
        for row in measured.chaincodes():
            _add_row(row, measured.open_calls(row.package_id))  # type: ignore[arg-type]  # text in JSON
    return metrics.text().encode()


_OF_ROWS: Final = (
    *(metrics.CHAINCODE_UP, metrics.CHAINCODE_STATE, metrics.OPEN_CALLS),
    *(metrics.RESTARTS, metrics.EXITS),
)


def _add_row(row: Running, open_calls: int) -> None:
    metrics.CHAINCODE_UP.labels(row.name).set(row.state == "running")
    for state in dict.fromkeys((*STATES, row.state)):
        metrics.CHAINCODE_STATE.labels(row.name, state).set(state == row.state)
    metrics.OPEN_CALLS.labels(row.name).set(open_calls)
    _set(metrics.RESTARTS.labels(row.name), metrics.restarts[row.package_id])
    for (ccid, cause), count in metrics.exits.items():
        if ccid == row.package_id:
            _set(metrics.EXITS.labels(row.name, cause), count)


def _set(counter: Counter, value: int) -> None:
    counter.reset()
    counter.inc(value)
