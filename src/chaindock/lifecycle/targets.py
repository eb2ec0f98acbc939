"""What is local to this node, on disk: what users stopped or removed, and placements.

A change is on disk before the call returns; reads come from memory. Any thread may change
something: collections are replaced, never modified.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Final

from chaindock.durable import storing
from chaindock.errors import StorageError
from chaindock.ids import Ccid
from chaindock.ledger.database import closed_on_error
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.states import AUTO, Placement, Target

_VERSION: Final = 2
_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE target (
    channel TEXT NOT NULL,
    name TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    ccid TEXT NOT NULL,
    target TEXT NOT NULL,
    since REAL NOT NULL,
    PRIMARY KEY (channel, name)
) STRICT;
CREATE TABLE kept (
    ccid TEXT NOT NULL,
    mspid TEXT NOT NULL,
    PRIMARY KEY (ccid, mspid)
) STRICT;
CREATE TABLE placement (
    ccid TEXT PRIMARY KEY,
    asked TEXT NOT NULL,
    given TEXT NOT NULL,
    why TEXT NOT NULL
) STRICT;
PRAGMA user_version={_VERSION};
COMMIT;
"""
_PLACE: Final = "INSERT OR REPLACE INTO placement VALUES (?,?,?,?)"
_SAY: Final = "INSERT OR REPLACE INTO target VALUES (?,?,?,?,?,?)"


@dataclass(frozen=True)
class Wish:
    """What a user wants of a name, as long as it runs this package by this sequence.

    `since` is when the user said it, in seconds since 1970.
    """

    sequence: int
    ccid: Ccid
    target: Target
    since: float


