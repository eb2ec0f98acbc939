"""How much memory the node holds for one transaction, or for all calls of a contract.

What comes from a contract is counted before the node keeps it.
"""

from __future__ import annotations

from typing import Final

from chaindock.errors import BudgetExceeded

ENTRY_BYTES: Final = 128
"""What a key, a record or a query costs besides its bytes: Python's objects for it."""


def text_bytes(text: str) -> int:
    """Return the most that Python holds for `text`.

    Beyond ASCII: 4 bytes for each character, and its UTF-8 once it was encoded.
    """
    return len(text) if text.isascii() else 8 * len(text)


class Budget:
    """A limit for bytes that are held.

    `name` is what it holds for, with its setting, as the error text has it. What is
    taken here is taken of `parent`, too.
    """

    def __init__(self, limit: int, name: str, parent: Budget | None = None) -> None:
        self.limit, self.name, self._parent = limit, name, parent
        self.held = 0

    def take(self, nbytes: int) -> None:
        """Count `nbytes` as held, or no longer. Raises: BudgetExceeded: no change."""
        held = self.held + nbytes
        if held > self.limit:
            raise BudgetExceeded(
                f"{self.name} would hold {held} bytes in the node, more than the limit "
                f"of {self.limit}",
                limit=self.limit,
                found=held,
            )
        if self._parent is not None:
            self._parent.take(nbytes)
        self.held = held

    def give_back(self, nbytes: int | None = None) -> None:
        """Count `nbytes` as no longer held; None = everything. Never below 0."""
        size = self.held if nbytes is None else min(nbytes, self.held)
        self.held -= size
        if self._parent is not None:
            self._parent.give_back(size)


class Held:
    """Bytes of `budget` that are given back when nothing refers to this object any more.

    Raises: BudgetExceeded; then nothing was taken.
    """

    def __init__(self, budget: Budget, nbytes: int) -> None:
        self._budget, self.nbytes = budget, 0
        budget.take(nbytes)
        self.nbytes = nbytes

    def __del__(self) -> None:
        self._budget.give_back(self.nbytes)
