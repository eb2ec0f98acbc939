"""What a benchmark reports, and how it is shown.

Every benchmark is a module `bench_NAME.py` with

    async def run() -> AsyncIterator[Row | Skipped]

It measures something of ours and, in the same run, something that does as much of the
work without us. `python -m tests.bench` finds the modules, runs them and prints rows.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measured thing.

    Args:
        what: what was measured.
        value: ours, in `unit`.
        unit: "ms", "µs", "MB", "/s".
        reference: the same unit, measured in the same run.
        against: what the reference is.
        most: goal: the ratio is at most this.
        limit: goal: the value is at most this.
        least: goal: the ratio is at least this.
    """

    what: str
    value: float
    unit: str
    reference: float
    against: str
    most: float | None = None
    limit: float | None = None
    least: float | None = None

    @property
    def ratio(self) -> float:
        """How many times the reference it is."""
        return self.value / self.reference

    @property
    def met(self) -> bool | None:
        """Whether the goals are met; None when there is none."""
        if self.most is None and self.limit is None and self.least is None:
            return None
        too_slow = self.most is not None and self.ratio > self.most
        too_much = self.limit is not None and self.value > self.limit
        too_few = self.least is not None and self.ratio < self.least
        return not (too_slow or too_much or too_few)

    def as_json(self) -> dict[str, Any]:
        """Return all fields, the ratio and the verdict."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}

    def cells(self) -> tuple[str, ...]:
        """Return the row as text, in the order of `HEADINGS`."""
        goals = []
        if self.most is not None:
            goals.append(f"≤ {self.most:g} x")
        if self.limit is not None:
            goals.append(f"≤ {self.limit:g} {self.unit}")
        if self.least is not None:
            goals.append(f"≥ {self.least:g} x")
        return (
            self.what,
            _quantity(self.value, self.unit),
            _quantity(self.reference, self.unit),
            self.against,
            f"{self.ratio:.2f}",
            ", ".join(goals),
            {True: "yes", False: "NO", None: ""}[self.met],
        )


@dataclass(frozen=True)
class Skipped:
    """Something that cannot be measured on this machine, and why."""

    what: str
    reason: str


HEADINGS = ("what", "value", "reference", "", "ratio", "goal", "met")
_WIDTHS = (40, 12, 12, 38, 6, 9, 3)
_RIGHT = {1, 2, 4}


def line(cells: tuple[str, ...]) -> str:
    """Return one line of the table."""
    parts = [
        cell.rjust(width) if column in _RIGHT else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ]
    return "  ".join(parts).rstrip()


def _quantity(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1
    return f"{value:,.{digits}f} {unit}"
