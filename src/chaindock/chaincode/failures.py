"""Errors of launches and runs that failed, as waiters and callers get them.

Each error names stage, phase, times, how the chaincode ended and its last lines. Whether
the failure is retryable comes from where the first error was raised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from chaindock.container.attempt import BUILD_PHASES, Phase, shorten
from chaindock.container.contracts import Cause
from chaindock.errors import (
    BuildFailed,
    ChaindockError,
    EngineUnavailable,
    LaunchFailed,
    LaunchTimeout,
    RegisterTimeout,
    RegistrationRefused,
    StartFailed,
    TlsFailed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Exit
    from chaindock.errors import StreamTerminated

_LOGGED_LINES: Final = 10
LOGGED_CHARS: Final = 2048
_LOGGED: Final = ("stage", "phase", "cause", "exit_code", "signal", "oom", "limit_s")


def launch_failure(
    attempt: Attempt, error: ChaindockError, *, built: bool
) -> LaunchFailed:
    """Return `error` as what the waiters get: facts added, text complete.

    Args:
        attempt: the failed one, its last phase still open.
        error: what went wrong.
        built: there was something to start.
    """
    building = not built or isinstance(error, BuildFailed)
    building = building or attempt.phase in BUILD_PHASES
    kind = _kind(error, attempt, building=building)
    retryable = error.retryable or error.facts.get("cause") == Cause.ENGINE_GONE
    facts = {
        **_no_end(error, attempt, building=building),
        **attempt.facts(),
        "stage": "build" if building else "start",
        "registered": False,
        **error.facts,
        "output": error.facts.get("output") or [],
        "retryable": retryable,
    }
    failed = kind(
        f"could not launch chaincode {attempt.ccid}: {_stage(kind)}{error.message}",
        hint=error.hint or f"read its output: chaindock logs {attempt.ccid}",
        **facts,
    )
    failed.__cause__ = error
    return failed


def tls_failure(error: LaunchFailed, ccid: str, handshakes: int) -> TlsFailed:
    """Return the error for a chaincode that connected and opened no stream.

    Args:
        error: how the launch ended: the clock, or an exit by itself.
        ccid: of the chaincode.
        handshakes: how many connections the listener saw; > 0.
    """
    return TlsFailed(
        f"{error.message}; the chaincode connected (connections seen: {handshakes}), "
        "and no TLS handshake succeeded",
        hint="check that the chaincode uses TLS, trusts CORE_PEER_TLS_ROOTCERT_FILE and "
        "shows CORE_TLS_CLIENT_CERT_FILE, and that the clock is right; read its output: "
        f"chaindock logs {ccid}",
        **error.facts,
        handshakes=handshakes,
    )


def _kind(
    error: ChaindockError, attempt: Attempt, *, building: bool
) -> type[LaunchFailed]:
    kind = type(error)
    if not isinstance(error, LaunchFailed) or kind is StartFailed:
        return BuildFailed if building else StartFailed
    if kind is LaunchTimeout and attempt.phase in {Phase.REGISTER, Phase.READY}:
        return RegisterTimeout
    assert issubclass(kind, LaunchFailed)  # noqa: S101  # by the first test
    return kind


def _stage(kind: type[LaunchFailed]) -> str:
    if issubclass(kind, BuildFailed):
        return "error building chaincode: "
    if issubclass(kind, StartFailed):
        return "error starting: "
    if kind is RegistrationRefused:
        return "chaincode registration failed: "
    return ""


def _no_end(
    error: ChaindockError, attempt: Attempt, *, building: bool
) -> dict[str, Any]:
    """Return the facts of the end when nothing that ran had ended by itself."""
    cause: Cause | None = Cause.NOT_STARTED
    if isinstance(error, EngineUnavailable):
        cause = Cause.ENGINE_GONE
    elif not building and attempt.phase in {Phase.CONNECT, Phase.REGISTER, Phase.READY}:
        cause = Cause.STOPPED  # by us, because of this error
    return {"cause": str(cause), "exit_code": None, "signal": None, "oom": False}


def explain(
    lost: StreamTerminated, name: str, attempt: Attempt, end: Exit | None
) -> None:
    """Add to the error of a call how the chaincode `name` ended, if that is known."""
    lost.facts.update(ccid=attempt.ccid, registered=True, output=attempt.tail())
    if end is None:
        return
    lost.facts.update(end.facts)
    # Fabric's own text comes first, for those who look for it.
    lost.message = f"{lost.message}: chaincode {name} {end.text}"
    lost.hint = f"read its output, once it runs again: {_previous(name)}"


def death(attempt: Attempt, end: Exit) -> LaunchFailed:
    """Return why a chaincode does not run that was ready before."""
    return LaunchFailed(
        f"chaincode {attempt.ccid} was up and {end.text}",
        hint=f"read its output, once it runs again: {_previous(attempt.ccid)}",
        **{
            **attempt.facts(),
            **end.facts,
            "stage": "run",
            "registered": True,
            "retryable": end.cause is Cause.ENGINE_GONE,
        },
    )


def _previous(name: str) -> str:
    return f"chaindock logs {name} --previous"


def log_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a log line tells of a failure: when, how, and the last lines.

    `output` is the end of them, in at most `LOGGED_CHARS` characters.
    """
    told = {
        key: facts[key]
        for key in _LOGGED
        if facts.get(key) is not None and facts[key] is not False
    }
    if "registered" in facts:
        told["registered"] = facts["registered"]
    phases = facts.get("phases") or ()
    if phases:
        told["times"] = ", ".join(f"{p['phase']} {p['seconds']:.3g} s" for p in phases)
    lines = shorten(facts.get("output") or (), _LOGGED_LINES)
    if lines:
        output = "\n".join(lines)
        cut = len(output) > LOGGED_CHARS
        told["output"] = f"[cut] {output[-LOGGED_CHARS:]}" if cut else output
    return told
