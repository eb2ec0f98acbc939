"""Stable views of the committed state.

A view is a height: the rows of blocks below it that no block below it superseded. So
views cost nothing while they are held, and one connection serves all of them.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any

from chaindock.errors import LedgerClosed
from chaindock.ledger.database import connect_reader, translate

if TYPE_CHECKING:
    from pathlib import Path

    Row = tuple[bytes, bytes, int, int]
    """key, value, block, position in the block"""
    Version = tuple[int, int]

_AT = "FROM {0} WHERE ns=? AND key=? AND block<? ORDER BY block DESC, tx DESC LIMIT 1"
_GET = "SELECT value, block, tx " + _AT.format("versions")
_METADATA = "SELECT metadata, block, tx, value IS NOT NULL " + _AT
_PUBLIC_METADATA = _METADATA.format("versions")
_PRIVATE_METADATA = _METADATA.format("private")
_HASH = "SELECT value, block, tx " + _AT.format("private")
_PRIVATE = "SELECT block, tx, value IS NOT NULL, plain " + _AT.format("private")
_LAST_HELD = (
    "SELECT block, tx FROM private WHERE ns=? AND key=? AND block<? "
    "AND plain IS NOT NULL ORDER BY block DESC, tx DESC LIMIT 1"
)
# Of a key in the range, the row that counts is either the newest one, or was
# superseded since; of the latter there are few, unless the view is old.
_SCAN = (
    "SELECT {2}, {3}, block, tx FROM {0} INDEXED BY {1} WHERE ns=?1 AND {2}>=?2 "
    "AND {2}<?3 AND superseded IS NULL AND {3} IS NOT NULL AND block<?4 "
    "UNION ALL "
    "SELECT {2}, {3}, block, tx FROM {0} INDEXED BY {0}_superseded "
    "WHERE superseded>=?4 AND ns=?1 AND {2}>=?2 AND {2}<?3 AND {3} IS NOT NULL "
    "AND block<?4 ORDER BY 1 LIMIT ?5"
)
_SCAN_PUBLIC = _SCAN.format("versions", "versions_current", "key", "value")
_SCAN_PRIVATE = _SCAN.format("private", "private_names", "name", "plain")
# For a view that is so old that much was superseded since: from key to key, and of each
# the row of that time. Takes 6 µs for a key, however often it was written.
_WALK = """
WITH RECURSIVE keys (key) AS (
  SELECT min(key) FROM versions WHERE ns=?1 AND key>=?2 AND key<?3 UNION ALL
  SELECT (SELECT min(key) FROM versions WHERE ns=?1 AND key>keys.key AND key<?3)
    FROM keys WHERE keys.key IS NOT NULL)
SELECT keys.key, value, block, tx FROM keys CROSS JOIN versions v ON v.id=(
  SELECT id FROM versions WHERE ns=?1 AND key=keys.key AND block<?4
    ORDER BY block DESC, tx DESC LIMIT 1)
  WHERE keys.key IS NOT NULL AND value IS NOT NULL LIMIT ?5
