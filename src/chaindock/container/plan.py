"""Run the steps of a build plan: in a container or on the host, by the same rules."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import PurePosixPath

from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Exit
from chaindock.errors import BuildFailed, BuildSilent
from chaindock.platforms.base import BuildPlan, Places, Platform, Step

_PLACEHOLDER = re.compile(r"\{(?:\w+:)?([\w-]+)\}")
_JUDGED_LINES = 200
"""Last lines of a failed step in which its platform looks for a reason to retry."""


class StepOutput:
    """Takes what one step writes: lines for the attempt, activity for the clock."""

    def __init__(
        self, attempt: Attempt, clock: asyncio.Timeout, silence_s: float
    ) -> None:
        self._attempt, self._clock, self._silence_s = attempt, clock, silence_s
        self.lines: deque[str] = deque(maxlen=_JUDGED_LINES)

    def line(self, line: str) -> None:
        """Take one line without its line end."""
        self.lines.append(line)
        self._attempt.output(line, "build")

    def active(self) -> None:
        """Restart the silence clock: the step wrote something, whole lines or not."""
        with contextlib.suppress(RuntimeError):  # the step has ended
            now = asyncio.get_running_loop().time()
            self._clock.reschedule(now + self._silence_s)


async def run_plan(
    plan: BuildPlan,
    platform: Platform,
    places: Places,
    run: Callable[[Step, StepOutput], Awaitable[Exit]],
    attempt: Attempt,
    silence_s: float,
) -> None:
    """Run the steps of `plan` in order; the first that fails ends the build.

    `platform` tells from the output of a failed step whether a retry may help. `run`
    runs the program of a step to its end, with every placeholder filled in and with a
    title, and makes its `cwd` if that is missing; it calls `line` for each line and
    `active` for each piece of output, and ends the program if it is cancelled. A step
    is ended after `silence_s` seconds without output.

    Raises: BuildFailed, BuildSilent (facts: `step` and those of the attempt); what `run`
        raises.
    Cancelled: the current program is ended.
    """
    for step in plan.steps:
        attempt.enter(Phase(step.phase))
        filled = replace(
            step,
            argv=tuple(places.fill_all(step.argv)),
            cwd=places.fill(step.cwd),
            env=places.fill_values(step.env),
            title=_name(step),
        )
        scope = asyncio.timeout(silence_s)
        output = StepOutput(attempt, scope, silence_s)
        try:
            async with scope:
                end = await run(filled, output)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise BuildSilent(
                f"build step {filled.title!r} printed nothing for {silence_s:g} s",
                hint="look at its last lines; a registry may be unreachable. The limit "
                "is chaindock.build.silence",
                step=filled.title,
                limit_s=silence_s,
                retryable=step.phase == "dependencies",
                **attempt.facts(),
            ) from error
        if end.code != 0:
            raise BuildFailed(
                f"build step {filled.title!r} {end.text}",
                hint=f"read its output: chaindock logs {attempt.ccid}",
                step=filled.title,
                retryable=platform.is_retryable(step, output.lines),
                **end.facts,
                **attempt.facts(),
            )


@contextlib.asynccontextmanager
async def build_deadline(limit_s: float, attempt: Attempt) -> AsyncIterator[None]:
    """Cancel the block after `limit_s` seconds in any case. Raises: BuildFailed."""
    scope = asyncio.timeout(limit_s)
    try:
        async with scope:
            yield
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise BuildFailed(
            f"the build took longer than {limit_s:g} s",
            hint=f"read its output: chaindock logs {attempt.ccid}",
            **attempt.facts(),
        ) from error


def _name(step: Step) -> str:
    if step.title:
        return step.title
    program, *words = (_PLACEHOLDER.sub(r"\1", word) for word in step.argv)
    return " ".join([PurePosixPath(program).name, *words])
