"""Which ways to run chaincode this node has, and what `auto` comes to.

Owns:    entering the controllers; the order in which they are asked; saying why.
Not:     asking them (container/router.py).
Entry:   Backends
Holds:   with `auto` nobody is stopped by a missing engine, and what was chosen and why
         is always told; with a named back end nothing else is ever used.
Source:  architecture.md "Back end default"; needs.md rows 1 and 8
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.process.controller import ProcessController
from chaindock.errors import ConfigInvalid, EngineError
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from chaindock.config.sections import Config
    from chaindock.container.contracts import Builder, NodeLabels
    from chaindock.ids import Ccid

AUTO = "auto"
_log = get_logger("node")


@dataclass(frozen=True)
class Backends:
    """The back ends of a running node.

    Args:
        builders: in the order in which they are asked.
        default: the name that `chaindock.backend` gave; `auto` = the first that takes
            the package.
        reason: why it is these, in one phrase.
    """

    builders: tuple[Builder, ...]
    default: str
    reason: str

    @classmethod
    async def enter(
        cls, config: Config, labels: NodeLabels, stack: AsyncExitStack
    ) -> Backends:
        """Enter the controllers that can be had.

        Raises:
            EngineUnavailable: `docker` is the configured back end and none answers.
            ConfigInvalid: there is no back end of the configured name.
        """
        wanted = config.node.backend
        if wanted not in {AUTO, DockerController.name, ProcessController.name}:
            raise ConfigInvalid(
                f"backend {wanted!r} does not exist; expected auto, docker or process",
                hint="choose one of these with --backend or chaindock.backend",
                key="chaindock.backend",
            )
        builders: list[Builder] = []
        reason = "chosen"
        if wanted != ProcessController.name:
            reason = await _enter_docker(config, labels, stack, builders)
        process = ProcessController(config.process, labels, config.build)
        builders.append(await stack.enter_async_context(process))
        if wanted == ProcessController.name:
            builders.reverse()
        return cls(tuple(builders), wanted, reason)

    @property
    def first(self) -> str:
        """Name of the builder that is asked first."""
        return self.builders[0].name if self.default == AUTO else self.default

    def choose(self, asked: Callable[[Ccid], str | None], ccid: Ccid) -> str | None:
        """Return the only builder for `ccid`; None = the first that takes it."""
        return asked(ccid) or (None if self.default == AUTO else self.default)


async def _enter_docker(
    config: Config,
    labels: NodeLabels,
    stack: AsyncExitStack,
    builders: list[Builder],
) -> str:
    must = config.node.backend == DockerController.name
    if not config.node.engine and not must:
        return "vm.endpoint is empty, so no engine is looked for"
    docker = DockerController(config.docker, labels, environment=config.build)
    try:
        builders.append(await stack.enter_async_context(docker))
    except EngineError as error:
        if must:
            raise
        _log.info("no engine, chaincode runs as processes", reason=error.message)
        return "no container engine answers; `chaindock doctor` tells more"
    return f"an engine answers at {docker.endpoint}"
