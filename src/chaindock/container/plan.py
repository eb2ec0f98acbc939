"""Run the steps of a build plan: in a container or on the host, by the same rules.

The runner enters the phases of the attempt, ends a step that prints nothing for too long
and turns a failed step into a BuildFailed with its facts. An executor runs one program.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from chaindock.container.attempt import Phase
from chaindock.errors import BuildFailed, BuildSilent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Exit
    from chaindock.platforms.base import BuildPlan, Platform, Step
    from chaindock.platforms.placeholders import Places

_PLACEHOLDER = re.compile(r"\{(?:\w+:)?([\w-]+)\}")
_JUDGED_LINES = 200
"""Last lines of a failed step in which its platform looks for a reason to retry."""


@dataclass(frozen=True)
class StepCommand:
    """One program of a build, with every placeholder filled in.

    Args:
        name: how people read the step.
        env: the variables of the step alone; the executor adds what every step gets.
    """

    name: str
    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str] = field(repr=False)


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


class StepExecutor(Protocol):
    """Runs single programs in the place of one build."""

    @property
    def places(self) -> Places:
        """What the placeholders of the plan stand for in that place."""

    async def run(self, command: StepCommand, output: StepOutput) -> Exit:
        """Run one program to its end; makes its `cwd` if that is missing.

        Calls `output.line` for each line and `output.active` for each piece of output.

        Raises: StartFailed, EngineError, BuildFailed, OSError.
        Cancelled: the program is ended.
        """


async def run_plan(
    plan: BuildPlan,
    platform: Platform,
    executor: StepExecutor,
    attempt: Attempt,
    silence_s: float,
) -> None:
    """Run the steps of `plan` in order; the first that fails ends the build.

    Args:
        plan: what to run.
        platform: tells from the output of a failed step whether a retry may help.
        executor: runs the programs.
        attempt: whose phases are entered; gets the output.
        silence_s: seconds without output after which a step is ended.

    Raises: BuildFailed, BuildSilent (facts: `step` and those of the attempt); what the
        executor raises.
    Cancelled: the current program is ended.
    """
    for step in plan.steps:
        attempt.enter(Phase(step.phase))
        places = executor.places
        command = StepCommand(
            _name(step),
            tuple(places.fill_all(step.argv)),
            places.fill(step.cwd),
            places.fill_values(step.env),
        )
        scope = asyncio.timeout(silence_s)
        output = StepOutput(attempt, scope, silence_s)
        try:
            async with scope:
                end = await executor.run(command, output)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise _silent(step, command.name, silence_s, attempt) from error
        if end.code != 0:
            raise BuildFailed(
                f"build step {command.name!r} {end.text}",
                hint=f"read its output: chaindock logs {attempt.ccid}",
                step=command.name,
                retryable=platform.is_retryable(step, output.lines),
                **end.facts,
                **attempt.facts(),
            )


@contextlib.asynccontextmanager
async def build_deadline(limit_s: float, attempt: Attempt) -> AsyncIterator[None]:
    """Cancel the block after `limit_s` seconds, whatever the build prints.

    Raises: BuildFailed.
    """
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


def _silent(step: Step, name: str, limit_s: float, attempt: Attempt) -> BuildSilent:
    return BuildSilent(
        f"build step {name!r} printed nothing for {limit_s:g} s",
        hint="look at its last lines; a registry may be unreachable. The limit is "
        "chaindock.build.silence",
        step=name,
        limit_s=limit_s,
        retryable=step.phase == "dependencies",
        **attempt.facts(),
    )
