"""What a chaincode is to be, where it runs, and the states between."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


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
