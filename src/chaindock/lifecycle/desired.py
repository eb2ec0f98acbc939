"""Which chaincodes this node is to run, kept on disk.

Owns:    approvals (name, sequence → ccid), the current one of each name, stop wishes;
         which builder a package may not leave unasked.
Not:     whether something runs (chaincode), what the channel defines (definitions.py).
Entry:   DesiredState
Holds:   a change is on disk before the call returns; an approval is recorded before its
         definition is committed, so a crash between the two loses nothing; reads come
         from memory and never touch the disk. Changes may come from any threads at once:
         what is iterated over is replaced, never changed.
Source:  needs.md row 20; architecture.md "Choices already made"
"""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from chaindock.errors import NotFound, StorageError
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

_SCHEMA = """
CREATE TABLE IF NOT EXISTS approval (
    name TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    version TEXT NOT NULL,
    ccid TEXT NOT NULL,
    backend TEXT NOT NULL,
    init_required INTEGER NOT NULL,
    PRIMARY KEY (name, sequence)
) STRICT;
CREATE TABLE IF NOT EXISTS desired (
    name TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    wish TEXT NOT NULL,
    since REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS kept (
    ccid TEXT PRIMARY KEY,
    backend TEXT NOT NULL
) STRICT;
"""


_PASSING = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY})


class Wish(StrEnum):
    """What the user wants of a chaincode."""

    RUNNING = "running"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Desired:
    """One chaincode of this node.

    Args:
        approval: what its current sequence runs.
        wish: whether it should run.
        since: when `approval` or `wish` last changed, seconds since 1970.
    """

    approval: Approval
    wish: Wish
    since: float

    @property
    def name(self) -> str:
        """The chaincode's name."""
        return self.approval.name

    @property
    def ccid(self) -> Ccid:
        """The package that runs."""
        return self.approval.ccid

    @property
    def backend(self) -> str:
        """`auto` or the name of a builder."""
        return self.approval.backend


