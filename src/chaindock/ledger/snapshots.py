"""Stable views of the committed state, shared by simulations over one height.

A snapshot never changes while it is held. Simulations over one height share one
connection, and no cursor outlives a call.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from typing import TYPE_CHECKING, Any

from chaindock.errors import LedgerClosed
from chaindock.ledger.database import (
    closed_on_error,
    connect_reader,
    read_meta,
    translate,
    translated,
)

if TYPE_CHECKING:
    from pathlib import Path

    Row = tuple[bytes, bytes, int, int]
    """key, value or entry of the history, block, position in the block"""
    Version = tuple[int, int]

_GET = "SELECT value, block, tx FROM state WHERE ns=? AND key=?"
_METADATA = "SELECT metadata, block, tx FROM state WHERE ns=? AND key=?"
_SCAN = (
    "SELECT key, value, block, tx FROM state WHERE ns=? AND key>=? AND key<? "
    "ORDER BY key LIMIT ?"
)
_HISTORY = (
    "SELECT key, entry, block, tx FROM history WHERE ns=? AND key=? "
    "AND (block, tx)<(?, ?) ORDER BY block DESC, tx DESC LIMIT ?"
)
_IDLE_CONNECTIONS = 4
_SHARED_S = 0.05
END_OF_HISTORY = (1 << 62, 0)
"""A version above every other one: where reading history begins."""
ABOVE_ALL = b"\xff"
"""The end of a range without end: no UTF-8 text begins with it."""


def after(key: bytes) -> bytes:
    """Return the lowest key above `key`."""
    return key + b"\0"


class Snapshot:
    """One read transaction; see SnapshotPool for its life."""

    def __init__(self, db: sqlite3.Connection, height: int, path: Path) -> None:
        self.db: sqlite3.Connection | None = db
        self.height = height
        self.users = 0
        self.born = time.monotonic()
        self._path = path

    def get(self, ns: str, key: bytes) -> tuple[bytes, int, int] | None:
        """Return (value, block, position), None if the key is absent."""
        try:
            row: tuple[bytes, int, int] | None
            row = self._connection().execute(_GET, (ns, key)).fetchone()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return row

    def get_metadata(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes | None, int, int] | None:
        """Return (metadata, block, position) of a key or key hash, None if absent."""
        table = f"{ns}$$h{collection}" if collection else ns
        try:
            row: tuple[bytes | None, int, int] | None
            row = self._connection().execute(_METADATA, (table, key)).fetchone()
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return row

    def get_hash(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes, int, int] | None:
        """Return (hash of the value, block, position) for the hash of a private key."""
        return self.get(f"{ns}$$h{collection}", key)

    def get_private(
        self, ns: str, collection: str, key: bytes
    ) -> tuple[bytes | None, Version | None, Version | None]:
        """Return a private value, its version, and the version of its hash."""
        row = self.get_hash(ns, collection, key)
        return None, None, row and row[1:]

    def scan_private(
        self,
        ns: str,  # noqa: ARG002
        collection: str,  # noqa: ARG002
        start: bytes,  # noqa: ARG002
        stop: bytes,  # noqa: ARG002
        limit: int,  # noqa: ARG002
        max_bytes: int,  # noqa: ARG002
    ) -> tuple[list[Row], bool]:
        """Return private keys and values as `scan`; none are stored yet."""
        return [], True

    def scan(
        self, ns: str, start: bytes, stop: bytes, limit: int, max_bytes: int
    ) -> tuple[list[Row], bool]:
        """Return up to `limit` rows with `start <= key < stop`, lowest key first.

        No further row is read once keys and values have `max_bytes`.

        Returns: the rows, and whether the last row in the range is among them.
        """
        return self._read(_SCAN, (ns, start, stop, limit), max_bytes)

    def history(
        self, ns: str, key: bytes, below: Version, limit: int, max_bytes: int
    ) -> tuple[list[Row], bool]:
        """Return entries of the history older than `below`, newest first, as `scan`."""
        return self._read(_HISTORY, (ns, key, *below, limit), max_bytes)

    def _read(
        self, query: str, bounds: tuple[Any, ...], max_bytes: int
    ) -> tuple[list[Row], bool]:
        rows: list[Row] = []
        size = 0
        try:
            with contextlib.closing(
                self._connection().execute(query, bounds)
            ) as cursor:
                for row in cursor:
                    rows.append(row)
                    size += len(row[0]) + len(row[1])
                    if size >= max_bytes:
                        return rows, False
        except sqlite3.Error as error:
            raise translate(error, self._path) from error
        return rows, len(rows) < int(bounds[-1])

    def _connection(self) -> sqlite3.Connection:
        if self.db is None:
            raise LedgerClosed("the ledger was closed while the simulation ran")
        return self.db


class SnapshotPool:
    """Hands out the newest committed state. Use it from the event loop only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._current: Snapshot | None = None
        self._held: set[Snapshot] = set()
        self._idle: list[sqlite3.Connection] = []

    def acquire(self, height: int, *, renew: bool = False) -> Snapshot:
        """Return a snapshot of at least `height` blocks; give it back with `release`.

        Args:
            height: of the ledger now.
            renew: whether the writer waits to shorten the log. The log can only be
                shortened when no snapshot from before the wait is held any more, so
                a snapshot is then shared for 50 ms at most.

        Raises:
            LedgerError: the file cannot be read.
        """
        snapshot = self._current
        if (
            snapshot is None
            or snapshot.users == 0
            or snapshot.height < height
            or (renew and time.monotonic() - snapshot.born > _SHARED_S)
        ):
            snapshot = self._current = self._begin()
            self._held.add(snapshot)
        snapshot.users += 1
        return snapshot

    def _begin(self) -> Snapshot:
        db = self._idle.pop() if self._idle else connect_reader(self._path)
        with closed_on_error(db), translated(self._path):
            db.execute("BEGIN")
            # SQLite pins the snapshot at the first read, not at BEGIN.
            height = int(read_meta(db, self._path, "height"))
        return Snapshot(db, height, self._path)

    def release(self, snapshot: Snapshot) -> None:
        """Give back a snapshot; the last holder ends its transaction."""
        snapshot.users -= 1
        if snapshot.users or (db := snapshot.db) is None:
            return
        self._held.discard(snapshot)
        snapshot.db = None
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error:
            db.close()
            return
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(db)
        else:
            db.close()

    def close(self) -> None:
        """Close all connections; a snapshot still held raises LedgerClosed from now."""
        for snapshot in self._held:
            if snapshot.db is not None:
                snapshot.db.close()
                snapshot.db = None
        for db in self._idle:
            db.close()
