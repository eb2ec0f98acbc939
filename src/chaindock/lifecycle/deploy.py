"""Change what the names of a channel run: deploy, upgrade, start, stop, remove.

A new version is up before its definition is committed; until then the old version serves,
unless its package moves to another back end, and a failure changes nothing. Whoever
commits a definition, what follows from it is done when its block is there.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Self

from chaindock.aio import KeyedLocks, Tasks, finish
from chaindock.container.attempt import Attempt, Watch
from chaindock.errors import ChaindockError, InvalidInput, LedgerClosed, NodeStopping
from chaindock.ids import Ccid, require_chaincode_name, require_version
from chaindock.ledger.committer import CommittedBlock
from chaindock.ledger.transaction import ParsedTransaction
from chaindock.lifecycle.collections import check_collections
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.definitions import (
    Approval,
    Definition,
    not_installed,
    set_defaults,
)
from chaindock.lifecycle.deployments import Deployment, Deployments
from chaindock.lifecycle.packages import Packages
from chaindock.lifecycle.states import AUTO, BY_HAND, Placement, Target
from chaindock.lifecycle.terms import Terms
from chaindock.telemetry import get_logger

_log = get_logger("deployer")
_AS_IT_IS = Terms()


@dataclass(frozen=True, kw_only=True)
class Deployed(Approval):
    """What `deploy` or `start` came to; `changed` = a definition was committed."""

    definition: Definition
    placement: Placement
    changed: bool
    attempt: Attempt


class Deployer(AbstractAsyncContextManager["Deployer"]):
    """Changes what the names of one channel run.

    `commit` has the organisations approve a definition that runs a package, and commits
    it; if that fails, it may be in effect all the same. `mspids` returns the
    organisations of the channel; `by_hand`: users start programs of definitions whose
    package is not here (development mode).
    """

    def __init__(
        self,
        deployments: Deployments,
        commit: Callable[[Definition, Ccid], Awaitable[None]],
        mspids: Callable[[], Collection[str]],
        *,
        packages: Packages,
        custodian: Custodian,
        attempts: Callable[[Ccid], Attempt],
        by_hand: bool = False,
    ) -> None:
        self.deployments, self._fleet = deployments, deployments.fleet
        self._targets, self._packages = deployments.fleet.targets, packages
        self._custodian, self._commit_on_ledger = custodian, commit
        self._attempts, self._mspids, self._by_hand = attempts, mspids, by_hand
        self._names: KeyedLocks[str] = KeyedLocks()
        self._indexing: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks("deployer")
        self._left = False
        """Whether the channel is closed: blocks that it still commits are not followed."""

    async def __aenter__(self) -> Self:
        self._packages.arrived.append(self._installed)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._left = True
        self._packages.arrived.remove(self._installed)
        await self._tasks.aclose()

    async def restore(self) -> None:
        """After a start: launch what should run."""
        for one in self.deployments.all():
            if self._is_program(one):
                await self._expect_program(one.ccid)
        running = [one for one in self.deployments.all() if one.runs]
        self._custodian.restore(one.ccid for one in running)
        _ = self._tasks.start(self._index_again(running), "indexes")

    async def deploy(
        self,
        package: bytes | Path,
        name: str,
        terms: Terms = _AS_IT_IS,
        backend: str = AUTO,
        *,
        watch: Watch | None = None,
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
        who = self.deployments.channel, name
        async with self._names.hold(name), self._packages.arriving(package, who) as one:
            following = self._next(name, one.ccid, terms)
            attempt = self._attempt(one.ccid, watch)
            await self._bring_up(name, following, backend, attempt)
            if name in self._indexing:
                await asyncio.wait([self._indexing[name]])
            return self._deployed(name, attempt, changed=following is not None)

    async def deploy_by_hand(self, name: str, terms: Terms = _AS_IT_IS) -> Deployed:
        """Define `name`; a program that a user starts registers as `name:version`.

        Returns before such a program has registered.

        Raises: InvalidInput, LedgerError.
        """
        require_chaincode_name(name)
        async with self._names.hold(name):
            current = self.deployments.find(name)
            version = terms.version or (current.approval.version if current else "1.0")
            terms = replace(terms, version=version)
            ccid = Ccid(f"{name}:{version}")
            following = self._next(name, ccid, terms)
            attempt = self._attempts(ccid)
            attempt.close()
            who = self.deployments.channel, name
            with self._fleet.expecting(ccid, who):
                await self._expect_program(ccid)
                if following is not None:
                    await finish(self._commit(following, ccid))
                else:
                    await self._say(name, Target.RUNNING)
                    self._custodian.resume(ccid)
            return self._deployed(name, attempt, changed=following is not None)

    async def start(self, name: str, *, watch: Watch | None = None) -> Deployed:
        """Bring up a chaincode that was stopped or has failed.

        Raises: NotFound, LaunchFailed and more; its target stays `running`, and the next
            call tries again.
        """
        async with self._names.hold(name):
            one = self.deployments.get(name)
            if not one.installed:
                raise not_installed(name, one.approval.sequence)
            ccid = one.ccid
            attempt = self._attempt(ccid, watch)
            await self._say(name, Target.RUNNING)
            if self._targets.placement(ccid).given == BY_HAND:
                self._custodian.resume(ccid)
                attempt.close()
            else:
                await self._custodian.launch(ccid, attempt)
            return self._deployed(name, attempt, changed=False)

    async def stop(self, name: str) -> None:
        """Take a chaincode down; it stays deployed and is not started until `start`.

        A definition that is committed meanwhile starts it, too.

        Raises: NotFound; what the back end raises.
        """
        async with self._names.hold(name):
            ccid = await self._say(name, Target.STOPPED)
            if not self._fleet.runs(ccid):
                await self._custodian.stop(ccid)

    async def remove(self, name: str) -> None:
        """Take a chaincode down and forget it, its package too unless others use it.

        Its definition and its state stay on the ledger. If it cannot be stopped or
        its build not be removed now, the next start does that.

        Raises: NotFound, StorageError.
        """
        async with self._names.hold(name):
            ccid = await self._say(name, Target.REMOVED)
            await asyncio.wait([self._packages.retire(ccid, purge=True)])

    # ---- what follows from blocks and packages

    def committed(
        self, block: CommittedBlock, txs: Sequence[ParsedTransaction]
    ) -> None:
        """Act on a block of the channel: for `Ledger.watchers`."""
        try:
            for name, former in self.deployments.note(block, txs).items():
                self._follow(name, former)
        except ChaindockError as error:
            _log.error("definitions not followed", exc_info=error)

    def _installed(self, ccid: Ccid) -> None:
        for one in self.deployments.of(ccid):
            self._follow(one.name)

    def _follow(self, name: str, former: Ccid | None = None) -> None:
        """Have what a name runs now launched, and what it ran before retired."""
        now = self.deployments.find(name)
        if now is not None and now.runs:
            with suppress(NodeStopping):
                self._custodian.resume(now.ccid)
            if now.ccid in self._fleet.installed:
                self._index(name, now.ccid)
        elif now is not None and self._is_program(now):
            _ = self._tasks.start(self._expect_program(now.ccid), f"expect {name}")
        elif now is not None:
            _log.warning("defined, but not installed", chaincode=name, ccid=now.ccid)
        if former and (now is None or former != now.ccid):
            _ = self._packages.retire(former)

    async def _index_again(self, running: Sequence[Deployment]) -> None:
        """Make the indexes that a crash right after a commit left out; else no change."""
        for one in running:
            if one.ccid in self._fleet.installed:
                await self._put_indexes(one.name, one.ccid)

    def _index(self, name: str, ccid: Ccid) -> None:
        def done(task: asyncio.Task[None]) -> None:
            if self._indexing.get(name) is task:
                del self._indexing[name]

        task = self._tasks.start(self._put_indexes(name, ccid), f"index {name}")
        self._indexing[name] = task
        task.add_done_callback(done)

    def _is_program(self, one: Deployment) -> bool:
        """Whether a user has to start the program that was approved as a package."""
        if not self._by_hand or one.installed or one.target is not Target.RUNNING:
            return False
        name, _, version = one.ccid.partition(":")
        with suppress(InvalidInput):
            return bool(require_chaincode_name(name) and require_version(version))
        return False

    async def _expect_program(self, ccid: Ccid) -> None:
        placement = Placement(BY_HAND, BY_HAND, "a user starts the program")
        await asyncio.to_thread(self._targets.place, ccid, placement)
        if self._fleet.runs(ccid):
            self._custodian.resume(ccid)

    # ---- steps

    def _next(self, name: str, ccid: Ccid, terms: Terms) -> Definition | None:
        """Return what is to be committed; None = the same is deployed already.

        Raises: InvalidInput: the collections break a rule, or those of an upgrade.
        """
        former = self.deployments.definition(name)
        current = self.deployments.find(name)
        runs = (current.ccid, current.approval.sequence) if current else None
        following = copy.deepcopy(former)
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
        ccid, targets, fleet = attempt.ccid, self._targets, self._fleet
        before = targets.placement(ccid)
        others = fleet.users(ccid) | fleet.coming(ccid)
        others.discard((self.deployments.channel, name))
        before.require_free(ccid, backend, [other for _, other in others])
        if backend not in {AUTO, before.given or before.asked}:
            await asyncio.to_thread(targets.place, ccid, Placement(asked=backend))
        there = bool(before.given or fleet.users(ccid))
        moved = there and targets.placement(ccid) != before
        try:
            if moved:  # a back end that does not answer must not hinder leaving it
                _ = await self._packages.take_down(ccid)
            trial = moved or not self._fleet.runs(ccid)
            await self._custodian.launch(ccid, attempt, trial=trial)
            if following is not None:
                await finish(self._commit(following, ccid))
        except BaseException:
            if following is None or not self._is_in_force(following, ccid):
                await self._undo(ccid, before if moved else None)
            raise
        if following is None:
            await self._say(name, Target.RUNNING)
            self._custodian.resume(ccid)

    async def _undo(self, ccid: Ccid, before: Placement | None) -> None:
        """After a failure: let what runs `ccid` be as it was; `before` = run there again.

        What nobody runs, `Packages.arriving` takes down.
        """
        fleet = self._fleet
        used = bool(fleet.users(ccid))
        if before is not None and used:
            _ = await self._packages.take_down(ccid)
            await asyncio.to_thread(self._targets.place, ccid, before)
            if fleet.runs(ccid):
                self._custodian.resume(ccid)
        elif used and not fleet.runs(ccid) and len(fleet.coming(ccid)) == 1:
            _ = self._tasks.start(self._custodian.stop(ccid), f"stop {ccid}")

    async def _commit(self, definition: Definition, ccid: Ccid) -> None:
        try:
            await self._commit_on_ledger(definition, ccid)
        except ChaindockError:
            # The answer may be lost while the block is not: the ledger decides.
            if not self._is_in_force(definition, ccid):
                raise

    def _is_in_force(self, definition: Definition, ccid: Ccid) -> bool:
        with suppress(LedgerClosed):  # the channel was removed meanwhile
            now = self.deployments.find(definition.name)
            same = self.deployments.definition(definition.name) == definition
            return same and now is not None and now.ccid == ccid
        return False

    async def _put_indexes(self, name: str, ccid: Ccid) -> None:
        """Make the indexes of the package; as on a peer, a fault is only logged."""
        try:
            if files := await self._packages.indexes(
                ccid, self.deployments.definition(name)
            ):
                await self.deployments.ledger.put_indexes(name, files)
        except ChaindockError as error:
            _log.error("indexes not made", chaincode=name, error=error.message)

    # ---- bookkeeping

    async def _say(self, name: str, target: Target) -> Ccid:
        """Record what the user wants; return the package. Raises: NotFound."""
        one, targets = self.deployments.get(name), self._targets
        await asyncio.to_thread(targets.set, one.channel, one.approval, target)
        return one.ccid

    def _attempt(self, ccid: Ccid, watch: Watch | None) -> Attempt:
        attempt = self._attempts(ccid)
        if watch is not None:
            attempt.watch(watch)
        return attempt

    def _deployed(self, name: str, attempt: Attempt, *, changed: bool) -> Deployed:
        if self._left:
            raise LedgerClosed(
                f"channel {self.deployments.channel!r} has just been removed, or the node "
                f"stops: chaincode {name!r} does not run there"
            )
        current = self.deployments.get(name)
        return Deployed(
            *astuple(current.approval),
            definition=self.deployments.definition(name),
            placement=self._targets.placement(current.ccid),
            changed=changed,
            attempt=attempt,
        )
