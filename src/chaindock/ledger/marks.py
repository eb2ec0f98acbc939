"""Heights of a ledger that have a name, and going back to one.

Going back removes the rows of later blocks from the tables of versions, and what they
superseded counts again: the cost is that of the changed keys. Everything runs on the
writer thread, inside a transaction of the database.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from typing import Final

from chaindock.errors import InvalidInput, NotFound
from chaindock.ids import LIFECYCLE
from chaindock.ledger.blocks import Tip
from chaindock.ledger.contents import MOST_VALUES, resolved

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX: Final = "snapshot:"
_PUT: Final = "REPLACE INTO meta VALUES (?, ?)"
_ALL: Final = "SELECT name, value FROM meta WHERE name>=? AND name<?"
_END: Final = "SELECT coalesce(max(id) + 1, 0) FROM versions"
_FROM_ROW: Final = "SELECT id, block FROM versions WHERE id>=? ORDER BY id LIMIT 1"
_REMOVE: Final = (
    "UPDATE versions SET superseded=NULL WHERE superseded>=?",
    "DELETE FROM private WHERE block>=?",
    "UPDATE private SET superseded=NULL WHERE superseded>=?",
    "DELETE FROM transient WHERE height>=?",
    "DELETE FROM transactions WHERE block>=?",
    "DELETE FROM blocks WHERE number>=?",
    f"DELETE FROM contents WHERE id>=?1*{MOST_VALUES} OR id<=-?1",  # noqa: S608  # a constant
)
_CHANGED: Final = (
    "SELECT min(block) FROM {0} WHERE block>=? "
    "AND ns IN (SELECT id FROM namespaces WHERE ns=?)"
)


@dataclass(frozen=True)
class Mark:
    """A snapshot: the state after the first `height` blocks."""

    name: str
    height: int
    hash: str
    """of the last of these blocks, in hex"""


def marks(db: sqlite3.Connection, _: Tip | None = None) -> list[Mark]:
    """Return all snapshots, the newest last."""
    found = []
    for name, value in db.execute(_ALL, (_PREFIX, _PREFIX[:-1] + ";")):
        height, _, hashed = value.partition(":")
        found.append(Mark(name.removeprefix(_PREFIX), int(height), hashed))
    return sorted(found, key=lambda mark: (mark.height, mark.name))


def put_mark(name: str, db: sqlite3.Connection, tip: Tip) -> Mark:
    """Give the newest state a name; one of that name moves. Raises: InvalidInput."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"snapshot {name!r}: expected up to 64 letters, digits, '.', '_' and '-'"
        )
    mark = Mark(name, tip.height, tip.hash.hex())
    db.execute(_PUT, (_PREFIX + name, f"{mark.height}:{mark.hash}"))
    return mark


def drop_mark(name: str, db: sqlite3.Connection, _: Tip | None = None) -> None:
    """Forget a snapshot. Raises: NotFound."""
    _find(db, name)
    db.execute("DELETE FROM meta WHERE name=?", (_PREFIX + name,))


def _find(db: sqlite3.Connection, name: str) -> Mark:
    found = {mark.name: mark for mark in marks(db)}
    if name not in found:
        known = ", ".join(found) or "none"
        raise NotFound(
            f"there is no snapshot {name!r}; known: {known}",
            hint="take one: chaindock snapshot NAME",
            name=name,
        )
    return found[name]


def revert(name: str, db: sqlite3.Connection, tip: Tip) -> Mark:
    """Remove every block after the snapshot `name`, and what it did.

    Of private data that was purged, or expired, only hashes come back. Later snapshots go.

    Raises: NotFound. InvalidInput: chaincode was defined, or the channel configured,
        since.
    """
    mark = _find(db, name)
    height = mark.height
    _require_same_definitions(db, mark, tip)
    _restore_documents(db, height)
    first = _first_row(db, height)
    db.execute("DELETE FROM versions WHERE id>=?", (first,))
    for statement in _REMOVE:
        db.execute(statement, (height,))
    db.execute(_PUT, ("height", height))
    for later in marks(db):
        if later.height > height:
            drop_mark(later.name, db)
    return mark


def _first_row(db: sqlite3.Connection, height: int) -> int:
    """Return the lowest id that only rows of `versions` from block `height` on have."""
    low, (high,) = 0, db.execute(_END).fetchone()
    while low < high:
        middle = (low + high) // 2
        row, block = db.execute(_FROM_ROW, (middle,)).fetchone()
        low, high = (row + 1, high) if block < height else (low, middle)
    return low


def _require_same_definitions(db: sqlite3.Connection, mark: Mark, tip: Tip) -> None:
    for table in ("versions", "private"):
        sql = _CHANGED.format(table)
        (block,) = db.execute(sql, (mark.height, LIFECYCLE)).fetchone()
        if block is not None:
            raise InvalidInput(
                f"a chaincode was deployed in block {block}, after snapshot "
                f"{mark.name!r} (height {mark.height})",
                hint="take a snapshot after the deployment; a copy that `chaindock dump` "
                "wrote also brings back what was deployed",
                block=block,
            )
    if tip.last_config >= mark.height:
        raise InvalidInput(
            f"the channel was configured in block {tip.last_config}, after snapshot "
            f"{mark.name!r} (height {mark.height})",
            hint="take a snapshot after the configuration",
            block=tip.last_config,
        )


def _restore_documents(db: sqlite3.Connection, height: int) -> None:
    """Give rich queries the documents of the state that counts again."""
    sql = "SELECT 1 FROM sqlite_master WHERE name='documents'"
    if db.execute(sql).fetchone() is None:
        return
    db.execute("DELETE FROM documents WHERE block>=?", (height,))
    sql = resolved(
        "INSERT OR REPLACE INTO documents "
        "SELECT ns, key, block, tx, mango_document(VALUE) FROM versions "
        "WHERE superseded>=?1 AND block<?1 AND value IS NOT NULL "
        "AND key<(SELECT coalesce(filled, x'ff') FROM indexed i WHERE i.ns=versions.ns)"
    )
    db.execute(sql, (height,))
