"""Build once, start, stop: what a launch needs of the container layer.

A successful build is reused until a start says that its image is gone.
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
    from chaindock.container.contracts import CallsBack, Dial, Instance, PeerConnection
    from chaindock.container.router import Router
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage

_log = get_logger("chaincode.runtime")
_STOP_MARGIN_S: Final = 30.0
"""Seconds beyond the grace after which a stop counts as hanging in the engine."""


class PackageSource(Protocol):
    """Where packages come from."""

    async def get(self, ccid: Ccid) -> StoredPackage:
        """Return the package, verified.

        Raises: NotFound, PackageInvalid.
        """


class ContainerRuntime:
    """Builds, starts and stops instances.

    One supervisor works on a ccid, so two builds of it never run at once.
    """

    def __init__(
        self,
        packages: PackageSource,
        router: Router,
        options: LaunchOptions | None = None,
    ) -> None:
        self._packages = packages
        self._instances: dict[Ccid, Instance] = {}
        self._router = router
        self._options = options or LaunchOptions()

    async def build(self, ccid: Ccid, attempt: Attempt) -> Instance:
        """Return the instance of `ccid`; build it unless that was done.

        Raises: LaunchTimeout after the build timeout, in which phases that wait for a
            network do not count; what the builder raises; NotFound and PackageInvalid
            of the package.
        """

        async def build() -> Instance:
            if ccid not in self._instances:
                package = await self._packages.get(ccid)
                self._instances[ccid] = await self._router.build(package, attempt)
            return self._instances[ccid]

        return await within_own_time(self._options.build_timeout_s, build(), attempt)

    async def start(
        self,
        ccid: Ccid,
        peer: PeerConnection,
        attempt: Attempt,
        built: Callable[[Instance], None],
    ) -> CallsBack | Dial:
        """Build if needed, tell `built`, start. A missing image is built again, once.

        Raises: as `build`; what `Instance.start` raises; LaunchTimeout after the
            start-up timeout.
        """
        instance = await self.build(ccid, attempt)
        try:
            return await self._start(instance, peer, attempt, built)
        except ImageNotFound as error:
            _log.warning("image is gone, building again", ccid=ccid)
            attempt.note(f"{error.message}: building it again")
            self.forget(ccid)
            instance = await self.build(ccid, attempt)
            return await self._start(instance, peer, attempt, built)

    async def _start(
        self,
        instance: Instance,
        peer: PeerConnection,
        attempt: Attempt,
        built: Callable[[Instance], None],
    ) -> CallsBack | Dial:
        built(instance)
        start = instance.start(peer, attempt)
        return await within(self._options.startup_timeout_s, start, attempt)

    async def stop(self, ccid: Ccid, instance: Instance, grace_s: float) -> Exit | None:
        """Stop the run of `instance`. A failure is logged, not raised.

        What a failed stop leaves is removed before the next start, or by the next node.

        Returns: how the run ended if its engine went away with it, else None.
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
        """Forget the build of `ccid` and have it removed. `ccid` does not run."""
        self.forget(ccid)
        await self._router.discard(ccid)

    def forget(self, ccid: Ccid) -> None:
        """Build `ccid` again at the next start. Idempotent."""
        self._instances.pop(ccid, None)
