"""What a chaincode is to be, where it runs, the states between, and how each is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from chaindock.errors import (
    ChaincodeRetired,
    NodeStopping,
    PlacementConflict,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from chaindock.ids import Ccid

AUTO: Final = "auto"


class Target(StrEnum):
    """What a chaincode is to be."""

    RUNNING = "running"
    STOPPED = "stopped"
    REMOVED = "removed"


@dataclass(frozen=True)
class Placement:
    """Where a package runs.

    Args:
        asked: `auto`, or the back end that a user chose.
        given: the back end that runs the package; "" = not decided yet. Once decided,
            it changes only when a user asks for another one.
        why: the reason for `given`, in one phrase.
    """

    asked: str = AUTO
    given: str = ""
    why: str = ""

    def require_free(self, ccid: Ccid, asked: str, others: Collection[str]) -> None:
        """Check that a back end that a user asks for suits the package's other users.

        Raises: PlacementConflict: the package runs elsewhere for `others`.
        """
        there = self.given or self.asked
        if others and asked not in {AUTO, there}:
            raise PlacementConflict(
                f"package {ccid} runs on back end {there!r} for "
                f"{', '.join(sorted(others))}; back end {asked!r} was asked for",
                hint=f"use --backend {there}, or package the contract under another "
                "label (--label), or remove the other chaincode first",
                ccid=ccid,
                asked=asked,
                given=there,
            )


class LaunchState(StrEnum):
    """Where a chaincode is between not running and running.

    `back-off`: the last launch or run failed, and the next launch is planned.
    `crash-loop`, `failed`: gave up after too many failures, or because the build cannot
    succeed; a user starts it again, or one call in a while.
    `waiting`: a user's program is to register (development mode).
    """

    DOWN = "down"
    STARTING = "starting"
    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    BACK_OFF = "back-off"
    CRASH_LOOP = "crash-loop"
    FAILED = "failed"


GAVE_UP: Final = frozenset({LaunchState.CRASH_LOOP, LaunchState.FAILED})
_FAILURES: Final = frozenset({LaunchState.BACK_OFF, *GAVE_UP})
_BEGINS: Final = frozenset({LaunchState.STARTING, LaunchState.WAITING})
MOVES: Final[Mapping[LaunchState, frozenset[LaunchState]]] = {
    LaunchState.DOWN: _BEGINS,
    LaunchState.STARTING: _FAILURES | {LaunchState.RUNNING, LaunchState.DOWN},
    LaunchState.WAITING: frozenset({LaunchState.RUNNING, LaunchState.DOWN}),
    LaunchState.RUNNING: frozenset({LaunchState.STOPPING}),
    LaunchState.STOPPING: _FAILURES | _BEGINS | {LaunchState.DOWN},
    LaunchState.BACK_OFF: _BEGINS | {LaunchState.DOWN},
    LaunchState.CRASH_LOOP: _BEGINS | {LaunchState.DOWN},
    LaunchState.FAILED: _BEGINS | {LaunchState.DOWN},
}


# --- the errors for a chaincode that does not run -----------------------------------


def going_down() -> NodeStopping:
    """Say that the node ends."""
    return NodeStopping("the node is stopping", hint="start it again: chaindock up")


def retired(ccid: Ccid) -> ChaincodeRetired:
    """Say that a call came too late."""
    return ChaincodeRetired(
        f"chaincode {ccid} does not run on this node any more: a user stopped it, or "
        "another version replaced it",
        hint="send the call again",
        ccid=ccid,
    )


def hint(state: LaunchState, name: str) -> str:
    """Return what to do about a chaincode whose restarts were given up."""
    if state is LaunchState.FAILED:
        return f"correct it and deploy it again, or retry: chaindock start {name}"
    return f"see why: chaindock logs {name}; then: chaindock start {name}"
