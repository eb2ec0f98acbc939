"""The health checks and metrics of a node, from its start to its stop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

from chaindock.container.attempt import Attempt
from chaindock.container.output import Echo
from chaindock.errors import LaunchFailed
from chaindock.ids import TxId
from chaindock.lifecycle.states import LaunchState, Target
from chaindock.operations.health import Health, Trouble
from chaindock.operations.http import OperationsServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from chaindock.container.output import OutputFile, OutputOptions
    from chaindock.ids import Ccid
    from chaindock.ledger.ledger import Ledger
    from chaindock.lifecycle.custodian import Custodian
    from chaindock.lifecycle.supervisor import Supervisor
    from chaindock.lifecycle.targets import Deployment, TargetState
    from chaindock.node.backends import Backends
    from chaindock.operations.facade import Running
    from chaindock.operations.health import Check
    from chaindock.operations.http import OperationsOptions


class NodeWatch:
    """The endpoint and all it shows; an async context manager.

    Attributes:
        health: how the node is.
    """

    def __init__(self, options: OperationsOptions, output: OutputOptions) -> None:
        self.health = Health()
        self._server = OperationsServer(options, self.health)
        self._level = "info" if output.echo else "debug"

    async def __aenter__(self) -> Self:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._server.__aexit__(kind, error, trace)

    @property
    def url(self) -> str | None:
        """Where the endpoint is; None = there is none."""
        return self._server.url

    def attempt(self, ccid: Ccid, output: OutputFile) -> Attempt:
        """Return an attempt whose output is kept in `output` and logged."""
        attempt = Attempt(ccid, output)
        attempt.echo = Echo(ccid, attempt.id, self._level)
        return attempt

    def look_at(self, parts: WatchedParts) -> None:
        """Begin to watch the parts: what is to come up has been told to the custodian."""
        self.health.watched = parts
        self._server.measured = parts

    def going_down(self) -> None:
        """Take note that the node ends: it is ready no more."""
        self.health.going_down = True


class WatchedParts:
    """The parts as operations.health.Watched and operations.metrics.Measured.

    Args:
        ready: what /readyz says.
        rows: what `ps` shows.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        targets: TargetState,
        custodian: Custodian,
        backends: Backends,
        ready: Callable[[], bool],
        rows: Callable[[], Sequence[Running]],
    ) -> None:
        self._ledger, self._targets = ledger, targets
        self._custodian, self._backends = custodian, backends
        self._ready, self._rows = ready, rows

    # ---- health

    def checks(self) -> Mapping[str, Check]:
        """Return the checks: engine, ledger, each chaincode that should run."""
        found: dict[str, Check] = {"ledger": self._check_ledger}
        found["docker"] = self._backends.check
        for deployment in self._targets.all():
            if deployment.target is Target.RUNNING:
                check = partial(self._check_chaincode, deployment)
                found[f"chaincode/{deployment.name}"] = check
        return found

    async def _check_ledger(self) -> None:
        self._ledger.find_transaction(TxId("health"))  # reads the file

    async def _check_chaincode(self, deployment: Deployment) -> None:
        """Fail when a chaincode that should be up has failed; a start is no failure."""
        supervisor = self._custodian.find(deployment.ccid)
        if supervisor is not None and supervisor.trouble is not None:
            raise LaunchFailed(supervisor.trouble, ccid=deployment.ccid)

    def missing(self) -> Sequence[Trouble]:
        """Return what has neither come up once nor been given up since the start."""
        return [
            Trouble(f"chaincode/{name}", supervisor.doing())
            for supervisor in self._custodian.pending()
            for name in self.names_of(supervisor.ccid)
        ]

    def names_of(self, ccid: Ccid) -> list[str]:
        """Return the names under which a package is deployed."""
        return self._targets.names_of(ccid)

    # ---- metrics

    @property
    def channel(self) -> str:
        """Name of the channel."""
        return self._ledger.channel

    @property
    def height(self) -> int:
        """Blocks on it."""
        return self._ledger.height

    @property
    def ready(self) -> bool:
        """What /readyz says."""
        return self._ready()

    def chaincodes(self) -> Sequence[Running]:
        """Return what `ps` shows."""
        return self._rows()

    def open_calls(self, ccid: Ccid) -> int:
        """Return how many calls of a package are under way."""
        supervisor = self._custodian.find(ccid)
        running = supervisor and supervisor.running
        return running.open_calls if running else 0

    def chores(self) -> Mapping[str, int]:
        """Return how many launches and stops are `running` and `waiting`."""
        return {
            "running": sum(_is_at_work(one) for one in self._custodian.all()),
            "waiting": sum(_waits(one) for one in self._custodian.all()),
        }


def _is_at_work(supervisor: Supervisor) -> bool:
    if supervisor.state is LaunchState.STOPPING:
        return True
    return supervisor.state is LaunchState.STARTING and not _waits(supervisor)


def _waits(supervisor: Supervisor) -> bool:
    attempt = supervisor.attempt
    starting = supervisor.state is LaunchState.STARTING
    return starting and (attempt is None or attempt.phase is None)