class DesiredState:
    """The file. Methods that change something block for a disk write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._approvals: dict[tuple[str, int], Approval] = {}
        self._desired: dict[str, Desired] = {}
        self._backends: dict[Ccid, str] = {}
        self._planned: dict[Ccid, str] = {}
        self._kept: dict[Ccid, str] = {}
        try:
            self._db = sqlite3.connect(path, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._broken(error) from error
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            # On macOS a plain fsync leaves data in the drive's cache.
            self._db.execute("PRAGMA fullfsync=ON")
            self._db.execute("PRAGMA checkpoint_fullfsync=ON")
            self._db.executescript(_SCHEMA)
            self._load()
        except sqlite3.Error as error:
            self._db.close()
            raise self._broken(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()

    # ---- reads, from memory

    def approval(self, name: str, sequence: int) -> Approval | None:
        """Return what to run for a sequence; an older one means the current one.

        A snapshot that is a little old must not bring a superseded version back to
        life: the transaction is void anyway, and a query is better served by the new.
        """
        exact = self._approvals.get((name, sequence))
        if exact is not None:
            return exact
        current = self._desired.get(name)
        if current is None or sequence > current.approval.sequence:
            return None
        return current.approval

    def is_stopped(self, name: str) -> bool:
        """Whether a user stopped it."""
        desired = self._desired.get(name)
        return desired is not None and desired.wish is Wish.STOPPED

    def find(self, name: str) -> Desired | None:
        """Return the entry of `name`, if it is deployed."""
        return self._desired.get(name)

    def get(self, name: str) -> Desired:
        """Return the entry of `name`. Raises: NotFound."""
        desired = self._desired.get(name)
        if desired is None:
            raise NotFound(
                f"no chaincode {name!r} is deployed",
                hint="see what is there: chaindock ps",
                chaincode=name,
            )
        return desired

    def all(self) -> list[Desired]:
        """Return all entries, by name."""
        desired = self._desired
        return [desired[name] for name in sorted(desired)]

    def to_run(self) -> list[Ccid]:
        """Return the packages that should run, each once, by name of chaincode."""
        wanted = (d.ccid for d in self.all() if d.wish is Wish.RUNNING)
        return list(dict.fromkeys(wanted))

    def ccids(self) -> set[Ccid]:
        """Return every package that is current or approved."""
        return {approval.ccid for approval in self._approvals.values()}

    def users_of(self, ccid: Ccid) -> list[str]:
        """Return the names whose current or approved sequence is this package."""
        current = {d.name for d in self._desired.values() if d.ccid == ccid}
        coming = {a.name for a in self._approvals.values() if a.ccid == ccid}
        return sorted(current | coming)

    def names_of(self, ccid: Ccid) -> list[str]:
        """Return the names it runs for, that of a deployment under way too."""
        planned = self._planned.get(ccid, "")
        return sorted({*self.users_of(ccid), *([planned] if planned else [])})

    def backend_of(self, ccid: Ccid) -> str | None:
        """Return the builder that was asked for; None = whichever takes it."""
        backend = self._backends.get(ccid, "auto")
        return None if backend == "auto" else backend

    def kept_on(self, ccid: Ccid) -> str | None:
        """Return the builder that it may not leave unasked; None = none."""
        return self._kept.get(ccid)

    def keeps(self, backend: str) -> bool:
        """Whether anything may not leave this builder unasked."""
        return backend in self._kept.values()

    # ---- changes

    def plan(self, ccid: Ccid, backend: str, name: str = "") -> None:
        """Say which builder a launch that follows is to use, and what for.

        In memory only.
        """
        self._backends[ccid] = backend
        self._planned[ccid] = name

    def keep_on(self, ccid: Ccid, backend: str) -> None:
        """Let `auto` mean this builder for `ccid` until its package is not to run."""
        with self._lock:
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO kept VALUES (?,?)", (ccid, backend))
            self._kept = {**self._kept, ccid: backend}

    def drop_plan(self, ccid: Ccid) -> None:
        """Forget what was planned for a package that is not to run any more.

        Raises: StorageError: where it was kept is forgotten at the next start.
        """
        with self._lock:
            if ccid not in self.ccids():
                self._backends.pop(ccid, None)
                self._planned.pop(ccid, None)
                if ccid in self._kept:
                    self._kept = {k: b for k, b in self._kept.items() if k != ccid}
                    with self._transaction() as db:
                        db.execute("DELETE FROM kept WHERE ccid=?", (ccid,))

    def approve(self, approval: Approval) -> None:
        """Record what to run when this sequence is committed."""
        row = (
            approval.name,
            approval.sequence,
            approval.version,
            approval.ccid,
            approval.backend,
            int(approval.init_required),
        )
        with self._lock:
            with self._transaction() as db:
                db.execute("INSERT OR REPLACE INTO approval VALUES (?,?,?,?,?,?)", row)
            key = approval.name, approval.sequence
            self._approvals = {**self._approvals, key: approval}
            self._backends[approval.ccid] = approval.backend

    def withdraw(self, name: str, sequence: int) -> None:
        """Forget an approval whose definition was not committed.

        Raises: StorageError: it is forgotten until the next start, where `recover`
            tries again.
        """
        with self._lock:
            self._approvals = {
                key: one
                for key, one in self._approvals.items()
                if key != (name, sequence)
            }
            with self._transaction() as db:
                db.execute(
                    "DELETE FROM approval WHERE name=? AND sequence=?", (name, sequence)
                )

    def switch(self, name: str, sequence: int) -> None:
        """Make an approved sequence the current one, and let it run.

        Approvals of other sequences are forgotten.
        Raises: StorageError: it is so until the next start, where `recover` tries again.
        """
        with self._lock:
            approval = self._approvals[name, sequence]
            desired = Desired(approval, Wish.RUNNING, time.time())
            self._desired = {**self._desired, name: desired}
            self._approvals = {
                key: one
                for key, one in self._approvals.items()
                if key[0] != name or key[1] == sequence
            }
            with self._transaction() as db:
                _put(db, desired)
                db.execute(
                    "DELETE FROM approval WHERE name=? AND sequence<>?",
                    (name, sequence),
                )

    def wish(self, name: str, wish: Wish) -> None:
        """Record what the user wants of it. Raises: NotFound."""
        with self._lock:
            desired = self.get(name)
            if desired.wish is wish:
                return
            desired = replace(desired, wish=wish, since=time.time())
            with self._transaction() as db:
                _put(db, desired)
            self._desired = {**self._desired, name: desired}

    def remove(self, name: str) -> None:
        """Forget a chaincode; its definition stays on the ledger. Raises: NotFound."""
        with self._lock:
            self.get(name)
            with self._transaction() as db:
                db.execute("DELETE FROM desired WHERE name=?", (name,))
                db.execute("DELETE FROM approval WHERE name=?", (name,))
            self._desired = {k: d for k, d in self._desired.items() if k != name}
            self._approvals = {k: a for k, a in self._approvals.items() if k[0] != name}

    def recover(self, committed: Mapping[str, int]) -> None:
        """Bring the file in line with the ledger after a start.

        Args:
            committed: the committed sequence of every name in `names()`; 0 = none.
        """
        for name, sequence in committed.items():
            current = self._desired.get(name)
            if (name, sequence) in self._approvals and (
                current is None or current.approval.sequence != sequence
            ):
                self.switch(name, sequence)
            for key in self._sequences(name):
                if key[1] > sequence and key[1] != self._current_sequence(name):
                    self.withdraw(*key)

    def names(self) -> list[str]:
        """Return every name that has an entry or an approval."""
        return sorted({name for name, _ in self._approvals} | self._desired.keys())

    def _sequences(self, name: str) -> list[tuple[str, int]]:
        return [key for key in self._approvals if key[0] == name]

    def _current_sequence(self, name: str) -> int:
        current = self._desired.get(name)
        return current.approval.sequence if current else 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block is on disk afterwards, or nothing. The caller has the lock."""
        try:
            with self._db:
                yield self._db
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _load(self) -> None:
        with self._db:
            self._db.execute(
                "DELETE FROM kept WHERE ccid NOT IN (SELECT ccid FROM approval)"
            )
        for ccid, backend in self._db.execute("SELECT * FROM kept"):
            self._kept[Ccid(ccid)] = backend
        for row in self._db.execute("SELECT * FROM approval"):
            name, sequence, version, ccid, backend, init = row
            approval = Approval(
                name, sequence, version, Ccid(ccid), backend, bool(init)
            )
            self._approvals[name, sequence] = approval
            self._backends[approval.ccid] = backend
        for name, sequence, wish, since in self._db.execute("SELECT * FROM desired"):
            current = self._approvals.get((name, sequence))
            if current is None:
                raise StorageError(
                    f"{str(self._path)!r} names sequence {sequence} of {name!r} and "
                    "does not say what it runs",
                    hint="move it away and deploy the chaincodes again",
                    path=str(self._path),
                )
            self._desired[name] = Desired(current, Wish(wish), since)

    def _broken(self, error: sqlite3.Error) -> StorageError:
        return StorageError(
            f"{str(self._path)!r} cannot be used: {error}",
            hint="check free space and permissions; if the file is damaged, move it "
            "away and deploy the chaincodes again",
            path=str(self._path),
            retryable=getattr(error, "sqlite_errorcode", 0) & 0xFF in _PASSING,
        )


def _put(db: sqlite3.Connection, desired: Desired) -> None:
    sequence = desired.approval.sequence
    row = (desired.name, sequence, str(desired.wish), desired.since)
    db.execute("INSERT OR REPLACE INTO desired VALUES (?,?,?,?)", row)
