"""Stable views of the committed state.

A view is a height: the rows of blocks below it that no block below it superseded. So
views cost nothing while they are held, and one connection serves all of them.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chaindock.errors import LedgerClosed
from chaindock.ids import LIFECYCLE, SpaceName
from chaindock.ledger.contents import resolved
from chaindock.ledger.database import connect_reader, translate
from chaindock.ledger.encoding import Row, Version
from chaindock.ledger.transaction import ParsedTransaction

_AT = "FROM versions WHERE ns=? AND key=? AND block<? ORDER BY block DESC, tx DESC LIMIT 1"
_GET = resolved("SELECT VALUE, block, tx ") + _AT
_METADATA = "SELECT metadata, block, tx, value IS NOT NULL " + _AT
# A row that was superseded, and is the newest one all the same, has expired.
_ALIVE = """
SELECT {0} FROM (SELECT {0}, superseded FROM private WHERE ns=? AND key=? AND block<?3
  ORDER BY block DESC, tx DESC LIMIT 1) WHERE coalesce(superseded, ?3)>=?3
"""
_PRIVATE_METADATA = _ALIVE.format("metadata, block, tx, value")
_HASH = _ALIVE.format("value, block, tx")
_PRIVATE = _ALIVE.format("block, tx, value, plain")
_LAST_HELD = (
    "SELECT block, tx FROM private WHERE ns=? AND key=? AND block<? "
    "AND plain IS NOT NULL ORDER BY block DESC, tx DESC LIMIT 1"
)
# Statements that walk a range return a row of each key that they look at, with NULL as the
# value if the view has no such key: `Reader.walk` bounds how many keys that are.
# Of a key in the range, the row that counts is either the newest one, or was
# superseded since; of the latter there are few, unless the view is old. A key that was
# written again since has both rows. Values are read last, so that none is sorted.
_SCAN = """
SELECT key, CASE WHEN block<?4 THEN {4} END, block, tx FROM (
  SELECT {2} AS key, id, block, tx FROM {0} INDEXED BY {1} WHERE ns=?1 AND {2}>=?2
    AND {2}<?3 AND superseded IS NULL AND {3} IS NOT NULL
  UNION ALL
  SELECT {2}, id, block, tx FROM {0} INDEXED BY {0}_superseded WHERE superseded>=?4
    AND ns=?1 AND {2}>=?2 AND {2}<?3 AND {3} IS NOT NULL AND block<?4
  ORDER BY 1 LIMIT ?5) found
"""
# If no row was superseded since, the newest ones are all there are.
_NEWEST = """
SELECT {2}, CASE WHEN block<?4 THEN {4} END, block, tx FROM {0} INDEXED BY {1}
  WHERE ns=?1 AND {2}>=?2 AND {2}<?3 AND superseded IS NULL AND {3} IS NOT NULL
  ORDER BY {2} LIMIT ?5
"""
# For a view that is so old that much was superseded since: from key to key, and of each
# the row of that time. Takes 6 µs for a key, however often it was written.
_WALK = """
WITH RECURSIVE keys (key) AS (
  SELECT min({1}) FROM {2} AND {1}>=?2 AND {1}<?3 UNION ALL
  SELECT (SELECT min({1}) FROM {2} AND {1}>keys.key AND {1}<?3)
    FROM keys WHERE keys.key IS NOT NULL)
SELECT keys.key, CASE WHEN v.{4} IS NOT NULL THEN {5} END, v.block, v.tx
  FROM keys LEFT JOIN {0} v ON v.id=(SELECT id FROM {0} WHERE ns=?1 AND key={3}
    AND block<?4 ORDER BY block DESC, tx DESC LIMIT 1)
  WHERE keys.key IS NOT NULL LIMIT ?5
