"""Have a package built by the back end that its placement names, and by no other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Builder, Instance
from chaindock.ids import Ccid
from chaindock.packaging.store import StoredPackage
from chaindock.telemetry import metrics

_BUILDS = {Phase.PULL, Phase.DEPENDENCIES, Phase.COMPILE, Phase.IMAGE}
"""Without one of these, the build existed already."""


class Backends(Protocol):
    """The back ends of a node; node.Backends is one."""

    async def builder_for(self, ccid: Ccid) -> Builder:
        """Return the back end that runs `ccid`. Raises: EngineUnavailable, others."""

    def holders(self, ccid: Ccid) -> Sequence[Builder]:
        """Return the back ends that may hold builds of `ccid`."""


class Router:
    """Passes builds to back ends."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        """Build `package` on the back end of its placement. Raises: what that raises."""
        builder = await self._backends.builder_for(package.ccid)
        began, ok = time.monotonic(), False
        try:
            instance = await builder.build(package, attempt)
            ok = True
            return instance
        finally:
            phases = {attempt.phase, *(one.phase for one in attempt.phases)}
            if phases & _BUILDS:
                spent_s, success = time.monotonic() - began, metrics.success(ok)
                metrics.BUILD_DURATION.labels(builder.name, success).observe(spent_s)
                if builder.name == "docker":
                    docker = metrics.DOCKER_BUILD_DURATION
                    docker.labels(attempt.ccid, success).observe(spent_s)

    async def discard(self, ccid: Ccid, *, purge: bool = False) -> None:
        """Remove what was built for `ccid`, with `purge` also what back ends keep."""
        for builder in self._backends.holders(ccid):
            if purge or not builder.keeps_builds:
                await builder.discard(ccid)
