"""Build once, start, stop: what a launch needs of the container layer.

Owns:    coupling of BuildRegistry and Router; building again when an image is gone.
Not:     registration (run.py), how things are built and started (controllers).
Entry:   ContainerRuntime
Holds:   a build that succeeded is believed until start says that its image is gone.
Source:  launch.md §1.1, §5.4, §9 W3, W20, W21
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from chaindock.chaincode.options import LaunchOptions
from chaindock.chaincode.race import within, within_own_time
from chaindock.container.contracts import Cause, Exit
from chaindock.errors import ChaindockError, EngineUnavailable, ImageNotFound
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from chaindock.container.attempt import Attempt
    from chaindock.container.build_registry import BuildRegistry
    from chaindock.container.contracts import CallsBack, Dial, Instance, PeerConnection
    from chaindock.container.router import Router
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage

_log = get_logger("chaincode.runtime")
_STOP_MARGIN_S: Final = 30.0
"""A stop may take the grace and this; then the engine is considered to hang."""


class PackageSource(Protocol):
    """Where packages come from."""

    async def get(self, ccid: Ccid) -> StoredPackage:
        """Return the package, verified.

        Raises: NotFound, PackageInvalid.
        """


class ContainerRuntime:
    """Builds, starts and stops instances."""

    def __init__(
        self,
        packages: PackageSource,
        builds: BuildRegistry,
        router: Router,
        options: LaunchOptions | None = None,
    ) -> None:
        self._packages = packages
        self._builds = builds
        self._router = router
        self._options = options or LaunchOptions()

    async def build(self, ccid: Ccid, attempt: Attempt) -> Instance:
        """Return the instance of `ccid`; build it unless that was done.

        Raises: LaunchTimeout after the build timeout, in which phases that wait for a
            network do not count; what the builder raises; NotFound and PackageInvalid
            of the package.
        """

        async def build() -> Instance:
            package = await self._packages.get(ccid)
            return await self._router.build(package, attempt)

        return await within_own_time(
            self._options.build_timeout_s,
            self._builds.build_once(ccid, build),
            attempt,
        )

    async def start(
        self,
        ccid: Ccid,
        peer: PeerConnection,
        attempt: Attempt,
        built: Callable[[Instance], None],
    ) -> CallsBack | Dial:
        """Build if needed, tell `built`, start. An image that is gone is built again.

        Raises: as `build`; what `Instance.start` raises; LaunchTimeout after the
            start-up timeout.
        """
        for last in (False, True):
            instance = await self.build(ccid, attempt)
            built(instance)
            try:
                return await within(
                    self._options.startup_timeout_s,
                    instance.start(peer, attempt),
                    attempt,
                )
            except ImageNotFound as error:
                if last:
                    raise
                _log.warning("image is gone, building again", ccid=ccid)
                attempt.note(f"{error.message}: building it again")
                self.forget(ccid)
        raise AssertionError("unreachable")

    async def stop(self, ccid: Ccid, instance: Instance, grace_s: float) -> Exit | None:
        """Stop the run of `instance`; what goes wrong is logged, and it is over.

        What is left then is removed before the next start, or by the next node.
        Returns: None; how it ended when its engine has gone away with it.
        """
        try:
            async with asyncio.timeout(grace_s + _STOP_MARGIN_S):
                await instance.stop(grace_s)
        except (ChaindockError, TimeoutError) as error:
            _log.error("chaincode could not be stopped", ccid=ccid, error=str(error))
            if isinstance(error, EngineUnavailable):
                return Exit(None, reason=error.message, cause=Cause.ENGINE_GONE)
        return None

    async def discard(self, ccid: Ccid) -> None:
        """Forget `ccid` and have what was built for it alone removed."""
        self._builds.forget(ccid)
        await self._router.discard(ccid)

    def forget(self, ccid: Ccid) -> None:
        """Build `ccid` again at the next launch."""
        self._builds.forget(ccid)
        self._router.forget(ccid)
