"""Builders that go wrong in one way each.

Owns:    the faults; each is named for what it does.
Not:     the fakes they are made of (fakes.py).
Entry:   any class here
Source:  launch.md §9 W4-W12, W20, W21
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from support.doubles.fakes import InMemoryBuilder, Script, build_failed

if TYPE_CHECKING:
    from chaindock.container.attempt import Attempt
    from chaindock.packaging.store import StoredPackage


class FailsToBuild(InMemoryBuilder):
    """The first `times` builds end with exit code 1."""

    def __init__(self, times: int = 1_000_000) -> None:
        super().__init__()
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
