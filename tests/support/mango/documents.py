"""Documents of one namespace in a database of their own."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING

from chaindock.ledger.mango.documents import (
    SCHEMA,
    begin,
    fill,
    indexes_of,
    prepare,
    put_index,
    store_documents,
)
from chaindock.ledger.mango.indexes import parse_index, plan
from chaindock.ledger.mango.query import parse_query
from chaindock.ledger.mango.scan import Row, Scan

if TYPE_CHECKING:
    from collections.abc import Mapping

NS = 7


class Documents:
    """Documents of one namespace, with indexes."""

    def __init__(self, documents: Mapping[str, object]) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        prepare(self.db)
        self.db.executescript(SCHEMA)
        begin(self.db, NS)
        fill(self.db, NS, [], ended=True)
        self.put(documents)
        self.rows: list[Row] = []

    def close(self) -> None:
        self.db.close()

    def put(self, documents: Mapping[str, object]) -> None:
        writes = [
            (
                key.encode(),
                value if isinstance(value, bytes) else json.dumps(value).encode(),
            )
            for key, value in documents.items()
        ]
        store_documents(self.db, NS, writes)

    def index(self, *fields: object, name: str = "", partial: object = None) -> None:
        index: dict[str, object] = {"fields": fields}
        if partial is not None:
            index["partial_filter_selector"] = partial
        name = name or "-".join(map(str, fields))
        text = json.dumps({"index": index, "ddoc": f"d{name}", "name": name})
        put_index(self.db, NS, parse_index(text.encode()))

    def scan(
        self, query: Mapping[str, object], bookmark: str = "", *, strict: bool = True
    ) -> Scan:
        parsed = parse_query(json.dumps(query), bookmark)
        return Scan(parsed, plan(parsed, indexes_of(self.db, NS), strict=strict), NS)

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
    ) -> tuple[list[str], str]:
        scan = self.scan(query, bookmark, strict=strict)
        rows: list[Row] = []
        while not scan.exhausted and len(rows) < size:
            rows += scan.step(self.db, size - len(rows), 1 << 20)
        self.rows = rows
        return [key.decode() for key, _ in rows], scan.bookmark

    def keys(self, query: Mapping[str, object], *, strict: bool = True) -> list[str]:
        return self.page(query, strict=strict)[0]
