"""The tables of documents and indexes, and the functions that SQLite calls for them.

Only a namespace with an index has documents, those of the newest state: what an older view
sees instead is among the versions that were superseded since. What writes is called on
the writer thread, inside a transaction of the database.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

from chaindock.ledger.contents import lost_value, resolved
from chaindock.ledger.mango.apart import large_apart
from chaindock.ledger.mango.indexes import Definition, Index
from chaindock.ledger.mango.order import sort_key
from chaindock.ledger.mango.selector import ID, parse_partial, parse_path
from chaindock.ledger.mango.values import Missing, decode, document_of, field

# `documents.json` is the text that a query returns; NULL = the value is no JSON object.
# `indexed`: namespaces that have documents; those of keys below `filled` are there, NULL =
# all are. A collection has no documents: its indexes only say which sorts are allowed.
SCHEMA: Final = """
CREATE TABLE indexed (ns INTEGER PRIMARY KEY, filled BLOB);
CREATE TABLE document_indexes (number INTEGER PRIMARY KEY, ns INTEGER NOT NULL,
  ddoc TEXT NOT NULL, name TEXT NOT NULL, columns TEXT NOT NULL, partial TEXT NOT NULL);
"""
_DOCUMENTS: Final = """
CREATE TABLE IF NOT EXISTS documents (ns INTEGER NOT NULL, key BLOB NOT NULL,
  block INTEGER NOT NULL, tx INTEGER NOT NULL, json TEXT, PRIMARY KEY (ns, key))
"""
"""Made with the first index."""
FILL_ROWS, FILL_BYTES = 1000, 1024 * 1024
"""Documents, or bytes of them, that are added at once to a namespace that had none: 20 ms."""
_STORE: Final = "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?, ?)"
_DROP: Final = "DELETE FROM documents WHERE ns=? AND key=?"
_FILLED: Final = "SELECT filled FROM indexed WHERE ns=?"
_NEXT: Final = resolved(
    "SELECT key, block, tx, VALUE FROM versions INDEXED BY versions_current "
    "WHERE ns=? AND key>=? AND superseded IS NULL AND value IS NOT NULL "
    "ORDER BY key"
)


def prepare(db: sqlite3.Connection) -> None:
    """Add the functions of statements; each connection to a ledger needs them."""
    db.create_function("lost_value", 1, lost_value)
    for name, function, count in (
        ("mango_key", large_apart(_mango_key, 1), 3),
        ("mango_matches", large_apart(_mango_matches, 1), 3),
        ("mango_document", _document_of, 1),
    ):
        db.create_function(name, count, function, deterministic=True)


def _mango_key(key: bytes, text: str | None, path: bytes) -> bytes | None:
    """Return the sort key of a field; None if the document lacks it."""
    steps = _steps(path)
    found = key.decode() if steps == (ID,) else field(_parsed(text), steps)
    return None if isinstance(found, Missing) else sort_key(found)


def _mango_matches(key: bytes, text: str | None, selector: bytes) -> bool:
    return parse_partial(selector.decode()).selects(loaded(key, text))


def loaded(key: bytes, text: str | None) -> dict[str, Any]:
    """Return a document with its `_id`."""
    document: dict[str, Any] = {} if text is None else decode(text)
    document[ID] = key.decode()
    return document


_document_of: Final = large_apart(document_of, 0)
_steps = lru_cache(256)(lambda path: tuple(json.loads(path)))


@lru_cache(2)
def _parsed(text: str | None) -> Any:
    """Parse once for all columns of an index; nobody changes the result."""
    return {} if text is None else decode(text)


def column(name: str) -> str:
    """Return the SQL of a field's sort key. It quotes nothing: the path is hex."""
    path = json.dumps(parse_path(name)).encode().hex()
    return f"mango_key(key, json, X'{path}')"


def members(ns: int, index: Index) -> str:
    """Return the SQL of which documents an index has."""
    terms = [f"ns={ns:d}", *(f"{column(name)} IS NOT NULL" for name in index.columns)]
    if index.partial:
        terms.append(f"mango_matches(key, json, X'{index.partial.encode().hex()}')")
    return " AND ".join(terms)


def put_index(
    db: sqlite3.Connection, ns: int, definition: Definition, *, private: bool = False
) -> None:
    """Make an index; it replaces one of its name. Takes 5 µs for each document.

    If the namespace has none yet, `fill` adds them.
    """
    for index in indexes_of(db, ns):
        if (index.ddoc, index.name) == (definition.ddoc, definition.name):
            same = index.columns, index.partial
            if same == (definition.columns, definition.partial):
                return
            db.execute(f"DROP INDEX IF EXISTS mango_{index.number:d}")
            db.execute("DELETE FROM document_indexes WHERE number=?", (index.number,))
    columns, partial = json.dumps(definition.columns), definition.partial
    number = db.execute(
        "INSERT INTO document_indexes (ns, ddoc, name, columns, partial) "
        "VALUES (?, ?, ?, ?, ?)",
        (ns, definition.ddoc, definition.name, columns, partial),
    ).lastrowid
    if private:
        return
    db.execute(_DOCUMENTS)
    db.execute("INSERT OR IGNORE INTO indexed VALUES (?, X'')", (ns,))
    index = Index(**vars(definition), number=number or 0)
    columns = ", ".join(column(name) for name in index.columns)
    db.execute(
        f"CREATE INDEX mango_{index.number:d} ON documents ({columns}, key) "
        f"WHERE {members(ns, index)}"
    )


def indexes_of(db: sqlite3.Connection, ns: int) -> list[Index]:
    """Return the indexes of a namespace."""
    return indexes_from(db.execute(INDEXES, (ns,)))


def indexes_from(rows: Iterable[tuple[Any, ...]]) -> list[Index]:
    """Return the indexes that the rows of `INDEXES` describe."""
    return [
        Index(ddoc, name, tuple(json.loads(columns)), partial, number)
        for ddoc, name, columns, partial, number, _ in rows
    ]


INDEXES: Final = (
    "SELECT ddoc, name, columns, partial, number, "
    "EXISTS (SELECT 1 FROM indexed i WHERE i.ns=d.ns AND filled IS NULL) "
    "FROM document_indexes d WHERE ns=?"
)
"""The last column says whether they have all documents."""


def store_documents(
    db: sqlite3.Connection,
    ns: int,
    block: int,
    writes: Iterable[tuple[bytes, int, bytes | None]],
) -> None:
    """Follow what a transaction wrote: key, position in the block, value (None = deleted).

    A write of metadata alone counts, too.
    """
    row = db.execute(_FILLED, (ns,)).fetchone()
    if row is None:
        return
    for key, tx, value in writes:
        if row[0] is not None and key >= row[0]:
            continue
        if value is None:
            db.execute(_DROP, (ns, key))
        else:
            db.execute(_STORE, (ns, key, block, tx, _document_of(value)))


def fill(db: sqlite3.Connection, _: object = None) -> bool:
    """Add some documents that are missing. Returns: whether there are more."""
    found = db.execute(
        "SELECT ns, filled FROM indexed WHERE filled IS NOT NULL LIMIT 1"
    )
    place = found.fetchone()
    if place is None:
        return False
    (ns, filled), end, left = place, None, FILL_BYTES
    for key, block, tx, value in db.execute(_NEXT, (ns, filled)):
        db.execute(_STORE, (ns, key, block, tx, _document_of(value)))
        left -= len(value) + FILL_BYTES // FILL_ROWS
        if left <= 0:
            end = key + b"\0"
            break
    db.execute("UPDATE indexed SET filled=? WHERE ns=?", (end, ns))
    return True
