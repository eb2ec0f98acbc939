"""What is measured and watched of a node, from its first moment to its last.

Owns:    the operations endpoint; the checks of /healthz; what /readyz
         waits for; making attempts whose output is logged.
Not:     HTTP (operations/http.py), counting (telemetry/metrics.py).
Entry:   NodeWatch
Holds:   it is entered before anything that takes time and left after everything else.
Source:  launch.md §8; docs/tasks/operations.md
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Self

from chaindock.chaincode.registry import LaunchState
from chaindock.container.attempt import Attempt
from chaindock.container.contracts import Checkable
from chaindock.container.echo import Echo
from chaindock.errors import LaunchFailed
from chaindock.lifecycle.desired import Wish
from chaindock.lifecycle.supervision import Care
from chaindock.operations.health import Health, Trouble
from chaindock.operations.http import OperationsServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from chaindock.chaincode.launcher import RuntimeLauncher
    from chaindock.container.contracts import Builder
    from chaindock.container.output import OutputFile, OutputOptions
    from chaindock.ids import Ccid
    from chaindock.ledger.ledger import Ledger
    from chaindock.lifecycle.custodian import Custodian
    from chaindock.lifecycle.desired import Desired, DesiredState
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
        rows: what `ps` shows.
    """

    def __init__(
        self,
        watch: NodeWatch,
        *,
        ledger: Ledger,
        desired: DesiredState,
        launcher: RuntimeLauncher,
        custodian: Custodian,
        builders: Sequence[Builder],
        rows: Callable[[], Sequence[Running]],
    ) -> None:
        self._watch, self._ledger = watch, ledger
        self._desired, self._launcher = desired, launcher
        self._custodian, self._builders = custodian, builders
        self._rows = rows

    # ---- health

    def checks(self) -> Mapping[str, Check]:
        """Return the checks: engine, ledger, each chaincode that should run."""
        found: dict[str, Check] = {"ledger": self._check_ledger}
        for builder in self._builders:
            if isinstance(builder, Checkable):
                found[builder.name] = builder.check
        for desired in self._desired.all():
            if desired.wish is Wish.RUNNING:
                check = partial(self._check_chaincode, desired)
                found[f"chaincode/{desired.name}"] = check
        return found

    async def _check_ledger(self) -> None:
        self._ledger.info()

    async def _check_chaincode(self, desired: Desired) -> None:
        """Fail when it should be up and something went wrong; to start takes its time."""
        ccid = desired.ccid
        if self._launcher.status(ccid).state is LaunchState.READY:
            return
        standing = self._custodian.standing(ccid)
        if standing.error is None:
            return
        why = standing.error.message
        if standing.care is not Care.NONE:
            why = f"{standing.care}: {why}"
        raise LaunchFailed(why, ccid=ccid)

    def missing(self) -> Sequence[Trouble]:
        """Return what has neither come up once nor been left alone since the start."""
        return [
            Trouble(f"chaincode/{name}", self._waits_for(ccid))
            for ccid in self._custodian.pending()
            for name in self.names_of(ccid)
        ]

    def _waits_for(self, ccid: Ccid) -> str:
        standing = self._custodian.standing(ccid)
        if standing.error is not None:
            return f"it is tried again: {standing.error.message}"
        attempt = self._launcher.status(ccid).attempt
        if attempt is None or attempt.phase is None:
            return "it is about to start"
        return f"it is coming up, in phase {attempt.phase}"

    def names_of(self, ccid: Ccid) -> list[str]:
        """Return the names under which a package is deployed."""
        return sorted(self._desired.names_of(ccid))

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
        return not self._watch.health.missing()

    def chaincodes(self) -> Sequence[Running]:
        """Return what `ps` shows."""
        return self._rows()

    def open_calls(self, ccid: Ccid) -> int:
        """Return how many invocations of a package are under way."""
        return self._launcher.status(ccid).open_calls

    def chores(self) -> Mapping[str, int]:
        """Return how many launches and stops are `running` and `waiting`."""
        return self._custodian.chores()
