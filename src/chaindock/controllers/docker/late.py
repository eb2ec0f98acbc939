"""The Docker back end of a node that may be up before its engine is.

Owns:    noticing an engine that appears later.
Not:     anything an engine does (controller.py).
Entry:   LateDockerController
Holds:   nobody polls: it is looked for when something is to be built, at most once per
         LOOK_EVERY_S; once found it is the engine of this node until the node ends:
         while it is away builds fail, and nothing becomes a process unasked; nor does
         what is new beside chaincode in containers, for anything that passes.
Source:  needs.md row 1; architecture.md "Back end default"
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

from chaindock.container.contracts import Declined
from chaindock.errors import (
    ChaindockError,
    EngineError,
    ImageNotFound,
)
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Instance
    from chaindock.controllers.docker.controller import DockerController
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage

_log = get_logger("docker")
LOOK_EVERY_S = 5.0


class LateDockerController:
    """Implements `container.contracts.Builder`; without an engine it declines.

    Entered: an engine was looked for once. Left: as DockerController.

    Args:
        docker: what does the work; entered once an engine answers.
        clock: seconds, for tests.
        kept: whether chaincode of this node runs in containers, as a rule.
    """

    name = "docker"

    def __init__(
        self,
        docker: DockerController,
        clock: Callable[[], float] = time.monotonic,
        kept: Callable[[], bool] = lambda: False,
    ) -> None:
        self._docker, self._clock, self._kept = docker, clock, kept
        self._lock = asyncio.Lock()
        self._looked = 0.0
        self._missing: EngineError | None = None
        self._found = False

    @property
    def away(self) -> bool:
        """Whether no engine was found yet."""
        return not self._found

    @property
    def endpoint(self) -> str:
        """Where the engine is; "" while there is none."""
        return self._docker.endpoint if self._found else ""

    async def __aenter__(self) -> Self:
        await self._look()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._docker.aclose()

    async def _look(self) -> bool:
        async with self._lock:
            now = self._clock()
            if self._found or (self._missing and now - self._looked < LOOK_EVERY_S):
                return self._found
            try:
                await self._docker.__aenter__()
            except EngineError as error:
                if self._missing is None:
                    _log.info("no engine yet", reason=error.message)
                self._missing, self._looked = error, self._clock()
            else:
                if self._missing is not None:
                    await self._clean()
                self._found = True
            return self._found

    async def _clean(self) -> None:
        """Remove leftovers, before anybody builds with the engine that appeared."""
        try:
            await self._docker.reap()
        except ChaindockError as error:
            _log.warning("builder not reaped", builder=self.name, error=error.message)

    async def build(
        self, package: StoredPackage, attempt: Attempt
    ) -> Instance | Declined:
        """Build with the engine, or decline while there is none.

        Raises: EngineError, ImageNotFound.
        """
        new = self.away
        if not await self._look():
            assert self._missing is not None  # noqa: S101  # the look failed
            return Declined(self._missing.message, _told(self._missing))
        if new:
            attempt.note(f"an engine answers now at {self.endpoint}")
        try:
            return await self._docker.build(package, attempt)
        except (EngineError, ImageNotFound) as error:
            raise _told(error) from error

    async def discard(self, ccid: Ccid) -> int:
        """Remove what was built; 0 without an engine."""
        return 0 if self.away else await self._docker.discard(ccid)

    async def reap(self) -> int:
        """Remove leftovers; 0 without an engine: then it is done when one is found."""
        return 0 if self.away else await self._docker.reap()

    async def check(self) -> None:
        """Ask the engine whether it answers; fine while the node needs none."""
        if not self.away:
            await self._docker.check()


def _told(error: ChaindockError) -> ChaindockError:
    """Return the error with the way out that a user may choose."""
    instead = "or deploy it as a process, without isolation: --backend process"
    hint = f"{error.hint}; {instead}" if error.hint else instead
    return type(error)(error.message, hint=hint, **error.facts)