"""
_KEYS = "versions INDEXED BY versions_key WHERE ns=?1"
# A private key is kept as its hash; its name stands in the rows with its values.
_NAMES = "private INDEXED BY private_held WHERE ns=?1 AND plain IS NOT NULL"
_HASH_OF_NAME = (
    "(SELECT key FROM private INDEXED BY private_held "
    "WHERE ns=?1 AND plain IS NOT NULL AND name=keys.key LIMIT 1)"
)
MOST_WALKED = 500
"""Rows that one statement looks at; a statement that reaches it is continued."""
_CHANGED = (
    "SELECT count(*) FROM (SELECT 1 FROM {0} INDEXED BY {0}_superseded "
    "WHERE superseded>=? LIMIT ?)"
)
MOST_CHANGED = 1000
"""Rows superseded since, above which a view is old; each makes a range 1 µs slower."""


def _statements(*, private: bool, values: bool) -> tuple[str, str, str, str]:
    """Return the statements for the newest view, a recent, an old one, and to tell which.

    `values`: else each value is empty, so that none is read.
    """
    if private:
        table, index, key, value = "private", "private_names", "name", "plain"
        keys, found = _NAMES, _HASH_OF_NAME
    else:
        table, index, key, value = "versions", "versions_current", "key", "value"
        keys, found = _KEYS, "keys.key"
    stored = value if private else resolved("VALUE")
    read = _READ.format(table, stored) if values else "x''"
    recent = _SCAN.format(table, index, key, value, read)
    newest = _NEWEST.format(table, index, key, value, stored if values else "x''")
    read = stored if values else "x''"
    old = _WALK.format(table, key, keys, found, value, read)
    return newest, recent, old, _CHANGED.format(table)


_READ = "(SELECT {1} FROM {0} WHERE id=found.id)"
_STATEMENTS = {
    (private, values): _statements(private=private, values=values)
    for private in (False, True)
    for values in (False, True)
}
# Changes of metadata alone have NULL as the value: they are looked at, but not told.
_HISTORY = (
    "SELECT tx_id, CASE labelled WHEN 0 THEN {} END, v.block, v.tx, timestamp, "
    "value IS NULL FROM versions v "
    "LEFT JOIN transactions t ON labelled=0 AND t.block=v.block AND t.position=v.tx "
    "WHERE ns=? AND key=? AND (v.block, v.tx)<(?, ?) "
    "ORDER BY v.block DESC, v.tx DESC LIMIT ?"
)
_HISTORIES = _HISTORY.format("x''"), resolved(_HISTORY.format("coalesce(VALUE, x'')"))
FIND_NAMESPACE = "SELECT id FROM namespaces WHERE ns=? AND collection=?"
END_OF_HISTORY = (1 << 62, 0)
"""A version above every other one: where reading history begins."""
_LABELLED = "SELECT 1 FROM {} WHERE ns=? AND metadata IS NOT NULL LIMIT 1"
LABELLED = _LABELLED.format("versions"), _LABELLED.format("private")
"""Whether any key has, or had, metadata: of a namespace, of a collection."""
ABOVE_ALL = b"\xff"
"""The end of a range without end: no UTF-8 text begins with it."""


def after(key: bytes) -> bytes:
    """Return the lowest key above `key`."""
    return key + b"\0"


class Reader:
    """The connection that reads. Use it on one thread.

    A transaction stays open from a read to the next block: it makes a point read a third
    cheaper. While `paused`, none stays open, so that the log can be shortened.

    Args:
        height: of the ledger, for a caller that calls `follow` after each later block:
            the reader then keeps the definitions of chaincode, which every call reads.
    """

    def __init__(self, path: Path, height: float = math.inf) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = connect_reader(path)
        self._ids: dict[SpaceName, int] = {}
        self._labelled: dict[SpaceName, bool] = {}
        self.paused = False
        self.definitions: dict[bytes, tuple[bytes, int, int]] = {}
        """Rows by key; views of `defined_height` and above see them."""
        self.defined_height = height

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

    def walk(
        self, sql: str, values: tuple[Any, ...], limit: int, max_bytes: int
    ) -> tuple[list[Any], Any]:
        """Return up to `limit` rows with a value, until their first two columns have `max_bytes`.

        The second column is the value.

        Returns: the rows, and the last one that it looked at; None = there are no more. It
            looks at `MOST_WALKED` rows at most, so that those with a value may be few or none.
        """
        rows: list[Any] = []
        size = 0
        try:
            with contextlib.closing(self.execute(sql, (*values, MOST_WALKED))) as found:
                for looked, row in enumerate(found, 1):
                    if (value := row[1]) is not None:
                        rows.append(row)
                        size += len(row[0]) + len(value)
                        if size >= max_bytes or len(rows) >= limit:
                            return rows, row
                    if looked >= MOST_WALKED:
                        return rows, row
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return rows, None

    def namespace(self, ns: str, collection: str) -> int | None:
        """Return the number of a namespace or collection; None if nothing was written."""
        found = self._ids.get((ns, collection))
        if found is None:
            row = self.one(FIND_NAMESPACE, (ns, collection))
            if row is None:
                return None
            found = self._ids[ns, collection] = row[0]
        return found

    def labelled(self, ns: str, collection: str) -> bool:
        """Whether any key of a namespace or collection may have metadata."""
        found = self._labelled.get((ns, collection))
        if found is None:
            at = (self.namespace(ns, collection),)
            found = self.one(LABELLED[bool(collection)], at) is not None
            self._labelled[ns, collection] = found
        return found

    def follow(self, height: int, txs: Iterable[ParsedTransaction]) -> None:
        """See the last block below `height`, of `txs`, from the next read on."""
        spaces = (space for tx in txs for space in tx.spaces)
        if any(space.ns == LIFECYCLE and space.writes for space in spaces):
            self.definitions.clear()
            self.defined_height = height
        self.renew()

    def renew(self) -> None:
        """See the newest block from the next read on."""
        self._labelled.clear()
        if self._db is not None and self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection; a read after it raises LedgerClosed."""
        self.definitions.clear()
        if self._db is not None:
            self._db.close()
            self._db = None


