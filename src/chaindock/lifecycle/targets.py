"""What this node is to run, on disk: approvals, targets and placements.

A change is on disk before the call returns; reads come from memory. Any thread may change
something: collections are replaced, never modified.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from chaindock.errors import NotFound, StorageError
from chaindock.ids import Ccid
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.states import AUTO, Placement, Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE approval (
    name TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    version TEXT NOT NULL,
    ccid TEXT NOT NULL,
    init_required INTEGER NOT NULL,
    PRIMARY KEY (name, sequence)
) STRICT;
CREATE TABLE target (
    name TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    target TEXT NOT NULL,
    since REAL NOT NULL
) STRICT;
CREATE TABLE placement (
    ccid TEXT PRIMARY KEY,
    asked TEXT NOT NULL,
    given TEXT NOT NULL,
    why TEXT NOT NULL
) STRICT;
"""
_PLACE: Final = "INSERT OR REPLACE INTO placement VALUES (?,?,?,?)"
_APPROVE: Final = "INSERT OR REPLACE INTO approval VALUES (?,?,?,?,?)"
_RETRYABLE: Final = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY}
)


@dataclass(frozen=True)
class Deployment:
    """What the current sequence of a chaincode runs, and whether it is to run.

    `since` is when either last changed, in seconds since 1970.
    """

    approval: Approval
    target: Target
    since: float

    @property
    def name(self) -> str:
        """The chaincode's name."""
        return self.approval.name

    @property
    def ccid(self) -> Ccid:
        """The package that runs."""
        return self.approval.ccid


