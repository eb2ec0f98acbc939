"""Which ways to run chaincode this node has, and what `auto` comes to.

Owns:    entering the controllers; the order in which they are asked; saying why.
Not:     asking them (container/router.py).
Entry:   Backends, Choice
Holds:   with `auto` nobody is stopped by a missing engine, and what was chosen and why
         is always told; with a named back end nothing else is ever used; what ran in a
         container does not become a process unasked, and where an engine is known to be
         nothing else does.
Source:  architecture.md "Back end default"; needs.md rows 1 and 8
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from chaindock.controllers.docker.controller import DockerController
from chaindock.controllers.docker.late import LateDockerController
from chaindock.controllers.process.controller import ProcessController
from chaindock.errors import ConfigInvalid

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from chaindock.config.sections import Config
    from chaindock.container.contracts import Builder, NodeLabels
    from chaindock.ids import Ccid
    from chaindock.lifecycle.desired import DesiredState

AUTO = "auto"


@dataclass(frozen=True)
class Backends:
    """The back ends of a running node.

    Args:
        builders: in the order in which they are asked.
        default: the name that `chaindock.backend` gave; `auto` = the first that takes
            the package.
        chosen: why it is these, in one phrase; "" = ask `late`.
        late: the one whose engine may not be there yet.
        keeps: whether chaincode of this home ran on the back end of that name.
    """

    builders: tuple[Builder, ...]
    default: str
    chosen: str = ""
    late: LateDockerController | None = None
    keeps: Callable[[str], bool] = lambda _: False

    @classmethod
    async def enter(
        cls,
        config: Config,
        labels: NodeLabels,
        stack: AsyncExitStack,
        keeps: Callable[[str], bool],
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
        docker, late, reason = None, None, "chosen"
        if wanted == AUTO and not config.node.engine:
            reason = "vm.endpoint is empty, so no engine is looked for"
        elif wanted != ProcessController.name:
            docker = DockerController(config.docker, labels, environment=config.build)
        process = ProcessController(config.process, labels, config.build)
        builders: list[Builder] = []
        if docker is not None and wanted == AUTO:
            rule = partial(keeps, docker.name)
            late = LateDockerController(docker, kept=rule)
            await stack.enter_async_context(late)
            builders, reason = [late], ""
        elif docker is not None:
            builders = [await stack.enter_async_context(docker)]
            reason = f"chosen; an engine answers at {docker.endpoint}"
        builders.append(await stack.enter_async_context(process))
        return cls(tuple(builders), wanted, reason, late, keeps)

    @property
    def awaited(self) -> str | None:
        """Name of the back end whose engine is away and known to exist; None = none."""
        late = self.late
        known = late is not None and late.away and self.keeps(late.name)
        return late.name if late is not None and known else None

    @property
    def reason(self) -> str:
        """Why it is these, in one phrase."""
        if self.chosen or self.late is None:
            return self.chosen
        if self.awaited:
            return (
                "no container engine answers, and it is waited for: chaincode of this "
                "node ran in containers (`chaindock doctor` tells more)"
            )
        if self.late.away:
            return (
                "no container engine answers; one that appears is used from the next "
                "build on (`chaindock doctor` tells more)"
            )
        return f"an engine answers at {self.late.endpoint}"

    @property
    def first(self) -> str:
        """Name of the builder that is asked first."""
        if self.default != AUTO:
            return self.default
        away = self.late is not None and self.late.away and not self.awaited
        return self.builders[1 if away else 0].name


class Choice:
    """Who builds what, also after a restart.

    What ran in a container becomes a process only when somebody asks for that, for it
    or for the whole node: with `auto` it waits for its engine. So does whatever is new
    beside it: an engine that is away for a while must not change what `auto` means.
    """

    def __init__(self, backends: Backends, desired: DesiredState) -> None:
        self._backends, self._desired = backends, desired

    def only(self, ccid: Ccid) -> str | None:
        """Return the only builder for `ccid`; None = the first that takes it."""
        asked = self._desired.backend_of(ccid)
        if asked is None and self._backends.default != AUTO:
            asked = self._backends.default
        return asked or self._desired.kept_on(ccid) or self._backends.awaited

    async def taken(self, ccid: Ccid, builder: str) -> None:
        """Take note that `builder` took it. Raises: StorageError."""
        if builder == DockerController.name != self._desired.kept_on(ccid):
            await asyncio.to_thread(self._desired.keep_on, ccid, builder)
