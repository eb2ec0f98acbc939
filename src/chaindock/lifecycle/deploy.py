"""Change what the node runs: deploy, upgrade, start, stop, remove.

A new version is up before its definition is committed; until then the old version serves,
unless its package moves to another back end. A failure changes nothing, and a package is
deleted when no name refers to it.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Protocol

from chaindock.aio import KeyedLocks, Tasks, finish
from chaindock.errors import ChaindockError, NodeStopping, NotFound, StorageError
from chaindock.ids import Ccid, require_chaincode_name
from chaindock.lifecycle.collections import check_collections
from chaindock.lifecycle.definitions import Approval, Definition, set_defaults
from chaindock.lifecycle.states import AUTO, Placement, Target
from chaindock.lifecycle.terms import Terms
from chaindock.packaging.format import collection_of
from chaindock.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
    from pathlib import Path

    from chaindock.container.attempt import Attempt, Event
    from chaindock.lifecycle.custodian import Custodian
    from chaindock.lifecycle.targets import TargetState
    from chaindock.packaging.store import PackageStore, StoredPackage

_log = get_logger("deployer")
BY_HAND = "dev"  # the back end of programs that a user starts (development mode)


class DefinitionCommitter(Protocol):
    """Puts definitions on the ledger; endorser.DefinitionWriter is one."""

    async def commit(self, definition: Definition, ccid: Ccid) -> None:
        """Approve and commit a definition that runs the package `ccid`.

        Raises: ChaindockError: it may not be in effect.
        """

    async def put_indexes(self, name: str, files: Mapping[str, bytes]) -> None:
        """Make the indexes of rich queries that a package brings, by its file names."""

    def definition(self, name: str) -> Definition | None:
        """Return the committed definition of `name`; None when there is none."""


_AS_IT_IS = Terms()


@dataclass(frozen=True, kw_only=True)
class Deployed(Approval):
    """What `deploy` or `start` came to; `changed` = a definition was committed."""

    definition: Definition
    placement: Placement
    changed: bool
    attempt: Attempt


class Deployer(AbstractAsyncContextManager["Deployer"]):
    """Changes what this node runs.

    `purge` removes what back ends keep of a chaincode that is uninstalled; `mspids`
    returns the organisations of the channel.
    """

    def __init__(
        self,
        *,
        packages: PackageStore,
        targets: TargetState,
        custodian: Custodian,
        committer: DefinitionCommitter,
        attempts: Callable[[Ccid], Attempt],
        purge: Callable[[Ccid], Awaitable[None]],
        mspids: Callable[[], Collection[str]],
    ) -> None:
        self._packages, self._targets = packages, targets
        self._custodian, self._committer = custodian, committer
        self._attempts, self._purge, self._mspids = attempts, purge, mspids
        self._names: KeyedLocks[str] = KeyedLocks()
        # A package must not be deleted between its arrival and the count of its users.
        self._storing = asyncio.Lock()
        self._tasks = Tasks("deployer")

    async def __aexit__(self, *_: object) -> None:
        await self._tasks.aclose()

    async def restore(self) -> None:
        """After a start: settle what a crash left open, launch what should run."""
        targets = self._targets
        committed = {name: self.definition(name).sequence for name in targets.names()}
        await asyncio.to_thread(targets.recover, committed)
        try:
            spare = await asyncio.to_thread(self._packages.sweep, targets.ccids())
        except StorageError as error:
            _log.warning("packages not cleaned up", error=error.message)
        else:
            for ccid in spare:
                _log.info("removing a package that no chaincode uses", ccid=ccid)
                _ = self._tasks.start(self._retire(ccid, purge=True), f"retire {ccid}")
        self._custodian.restore(targets.to_run())

    async def deploy(
        self,
        package: bytes | Path,
        name: str,
        terms: Terms = _AS_IT_IS,
        backend: str = AUTO,
        *,
        watch: Callable[[Event], None] | None = None,
    ) -> Deployed:
        """Make `name` run `package`.

        The same package again with the same terms commits nothing; it is only made sure
        that it runs.

        `package` is a .tar.gz; `watch` gets the events of the launch.

        Raises: PackageInvalid, InvalidInput, PlacementConflict, LaunchFailed, LedgerError
            and more; nothing has changed then.
        Cancelled: nothing has changed, or everything.
        """
        require_chaincode_name(name)
        async with self._names.hold(name), self._kept(package, name) as stored:
            following = self._next(name, stored.ccid, terms)
            attempt = self._attempt(stored.ccid, watch)
            await self._bring_up(name, following, backend, attempt)
            if following is not None and stored.index_names:
                await finish(self._put_indexes(following, stored))
            return self._deployed(name, attempt, changed=following is not None)

    async def deploy_by_hand(self, name: str, terms: Terms = _AS_IT_IS) -> Deployed:
        """Define `name`; a program that a user starts registers as `name:version`.

        Returns before such a program has registered.

        Raises: InvalidInput, LedgerError.
        """
        require_chaincode_name(name)
        async with self._names.hold(name):
            current = self._targets.find(name)
            version = terms.version or (current.approval.version if current else "1.0")
            terms = replace(terms, version=version)
            ccid = Ccid(f"{name}:{version}")
            following = self._next(name, ccid, terms)
            attempt = self._attempts(ccid)
            attempt.close()
            if following is None:
                await asyncio.to_thread(self._targets.set, name, Target.RUNNING)
                self._custodian.resume(ccid)
            else:
                placement = Placement(BY_HAND, BY_HAND, "a user starts the program")
                await asyncio.to_thread(self._targets.place, ccid, placement)
                await finish(self._commit(following, ccid))
            return self._deployed(name, attempt, changed=following is not None)

    async def start(
        self, name: str, *, watch: Callable[[Event], None] | None = None
    ) -> Deployed:
        """Bring up a chaincode that was stopped or has failed.

        Raises: NotFound, LaunchFailed and more; its target stays `running`, and the next
            call tries again.
        """
        async with self._names.hold(name):
            ccid = self._targets.get(name).ccid
            attempt = self._attempt(ccid, watch)
            await asyncio.to_thread(self._targets.set, name, Target.RUNNING)
            if self._targets.placement(ccid).given == BY_HAND:
                self._custodian.resume(ccid)
                attempt.close()
            else:
                await self._custodian.launch(ccid, attempt)
            return self._deployed(name, attempt, changed=False)

    async def stop(self, name: str) -> None:
        """Take a chaincode down; it stays deployed and is not started until `start`.

        Raises: NotFound; what the back end raises.
        """
        async with self._names.hold(name):
            ccid = self._targets.get(name).ccid
            await asyncio.to_thread(self._targets.set, name, Target.STOPPED)
            if not self._runs(ccid):
                await self._custodian.stop(ccid)

    async def remove(self, name: str) -> None:
        """Take a chaincode down and forget it, its package too unless others use it.

        Its definition and its state stay on the ledger. If it cannot be stopped or
        its build not be removed now, the next start does that.

        Raises: NotFound, StorageError.
        """
        async with self._names.hold(name):
            ccid = self._targets.get(name).ccid
            await asyncio.to_thread(self._targets.remove, name)
            await self._retire(ccid, purge=True)

    def definition(self, name: str) -> Definition:
        """Return what is committed for `name`; sequence 0 = nothing is.

        Raises: LedgerError.
        """
        return self._committer.definition(name) or Definition(name=name)

    # ---- steps

    def _next(self, name: str, ccid: Ccid, terms: Terms) -> Definition | None:
        """Return what is to be committed; None = the same is deployed already.

        Raises: InvalidInput: the collections break a rule, or those of an upgrade.
        """
        former = self.definition(name)
        current = self._targets.find(name)
        runs = (current.ccid, current.approval.sequence) if current else None
        following = Definition()
        following.CopyFrom(former)
        following.init_required = terms.init_required
        if terms.version is not None:
            following.version = terms.version
        if terms.policy is not None:
            following.validation_parameter = terms.policy
        if terms.collections is not None:
            following.collections.CopyFrom(terms.collections)
        set_defaults(following)
        if following == former and runs == (ccid, former.sequence):
            return None
        check_collections(following.collections, self._mspids(), former.collections)
        following.sequence += 1
        if terms.version is None:
            following.version = f"{following.sequence}.0"
        return following

    async def _bring_up(
        self, name: str, following: Definition | None, backend: str, attempt: Attempt
    ) -> None:
        """Have the package of `attempt` run on the back end asked for; then commit.

        Without a definition to commit, what is deployed is to run.
        """
        ccid, targets = attempt.ccid, self._targets
        before = targets.placement(ccid)
        before.require_free(ccid, backend, {*targets.names_of(ccid)} - {name})
        if backend not in {AUTO, before.given or before.asked}:
            await asyncio.to_thread(targets.place, ccid, Placement(asked=backend))
        there = bool(before.given or targets.users_of(ccid))
        moved = there and targets.placement(ccid) != before
        try:
            if moved:  # a back end that does not answer must not hinder leaving it
                _ = await self._take_down(ccid)
            trial = moved or not self._runs(ccid)
            await self._custodian.launch(ccid, attempt, trial=trial)
            if following is not None:
                await finish(self._commit(following, ccid))
        except BaseException:
            if following is None or targets.approval(name, following.sequence) is None:
                await self._undo(ccid, before if moved else None)
            raise
        if following is None:
            await asyncio.to_thread(targets.set, name, Target.RUNNING)
            self._custodian.resume(ccid)

    async def _undo(self, ccid: Ccid, before: Placement | None) -> None:
        """After a failure: let nothing of the launch stay; `before` = run there again."""
        used = self._targets.users_of(ccid)
        if before is not None and used:
            _ = await self._take_down(ccid)
            await asyncio.to_thread(self._targets.place, ccid, before)
            if self._runs(ccid):
                self._custodian.resume(ccid)
        elif not self._runs(ccid) and len(self._targets.coming(ccid)) == 1:
            stop = self._custodian.stop if used else self._take_down
            _ = self._tasks.start(stop(ccid), f"take down {ccid}")

    async def _commit(self, definition: Definition, ccid: Ccid) -> None:
        name, sequence = definition.name, definition.sequence
        version, init_required = definition.version, definition.init_required
        approval = Approval(name, sequence, version, ccid, init_required)
        await asyncio.to_thread(self._targets.approve, approval)
        try:
            await self._committer.commit(definition, ccid)
        except ChaindockError:
            # The answer may be lost while the block is not: the ledger decides.
            if self.definition(name).sequence < sequence:
                await self._record(self._targets.withdraw, name, sequence)
                raise
        before = self._targets.find(name)
        await self._record(self._targets.switch, name, sequence)
        with suppress(NodeStopping):  # another name may have stopped it meanwhile
            self._custodian.resume(ccid)
        if before is not None and before.ccid != ccid:
            _ = self._tasks.start(self._retire(before.ccid), f"retire {name}")

    async def _put_indexes(self, definition: Definition, stored: StoredPackage) -> None:
        """Make the indexes of the package; as on a peer, a fault is only logged.

        So is an index for a collection that the definition does not have.
        """
        name, configs = definition.name, definition.collections.config
        known = {"", *(one.static_collection_config.name for one in configs)}
        try:
            files = await asyncio.to_thread(stored.indexes)
            for file in [one for one in files if collection_of(one) not in known]:
                _log.warning("no collection for an index", chaincode=name, file=file)
                del files[file]
            if files:
                await self._committer.put_indexes(name, files)
        except ChaindockError as error:
            _log.error("indexes not made", chaincode=name, error=error.message)

    async def _record(
        self, change: Callable[[str, int], None], name: str, sequence: int
    ) -> None:
        """Write down what the ledger decided; if that fails, the next start does it."""
        try:
            await asyncio.to_thread(change, name, sequence)
        except StorageError as error:
            _log.error("outcome not recorded", chaincode=name, error=error.message)

    async def _retire(self, ccid: Ccid, *, purge: bool = False) -> None:
        """Stop a package that no name runs and remove it; with `purge` its builds too.

        The package goes last: while it is there, the next start knows what is left to do.
        """
        if self._runs(ccid) or self._targets.coming(ccid):
            return
        if await self._take_down(ccid, purge=purge):
            await self._discard(ccid)

    async def _take_down(self, ccid: Ccid, *, purge: bool = False) -> bool:
        """Stop a package and remove its build; return whether that was done."""
        try:
            await self._custodian.stop(ccid, Target.REMOVED)
            if purge and not self._targets.names_of(ccid):
                await self._purge(ccid)
        except ChaindockError as error:
            _log.warning(
                "stop or removal of the build failed", ccid=ccid, error=error.message
            )
            return False
        return True

    async def _discard(self, ccid: Ccid) -> None:
        async with self._storing:
            if self._targets.names_of(ccid):
                return
            for forget in (self._targets.drop_placement, self._packages.remove):
                try:
                    with suppress(NotFound):
                        await asyncio.to_thread(forget, ccid)
                except ChaindockError as error:
                    _log.warning("package not deleted", ccid=ccid, error=error.message)

    # ---- bookkeeping

    @asynccontextmanager
    async def _kept(
        self, package: bytes | Path, name: str
    ) -> AsyncIterator[StoredPackage]:
        """Store the package for `name`; delete it at the end if nothing refers to it."""
        async with self._storing:
            stored = await asyncio.to_thread(self._packages.add, package)
            ccid = stored.ccid
            self._targets.expect(ccid, name)
        try:
            yield stored
        finally:
            self._targets.expect_no_more(ccid, name)
            _ = self._tasks.start(self._discard(ccid), f"discard {ccid}")

    def _runs(self, ccid: Ccid) -> bool:
        return ccid in self._targets.to_run()

    def _attempt(self, ccid: Ccid, watch: Callable[[Event], None] | None) -> Attempt:
        attempt = self._attempts(ccid)
        if watch is not None:
            attempt.watch(watch)
        return attempt

    def _deployed(self, name: str, attempt: Attempt, *, changed: bool) -> Deployed:
        current = self._targets.get(name)
        return Deployed(
            *astuple(current.approval),
            definition=self.definition(name),
            placement=self._targets.placement(current.ccid),
            changed=changed,
            attempt=attempt,
        )
