"""The errors for a chaincode that does not run, each with the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaindock.errors import (
    ChaincodeRetired,
    ChaindockError,
    EngineTimeout,
    LaunchFailed,
    NodeStopping,
    StartFailed,
)
from chaindock.lifecycle.states import LaunchState

if TYPE_CHECKING:
    from chaindock.ids import Ccid


def going_down() -> NodeStopping:
    """Say that the node ends."""
    return NodeStopping("the node is stopping", hint="start it again: chaindock up")


def stopped(ccid: Ccid) -> StartFailed:
    """Say that a stop overtook a launch."""
    return StartFailed(f"chaincode {ccid!r} was stopped while it started", ccid=ccid)


def not_stopped(ccid: Ccid, limit_s: float) -> EngineTimeout:
    """Say that a stop was given up."""
    return EngineTimeout(
        f"chaincode {ccid!r} was not stopped within {limit_s:g} s",
        hint="find its container (docker ps) or process (ps), and stop it there",
        limit_s=limit_s,
    )


def retired(ccid: Ccid) -> ChaincodeRetired:
    """Say that a call came too late."""
    return ChaincodeRetired(
        f"chaincode {ccid} does not run on this node any more: a user stopped it, or "
        "another version replaced it",
        hint="send the call again",
        ccid=ccid,
    )


def no_program(ccid: Ccid) -> StartFailed:
    """Say that the program which a user starts by hand is not there."""
    return StartFailed(
        f"no program has registered as {ccid} (development mode)",
        hint=f"start it with CORE_CHAINCODE_ID_NAME={ccid}",
        ccid=ccid,
    )


def gave_up(
    ccid: Ccid, state: LaunchState, error: ChaindockError, failures: int, name: str
) -> LaunchFailed:
    """Say why a chaincode is not started any more: its last failure, and how many."""
    why = f"after {failures} failures in a row"
    if state is LaunchState.FAILED:
        why = "because its build cannot succeed as it is"
    kind = type(error) if isinstance(error, LaunchFailed) else LaunchFailed
    return kind(
        f"gave up starting chaincode {ccid} {why}: {error.message}",
        hint=hint(state, name),
        **{**error.facts, "state": str(state), "failures": failures},
    )


def hint(state: LaunchState, name: str) -> str:
    """Return what to do about a chaincode whose restarts were given up."""
    if state is LaunchState.FAILED:
        return f"correct it and deploy it again, or retry: chaindock start {name}"
    return f"see why: chaindock logs {name}; then: chaindock start {name}"
