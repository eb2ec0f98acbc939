"""Decide where each package runs, once.

A back end that a user asked for is the only one used. With `auto` the node decides at the
first launch; the decision stays until the package is removed or a user asks for another
back end, so a restart, a missing image or an engine that is away never changes it.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from chaindock.errors import PlacementConflict
from chaindock.lifecycle.states import AUTO

if TYPE_CHECKING:
    from collections.abc import Collection

    from chaindock.ids import Ccid
    from chaindock.lifecycle.states import Placement
    from chaindock.lifecycle.targets import TargetState


class Backends(Protocol):
    """What this machine has to run chaincode on."""

    async def choose(self) -> tuple[str, str]:
        """Return the back end that `auto` means now, and why, in one phrase.

        Raises: EngineUnavailable when a container engine was named and is not there.
        """


async def decide(ccid: Ccid, targets: TargetState, backends: Backends) -> str:
    """Return the back end that runs `ccid`; record it if it was not decided before.

    Raises: as `Backends.choose`; StorageError.
    """
    placement = targets.placement(ccid)
    if not placement.given:
        given, why = placement.asked, "as asked"
        if placement.asked == AUTO:
            given, why = await backends.choose()
        placement = replace(placement, given=given, why=why)
        await asyncio.to_thread(targets.place, ccid, placement)
    return placement.given


def require_free(
    ccid: Ccid, asked: str, placement: Placement, others: Collection[str]
) -> None:
    """Check that a user's choice of back end does not contradict that of others.

    Args:
        ccid: the package.
        asked: `auto`, or the back end.
        placement: where the package runs.
        others: other chaincodes that run this package.

    Raises: PlacementConflict: the package runs on another back end for them.
    """
    there = placement.given or placement.asked
    if others and asked not in {AUTO, there}:
        names = ", ".join(sorted(others))
        raise PlacementConflict(
            f"package {ccid} runs on back end {there!r} for {names}; back end {asked!r} "
            "was asked for",
            hint=f"use --backend {there}, or package the contract under another label "
            "(--label), or remove the other chaincode first",
            ccid=ccid,
            asked=asked,
            given=there,
        )
