"""What `doctor` finds.

Owns:    Check, its states, and what they come to.
Not:     making the checks (checks.py, isolation.py), printing them (doctor.py).
Entry:   Check, Findings
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Of a check. ABSENT: not there, and nothing is wrong with that."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    ABSENT = "absent"


@dataclass(frozen=True)
class Check:
    """One finding.

    Args:
        group: heading it belongs to.
        name: what was tried.
        found: one line.
        remedy: what to do; "" when there is nothing to do.
    """

    group: str
    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Findings:
    """Everything that was found.

    Args:
        docker: an engine answers. languages: what local processes can run.
    """

    checks: tuple[Check, ...]
    docker: bool
    languages: tuple[str, ...] = field(default=())

    @property
    def can_run(self) -> bool:
        """Whether some chaincode can run somehow."""
        broken = any(c.state is State.FAIL and c.group == "home" for c in self.checks)
        return not broken and (self.docker or bool(self.languages))
