"""Wait for whatever happens first: an event, a failure or a deadline.

When a function here returns, the waits that lost have ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from chaindock.aio import Latch, Tasks
from chaindock.container.attempt import BUILD_PHASES, NETWORK_PHASES, Phase
from chaindock.errors import LaunchTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from chaindock.container.attempt import Attempt, Event

T = TypeVar("T")


async def first(**waits: Awaitable[Any]) -> tuple[str, Any]:
    """Return the name and result of the wait that ends first; cancel the others.

    Raises: what that wait raises. Of several that end at once, the earlier argument
        counts.
    Cancelled: all waits are.
    """
    outcome: Latch[tuple[str, Any]] = Latch()

    async def race(name: str, wait: Awaitable[Any]) -> None:
        try:
            outcome.settle((name, await wait))
        except Exception as error:  # noqa: BLE001  # raised by whoever waits
            outcome.fail(error)

    async with Tasks("race") as tasks:
        for name, wait in waits.items():
            _ = tasks.start(race(name, wait), name)
        return await outcome.wait()


async def within(limit_s: float, work: Awaitable[T], attempt: Attempt) -> T:
    """Return what `work` returns.

    Raises: LaunchTimeout after `limit_s` seconds; then `work` has been cancelled.
    """
    return await _within(asyncio.timeout(limit_s), lambda: limit_s, work, attempt)


async def within_own_time(limit_s: float, work: Awaitable[T], attempt: Attempt) -> T:
    """As `within`, but phases that wait for a network do not count against the limit.

    A step of such a phase ends when it prints nothing (container.attempt.NETWORK_PHASES).
    """
    loop = asyncio.get_running_loop()
    scope = asyncio.timeout(limit_s)
    left_s, since, waits = limit_s, loop.time(), False

    def turn(event: Event) -> None:
        nonlocal left_s, since, waits
        if event.kind != "phase" or scope.expired():
            return
        now = loop.time()
        if not waits:
            left_s -= now - since
        since, waits = now, attempt.phase in NETWORK_PHASES
        scope.reschedule(None if waits else now + max(0.0, left_s))

    attempt.watch(turn)
    try:
        return await _within(scope, lambda: limit_s, work, attempt)
    finally:
        attempt.unwatch(turn)


async def within_steps(
    limit_s: float, steps: Mapping[Phase, float], work: Awaitable[T], attempt: Attempt
) -> T:
    """As `within`; a phase in `steps` and the phases after it get these seconds.

    The next phase that is in `steps` begins its own clock. 0 = no clock of its own.
    """
    loop = asyncio.get_running_loop()
    end, scope, counts_s = loop.time() + limit_s, asyncio.timeout(limit_s), limit_s

    def turn(event: Event | None = None) -> None:
        nonlocal counts_s
        step_s = steps.get(attempt.phase) if attempt.phase else None
        if step_s is None or scope.expired() or (event and event.kind != "phase"):
            return
        until = loop.time() + step_s
        own = step_s > 0 and until < end
        counts_s = step_s if own else limit_s
        scope.reschedule(until if own else end)

    async def begun() -> T:
        turn()  # it may be there already
        return await work

    attempt.watch(turn)
    try:
        return await _within(scope, lambda: counts_s, begun(), attempt)
    finally:
        attempt.unwatch(turn)


async def _within(
    scope: asyncio.Timeout,
    limit_s: Callable[[], float],
    work: Awaitable[T],
    attempt: Attempt,
) -> T:
    try:
        async with scope:
            return await work
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise _too_long(limit_s(), attempt) from error


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
    """Return the settings that bound a phase."""
    if phase is None or phase in BUILD_PHASES:
        return "chaincode.installTimeout"
    if phase in {Phase.REGISTER, Phase.READY}:
        return "chaindock.launch.registerTimeout"
    if phase is Phase.CONNECT:
        return (
            "chaincode.startuptimeout, or chaindock.launch.connectTimeout if it is set"
        )
    return "chaincode.startuptimeout"
