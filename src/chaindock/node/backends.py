"""The back ends of this node, and which of them `auto` chooses.

Without any engine `auto` means processes, and says so. An engine that was named, or that
chaincode of this node runs on, is waited for: nothing becomes a process unasked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from chaindock.config.sections import Config
from chaindock.container.contracts import Builder, NodeLabels
from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.process.controller import ProcessController
from chaindock.errors import ChaindockError, ConfigInvalid, EngineError, InvalidInput
from chaindock.ids import Ccid
from chaindock.lifecycle.states import AUTO
from chaindock.lifecycle.targets import TargetState
from chaindock.telemetry import get_logger

_log = get_logger("node")
DOCKER: Final = DockerController.name
PROCESS: Final = ProcessController.name
_NO_ENGINE: Final = "vm.endpoint is empty, so no engine is looked for"
_DOCTOR: Final = "`chaindock doctor` says more"
_LOOK_EVERY_S: Final = 5.0
"""Seconds before an engine that did not answer is looked for again."""


@dataclass
class Backends:
    """The controllers of a running node."""

    default: str
    """What `chaindock.backend` says: `auto`, `docker` or `process`."""
    docker: DockerController | None
    """None = no engine is to be used."""
    process: ProcessController
    targets: TargetState
    """Where each package runs."""
    named: bool
    """The user named an engine (DOCKER_HOST, a context or vm.endpoint)."""

    def __post_init__(self) -> None:
        self._error: EngineError | None = None
        self._reaped = False
        self._looked = 0.0
        self._lock = asyncio.Lock()

    @classmethod
    async def enter(
        cls,
        config: Config,
        labels: NodeLabels,
        stack: AsyncExitStack,
        targets: TargetState,
    ) -> Backends:
        """Enter the controllers, and remove what an earlier run of the node left.

        Raises:
            EngineUnavailable: `docker` is the configured back end and none answers.
            ConfigInvalid: there is no back end of the configured name.
        """
        default = config.node.backend
        if default not in {AUTO, DOCKER, PROCESS}:
            raise ConfigInvalid(
                f"back end {default!r} does not exist; expected auto, docker or process",
                hint="choose one of these with --backend or chaindock.backend",
                key="chaindock.backend",
            )
        docker = None
        if config.node.engine and default != PROCESS:
            docker = DockerController(config.docker, labels, environment=config.build)
            stack.push_async_callback(docker.aclose)
        process = await stack.enter_async_context(
            ProcessController(config.process, labels, config.build)
        )
        endpoint = config.docker.endpoint
        backends = cls(default, docker, process, targets, endpoint.named)
        await backends._reap(process)
        if docker is not None:
            error = await backends._connect()
            if error is not None and default == DOCKER:
                raise error
        return backends

    # ---- for the router and the supervisors

    async def builder_for(self, ccid: Ccid) -> Builder:
        """Return the back end that runs `ccid`; decide it if that was not done.

        Raises: EngineUnavailable and others when it is an engine that is away.
        """
        name = await self.targets.decide(ccid, self.choose)
        if name == PROCESS:
            return self.process
        return await self._engine()

    def holders(self, ccid: Ccid) -> Sequence[Builder]:
        """Return the back ends that may hold builds of `ccid`, also one that is away."""
        docker, given = self.docker, self.targets.placement(ccid).given
        if docker and (docker.connected or (given != PROCESS and self._is_awaited())):
            return (self.process, docker)
        return (self.process,)

    async def choose(self) -> tuple[str, str]:
        """Return the back end that `auto` means now, and why, in one phrase.

        Raises: EngineUnavailable when an engine was named, or chaincode of this node
            runs on one, and none answers.
        """
        if self.default != AUTO:
            return self.default, f"chaindock.backend is {self.default}"
        if self.docker is None:
            return PROCESS, _NO_ENGINE
        error = await self._connect()
        if error is None:
            return DOCKER, f"an engine answers at {self.docker.endpoint}"
        if self._is_awaited():
            raise _with_way_out(error)
        return PROCESS, error.message

    # ---- for people

    def require(self, name: str) -> None:
        """Check a back end that a user asks for. Raises: InvalidInput."""
        known = [AUTO, PROCESS] if self.docker is None else [AUTO, DOCKER, PROCESS]
        if name not in known:
            raise InvalidInput(
                f"back end {name!r} is not there; expected one of: {', '.join(known)}",
                hint="choose one of these; why there is no other: chaindock status",
            )

    @property
    def outlook(self) -> tuple[str, str]:
        """Which back end new chaincode gets at the moment, and why, in one phrase."""
        if self.docker is None:
            if self.default == PROCESS:
                return PROCESS, f"chaindock.backend is {PROCESS}"
            return PROCESS if self.default == AUTO else self.default, _NO_ENGINE
        if self.docker.connected:
            return DOCKER, f"an engine answers at {self.docker.endpoint}"
        why = self._error.message if self._error else "not looked for yet"
        if self.default == DOCKER or self._is_awaited():
            return DOCKER, f"waiting for the container engine: {why} ({_DOCTOR})"
        return PROCESS, f"contracts run as processes, less isolated: {why} ({_DOCTOR})"

    async def check(self) -> None:
        """Ask a connected engine whether it answers. Raises: EngineError."""
        if self.docker is not None and self.docker.connected:
            await self.docker.check()

    # ---- the engine

    def _is_awaited(self) -> bool:
        return self.named or self.targets.is_used(DOCKER)

    async def _engine(self) -> DockerController:
        if self.docker is None:
            raise EngineError(
                "this node uses no container engine, and the chaincode is to run in a "
                "container",
                hint="set vm.endpoint, or deploy it with --backend process",
            )
        error = await self._connect()
        if error is not None:
            raise _with_way_out(error)
        self._reaped = True  # from now on there are containers of this run
        return self.docker

    async def _connect(self) -> EngineError | None:
        """Connect, and remove leftovers before the first build. Returns what failed."""
        assert self.docker is not None  # noqa: S101  # the callers have looked
        async with self._lock:
            if self.docker.connected and self._reaped:
                return None
            now = time.monotonic()
            if self._error is not None and now - self._looked < _LOOK_EVERY_S:
                return self._error
            try:
                await self.docker.connect()
                self._reaped = await self._reap(self.docker)
            except EngineError as error:
                if self._error is None:
                    _log.info("no engine answers", reason=error.message)
                self._error, self._looked = error, time.monotonic()
                return error
            self._error = None
            return None

    @staticmethod
    async def _reap(builder: Builder) -> bool:
        """Remove what an earlier run left; whether the back end could be asked."""
        try:
            count = await builder.reap()
        except ChaindockError as error:
            _log.warning(
                "leftovers not removed", backend=builder.name, error=error.message
            )
            return False
        if count:
            _log.info("leftovers removed", backend=builder.name, count=count)
        return True


def _with_way_out(error: EngineError) -> EngineError:
    instead = "or deploy it as a process, less isolated: --backend process"
    hint = f"{error.hint}; {instead}" if error.hint else instead
    return type(error)(error.message, hint=hint, **error.facts)
