"""Builders and chaincode that go wrong in one way each.

Owns:    the faults; each is named for what it does.
Not:     the fakes they are made of (fakes.py).
Entry:   any class here
Source:  launch.md §9 W4-W12, W15, W20, W21
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaindock.container.contracts import Declined
from chaindock.errors import StartFailed
from chaindock.testing.fakes import InMemoryBuilder, Run, Script, build_failed

if TYPE_CHECKING:
    from chaindock.container.attempt import Attempt
    from chaindock.packaging.store import StoredPackage

# --- chaincode: hand one over as `chaincode` ------------------------------------------


class NeverRegisters:
    """Runs, but never says hello; ends when asked to."""

    async def __call__(self, run: Run) -> int:
        """Wait for SIGTERM."""
        await run.terminated.wait()
        return 0


class IgnoresStop:
    """Never says hello and does not listen to SIGTERM either."""

    async def __call__(self, run: Run) -> int:
        """Go on until killed."""
        run.say("running")
        await asyncio.Event().wait()
        return 0


@dataclass
class DiesAtOnce:
    """Ends before it says hello.

    Args:
        code: exit code.
        last_words: written to stderr before.
    """

    code: int = 1
    last_words: str = "panic: no chaincode"

    async def __call__(self, run: Run) -> int:
        """Write and end."""
        run.say(self.last_words, "stderr")
        return self.code


# --- builders ---------------------------------------------------------------------------


class SlowToBuild(InMemoryBuilder):
    """Builds until `release` is set; `waiting` tells that a build has begun."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.release, self.waiting = asyncio.Event(), asyncio.Event()

    async def make(
        self, package: StoredPackage, script: Script, attempt: Attempt
    ) -> None:
        """Wait, then build."""
        self.waiting.set()
        await self.release.wait()
        await super().make(package, script, attempt)


class FailsToBuild(InMemoryBuilder):
    """The first `times` builds end with exit code 1."""

    def __init__(self, times: int = 1_000_000, **options: Any) -> None:
        super().__init__(**options)
        self.times = times

    async def make(
        self, package: StoredPackage, script: Script, attempt: Attempt
    ) -> None:
        """Fail, or build."""
        if self.times > 0:
            self.times -= 1
            self.builds += 1
            attempt.output("registry does not answer", "build")
            raise build_failed(package, "build.sh", 1, attempt)
        await super().make(package, script, attempt)


class FailsToStart(InMemoryBuilder):
    """Builds, but nothing starts."""

    start_error = StartFailed


class LosesItsImage(InMemoryBuilder):
    """The first start finds that somebody has deleted the image."""

    images_lost = 1


class DeclinesAll(InMemoryBuilder):
    """Takes no package."""

    name = "declines"

    async def build(self, package: StoredPackage, attempt: Attempt) -> Declined:
        """Decline."""
        del attempt
        return Declined(f"does not take {package.package_type!r}")
