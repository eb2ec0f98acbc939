"""Build each chaincode once, however many ask for it.

Owns:    which builds are under way or done in this process.
Not:     how to build (router.py), what is on disk (controllers).
Entry:   BuildRegistry.build_once
Holds:   at most one build per ccid at a time; only success is remembered, and only
         until it is forgotten; a cancelled build fails nobody else.
Source:  launch.md §5.4, §9 W20, W21; needs.md table 1a
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from chaindock.aio import Latch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from chaindock.container.contracts import Instance
    from chaindock.ids import Ccid


class _GivenUp(Exception):  # a signal between waiters, no failure
    """Who built was cancelled; somebody who waits builds instead."""


class BuildRegistry:
    """Single flight per ccid, with a memory for what succeeded."""

    def __init__(self) -> None:
        self._builds: dict[Ccid, Latch[Instance]] = {}

    async def build_once(
        self, ccid: Ccid, build: Callable[[], Awaitable[Instance]]
    ) -> Instance:
        """Return the instance of `ccid`, building it unless that is done or under way.

        Raises: what `build` raises; everybody who waited gets the same error, and the
            next call builds again.
        Cancelled: a waiter leaves the build alone; when the builder itself is
            cancelled, a waiter takes over with its own `build`.
        """
        while (latch := self._builds.get(ccid)) is not None:
            try:
                return await latch.wait()
            except _GivenUp:
                continue
        latch = self._builds[ccid] = Latch()
        try:
            instance = await build()
        except asyncio.CancelledError:
            self._drop(ccid, latch)
            latch.fail(_GivenUp())
            raise
        except BaseException as error:
            self._drop(ccid, latch)
            latch.fail(error)
            raise
        latch.settle(instance)
        return instance

    def forget(self, ccid: Ccid) -> None:
        """Build again at the next call; a build under way ends unremembered."""
        self._builds.pop(ccid, None)

    def _drop(self, ccid: Ccid, latch: Latch[Instance]) -> None:
        # After `forget`, the entry may be somebody else's.
        if self._builds.get(ccid) is latch:
            del self._builds[ccid]
