"""One open query: its rows, cut into batches.

Owns:    how large a batch is; how far rows are fetched ahead.
Not:     whose query it is (context.py), the messages (queries.py), the rows (ledger).
Entry:   Query
Holds:   an empty batch never follows one that says there is more; a query that is over
         holds nothing.
Source:  shim-protocol.md §5
"""

from __future__ import annotations

import uuid
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from chaindock.ledger.results import Results

BATCH_RESULTS: Final = 100
BATCH_BYTES: Final = 1024 * 1024
"""A batch ends at this size: some shims take messages of 4 MiB only."""
STEP: Final = 25
"""Rows fetched at a time while a batch is filled: bounds what is held of huge rows."""


class Query:
    """One open query.

    Args:
        results: rows, serialised.
        limit: rows handed out in all; the rest is cut silently.
    """

    __slots__ = ("_left", "_pending", "_results", "name")

    def __init__(self, results: Results, limit: int) -> None:
        self.name = str(uuid.uuid4())
        self._results: Results | None = results
        self._left = limit
        self._pending: deque[bytes] = deque()

    def batch(self) -> tuple[list[bytes], bool]:
        """Return the next rows, and whether there are more."""
        pending = self._pending
        size = sum(map(len, pending))
        while len(pending) <= BATCH_RESULTS and size <= BATCH_BYTES:
            rows = self._fetch(min(STEP, BATCH_RESULTS + 1 - len(pending)))
            if not rows:
                break
            pending.extend(rows)
            size += sum(map(len, rows))
        batch: list[bytes] = []
        size = 0
        while pending and len(batch) < BATCH_RESULTS:
            size += len(pending[0])
            if batch and size > BATCH_BYTES:
                break
            batch.append(pending.popleft())
        if not pending:
            # One row ahead, or the next batch might be empty.
            pending.extend(self._fetch(1))
        return batch, bool(pending)

    def _fetch(self, rows: int) -> list[bytes]:
        wanted = min(rows, self._left)
        if wanted <= 0 or self._results is None:
            return []
        found = self._results.take(wanted)
        self._left -= len(found)
        if len(found) < wanted:
            self.close()
        return found

    def close(self) -> None:
        """Release the rows. Idempotent."""
        if self._results is not None:
            self._results.close()
            self._results = None
