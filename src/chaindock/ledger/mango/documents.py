"""The tables of documents and indexes, and the functions that SQLite calls for them.

A namespace has documents from its first index or first rich query on; another one costs
nothing. They are filled in slices: up to `queried.filled` all documents are there, and
the writer keeps them up to date.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from chaindock.ledger.mango.indexes import Index
from chaindock.ledger.mango.order import sort_key
from chaindock.ledger.mango.selector import ID, parse_path, parse_selector
from chaindock.ledger.mango.values import Missing, document_of, field

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from chaindock.ledger.mango.indexes import Definition

# `documents.json` is the text that a query returns; NULL = the value is no JSON object.
# `queried.filled`: keys below have their documents; NULL = all have.
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS documents (ns INTEGER NOT NULL, key BLOB NOT NULL, json TEXT,
  PRIMARY KEY (ns, key));
CREATE TABLE IF NOT EXISTS queried (ns INTEGER PRIMARY KEY, filled BLOB);
CREATE TABLE IF NOT EXISTS document_indexes (number INTEGER PRIMARY KEY,
  ns INTEGER NOT NULL, ddoc TEXT NOT NULL, name TEXT NOT NULL, columns TEXT NOT NULL,
  partial TEXT NOT NULL, UNIQUE (ns, ddoc, name));
"""
_STORE: Final = "INSERT OR REPLACE INTO documents (ns, key, json) VALUES (?, ?, ?)"
_DROP: Final = "DELETE FROM documents WHERE ns=? AND key=?"


def prepare(db: sqlite3.Connection) -> None:
    """Add the functions of indexes and scans; each connection needs them."""
    db.create_function("mango_key", 3, _mango_key, deterministic=True)
    db.create_function("mango_matches", 3, _mango_matches, deterministic=True)
    db.create_function("mango_document", 1, document_of, deterministic=True)


def _mango_key(key: bytes, text: str | None, path: bytes) -> bytes | None:
    """Return the sort key of a field; None if the document lacks it."""
    steps = _steps(path)
    found = key.decode() if steps == (ID,) else field(_parsed(text), steps)
    return None if isinstance(found, Missing) else sort_key(found)


def _mango_matches(key: bytes, text: str | None, selector: bytes) -> bool:
    return _selector(selector).matches(loaded(key, text))


def loaded(key: bytes, text: str | None) -> dict[str, Any]:
    """Return a document with its `_id`."""
    document: dict[str, Any] = {} if text is None else _decode(text)
    document[ID] = key.decode()
    return document


_decode: Final = msgspec.json.Decoder().decode
"""Three times as fast as the standard library's, which is what writes the documents."""
_steps = lru_cache(256)(lambda path: tuple(json.loads(path)))
_selector = lru_cache(64)(lambda selector: parse_selector(json.loads(selector)))


@lru_cache(4)
def _parsed(text: str | None) -> Any:
    """Parse once for all columns of an index; nobody changes the result."""
    return {} if text is None else _decode(text)


def column(name: str) -> str:
    """Return the SQL of a field's sort key. Quotes nothing: its path is written in hex."""
    path = json.dumps(parse_path(name)).encode().hex()
    return f"mango_key(key, json, X'{path}')"


def members(ns: int, index: Index) -> str:
    """Return the SQL of which documents an index has."""
    terms = [f"ns={ns:d}", *(f"{column(name)} IS NOT NULL" for name in index.columns)]
    if index.partial:
        terms.append(f"mango_matches(key, json, X'{index.partial.encode().hex()}')")
    return " AND ".join(terms)


def put_index(db: sqlite3.Connection, ns: int, definition: Definition) -> None:
    """Make an index, inside the caller's transaction; it replaces one of its name.

    Takes about 10 µs for each document.
    """
    names = (ns, definition.ddoc, definition.name)
    for index in indexes_of(db, ns):
        if (index.ddoc, index.name) == names[1:]:
            if (index.columns, index.partial) == (
                definition.columns,
                definition.partial,
            ):
                return
            drop_index(db, index)
    begin(db, ns)
    cursor = db.execute(
        "INSERT INTO document_indexes (ns, ddoc, name, columns, partial) "
        "VALUES (?, ?, ?, ?, ?)",
        (*names, json.dumps(definition.columns), definition.partial),
    )
    index = Index(
        *(definition.ddoc, definition.name, definition.columns, definition.partial),
        number=cursor.lastrowid or 0,
    )
    columns = ", ".join(column(name) for name in index.columns)
    db.execute(
        f"CREATE INDEX mango_{index.number:d} ON documents ({columns}, key) "
        f"WHERE {members(ns, index)}"
    )


def drop_index(db: sqlite3.Connection, index: Index) -> None:
    """Remove an index, inside the caller's transaction."""
    db.execute(f"DROP INDEX IF EXISTS mango_{index.number:d}")
    db.execute("DELETE FROM document_indexes WHERE number=?", (index.number,))


def indexes_of(db: sqlite3.Connection, ns: int) -> list[Index]:
    """Return the indexes of a namespace."""
    rows = db.execute(
        "SELECT ddoc, name, columns, partial, number FROM document_indexes WHERE ns=?",
        (ns,),
    )
    return [
        Index(ddoc, name, tuple(json.loads(columns)), partial, number)
        for ddoc, name, columns, partial, number in rows
    ]


# --- documents ------------------------------------------------------------------------


def begin(db: sqlite3.Connection, ns: int) -> None:
    """Keep documents of a namespace from now on; `fill` adds those of before."""
    db.execute("INSERT OR IGNORE INTO queried VALUES (?, X'')", (ns,))


def is_kept(db: sqlite3.Connection, ns: int) -> bool:
    """Return whether all documents of a namespace are there."""
    row = db.execute("SELECT filled FROM queried WHERE ns=?", (ns,)).fetchone()
    return row is not None and row[0] is None


def unfilled(db: sqlite3.Connection) -> list[int]:
    """Return the namespaces that `fill` has not finished."""
    return [
        ns for (ns,) in db.execute("SELECT ns FROM queried WHERE filled IS NOT NULL")
    ]


def store_documents(
    db: sqlite3.Connection, ns: int, writes: Iterable[tuple[bytes, bytes | None]]
) -> None:
    """Follow the writes of a transaction (None = deleted), inside the block's."""
    row = db.execute("SELECT filled FROM queried WHERE ns=?", (ns,)).fetchone()
    if row is None:
        return
    (filled,) = row
    for key, value in writes:
        if filled is not None and key >= filled:
            continue
        if value is None:
            db.execute(_DROP, (ns, key))
        else:
            db.execute(_STORE, (ns, key, document_of(value)))


def fill(
    db: sqlite3.Connection, ns: int, rows: Sequence[tuple[bytes, bytes]], *, ended: bool
) -> None:
    """Add the documents of `rows`, the lowest keys from `filled` on.

    `ended`: there are no more rows.
    """
    db.executemany(_STORE, ((ns, key, document_of(value)) for key, value in rows))
    filled = None if ended else rows[-1][0] + b"\0"
    db.execute("UPDATE queried SET filled=? WHERE ns=?", (filled, ns))


def filled_up_to(db: sqlite3.Connection, ns: int) -> bytes | None:
    """Return the key from which documents are missing; None = none are."""
    row = db.execute("SELECT filled FROM queried WHERE ns=?", (ns,)).fetchone()
    return None if row is None else row[0]
