"""Read a ledger's file for people: state, histories, blocks, who wrote a key.

Everything runs on one thread with a connection of its own, so that the event loop never
waits for the disk. Each read sees what is committed when it begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Self, TypeVar

from fabric_protos.ledger.queryresult.kv_query_result_pb2 import KeyModification

from chaindock.errors import InvalidInput, LedgerClosed, NotFound
from chaindock.ledger.contents import resolved
from chaindock.ledger.database import translated
from chaindock.ledger.delivered import PrivateSet, private_of
from chaindock.ledger.encoding import Version
from chaindock.ledger.ledger import TxLocation
from chaindock.ledger.packing import read_block
from chaindock.ledger.queries import modification
from chaindock.ledger.snapshots import Reader, Snapshot
from chaindock.ledger.transaction import packed_id, unpacked_id

T = TypeVar("T")
_COUNT = (
    "SELECT count(*) FROM (SELECT 1 FROM {} "
    "WHERE ns=? AND superseded IS NULL AND value IS NOT NULL LIMIT ?)"
)
_COUNT_PUBLIC = _COUNT.format("versions INDEXED BY versions_current")
_COUNT_PRIVATE = _COUNT.format("private")
_COLLECTIONS = (
    "SELECT ns, collection FROM namespaces WHERE collection<>'' ORDER BY 1, 2"
)
# A change of metadata alone counts: it is a conflict for transactions that read the key.
# The row is found in the index alone: a range may have a million keys.
_LAST = (
    "SELECT v.key, v.block, v.tx, tx_id, coalesce({1}, x''), timestamp, value IS NULL "
    "FROM (SELECT key, block, tx FROM {0} INDEXED BY {0}_key "
    "WHERE ns=?1 AND key>=?2 AND key<?3 AND (block, tx)<(?4, ?5) "
    "ORDER BY block DESC, tx DESC LIMIT 1) f "
    "JOIN {0} v ON v.ns=?1 AND v.key=f.key AND v.block=f.block AND v.tx=f.tx "
    "JOIN transactions t ON t.block=v.block AND t.position=v.tx"
)
_LAST_PUBLIC, _LAST_PRIVATE = (
    resolved(_LAST.format("versions", "VALUE")),
    _LAST.format("private", "value"),
)
_NAME = (
    "SELECT name FROM private WHERE ns=? AND key=? AND name IS NOT NULL "
    "ORDER BY block DESC, tx DESC LIMIT 1"
)
_HEIGHT = "SELECT value FROM meta WHERE name='height'"
_BLOCK = "SELECT hash, block FROM blocks WHERE number=?"
_BLOCK_OF = (
    "SELECT number FROM blocks WHERE substr(hash, 1, 8)=substr(?1, 1, 8) AND hash=?1"
)
_NEWEST = "SELECT number, hash FROM blocks ORDER BY number DESC LIMIT 2"
_FIND = (
    "SELECT tx_id, block, position, code FROM transactions "
    "WHERE (tx_id BETWEEN ? AND ?) OR (tx_id>=? AND tx_id<?) "
    "ORDER BY tx_id, block, position LIMIT 2"
)
_HISTORY_STEP, _STEP_BYTES = 100, 1024 * 1024
_FULL_ID = 64


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed value of a key, and its version: block and position in the block."""

    key: bytes
    value: bytes
    block: int
    tx: int


@dataclass(frozen=True, slots=True)
class Change:
    """A write or delete of a key by a valid transaction.

    `entry` is a `queryresult.KeyModification`: transaction id, time, value, is_delete.
    """

    key: bytes
    block: int
    tx: int
    entry: KeyModification


class LedgerReader:
    """Reads the file at `path`; an async context manager. Raises: LedgerError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "ledger-reader")
        self._view: View | None = None

    async def __aenter__(self) -> Self:
        self._view = await self._in_thread(lambda: View(self._path))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish the reads that were asked for, then close the file."""
        view, self._view = self._view, None
        if view is not None:
            done = self._in_thread(view.close)
            self._thread.shutdown(wait=False)
            await asyncio.shield(done)

    def _in_thread(self, job: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, job)

    async def run(self, job: Callable[[View], T]) -> T:
        """Return what `job` returns; it runs on the reader's thread, after earlier ones.

        Raises: LedgerClosed, LedgerError, and what `job` raises.
        Cancelled: the job finishes on its thread; its result is dropped.
        """
        view = self._view
        if view is None:
            raise LedgerClosed("the ledger is closed")

        def guarded() -> T:
            try:
                with translated(self._path):
                    return job(view)
            finally:
                # What stays open would keep the log from being shortened.
                view.renew()

        return await self._in_thread(guarded)


