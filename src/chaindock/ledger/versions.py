"""The tables of versions: what each key held, from which block to which.

A row is written once, and marked when another takes its place; `versions` holds public
values, `private` the hashes of private ones with the data that this node has. Everything
here runs on the writer thread, inside the transaction of a block.
Source: docs/fabric/ledger.md#mvcc, docs/fabric/ledger.md#private-data
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from typing import Any

from chaindock.ledger.blocks import Change, ChangeKey
from chaindock.ledger.contents import LONG, MOST_VALUES, resolved
from chaindock.ledger.database import in_slices, insert
from chaindock.ledger.encoding import Version
from chaindock.ledger.mango.documents import store_documents
from chaindock.ledger.snapshots import ABOVE_ALL, FIND_NAMESPACE, LABELLED
from chaindock.ledger.transaction import Space

Current = tuple[int, int, int, bytes | None]
"""row, block, position, metadata of a key that exists"""
Latest = tuple[int, int, int, bytes | None, int]
"""the same of any key that has not expired, and whether it exists"""
Secrets = dict[bytes, tuple[bytes, bytes]]
"""key and value by the SHA-256 of the key"""

_LATEST = (
    "SELECT id, block, tx, metadata, lives FROM (SELECT id, block, tx, metadata, "
    "value IS NOT NULL lives, superseded FROM {0} WHERE ns=? AND key=? "
    "ORDER BY block DESC, tx DESC LIMIT 1) WHERE superseded IS NULL"
)
_PUBLIC, _PRIVATE = _LATEST.format("versions"), _LATEST.format("private")
_SUPERSEDE = "UPDATE versions SET superseded=? WHERE id IN ({})"
_SUPERSEDE_PRIVATE = "UPDATE private SET superseded=? WHERE id=?"
_ROWS = "versions (ns, key, block, tx, labelled, metadata, value)"
_INSERT_PRIVATE = (
    "INSERT INTO private (ns, key, block, tx, labelled, metadata, value, name, plain, "
    "expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_CURRENT = (
    "SELECT key, id, block, tx, metadata FROM (VALUES {}) CROSS JOIN versions "
    "INDEXED BY versions_current ON key=column1 AND ns=? "
    "AND superseded IS NULL AND value IS NOT NULL"
)
_VALUE = resolved("SELECT value, VALUE FROM versions WHERE id=?")
_VALUE_BEFORE = resolved(
    "SELECT VALUE FROM versions WHERE ns=? AND key=? AND block<? "
    "ORDER BY block DESC, tx DESC LIMIT 1"
)
_PRIVATE_VALUE = "SELECT value, name, plain FROM private WHERE id=?"
_RANGE = (
    "SELECT key, block, tx FROM versions INDEXED BY versions_current WHERE ns=? "
    "AND key>=? AND key<? AND superseded IS NULL AND value IS NOT NULL ORDER BY key"
)
PURGED = 2
"""What `labelled` is when the private data of a row was purged."""
_PURGE = (
    "UPDATE private SET name=NULL, plain=NULL, labelled=2 "
    "WHERE ns=? AND key=? AND name IS NOT NULL"
)
# The hash stays: after a revert to a height before the expiry it counts again.
_EXPIRE = (
    "UPDATE private SET superseded=coalesce(superseded, ?1), name=NULL, plain=NULL, "
    "labelled=3 WHERE expires=?1"
)
_MOST_BLOCKS = 2**63 - 1
"""SQLite's highest integer; what expires in a later block never expires."""


