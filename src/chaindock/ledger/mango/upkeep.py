"""Make the indexes of a package, and the documents they need, on the writer thread."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Final

from chaindock.ledger.mango.documents import put_index
from chaindock.ledger.mango.indexes import Definition, definitions_of
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
    "SELECT was.ns, was.collection, ddoc, name, columns, partial "
    "FROM former.document_indexes i JOIN former.namespaces was ON was.id=i.ns"
)


def take_over(db: sqlite3.Connection) -> None:
    """Make the indexes that the attached database `former` has; its numbers differ."""
    versions = Versions(db)
    for ns, collection, *parts in db.execute(_FORMER).fetchall():
        ddoc, name, columns, partial = parts
        definition = Definition(ddoc, name, tuple(json.loads(columns)), partial)
        number = versions.number(ns, collection)
        put_index(db, number, definition, private=bool(collection))
