"""From a package to a chaincode that answers, without a moment of neither.

Owns:    the order of an upgrade; what is undone when a step fails; stop, start, remove.
Not:     running chores (custodian.py), the ledger (a DefinitionCommitter does that).
Entry:   Deployer
Holds:   the new version is up before its definition is committed; until then the old
         one serves and a failure changes nothing; one name is changed by one call at a
         time; a package is deleted only when no name refers to it.
Source:  ledger-gateway.md §11.3; needs.md row 24; launch.md §9 W22, W38
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from fabric_protos.peer.lifecycle import lifecycle_pb2

from chaindock.aio import Tasks, finish
from chaindock.errors import ChaindockError, NotFound, StorageError
from chaindock.ids import require_chaincode_name, require_version
from chaindock.lifecycle.definitions import Approval
from chaindock.lifecycle.desired import Wish
from chaindock.packaging.store import StoredPackage
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Sequence,
    )
    from pathlib import Path
    from types import TracebackType

    from chaindock.container.attempt import Attempt, Event
    from chaindock.ids import Ccid
    from chaindock.lifecycle.custodian import Custodian
    from chaindock.lifecycle.desired import DesiredState

_log = get_logger("deployer")


class Packages(Protocol):
    """The package store (packaging.PackageStore). Every method blocks."""

    def add(self, data: bytes | Path) -> StoredPackage:
        """Check and keep a package; the same bytes again are fine."""

    def remove(self, ccid: Ccid) -> None:
        """Delete a package."""

    def sweep(self, wanted: Collection[Ccid]) -> Sequence[Ccid]:
        """Remove what is half-written; return the packages that nobody wants."""


class DefinitionCommitter(Protocol):
    """Puts definitions on the ledger; endorser.DefinitionWriter is one."""

    async def commit(self, args: lifecycle_pb2.CommitChaincodeDefinitionArgs) -> None:
        """Commit a definition and return when it is in effect.

        Raises: any ChaindockError when it is not, or may not be.
        """

    def sequence(self, name: str) -> int:
        """Return the committed sequence of `name`; 0 when it is not defined."""


@dataclass(frozen=True)
class Deployed:
    """What `deploy` or `start` came to.

    Args:
        changed: a definition was committed; False = the same was there already.
        attempt: phases and notes of the launch.
    """

    name: str
    version: str
    sequence: int
    ccid: Ccid
    backend: str
    changed: bool
    attempt: Attempt


class Deployer:
    """Changes what this node runs.

    Args:
        attempts: makes the record of a launch.
        purge: removes what back ends keep of a chaincode that is uninstalled.
    """

    def __init__(
        self,
        *,
        packages: Packages,
        desired: DesiredState,
        custodian: Custodian,
        committer: DefinitionCommitter,
        attempts: Callable[[Ccid], Attempt],
        purge: Callable[[Ccid], Awaitable[None]] | None = None,
    ) -> None:
        self._packages = packages
        self._desired = desired
        self._custodian = custodian
        self._committer = committer
        self._attempts = attempts
        self._purge = purge or _keeps_nothing
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._queued: Counter[str] = Counter()
        self._busy: Counter[Ccid] = Counter()
        # A package must not be deleted between its arrival and the count of its users.
        self._storing = asyncio.Lock()
        self._tasks = Tasks("deployer")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._tasks.aclose()

    async def restore(self) -> None:
        """After a start: settle what a crash left open, launch what should run."""
        desired, committer = self._desired, self._committer
        committed = {name: committer.sequence(name) for name in desired.names()}
        await asyncio.to_thread(desired.recover, committed)
        try:
            spare = await asyncio.to_thread(self._packages.sweep, desired.ccids())
        except StorageError as error:
            _log.warning("packages not cleaned up", error=error.message)
        else:
            for ccid in spare:
                _log.info("no chaincode has this package, it goes", ccid=ccid)
                _ = self._tasks.start(self._retire(ccid, purge=True), f"retire {ccid}")
        self._custodian.restore(desired.to_run())

    async def deploy(
        self,
        package: bytes | Path | StoredPackage,
        name: str,
        version: str | None = None,
        backend: str = "auto",
        *,
        init_required: bool = False,
        watch: Callable[[Event], None] | None = None,
    ) -> Deployed:
        """Make `name` run `package`.

        The same package again commits nothing; it is only made sure that it runs.

        Args:
            package: bytes or file of a .tar.gz, or one that is in the store.
            name: of the chaincode.
            version: None = as before for the same package, else `<sequence>.0`.
            backend: `auto` or the name of a builder.
            init_required: callers must send an Init first.
            watch: gets the events of the launch.

        Raises:
            PackageInvalid, InvalidInput, LaunchFailed, LedgerError and more; nothing
            has changed then.
        Cancelled: nothing has changed, or everything.
        """
        require_chaincode_name(name)
        if version is not None:
            require_version(version)
        async with self._lock(name), self._kept(package) as ccid:
            attempt = self._attempt(ccid, watch)
            current = self._desired.find(name)
            sequence = self._committer.sequence(name)
            if (
                current is not None
                and current.ccid == ccid
                and current.approval.sequence == sequence
                and version in {None, current.approval.version}
                and init_required == current.approval.init_required
            ):
                await self._keep(name, backend, attempt)
                return self._deployed(name, attempt, changed=False)
            approval = Approval(
                name,
                sequence + 1,
                version or f"{sequence + 1}.0",
                ccid,
                backend,
                init_required,
            )
            await self._bring_up(approval, attempt)
            return self._deployed(name, attempt, changed=True)

    async def start(
        self, name: str, *, watch: Callable[[Event], None] | None = None
    ) -> Deployed:
        """Bring up a chaincode that was stopped or has failed.

        Raises: NotFound, LaunchFailed and more; it stays wanted, and the next call
            tries again.
        """
        async with self._lock(name):
            ccid = self._desired.get(name).ccid
            attempt = self._attempt(ccid, watch)
            await asyncio.to_thread(self._desired.wish, name, Wish.RUNNING)
            await self._custodian.launch(ccid, attempt)
            return self._deployed(name, attempt, changed=False)

    async def stop(self, name: str) -> None:
        """Take a chaincode down; it stays deployed and is not started until `start`.

        Raises: NotFound; what the back end raises.
        """
        async with self._lock(name):
            ccid = self._desired.get(name).ccid
            await asyncio.to_thread(self._desired.wish, name, Wish.STOPPED)
            if not self._runs(ccid):
                await self._custodian.stop(ccid)

    async def remove(self, name: str) -> None:
        """Take a chaincode down and forget it, its package too unless others use it.

        Its definition and its state stay on the ledger. If it cannot be stopped now, the
        next start clears it away.

        Raises: NotFound, StorageError.
        """
        async with self._lock(name):
            ccid = self._desired.get(name).ccid
            await asyncio.to_thread(self._desired.remove, name)
            await self._retire(ccid, purge=True)

    # ---- steps

    async def _keep(self, name: str, backend: str, attempt: Attempt) -> None:
        """Make sure that the current version runs, with the asked back end."""
        current = self._desired.get(name)
        if backend not in {"auto", current.backend}:
            # Before the stop: a call that comes right after it launches, too.
            self._desired.plan(current.ccid, backend)
            try:
                await self._custodian.stop(current.ccid, forget=True)
                await self._custodian.launch(current.ccid, attempt)
            except BaseException:
                self._desired.plan(current.ccid, current.backend)
                if self._runs(current.ccid):
                    self._custodian.resume(current.ccid)
                raise
            moved = Approval(**{**vars(current.approval), "backend": backend})
            await asyncio.to_thread(self._desired.approve, moved)
            await asyncio.to_thread(self._desired.switch, name, moved.sequence)
            return
        await self._custodian.launch(current.ccid, attempt)
        await asyncio.to_thread(self._desired.wish, name, Wish.RUNNING)

    async def _bring_up(self, approval: Approval, attempt: Attempt) -> None:
        ccid = approval.ccid
        before = self._desired.backend_of(ccid) or "auto"
        self._desired.plan(ccid, approval.backend, approval.name)
        try:
            await self._custodian.launch(ccid, attempt)
            await finish(self._commit(approval))
        except BaseException:
            if self._desired.approval(approval.name, approval.sequence) is None:
                self._desired.plan(ccid, before)
                if not self._runs(ccid) and self._busy[ccid] == 1:
                    _ = self._tasks.start(self._halt(ccid), f"halt {ccid}")
            raise

    async def _commit(self, approval: Approval) -> None:
        """Record the approval, commit the definition, switch to it."""
        name, sequence = approval.name, approval.sequence
        await asyncio.to_thread(self._desired.approve, approval)
        try:
            await self._committer.commit(
                lifecycle_pb2.CommitChaincodeDefinitionArgs(
                    name=name,
                    sequence=sequence,
                    version=approval.version,
                    init_required=approval.init_required,
                )
            )
        except ChaindockError:
            # The answer may be lost while the block is not: the ledger decides.
            if self._committer.sequence(name) < sequence:
                await self._record(self._desired.withdraw, name, sequence)
                raise
        before = self._desired.find(name)
        await self._record(self._desired.switch, name, sequence)
        if before is not None and before.ccid != approval.ccid:
            _ = self._tasks.start(self._retire(before.ccid), f"retire {name}")

    async def _record(
        self, change: Callable[[str, int], None], name: str, sequence: int
    ) -> None:
        """Write down what the ledger decided; if that fails, the next start does it."""
        try:
            await asyncio.to_thread(change, name, sequence)
        except StorageError as error:
            _log.error("decision not recorded", chaincode=name, error=error.message)

    async def _retire(self, ccid: Ccid, *, purge: bool = False) -> None:
        """Stop a package that no name runs and remove it, `purge`: with its builds.

        As long as it is there, the next start knows what is left to do.
        """
        if self._runs(ccid) or self._busy[ccid] or not await self._halt(ccid):
            return
        if purge and not self._desired.users_of(ccid) and not self._busy[ccid]:
            await self._purge(ccid)
        await self._discard(ccid)

    async def _halt(self, ccid: Ccid) -> bool:
        try:
            await self._custodian.stop(ccid, forget=True)
        except ChaindockError as error:
            _log.warning("stop failed", ccid=ccid, error=error.message)
            return False
        return True

    async def _discard(self, ccid: Ccid) -> None:
        async with self._storing:
            if self._desired.users_of(ccid) or self._busy[ccid]:
                return
            try:
                await asyncio.to_thread(self._desired.drop_plan, ccid)
                await asyncio.to_thread(self._packages.remove, ccid)
            except NotFound:
                pass
            except ChaindockError as error:
                _log.warning("package not deleted", ccid=ccid, error=error.message)

    # ---- bookkeeping

    @asynccontextmanager
    async def _lock(self, name: str) -> AsyncIterator[None]:
        self._queued[name] += 1
        try:
            async with self._locks[name]:
                yield
        finally:
            self._queued[name] -= 1
            if not self._queued[name]:
                del self._queued[name], self._locks[name]

    @asynccontextmanager
    async def _kept(self, package: bytes | Path | StoredPackage) -> AsyncIterator[Ccid]:
        """Store the package; delete it at the end if nothing refers to it."""
        async with self._storing:
            if isinstance(package, StoredPackage):
                stored = package
            else:
                stored = await asyncio.to_thread(self._packages.add, package)
            ccid = stored.ccid
            self._busy[ccid] += 1
        try:
            yield ccid
        finally:
            self._busy[ccid] -= 1
            if not self._busy[ccid]:
                del self._busy[ccid]
            if not isinstance(package, StoredPackage):
                _ = self._tasks.start(self._discard(ccid), f"discard {ccid}")

    def _runs(self, ccid: Ccid) -> bool:
        return ccid in self._desired.to_run()

    def _attempt(self, ccid: Ccid, watch: Callable[[Event], None] | None) -> Attempt:
        attempt = self._attempts(ccid)
        if watch is not None:
            attempt.watch(watch)
        return attempt

    def _deployed(self, name: str, attempt: Attempt, *, changed: bool) -> Deployed:
        current = self._desired.get(name)
        return Deployed(
            name=name,
            version=current.approval.version,
            sequence=current.approval.sequence,
            ccid=current.ccid,
            backend=current.backend,
            changed=changed,
            attempt=attempt,
        )


async def _keeps_nothing(ccid: Ccid) -> None:
    del ccid