class Snapshot:
    """The state after `height` blocks; what `reader` reads may be newer."""

    def __init__(self, reader: Reader, height: int) -> None:
        self.height = height
        self.reader = reader

    def get(self, ns: str, key: bytes) -> tuple[bytes, int, int] | None:
        """Return (value, block, position), None if the key is absent."""
        reader = self.reader
        kept: dict[bytes, tuple[bytes, int, int]] = {}
        if ns == LIFECYCLE and self.height >= reader.defined_height:
            kept = reader.definitions
        if key in kept:
            return kept[key]
        at = (reader.namespace(ns, ""), key, self.height)
        row: tuple[bytes, int, int] | None = reader.one(_GET, at)
        if row is None or row[0] is None:
            return None
        kept[key] = row
        return row

    def get_metadata(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes | None, int, int] | None:
        """Return (metadata, block, position) of a key or key hash, None if absent."""
        at = (self.reader.namespace(ns, collection), key, self.height)
        row = self.reader.one(_PRIVATE_METADATA if collection else _METADATA, at)
        return row[:3] if row is not None and row[3] else None

    def labelled(self, ns: str, collection: str) -> bool:
        """Whether any key of a namespace or collection may have metadata."""
        return self.reader.labelled(ns, collection)

    def get_hash(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes, int, int] | None:
        """Return (hash of the value, block, position) for the hash of a private key."""
        at = (self.reader.namespace(ns, collection), key, self.height)
        row: tuple[bytes, int, int] | None = self.reader.one(_HASH, at)
        return None if row is None or row[0] is None else row

    def get_private(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes | None, Version | None, Version | None]:
        """Return a private value, its version, and the version of its hash.

        They differ if the node lacks the value that belongs to the newest hash.
        """
        at = (self.reader.namespace(ns, collection), key, self.height)
        row = self.reader.one(_PRIVATE, at)
        if row is None or not row[2]:
            return None, None, None
        if row[3] is None:
            return None, self.reader.one(_LAST_HELD, at), row[:2]
        return row[3], row[:2], row[:2]

    def walk(
        self,
        space: SpaceName,
        start: bytes,
        stop: bytes,
        limit: int,
        max_bytes: int,
        *,
        values: bool = True,
    ) -> tuple[list[Row], bytes | None]:
        """Return some rows with `start <= key < stop`, lowest key first, in some ms.

        For the limits see `Reader.walk`. `values`: else they are empty.

        Returns: the rows, and the key from which to walk on; None = the range ended.
        """
        newest, recent, old, changed = _STATEMENTS[bool(space[1]), values]
        (found,) = self.reader.one(changed, (self.height, MOST_CHANGED + 1))
        sql = old if found > MOST_CHANGED else recent if found else newest
        at = (self.reader.namespace(*space), start, stop, self.height)
        rows, last = self.reader.walk(sql, at, limit, max_bytes)
        if last is None:
            return rows, None
        # Another row of a key without a value, which has one, may follow.
        return rows, last[0] if last[1] is None else after(last[0])

    def passed(self, space: SpaceName, start: bytes, stop: bytes) -> bytes | None:
        """Return where to walk on if the view has none of the next keys.

        None = it has one, or the range ends.
        """
        rows, place = self.walk(space, start, stop, 1, 1, values=False)
        return None if rows else place

    def scan(
        self, space: SpaceName, start: bytes, stop: bytes, limit: int, max_bytes: int
    ) -> tuple[list[Row], bool]:
        """Return up to `limit` rows with `start <= key < stop`, lowest key first.

        No further row is read once keys and values have `max_bytes`. Keys that the view
        does not have take time, too, without limit: see `walk`.

        Returns: the rows, and whether the last row in the range is among them.
        """
        rows: list[Row] = []
        place: bytes | None = start
        while place is not None and len(rows) < limit and max_bytes > 0:
            some, place = self.walk(space, place, stop, limit - len(rows), max_bytes)
            rows += some
            max_bytes -= sum(len(row[0]) + len(row[1]) for row in some)
        return rows, place is None

    def history(
        self,
        ns: str,
        key: bytes,
        below: Version,
        limit: int,
        max_bytes: int,
        *,
        values: bool = True,
    ) -> tuple[list[Any], Version | None]:
        """Return some writes of a key older than `below`, newest first, in some ms.

        Each is (transaction id, value, block, position, serialised timestamp, whether it
        was a delete); see `walk` for `limit` and `max_bytes`. `values`: else they are empty.

        Returns: the writes, and below which version to go on; None = there are no more.
        """
        at = (self.reader.namespace(ns, ""), key, *below)
        rows, last = self.reader.walk(_HISTORIES[values], at, limit, max_bytes)
        return rows, None if last is None else last[2:4]
