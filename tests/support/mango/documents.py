"""Documents of one namespace in a database of their own, with tables as a ledger has."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chaindock.ledger.mango.documents import (
    SCHEMA,
    fill,
    indexes_of,
    prepare,
    put_index,
    store_documents,
)
from chaindock.ledger.mango.indexes import parse_index, plan
from chaindock.ledger.mango.query import parse_query
from chaindock.ledger.mango.scan import Scan
from chaindock.ledger.mango.superseded import Row, View

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NS = 7
VERSIONS = """
CREATE TABLE contents (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
CREATE TABLE versions (id INTEGER PRIMARY KEY, ns INTEGER NOT NULL, key BLOB NOT NULL,
  block INTEGER NOT NULL, tx INTEGER NOT NULL, superseded INTEGER, value BLOB);
CREATE UNIQUE INDEX versions_key ON versions (ns, key, block, tx);
CREATE INDEX versions_current ON versions (ns, key)
  WHERE superseded IS NULL AND value IS NOT NULL;
CREATE INDEX versions_superseded ON versions (superseded)
  WHERE superseded IS NOT NULL;
"""
_AT = (
    "SELECT key, value, block, tx FROM versions WHERE ns=? AND key>=? AND block<? AND "
    "(superseded IS NULL OR superseded>=?) AND value IS NOT NULL ORDER BY key"
)


@dataclass
class StateView(View):
    """The state after `height` blocks."""

    db: sqlite3.Connection
    height: int
    ns: int = NS

    def execute(self, sql: str, values: list[Any]) -> sqlite3.Cursor:
        return self.db.execute(sql, values)

    def walk(self, start: bytes) -> Iterator[tuple[bytes, bytes, int, int]]:
        return self.db.execute(_AT, (NS, start, self.height, self.height))

    def get(self, key: bytes) -> tuple[bytes, int, int]:
        found, value, block, tx = next(self.walk(key))
        assert found == key
        return value, block, tx


class Documents:
    """Documents of one namespace, with indexes."""

    def __init__(self, documents: Mapping[str, object]) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        prepare(self.db)
        self.db.executescript(SCHEMA + VERSIONS)
        self.height = 0
        self.filled = True
        self.put(documents)
        self.rows: list[Row] = []

    def close(self) -> None:
        self.db.close()

    def put(self, documents: Mapping[str, object]) -> None:
        """Commit a block with these values; None deletes."""
        writes = [
            (key.encode(), number, _encoded(value))
            for number, (key, value) in enumerate(documents.items())
        ]
        for key, tx, value in writes:
            self.db.execute(
                "UPDATE versions SET superseded=? WHERE ns=? AND key=? "
                "AND superseded IS NULL",
                (self.height, NS, key),
            )
            self.db.execute(
                "INSERT INTO versions (ns, key, block, tx, value) VALUES (?, ?, ?, ?, ?)",
                (NS, key, self.height, tx, value),
            )
        store_documents(self.db, NS, self.height, writes)
        self.height += 1

    def index(self, *fields: object, name: str = "", partial: object = None) -> None:
        index: dict[str, object] = {"fields": fields}
        if partial is not None:
            index["partial_filter_selector"] = partial
        name = name or "-".join(map(str, fields))
        text = json.dumps({"index": index, "ddoc": f"d{name}", "name": name})
        put_index(self.db, NS, parse_index(text.encode()))
        while self.filled and fill(self.db):
            pass

    def scan(
        self, query: Mapping[str, object], bookmark: str = "", *, strict: bool = True
    ) -> Scan:
        parsed = parse_query(json.dumps(query), bookmark)
        indexes = indexes_of(self.db, NS)
        return Scan(parsed, plan(parsed, indexes, strict=strict, filled=self.filled))

    def index_for(self, query: Mapping[str, object], *, strict: bool = True) -> str:
        """Return the name of the index that serves a query; "" = none."""
        index = self.scan(query, strict=strict).plan.index
        return "" if index is None else index.name

    def page(
        self,
        query: Mapping[str, object],
        bookmark: str = "",
        size: int = 10**6,
        *,
        strict: bool = True,
        height: int | None = None,
    ) -> tuple[list[str], str]:
        scan = self.scan(query, bookmark, strict=strict)
        rows: list[Row] = []
        view = StateView(self.db, self.height if height is None else height)
        while not scan.exhausted and len(rows) < size:
            rows += scan.step(view, size - len(rows), 1 << 20)
        self.rows = rows
        return [row[0].decode() for row in rows], scan.bookmark

    def keys(self, query: Mapping[str, object], *, strict: bool = True) -> list[str]:
        return self.page(query, strict=strict)[0]


def _encoded(value: object) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return json.dumps(value).encode()
