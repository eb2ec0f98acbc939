"""How the node is: the answers of /healthz, /readyz and /metrics.

Checks run side by side; one that hangs has failed after its limit. While the node starts
or goes down, it is not ready.
Source: docs/fabric/operations.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from prometheus_client import Counter

import chaindock
from chaindock.endorser.channel import Channel
from chaindock.errors import ChaindockError, LaunchFailed, LedgerCorrupt
from chaindock.ids import Ccid, TxId, at_peer, split_peer
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.deployments import Deployment, Fleet
from chaindock.lifecycle.states import LaunchState
from chaindock.operations.facade import Running
from chaindock.telemetry import get_logger, logs, metrics

Check = Callable[[], Awaitable[None]]
"""Returns if the part works. Raises: ChaindockError."""

_log = get_logger("operations")
CHECK_S: Final = 10.0
"""Seconds after which a check has failed."""
STATES: Final = (*map(str, LaunchState), "stopped", "not-installed")
"""Every state that `ps` shows."""
_LOG_LEVELS: Final = {"warning": "warn", "critical": "fatal"}


@dataclass(frozen=True)
class Trouble:
    """A part (`docker`, `chaincode/NAME`) that failed or is not ready, as Fabric tells it."""

    component: str
    reason: str


@dataclass(frozen=True)
class Parts:
    """The parts of a node that health and metrics look at; `rows` is what `ps` shows."""

    channels: Mapping[str, Channel]
    fleet: Fleet
    custodian: Custodian
    check_engine: Check
    rows: Callable[[], Sequence[Running]]

    def checks(self) -> Mapping[str, Check]:
        """Return the checks, by component: each chaincode that should run has one."""
        found: dict[str, Check] = {
            "ledger": self._check_ledger,
            "docker": self.check_engine,
        }
        for deployment in self.fleet.all():
            if deployment.runs:
                check = partial(self._check_chaincode, deployment)
                name = self._shown(deployment.channel, deployment.name)
                found[f"chaincode/{name}"] = check
        return found

    def _shown(self, channel: str, name: str) -> str:
        """Return `name` of the first channel, `name@channel` of another one."""
        is_first = channel == next(iter(self.channels))
        return name if is_first else f"{name}@{channel}"

    async def _check_ledger(self) -> None:
        for channel in self.channels.values():
            channel.ledger.find_transaction(TxId("health"))  # reads the file
            if (damage := channel.ledger.damage) is not None:
                raise LedgerCorrupt(damage.message, hint=damage.hint, **damage.facts)

    async def _check_chaincode(self, deployment: Deployment) -> None:
        """Fail when a chaincode that should be up has failed; a start is no failure."""
        ccid = deployment.ccid
        for one in (self.custodian.find(ccid), *self.custodian.others(ccid)):
            trouble = "nothing watches it" if one is None else one.trouble
            if trouble is not None:
                raise LaunchFailed(trouble, ccid=one.ccid if one else ccid)

    def missing(self) -> Sequence[Trouble]:
        """Return what has neither come up once nor been given up since the start."""
        return [
            Trouble(f"chaincode/{name}", supervisor.doing())
            for supervisor in self.custodian.pending()
            for name in sorted(
                self._shown(*who)
                for who in self.fleet.users(supervisor.ccid)
                | self.fleet.coming(supervisor.ccid)
            )
        ]

    def measure(self) -> None:
        """Set the metrics that are looked up at each scrape."""
        for name, channel in self.channels.items():
            metrics.BLOCKCHAIN_HEIGHT.labels(name).set(channel.ledger.height)
        supervisors = self.custodian.all()
        starting = [one for one in supervisors if one.state is LaunchState.STARTING]
        waiting = sum(not (one.attempt and one.attempt.phase) for one in starting)
        stopping = sum(one.state is LaunchState.STOPPING for one in supervisors)
        running = len(starting) - waiting + stopping
        metrics.CHORES.labels("running").set(running)
        metrics.CHORES.labels("waiting").set(waiting)
        for row in self.rows():
            for one in (row, *row.others):
                _add_row(one, self._shown(one.channel, one.name))


class Health:
    """Health and readiness of the node, from the moment that its home is locked.

    `parts` is None while the node starts; `going_down`: the node takes no more work.
    """

    def __init__(self, check_s: float = CHECK_S) -> None:
        self._check_s = check_s
        self.parts: Parts | None = None
        self.going_down = False

    async def failed(self) -> list[Trouble]:
        """Run all checks side by side; return the failed parts."""
        checks = {} if self.parts is None else self.parts.checks()
        found = await asyncio.gather(
            *(self._try(name, check) for name, check in checks.items())
        )
        return [trouble for trouble in found if trouble is not None]

    async def _try(self, component: str, check: Check) -> Trouble | None:
        try:
            async with asyncio.timeout(self._check_s):
                await check()
        except TimeoutError:
            return Trouble(component, f"no answer within {self._check_s:g} s")
        except ChaindockError as error:
            return Trouble(component, error.message)
        except Exception as error:  # noqa: BLE001  # a defect is a failed check
            _log.error("check failed unexpectedly", check=component, exc_info=error)
            return Trouble(component, f"unexpected {type(error).__name__}: {error}")
        return None

    def missing(self) -> Sequence[Trouble]:
        """Return what keeps the node from being ready; [] = it is ready."""
        if self.going_down:
            return [Trouble("node", "the node is stopping")]
        if self.parts is None:
            return [Trouble("node", "it is starting")]
        return self.parts.missing()

    def scrape(self) -> bytes:
        """Return the text that Prometheus reads."""
        metrics.VERSION.labels(chaindock.__version__).set(1)
        for level, checked in logs.lines_checked.items():
            shown = _LOG_LEVELS.get(level, level)
            _set(metrics.LOG_ENTRIES_CHECKED.labels(shown), checked)
            written = logs.lines_written[level]
            _set(metrics.LOG_ENTRIES_WRITTEN.labels(shown), written)
        metrics.NODE_READY.set(not self.missing())
        for metric in _OF_ROWS:
            metric.clear()
        if self.parts is not None:
            self.parts.measure()
        return metrics.text().encode()


_OF_ROWS: Final = (
    *(metrics.CHAINCODE_UP, metrics.CHAINCODE_STATE, metrics.OPEN_CALLS),
    *(metrics.RESTARTS, metrics.EXITS, metrics.BLOCKCHAIN_HEIGHT),
)


def _add_row(row: Running, name: str) -> None:
    metrics.CHAINCODE_UP.labels(name).set(row.state == "running")
    for state in dict.fromkeys((*STATES, row.state)):
        metrics.CHAINCODE_STATE.labels(name, state).set(state == row.state)
    open_calls = sum(not call["caller_left"] for call in row.calls)
    metrics.OPEN_CALLS.labels(name).set(open_calls)
    mspid = split_peer(Ccid(row.name))[1]
    ccid = at_peer(Ccid(row.package_id), mspid)
    package = metrics.packages.get(ccid, metrics.Package())
    _set(metrics.RESTARTS.labels(name), package.restarts)
    for cause, count in package.exits.items():
        _set(metrics.EXITS.labels(name, cause), count)


def _set(counter: Counter, value: int) -> None:
    counter.reset()
    counter.inc(value)
