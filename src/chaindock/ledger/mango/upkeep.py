"""Make the indexes of a package, and the documents they need, on the writer thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Final

from chaindock.ledger.mango.documents import put_index
from chaindock.ledger.mango.indexes import definitions_of, parse_index
from chaindock.ledger.versions import Versions


def put_indexes(
    ns: str, files: Mapping[str, bytes], db: sqlite3.Connection, _: object
) -> None:
    """Make the indexes that `files` of a package define; as `Ledger.put_indexes`."""
    versions = Versions(db)
    for collection, definition in definitions_of(files):
        number = versions.number(ns, collection)
        put_index(db, number, definition, private=bool(collection))


_FORMER: Final = (
    "SELECT was.ns, was.collection, columns, partial, ddoc, name "
    "FROM former.document_indexes i JOIN former.namespaces was ON was.id=i.ns"
)


def take_over(db: sqlite3.Connection) -> None:
    """Make the indexes that the attached database `former` has; its numbers differ."""
    versions = Versions(db)
    for ns, collection, columns, partial, *names in db.execute(_FORMER).fetchall():
        fields = f'{{"fields":{columns},"partial_filter_selector":{partial or "{}"}}}'
        ddoc, name = map(json.dumps, map(str, names))
        text = f'{{"index":{fields},"ddoc":{ddoc},"name":{name}}}'
        number = versions.number(ns, collection)
        put_index(db, number, parse_index(text.encode()), private=bool(collection))
