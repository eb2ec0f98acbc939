"""Run a chaincode as on a machine elsewhere: in another time zone and locale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

from chaindock.aio import finish
from chaindock.container.contracts import RunSettings
from chaindock.ids import Ccid, ChannelId
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.deployments import Fleet
from chaindock.lifecycle.states import BY_HAND

_VARIABLES: Final = {
    "TZ": "Pacific/Kiritimati",
    "LANG": "tr_TR.UTF-8",
    "LC_ALL": "tr_TR.UTF-8",
}
"""14 hours ahead of UTC; numbers, dates and upper case are written otherwise."""


class Elsewhere:
    """The chaincodes that run elsewhere now: a process never changes its time zone."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._ccids: set[Ccid] = set()
        self.turn = asyncio.Lock()
        """Held while runs are compared: each comparison moves the chaincode."""

    def settings(self, ccid: Ccid, usual: RunSettings) -> RunSettings:
        """Return what a run of `ccid` gets."""
        if ccid not in self._ccids:
            return usual
        return replace(usual, env={**usual.env, **_VARIABLES})

    def of(
        self, channel: ChannelId, name: str, custodian: Custodian
    ) -> Callable[[], AbstractAsyncContextManager[None]] | None:
        """Return what makes a context in which a chaincode runs elsewhere.

        The chaincode is restarted at its begin and at its end, as `Custodian.stop` and
        `launch`; calls of others fail while it is down. None: it does not run, or a user
        starts it.
        """
        for one in self._fleet.all():
            if (one.channel, one.name, one.runs) == (channel, name, True):
                by_hand = self._fleet.targets.placement(one.ccid).given == BY_HAND
                return None if by_hand else partial(self._running, one.ccid, custodian)
        return None

    @asynccontextmanager
    async def _running(self, ccid: Ccid, custodian: Custodian) -> AsyncIterator[None]:
        self._ccids.add(ccid)
        try:
            await self._restart(ccid, custodian)
            yield
        finally:
            self._ccids.discard(ccid)
            await finish(self._restart(ccid, custodian))

    async def _restart(self, ccid: Ccid, custodian: Custodian) -> None:
        await custodian.stop(ccid)
        if self._fleet.runs(ccid):  # a user may have stopped or removed it meanwhile
            await custodian.launch(ccid)