class Versions:
    """Reads and writes both tables through one connection.

    To be made anew when a block failed, or something else has changed the file.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._ids: dict[tuple[str, str], int] = {}
        self._content = 0
        """The number of the next long value."""
        self._indexed: set[int] | None = None
        """Namespaces with documents for rich queries; None = not read yet."""
        self._number = 0
        self._current: dict[tuple[int, bytes], Current | None] = {}
        """By namespace and key, unless the block has written that."""
        self._rows: list[tuple[Any, ...]] = []
        self._superseded: list[int] = []
        self._contents: list[tuple[int, bytes]] = []

    def begin(self, number: int, spaces: Iterable[Space]) -> None:
        """Begin a block; look up the public keys that it reads and writes, many at once."""
        self._number, self._content = number, number * MOST_VALUES
        wanted: dict[str, set[bytes]] = defaultdict(set)
        for space in spaces:
            if not space.collection:
                for pairs in (space.reads, space.writes, space.metadata):
                    wanted[space.ns].update(pair[0] for pair in pairs)
        for ns, keys in wanted.items():
            if (found := self._find(ns, "")) is not None:
                self._look_up(found, keys)

    def finish(self) -> None:
        """End a block: write what waits."""
        self._flush()
        self._current.clear()

    def _flush(self) -> None:
        for some in in_slices(self._superseded):
            sql = _SUPERSEDE.format(",".join("?" * len(some)))
            self._db.execute(sql, (self._number, *some))
        insert(self._db, "contents", self._contents)
        insert(self._db, _ROWS, self._rows)
        for written in (self._rows, self._superseded, self._contents):
            written.clear()

    def _find(self, ns: str, collection: str) -> int | None:
        found = self._ids.get((ns, collection))
        if found is None:
            row = self._db.execute(FIND_NAMESPACE, (ns, collection)).fetchone()
            if row is None:
                return None
            found = self._ids[ns, collection] = row[0]
        return found

    def number(self, ns: str, collection: str) -> int:
        """Return the number of a namespace or collection, a new one if it has none."""
        found = self._find(ns, collection)
        if found is None:
            sql = "INSERT INTO namespaces (ns, collection) VALUES (?, ?)"
            found = self._db.execute(sql, (ns, collection)).lastrowid or 0
            self._ids[ns, collection] = found
        return found

    def latest(self, ns: str, collection: str, key: bytes) -> Latest | None:
        """Return the newest row of a key or key hash that has not expired."""
        number = self._find(ns, collection)
        if number is None:
            return None
        return self._latest(_PRIVATE if collection else _PUBLIC, number, key)

    def _latest(self, sql: str, number: int, key: bytes) -> Latest | None:
        row: Latest | None = self._db.execute(sql, (number, key)).fetchone()
        return row

    def labelled(self, ns: str, collection: str) -> bool:
        """Whether any key of a namespace or collection has, or had, metadata."""
        sql = LABELLED[bool(collection)]
        number = self._find(ns, collection)
        return self._db.execute(sql, (number,)).fetchone() is not None

    def version(self, ns: str, collection: str, key: bytes) -> Version | None:
        """Return the version of a key or key hash, None if it does not exist."""
        if not collection:
            found = self._row(self._find(ns, "") or 0, key)
            return found and found[1:3]
        row = self.latest(ns, collection, key)
        return row[1:3] if row is not None and row[4] else None

    def value(self, ns: str, key: bytes, before: int) -> bytes | None:
        """Return the public value of a key before block `before`."""
        number = self._find(ns, "")
        row = self._db.execute(_VALUE_BEFORE, (number, key, before)).fetchone()
        value: bytes | None = row and row[0]
        return value

    def range(
        self, ns: str, start: bytes, stop: bytes
    ) -> Iterator[tuple[bytes, int, int]]:
        """Return key, block and position of the keys in `[start, stop)`."""
        self._flush()
        bounds = (self._find(ns, ""), start, stop or ABOVE_ALL)
        return self._db.execute(_RANGE, bounds)

    def _look_up(self, ns: int, keys: Collection[bytes]) -> None:
        for some in in_slices(keys):
            self._current |= dict.fromkeys((ns, key) for key in some)
            sql = _CURRENT.format(",".join(["(?)"] * len(some)))
            for key, *row in self._db.execute(sql, (*some, ns)):
                self._current[ns, key] = tuple(row)

    def _row(self, ns: int, key: bytes) -> Current | None:
        """Return the row of a public key that counts; None = it does not exist."""
        if (ns, key) not in self._current:
            self._flush()
            self._look_up(ns, (key,))
        return self._current[ns, key]

    def write(
        self, space: Space, at: Version, changes: dict[ChangeKey, Change]
    ) -> None:
        """Write what a valid transaction wrote in the public state of a namespace."""
        ns = self.number(space.ns, "")
        labels = dict(space.metadata)
        rows: list[tuple[Any, ...]] = []
        (block, tx), name = at, space.ns
        for key, value in dict(space.writes).items():
            row = self._row(ns, key)
            # A new value keeps the metadata of the key, a delete removes it.
            metadata = labels.pop(key, row and row[3])
            stored: bytes | int | None = value
            if value is not None and len(value) >= LONG:
                stored = self._content
                self._contents.append((stored, value))
                self._content += 1
            rows.append((ns, key, block, tx, 0, value and metadata, stored))
            changes[name, "", key] = value, tx
        for key, metadata in labels.items():
            row = self._row(ns, key)
            if row is None:
                continue  # metadata of an absent key is ignored
            stored, value = self._db.execute(_VALUE, row[:1]).fetchone()
            rows.append((ns, key, block, tx, 1, metadata, stored))
            changes[name, "", key] = value, tx
        former = (self._current.pop((ns, written[1])) for written in rows)
        self._superseded += [row[0] for row in former if row]
        self._rows += rows
        if self._indexed is None:
            found = self._db.execute("SELECT ns FROM indexed")
            self._indexed = {row[0] for row in found}
        if ns in self._indexed:
            documents = ((row[1], tx, changes[name, "", row[1]][0]) for row in rows)
            store_documents(self._db, ns, block, documents)

    def write_private(
        self,
        space: Space,
        at: Version,
        changes: dict[ChangeKey, Change] | None,
        secrets: Secrets,
        live_blocks: int,
    ) -> None:
        """Write what a transaction wrote in a collection; `changes` None = it is not valid.

        `secrets` is the private data that the node has; it is kept if it fits the hashes.
        Everything stays for `live_blocks` blocks after its own; 0 = for ever.
        """
        ns, purged = self.number(space.ns, space.collection), space.purged
        if changes is None:  # with the number below 0, no state comes of it
            ns, purged, changes = -ns, (), {}
        last = at[0] + live_blocks + 1
        expires = last if live_blocks and last <= _MOST_BLOCKS else None
        labels = dict(space.metadata)
        rows: list[tuple[Any, ...]] = []
        superseded = []
        nothing: tuple[bytes | None, bytes | None] = (None, None)
        for key, value in dict(space.writes).items():
            row = self._latest(_PRIVATE, ns, key)
            metadata = labels.pop(key, row and row[3])
            if row is not None and row[4]:
                superseded.append((at[0], row[0]))
            name, plain = secrets.get(key, nothing)
            if value is None:
                plain = None  # of a delete, the name is kept
            elif plain is None or sha256(plain).digest() != value:
                name = plain = None
            rows.append(
                (ns, key, *at, 0, value and metadata, value, name, plain, expires)
            )
            changes[space.ns, space.collection, key] = (value, at[1])
        for key, metadata in labels.items():
            row = self._latest(_PRIVATE, ns, key)
            if row is None or not row[4]:
                continue
            kept = self._db.execute(_PRIVATE_VALUE, row[:1]).fetchone()
            superseded.append((at[0], row[0]))
            rows.append((ns, key, *at, 1, metadata, *kept, expires))
            changes[space.ns, space.collection, key] = (kept[0], at[1])
        self._db.executemany(_SUPERSEDE_PRIVATE, superseded)
        self._db.executemany(_INSERT_PRIVATE, rows)
        self._db.executemany(_PURGE, ((n, key) for key in purged for n in (ns, -ns)))

    def expire(self, number: int) -> bool:
        """Remove private data that is too old after block `number`; its hashes end there.

        Returns: whether there was any.
        """
        return self._db.execute(_EXPIRE, (number,)).rowcount > 0