class TargetState(AbstractContextManager["TargetState"]):
    """The file. Methods that change something block for a disk write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._wishes: dict[tuple[str, str], Wish] = {}
        self._placements: dict[Ccid, Placement] = {}
        self.kept: Mapping[Ccid, frozenset[str]] = {}
        """Packages that stay though no name runs them → MSP ids of who installed them."""
        with self._using():
            self._db = sqlite3.connect(path, check_same_thread=False)
        with self._using(), closed_on_error(self._db):
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            # On macOS a plain fsync leaves data in the drive's cache.
            self._db.execute("PRAGMA fullfsync=ON")
            self._db.execute("PRAGMA checkpoint_fullfsync=ON")
            self._set_up()
            self._load()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()

    # ---- reads, from memory

    def wish(self, channel: str, approval: Approval) -> Wish | None:
        """Return what a user wants of what a name runs now; None = that it runs."""
        found = self._wishes.get((channel, approval.name))
        same = found and (found.sequence, found.ccid)
        return found if same == (approval.sequence, approval.ccid) else None

    def placement(self, ccid: Ccid) -> Placement:
        """Return where `ccid` runs."""
        return self._placements.get(ccid, Placement())

    def is_used(self, backend: str) -> bool:
        """Whether any package was given to this back end."""
        return any(one.given == backend for one in self._placements.values())

    # ---- changes

    async def decide(
        self, ccid: Ccid, choose: Callable[[], Awaitable[tuple[str, str]]]
    ) -> str:
        """Return the back end that runs `ccid`; record it if it was not decided before.

        A back end that a user asked for is the only one used. What `auto` means is
        decided once: until the package is removed or a user asks for another back end,
        no restart, missing image or engine that is away changes it.

        `choose` returns the back end that `auto` means now, and why, in one phrase.

        Raises: what `choose` raises; StorageError.
        """
        placement = self.placement(ccid)
        if not placement.given:
            given, why = placement.asked, "as asked"
            if placement.asked == AUTO:
                given, why = await choose()
            placement = replace(placement, given=given, why=why)
            await asyncio.to_thread(self.place, ccid, placement)
        return placement.given

    def place(self, ccid: Ccid, placement: Placement) -> None:
        """Record where a package runs."""
        with self._lock:
            self._save((_PLACE, (ccid, *astuple(placement))))
            self._placements = {**self._placements, ccid: placement}

    def set(self, channel: str, approval: Approval, target: Target) -> None:
        """Record what a user wants of what a name runs now."""
        key = channel, approval.name
        with self._lock:
            former = self.wish(channel, approval)
            if (former.target if former else Target.RUNNING) is target:
                return
            if target is Target.RUNNING:
                self._forget(lambda one, _: one == key)
                return
            wish = Wish(approval.sequence, approval.ccid, target, time.time())
            self._save((_SAY, (*key, *astuple(wish))))
            self._wishes = {**self._wishes, key: wish}

    def revive(self, ccid: Ccid) -> None:
        """Let names run that were removed with this package, which is there again."""
        removed = Target.REMOVED
        with self._lock:
            self._forget(lambda _, one: (one.ccid, one.target) == (ccid, removed))

    def forget(self, channel: str) -> None:
        """Forget what users want in a channel that is no more."""
        with self._lock:
            self._forget(lambda key, _: key[0] == channel)

    def keep(self, ccid: Ccid, mspid: str) -> None:
        """Let a package stay that an organisation installed."""
        with self._lock:
            self._save(("INSERT OR IGNORE INTO kept VALUES (?,?)", (ccid, mspid)))
            who = self.kept.get(ccid, frozenset()) | {mspid}
            self.kept = {**self.kept, ccid: who}

    def keep_no_more(self, ccid: Ccid) -> None:
        """Undo `keep`. Idempotent."""
        with self._lock:
            self._save(("DELETE FROM kept WHERE ccid=?", (ccid,)))
            self.kept = {one: who for one, who in self.kept.items() if one != ccid}

    # ---- the file

    def drop_placements(self, which: Callable[[Ccid], bool]) -> None:
        """Forget where packages ran that are not to run any more. Idempotent."""
        with self._lock:
            gone = {ccid for ccid in self._placements if which(ccid)}
            drop = "DELETE FROM placement WHERE ccid=?"
            self._save(*((drop, (ccid,)) for ccid in gone))
            left = self._placements.items()
            self._placements = {ccid: one for ccid, one in left if ccid not in gone}

    def _forget(self, which: Callable[[tuple[str, str], Wish], bool]) -> None:
        """Forget wishes. The caller has the lock."""
        gone = [key for key, wish in self._wishes.items() if which(key, wish)]
        drop = "DELETE FROM target WHERE channel=? AND name=?"
        self._save(*((drop, key) for key in gone))
        self._wishes = {k: wish for k, wish in self._wishes.items() if k not in gone}

    def _save(self, *changes: tuple[str, tuple[Any, ...]]) -> None:
        """Write all changes to disk, or none. The caller has the lock."""
        with self._using(), self._db:
            if changes:
                self._db.execute("BEGIN")
            for statement, row in changes:
                self._db.execute(statement, row)

    def _set_up(self) -> None:
        """Make the tables of a new file."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == _VERSION:
            return
        if version or self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise StorageError(
                f"{str(self._path)!r} has schema version {version}, expected {_VERSION}: "
                "another version of Chaindock wrote it",
                hint="use that version of Chaindock, or another home; without the file, "
                "chaincode that was stopped or removed runs again",
                path=str(self._path),
            )
        self._db.executescript(_SCHEMA)

    def _load(self) -> None:
        for ccid, *fields in self._db.execute("SELECT * FROM placement"):
            self._placements[Ccid(ccid)] = Placement(*fields)
        for channel, name, *fields in self._db.execute("SELECT * FROM target"):
            sequence, ccid, target, since = fields
            wish = Wish(sequence, Ccid(ccid), Target(target), since)
            self._wishes[channel, name] = wish
        kept: dict[Ccid, frozenset[str]] = {}
        for ccid, mspid in self._db.execute("SELECT * FROM kept"):
            kept[ccid] = kept.get(ccid, frozenset()) | {mspid}
        self.kept = kept

    def _using(self) -> AbstractContextManager[None]:
        hint = "check free space and permissions; if the file is damaged, move it away"
        return storing("cannot use", self._path, hint)