class TargetState(AbstractContextManager["TargetState"]):
    """The file. Methods that change something block for a disk write."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._approvals: dict[tuple[str, int], Approval] = {}
        self._deployments: dict[str, Deployment] = {}
        self._placements: dict[Ccid, Placement] = {}
        self._coming: frozenset[tuple[Ccid, str]] = frozenset()
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
            self._set_up()
            self._load()
        except sqlite3.Error as error:
            self._db.close()
            raise self._broken(error) from error

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._db.close()

    # ---- reads, from memory

    def approval(self, name: str, sequence: int) -> Approval | None:
        """Return what to run for a sequence; an older one means the current one.

        A slightly old snapshot must not start a replaced version again: its transaction
        becomes invalid anyway, and a query is better served by the new version.
        """
        exact = self._approvals.get((name, sequence))
        if exact is not None:
            return exact
        current = self._deployments.get(name)
        if current is None or sequence > current.approval.sequence:
            return None
        return current.approval

    def is_stopped(self, name: str) -> bool:
        """Whether a user stopped it."""
        deployment = self._deployments.get(name)
        return deployment is not None and deployment.target is Target.STOPPED

    def find(self, name: str) -> Deployment | None:
        """Return the deployment of `name`, if there is one."""
        return self._deployments.get(name)

    def get(self, name: str) -> Deployment:
        """Return the deployment of `name`. Raises: NotFound."""
        if (deployment := self._deployments.get(name)) is None:
            raise NotFound(
                f"no chaincode {name!r} is deployed",
                hint="list the deployed ones: chaindock ps",
                chaincode=name,
            )
        return deployment

    def all(self) -> list[Deployment]:
        """Return all deployments, by name."""
        deployments = self._deployments
        return [deployments[name] for name in sorted(deployments)]

    def to_run(self) -> list[Ccid]:
        """Return the packages that should run, each once, by name of chaincode."""
        wanted = (d.ccid for d in self.all() if d.target is Target.RUNNING)
        return list(dict.fromkeys(wanted))

    def ccids(self) -> set[Ccid]:
        """Return every package that is current or approved."""
        return {approval.ccid for approval in self._approvals.values()}

    def users_of(self, ccid: Ccid) -> list[str]:
        """Return the names whose current or approved sequence is this package."""
        return sorted({a.name for a in self._approvals.values() if a.ccid == ccid})

    def names_of(self, ccid: Ccid) -> list[str]:
        """Return the names it runs for, those of deployments under way too."""
        return sorted({*self.users_of(ccid), *self.coming(ccid)})

    def coming(self, ccid: Ccid) -> set[str]:
        """Return the names that are being deployed with this package."""
        return {name for one, name in self._coming if one == ccid}

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

    def expect(self, ccid: Ccid, name: str) -> None:
        """Let `coming(ccid)` contain `name`, until `expect_no_more`."""
        self._coming |= {(ccid, name)}

    def expect_no_more(self, ccid: Ccid, name: str) -> None:
        """Take note that a deployment has ended."""
        self._coming -= {(ccid, name)}

    def place(self, ccid: Ccid, placement: Placement) -> None:
        """Record where a package runs. A package without an approval loses it at a start."""
        with self._lock:
            self._save((_PLACE, (ccid, *astuple(placement))))
            self._placements = {**self._placements, ccid: placement}

    def drop_placement(self, ccid: Ccid) -> None:
        """Forget where a package ran that is not to run any more. Idempotent."""
        with self._lock:
            if ccid in self.ccids() or ccid not in self._placements:
                return
            self._placements = {k: p for k, p in self._placements.items() if k != ccid}
            self._save(("DELETE FROM placement WHERE ccid=?", (ccid,)))

    def approve(self, approval: Approval) -> None:
        """Record what to run when this sequence is committed."""
        with self._lock:
            self._save((_APPROVE, astuple(approval)))
            key = approval.name, approval.sequence
            self._approvals = {**self._approvals, key: approval}

    def withdraw(self, name: str, sequence: int) -> None:
        """Forget an approval whose definition was not committed.

        Raises: StorageError: the approval is forgotten until the next start, where
            `recover` tries again.
        """
        key = name, sequence
        with self._lock:
            self._approvals = {k: a for k, a in self._approvals.items() if k != key}
            self._save(("DELETE FROM approval WHERE name=? AND sequence=?", key))

    def switch(self, name: str, sequence: int) -> None:
        """Make an approved sequence the current one, with the target `running`.

        Approvals of other sequences are forgotten.
        Raises: StorageError: the switch holds until the next start, where `recover`
            tries again.
        """
        with self._lock:
            approval = self._approvals[name, sequence]
            deployment = Deployment(approval, Target.RUNNING, time.time())
            self._deployments = {**self._deployments, name: deployment}
            self._approvals = {
                key: one
                for key, one in self._approvals.items()
                if key[0] != name or key[1] == sequence
            }
            others = "DELETE FROM approval WHERE name=? AND sequence<>?"
            self._save(_row(deployment), (others, (name, sequence)))

    def set(self, name: str, target: Target) -> None:
        """Record what the user wants of it. Raises: NotFound."""
        with self._lock:
            deployment = self.get(name)
            if deployment.target is target:
                return
            deployment = replace(deployment, target=target, since=time.time())
            self._save(_row(deployment))
            self._deployments = {**self._deployments, name: deployment}

    def remove(self, name: str) -> None:
        """Forget a chaincode; its definition stays on the ledger. Raises: NotFound."""
        with self._lock:
            self.get(name)
            self._save(
                ("DELETE FROM target WHERE name=?", (name,)),
                ("DELETE FROM approval WHERE name=?", (name,)),
            )
            self._deployments = {
                k: d for k, d in self._deployments.items() if k != name
            }
            self._approvals = {k: a for k, a in self._approvals.items() if k[0] != name}

    def recover(self, committed: Mapping[str, int]) -> None:
        """Bring the file in line with the ledger after a start.

        `committed` has the committed sequence of every name in `names()`; 0 = none.
        """
        for name, sequence in committed.items():
            if (name, sequence) in self._approvals and self._sequence(name) != sequence:
                self.switch(name, sequence)
            for key in [key for key in self._approvals if key[0] == name]:
                if key[1] > sequence and key[1] != self._sequence(name):
                    self.withdraw(*key)

    def names(self) -> list[str]:
        """Return every name that has a deployment or an approval."""
        return sorted({name for name, _ in self._approvals} | self._deployments.keys())

    # ---- the file

    def _sequence(self, name: str) -> int:
        current = self._deployments.get(name)
        return current.approval.sequence if current else 0

    def _save(self, *changes: tuple[str, tuple[Any, ...]]) -> None:
        """Write all changes to disk, or none. The caller has the lock."""
        try:
            with self._db:
                for statement, row in changes:
                    self._db.execute(statement, row)
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def _set_up(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == _VERSION:
            return
        if version or self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
            whose = "a newer" if version else "an unreleased"
            raise StorageError(
                f"{str(self._path)!r} has schema version {version}, expected {_VERSION}: "
                f"{whose} Chaindock wrote it",
                hint="use that version of Chaindock, or another home",
                path=str(self._path),
            )
        self._db.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;"
        )

    def _load(self) -> None:
        with self._db:
            self._db.execute(
                "DELETE FROM placement WHERE ccid NOT IN (SELECT ccid FROM approval)"
            )
        for ccid, *fields in self._db.execute("SELECT * FROM placement"):
            self._placements[Ccid(ccid)] = Placement(*fields)
        for name, sequence, version, ccid, init in self._db.execute(
            "SELECT * FROM approval"
        ):
            approval = Approval(name, sequence, version, Ccid(ccid), bool(init))
            self._approvals[name, sequence] = approval
        for name, sequence, target, since in self._db.execute("SELECT * FROM target"):
            current = self._approvals.get((name, sequence))
            if current is None:
                raise StorageError(
                    f"{str(self._path)!r} names sequence {sequence} of {name!r} and "
                    "does not say what it runs",
                    hint="move it away and deploy the chaincodes again",
                    path=str(self._path),
                )
            self._deployments[name] = Deployment(current, Target(target), since)

    def _broken(self, error: sqlite3.Error) -> StorageError:
        return StorageError(
            f"{str(self._path)!r} cannot be used: {error}",
            hint="check free space and permissions; if the file is damaged, move it "
            "away and deploy the chaincodes again",
            path=str(self._path),
            retryable=getattr(error, "sqlite_errorcode", 0) & 0xFF in _RETRYABLE,
        )


def _row(deployment: Deployment) -> tuple[str, tuple[Any, ...]]:
    sequence = deployment.approval.sequence
    row = (deployment.name, sequence, str(deployment.target), deployment.since)
    return "INSERT OR REPLACE INTO target VALUES (?,?,?,?)", row
