"""Time limits of launches, and errors of launches and runs that failed.

Each error names stage, phase, times, how the chaincode ended and its last lines. Whether
the failure is retryable comes from where the first error was raised.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Final, TypeVar

from chaindock.container.attempt import (
    BUILD_PHASES,
    NETWORK_PHASES,
    Attempt,
    Event,
    Phase,
    shorten,
)
from chaindock.container.contracts import Cause, Exit
from chaindock.errors import (
    BuildFailed,
    ChaindockError,
    EngineUnavailable,
    LaunchFailed,
    LaunchTimeout,
    RegisterTimeout,
    RegistrationRefused,
    StartFailed,
    StreamTerminated,
    TlsFailed,
)

T = TypeVar("T")
_LOGGED_LINES: Final = 10
LOGGED_CHARS: Final = 2048
_LOGGED: Final = ("stage", "phase", "cause", "exit_code", "signal", "oom", "limit_s")


def launch_failure(
    attempt: Attempt, error: ChaindockError, *, built: bool
) -> LaunchFailed:
    """Return `error` with all facts and text; `built`: there was something to start."""
    building = not built or isinstance(error, BuildFailed)
    building = building or attempt.phase in BUILD_PHASES
    registering = attempt.phase in {Phase.REGISTER, Phase.READY}
    kind: type[LaunchFailed] = BuildFailed if building else StartFailed
    if isinstance(error, LaunchFailed) and type(error) is not StartFailed:
        kind = type(error)
        if kind is LaunchTimeout and registering:
            kind = RegisterTimeout
    cause = Cause.NOT_STARTED  # of the end, when nothing that ran has ended by itself
    if isinstance(error, EngineUnavailable):
        cause = Cause.ENGINE_GONE
    elif not building and (registering or attempt.phase is Phase.CONNECT):
        cause = Cause.STOPPED  # by us, because of this error
    facts = {
        **Exit(None, cause=cause).facts,
        **attempt.facts(),
        "stage": "build" if building else "start",
        "registered": False,
        **error.facts,
        "output": error.facts.get("output") or [],
        # What did not start, or ended with its engine, has not failed by itself.
        "retryable": error.retryable
        or error.facts.get("cause") in {Cause.ENGINE_GONE, Cause.NOT_STARTED},
    }
    failed = kind(
        f"could not launch chaincode {attempt.ccid}: {_stage(kind)}{error.message}",
        hint=error.hint or f"read its output: chaindock logs {attempt.ccid}",
        **facts,
    )
    failed.__cause__ = error
    return failed


def _stage(kind: type[LaunchFailed]) -> str:
    if issubclass(kind, BuildFailed):
        return "error building chaincode: "
    if issubclass(kind, StartFailed):
        return "error starting: "
    if kind is RegistrationRefused:
        return "chaincode registration failed: "
    return ""


def tls_failure(error: LaunchFailed, ccid: str, reasons: Sequence[str]) -> TlsFailed:
    """Return the error for a chaincode that connected and opened no stream.

    `error`: how the launch ended. `reasons`: why the handshakes failed; at least one.
    """
    return TlsFailed(
        f"{error.message}; the chaincode connected (connections seen: {len(reasons)}), "
        f"and no TLS handshake succeeded: {reasons[-1]}",
        hint="check that the chaincode uses TLS, trusts CORE_PEER_TLS_ROOTCERT_FILE and "
        "shows CORE_TLS_CLIENT_CERT_FILE, and that the clock is right; read its output: "
        f"chaindock logs {ccid}",
        **error.facts,
        handshakes=len(reasons),
    )


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
    lost.hint = _once_it_runs(name)


def death(attempt: Attempt, end: Exit) -> LaunchFailed:
    """Return why a chaincode does not run that was ready before."""
    return LaunchFailed(
        f"chaincode {attempt.ccid} was up and {end.text}",
        hint=_once_it_runs(attempt.ccid),
        **{
            **attempt.facts(),
            **end.facts,
            "stage": "run",
            "registered": True,
            "retryable": end.cause is Cause.ENGINE_GONE,
        },
    )


def _once_it_runs(name: str) -> str:
    return f"read its output, once it runs again: chaindock logs {name} --previous"


def log_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a log line tells of a failure; the last `LOGGED_CHARS` of its output."""
    told = {
        key: facts[key]
        for key in _LOGGED
        if facts.get(key) is not None and facts[key] is not False
    }
    if "registered" in facts:
        told["registered"] = facts["registered"]
    if phases := facts.get("phases"):
        told["times"] = ", ".join(f"{p['phase']} {p['seconds']:.3g} s" for p in phases)
    if lines := shorten(facts.get("output") or (), _LOGGED_LINES):
        output = "\n".join(lines)
        cut = len(output) > LOGGED_CHARS
        told["output"] = f"[cut] {output[-LOGGED_CHARS:]}" if cut else output
    return told


# --- time limits ----------------------------------------------------------------------


async def within(
    limit_s: float,
    work: Coroutine[Any, Any, T],
    attempt: Attempt,
    steps: Mapping[Phase, float] | None = None,
) -> T:
    """Return what `work` returns.

    Phases that wait for a network (container.attempt.NETWORK_PHASES) do not count. A phase
    in `steps`, with the phases after it, gets these seconds; the next phase in `steps`
    begins its own clock. 0 = no clock of its own.

    Raises: LaunchTimeout after `limit_s` seconds; then `work` has been cancelled.
    """
    loop, own = asyncio.get_running_loop(), steps or {}
    left_s, since, waits = limit_s, loop.time(), False
    step_s = counts_s = 0.0
    step_end = math.inf

    def turn() -> None:
        """Set the limit anew: a phase has begun."""
        nonlocal left_s, since, waits, step_s, step_end, counts_s
        now = loop.time()
        if not waits:
            left_s -= now - since
        since, waits = now, attempt.phase in NETWORK_PHASES
        if attempt.phase and attempt.phase in own:
            step_s = own[attempt.phase]
            step_end = now + step_s if step_s else math.inf
        end = math.inf if waits else now + max(0.0, left_s)
        counts_s = step_s if step_end < end else limit_s
        until = min(end, step_end)
        scope.reschedule(None if until == math.inf else until)

    def watch(event: Event) -> None:
        if event.kind == "phase" and not scope.expired():
            turn()

    scope = asyncio.timeout(limit_s)
    attempt.watch(watch)
    try:
        async with scope:
            turn()  # a phase may have begun already
            return await work
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise _too_long(counts_s, attempt) from error
    finally:
        attempt.unwatch(watch)


def _too_long(limit_s: float, attempt: Attempt) -> LaunchTimeout:
    phase = f"phase {attempt.phase}" if attempt.phase else "the launch"
    return LaunchTimeout(
        f"timeout expired while starting chaincode {attempt.ccid} for transaction: "
        f"{phase} did not end within {round(limit_s, 1):g} s",
        hint=f"read its output: chaindock logs {attempt.ccid}; raise the limit with "
        f"{_setting(attempt.phase)}",
        limit_s=limit_s,
        phase=str(attempt.phase) if attempt.phase else None,
    )


def _setting(phase: Phase | None) -> str:
    if phase in {Phase.REGISTER, Phase.READY}:
        return "chaindock.launch.registerTimeout"
    if phase is Phase.CONNECT:
        return (
            "chaincode.startuptimeout, or chaindock.launch.connectTimeout if it is set"
        )
    build = phase is None or phase in BUILD_PHASES
    return "chaincode.installTimeout" if build else "chaincode.startuptimeout"