"""
_CHANGED = (
    "SELECT count(*) FROM (SELECT 1 FROM versions INDEXED BY versions_superseded "
    "WHERE superseded>=? LIMIT ?)"
)
MOST_CHANGED = 1000
"""Rows superseded since, above which a view is old; each makes a range 1 µs slower."""
_HISTORY = (
    "SELECT tx_id, coalesce(value, x''), v.block, v.tx, timestamp, value IS NULL "
    "FROM versions v JOIN transactions t ON t.block=v.block AND t.position=v.tx "
    "WHERE ns=? AND key=? AND labelled=0 AND (v.block, v.tx)<(?, ?) "
    "ORDER BY v.block DESC, v.tx DESC LIMIT ?"
)
_NAMESPACE = "SELECT id FROM namespaces WHERE ns=? AND collection=?"
END_OF_HISTORY = (1 << 62, 0)
"""A version above every other one: where reading history begins."""
_LABELLED = "SELECT 1 FROM {0} WHERE ns=? AND metadata IS NOT NULL LIMIT 1"
_PUBLIC_LABELLED = _LABELLED.format("versions")
_PRIVATE_LABELLED = _LABELLED.format("private")
ABOVE_ALL = b"\xff"
"""The end of a range without end: no UTF-8 text begins with it."""


def after(key: bytes) -> bytes:
    """Return the lowest key above `key`."""
    return key + b"\0"


class Reader:
    """The connection that reads. Use it on one thread.

    A transaction stays open from a read to the next block: it makes a point read a third
    cheaper. While `paused`, none stays open, so that the log can be shortened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = connect_reader(path)
        self._ids: dict[tuple[str, str], int] = {}
        self.paused = False

    def execute(self, sql: str, values: tuple[Any, ...]) -> sqlite3.Cursor:
        """Run a SELECT. Raises: LedgerClosed, LedgerError."""
        db = self._db
        if db is None:
            raise LedgerClosed(
                "the ledger was closed or reverted while the simulation ran"
            )
        try:
            if not (self.paused or db.in_transaction):
                db.execute("BEGIN")
            return db.execute(sql, values)
        except sqlite3.Error as error:
            raise translate(error, self._path) from error

    def one(self, sql: str, values: tuple[Any, ...]) -> Any:
        """Return the first row, None if there is none."""
        db = self._db
        if db is None or not db.in_transaction:
            return self.execute(sql, values).fetchone()
        try:
            return db.execute(sql, values).fetchone()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error

    def rows(
        self, sql: str, values: tuple[Any, ...], max_bytes: int
    ) -> tuple[list[Any], bool]:
        """Return rows until their first two columns have `max_bytes`.

        The last of `values` is the LIMIT. Returns: the rows, and whether there are no more.
        """
        rows: list[Any] = []
        size = 0
        try:
            with contextlib.closing(self.execute(sql, values)) as cursor:
                for row in cursor:
                    rows.append(row)
                    size += len(row[0]) + len(row[1])
                    if size >= max_bytes:
                        return rows, False
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return rows, len(rows) < int(values[-1])

    def namespace(self, ns: str, collection: str) -> int | None:
        """Return the number of a namespace or collection; None if nothing was written."""
        found = self._ids.get((ns, collection))
        if found is None:
            row = self.one(_NAMESPACE, (ns, collection))
            if row is None:
                return None
            found = self._ids[ns, collection] = row[0]
        return found

    def renew(self) -> None:
        """See the newest block from the next read on."""
        if self._db is not None and self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection; a read after it raises LedgerClosed."""
        if self._db is not None:
            self._db.close()
            self._db = None


class Snapshot:
    """The state after `height` blocks."""

    def __init__(self, reader: Reader, height: int) -> None:
        self.height = height
        self._reader = reader

    @property
    def reader(self) -> Reader:
        """The connection; what is read through it may be newer than the view."""
        return self._reader

    def get(self, ns: str, key: bytes) -> tuple[bytes, int, int] | None:
        """Return (value, block, position), None if the key is absent."""
        at = (self._reader.namespace(ns, ""), key, self.height)
        row: tuple[bytes, int, int] | None = self._reader.one(_GET, at)
        return None if row is None or row[0] is None else row

    def get_metadata(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes | None, int, int] | None:
        """Return (metadata, block, position) of a key or key hash, None if absent."""
        at = (self._reader.namespace(ns, collection), key, self.height)
        row = self._reader.one(
            _PRIVATE_METADATA if collection else _PUBLIC_METADATA, at
        )
        return row[:3] if row is not None and row[3] else None

    def labelled(self, ns: str, collection: str) -> bool:
        """Whether any key of a namespace or collection may have metadata."""
        sql = _PRIVATE_LABELLED if collection else _PUBLIC_LABELLED
        number = self._reader.namespace(ns, collection)
        return self._reader.one(sql, (number,)) is not None

    def get_hash(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes, int, int] | None:
        """Return (hash of the value, block, position) for the hash of a private key."""
        at = (self._reader.namespace(ns, collection), key, self.height)
        row: tuple[bytes, int, int] | None = self._reader.one(_HASH, at)
        return None if row is None or row[0] is None else row

    def get_private(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes | None, Version | None, Version | None]:
        """Return a private value, its version, and the version of its hash.

        They differ if the node lacks the value that belongs to the newest hash.
        """
        at = (self._reader.namespace(ns, collection), key, self.height)
        row = self._reader.one(_PRIVATE, at)
        if row is None or not row[2]:
            return None, None, None
        if row[3] is None:
            return None, self._reader.one(_LAST_HELD, at), row[:2]
        return row[3], row[:2], row[:2]

    def scan(
        self, ns: str, start: bytes, stop: bytes, limit: int, max_bytes: int
    ) -> tuple[list[Row], bool]:
        """Return up to `limit` rows with `start <= key < stop`, lowest key first.

        No further row is read once keys and values have `max_bytes`.

        Returns: the rows, and whether the last row in the range is among them.
        """
        ns_id = self._reader.namespace(ns, "")
        bounds = (ns_id, start, stop, self.height, limit)
        sql = _SCAN_PUBLIC if self._is_recent() else _WALK
        return self._reader.rows(sql, bounds, max_bytes)

    def _is_recent(self) -> bool:
        changed = self._reader.one(_CHANGED, (self.height, MOST_CHANGED + 1))
        return int(changed[0]) <= MOST_CHANGED

    def scan_private(
        self,
        ns: str,
        collection: str,
        start: bytes,
        stop: bytes,
        limit: int,
        max_bytes: int,
    ) -> tuple[list[Row], bool]:
        """Return private keys and values as `scan`."""
        ns_id = self._reader.namespace(ns, collection)
        bounds = (ns_id, start, stop, self.height, limit)
        return self._reader.rows(_SCAN_PRIVATE, bounds, max_bytes)

    def history(
        self, ns: str, key: bytes, below: Version, limit: int, max_bytes: int
    ) -> tuple[list[Any], bool]:
        """Return writes of a key older than `below`, newest first.

        Each is (transaction id, value, block, position, serialised timestamp, whether it
        was a delete); see `scan` for `limit`, `max_bytes` and what is returned.
        """
        bounds = (self._reader.namespace(ns, ""), key, *below, limit)
        return self._reader.rows(_HISTORY, bounds, max_bytes)