class View:
    """What jobs of a LedgerReader read with; only for the reader's thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = Reader(path)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def renew(self) -> None:
        """End the read: the next one sees what is committed then."""
        self._reader.renew()

    def height(self) -> int:
        """Return the number of blocks."""
        return int(self._reader.one(_HEIGHT, ())[0])

    def snapshot(self, height: int | None = None) -> Snapshot:
        """Return the state after so many blocks; None = after all."""
        return Snapshot(self._reader, self.height() if height is None else height)

    def get(self, ns: str, collection: str, key: bytes) -> Entry | None:
        """Return the committed value of a key, of a collection unless that is "".

        None = absent. Raises: NotFound: this node has only the hash of the value.
        """
        snapshot = self.snapshot()
        if not collection:
            row = snapshot.get(ns, key)
            return Entry(key, *row) if row else None
        hashed = sha256(key).digest()
        value, at, hashed_at = snapshot.get_private(ns, collection, hashed)
        if hashed_at is None:
            return None
        if value is None:
            raise NotFound(
                f"this node has only the hash of the value in collection {collection!r}",
                hint="the peers of the collection's members have the value",
            )
        return Entry(key, value, *(at or hashed_at))

    def get_state(self, ns: str, key: str) -> bytes | None:
        """Return a committed public value, None if the key is absent."""
        row = self.get(ns, "", key.encode())
        return None if row is None else row.value

    def scan(
        self,
        ns: str,
        collection: str,
        bounds: tuple[bytes, bytes],
        limit: int,
        max_bytes: int,
    ) -> tuple[list[Entry], bool]:
        """Return up to `limit` keys in `[start, stop)`, lowest first.

        No further key is read once keys and values have `max_bytes`.

        Returns: the entries, and whether the last key of the range is among them.
        """
        space, most = (ns, collection), (limit + 1, max_bytes)
        rows, ended = self.snapshot().scan(space, *bounds, *most)
        return [Entry(*row) for row in rows[:limit]], ended and len(rows) <= limit

    def collections(self) -> list[tuple[str, str]]:
        """Return namespace and name of each collection that was written."""
        return self._reader.execute(_COLLECTIONS, ()).fetchall()

    def count(self, ns: str, collection: str, most: int) -> int:
        """Return how many keys a namespace has; counting ends at `most`."""
        sql = _COUNT_PRIVATE if collection else _COUNT_PUBLIC
        found = self._reader.one(sql, (self._reader.namespace(ns, collection), most))
        return int(found[0])

    def has_written(self, ns: str, collection: str) -> bool:
        """Whether a key of this namespace or collection was ever written."""
        return self._reader.namespace(ns, collection) is not None

    def name_of(self, ns: str, collection: str, key_hash: bytes) -> bytes | None:
        """Return the private key with this hash; None = this node does not know it."""
        at = (self._reader.namespace(ns, collection), key_hash)
        row = self._reader.one(_NAME, at)
        return row and bytes(row[0])

    def history(self, ns: str, key: bytes, below: Version) -> Iterator[Change]:
        """Yield the changes of a key before the version `below`, newest first."""
        snapshot = self.snapshot()
        place: Version | None = below
        while place is not None:
            rows, place = snapshot.history(ns, key, place, _HISTORY_STEP, _STEP_BYTES)
            for tx_id, value, block, tx, timestamp, deleted in rows:
                entry = modification(tx_id, value, timestamp, deleted)
                yield Change(key, block, tx, KeyModification.FromString(entry))

    def last_change(
        self, ns: str, collection: str, bounds: tuple[bytes, bytes], below: Version
    ) -> Change | None:
        """Return the newest change of a key in `[start, stop)` before `below`.

        In a collection, keys and values are hashes.
        """
        at = (self._reader.namespace(ns, collection), *bounds, *below)
        row = self._reader.one(_LAST_PRIVATE if collection else _LAST_PUBLIC, at)
        if row is None:
            return None
        found, block, tx, *entry = row
        entry = KeyModification.FromString(modification(*entry))
        return Change(found, block, tx, entry)

    def block(self, number: int) -> tuple[bytes, bytes]:
        """Return hash and serialised form of a block. Raises: NotFound."""
        row = self._reader.one(_BLOCK, (number,))
        if row is None:
            raise NotFound(
                f"there is no block {number}; the newest is {self.height() - 1}",
                hint="list the newest ones: chaindock block ls",
                number=number,
            )
        return row[0], read_block(self._reader.execute, self._path, number, row[1])

    def private_of(self, number: int) -> list[PrivateSet]:
        """Return the private data that the node has of a block. Raises: NotFound."""
        return private_of(self._reader, number, self.block(number)[1])

    def block_of(self, block_hash: bytes) -> bytes | None:
        """Return the serialised block whose header has this hash; None = there is none."""
        row = self._reader.one(_BLOCK_OF, (block_hash,))
        return row and self.block(row[0])[1]

    def chain(self) -> tuple[int, bytes, bytes]:
        """Return the number of blocks, and the hashes of the newest and of the one before.

        The last is b"" if there is only one block.
        """
        (newest, *before) = self._reader.execute(_NEWEST, ()).fetchall()
        return newest[0] + 1, newest[1], before[0][1] if before else b""

    def find(self, tx_id: str) -> tuple[str, TxLocation]:
        """Return the id and place of the transaction whose id begins with `tx_id`.

        Of one id that occurs twice the first occurrence.

        Raises: NotFound. InvalidInput: several ids begin like this.
        """
        first = packed_id(tx_id.ljust(_FULL_ID, "0"))
        last = packed_id(tx_id.ljust(_FULL_ID, "f"))
        bounds = (first, last, tx_id, tx_id + "g")
        rows = self._reader.execute(_FIND, bounds).fetchall()
        if not rows:
            raise NotFound(
                f"the ledger has no transaction {tx_id!r}",
                hint="ids of transactions are shown by: chaindock block show NUMBER",
                tx_id=tx_id,
            )
        if len({row[0] for row in rows}) > 1 and len(tx_id) < _FULL_ID:
            raise InvalidInput(
                f"several transactions have an id that begins with {tx_id!r}",
                hint="give more digits of the id",
                tx_id=tx_id,
            )
        return unpacked_id(rows[0][0]), TxLocation(*rows[0][1:])
