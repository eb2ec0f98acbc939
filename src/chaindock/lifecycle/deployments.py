"""What the names of each channel run: as its ledger says, and as users want it.

The definition that is committed gives the sequence, and an approval the package. Nothing
else records either, so a crash leaves nothing to settle.
Source: docs/fabric/lifecycle.md#what-a-name-runs
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from fabric_protos.peer import transaction_pb2 as codes

from chaindock.errors import NotFound, StartFailed
from chaindock.ids import Ccid, ChannelId, TxId, at_peer, split_peer
from chaindock.ledger.committer import CommittedBlock
from chaindock.ledger.ledger import Ledger
from chaindock.ledger.simulator import Simulator
from chaindock.ledger.transaction import ParsedTransaction, Space
from chaindock.lifecycle.approvals import Approvals, keys_of
from chaindock.lifecycle.definitions import (
    DEFINITIONS,
    NAMESPACE,
    Approval,
    Definition,
    defined_names,
    not_installed,
    read_definition,
    read_sequence,
)
from chaindock.lifecycle.states import BY_HAND, Target
from chaindock.lifecycle.targets import TargetState

Name = tuple[ChannelId, str]
"""A chaincode by its channel and its name there."""

_AT_ONCE: Final = 25
"""Names that are looked up before other work of the event loop has its turn."""
_KEY: Final = re.compile(rb"%b/\w+/([\w-]+)" % DEFINITIONS.encode())


@dataclass(frozen=True)
class Deployment:
    """What a name of a channel runs, and whether it is to run.

    `since` is when either last changed, as far as this process knows, in seconds since
    1970; `installed` whether its package is here, or a user starts its program.
    """

    channel: ChannelId
    approval: Approval
    target: Target
    since: float
    installed: bool

    @property
    def name(self) -> str:
        """The chaincode's name."""
        return self.approval.name

    @property
    def ccid(self) -> Ccid:
        """The package that runs; "" when none was approved."""
        return self.approval.ccid

    @property
    def runs(self) -> bool:
        """Whether it is to run and can."""
        return self.installed and self.target is Target.RUNNING


class Deployments:
    """The names of one channel. Use it on the event loop, between `load` and the end.

    Args:
        ledger: of the channel; `note` gets to know each of its blocks.
        mspids: returns the organisations of the node there, the preferred one first.
    """

    def __init__(
        self, ledger: Ledger, mspids: Callable[[], Iterable[str]], fleet: Fleet
    ) -> None:
        self.channel = ledger.channel
        self.ledger, self.mspids, self.fleet = ledger, mspids, fleet
        self._rows: dict[str, tuple[Approval, float]] = {}
        self._keys: dict[bytes, str] = {}
        """Hash of a key of an approval → name whose package it may change."""

    async def load(self) -> None:
        """Read everything, and let the fleet know of it. Raises: LedgerError."""
        with self.ledger.new_simulator(TxId("")) as simulator:
            names = defined_names(simulator)
        for number, name in enumerate(names, 1):
            self._read(name)
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
        self.fleet.channels[self.channel] = self

    # ---- reads

    def at(self, simulator: Simulator, name: str) -> Approval:
        """Return what `name` means to a simulation, and runs now.

        A slightly old snapshot must not start a replaced version again: its transaction
        becomes invalid anyway, and a query is better served by the new version.

        Raises:
            NotFound: not defined, or defined and not installed here.
            StartFailed: a user stopped it.
        """
        sequence = read_sequence(simulator, name)
        if sequence == 0:
            raise NotFound(
                f"chaincode {name} not found",
                hint="see what is there: chaindock ps",
                chaincode=name,
            )
        found = self.find(name)
        if found is None or sequence > found.approval.sequence or not found.installed:
            raise not_installed(name, sequence)
        if found.target is Target.STOPPED:
            raise StartFailed(
                f"chaincode {name!r} was stopped",
                hint=f"start it: chaindock start {name} --channel {self.channel}",
                ccid=found.ccid,
            )
        same = sequence == found.approval.sequence
        return found.approval if same else replace(found.approval, sequence=sequence)

    def find(self, name: str) -> Deployment | None:
        """Return the deployment of `name`; None = not defined, or a user removed it."""
        if name not in self._rows:
            return None
        approval, since = self._rows[name]
        wish = self.fleet.targets.wish(self.channel, approval)
        if wish is not None and wish.target is Target.REMOVED:
            return None
        target, since = (wish.target, wish.since) if wish else (Target.RUNNING, since)
        there = self.fleet.is_installed(approval.ccid)
        return Deployment(self.channel, approval, target, since, there)

    def get(self, name: str) -> Deployment:
        """Return the deployment of `name`. Raises: NotFound."""
        if (found := self.find(name)) is None:
            raise NotFound(
                f"no chaincode {name!r} is deployed",
                hint="list the deployed ones: chaindock ps",
                chaincode=name,
            )
        return found

    def all(self) -> list[Deployment]:
        """Return all deployments, by name."""
        return [one for name in sorted(self._rows) if (one := self.find(name))]

    def of(self, ccid: Ccid) -> list[Deployment]:
        """Return the deployments that run this package."""
        names = [name for name, (one, _) in self._rows.items() if one.ccid == ccid]
        return [one for name in names if (one := self.find(name))]

    def definition(self, name: str) -> Definition:
        """Return what is committed for `name`; sequence 0: nothing. Raises: LedgerError."""
        with self.ledger.new_simulator(TxId("")) as simulator:
            return read_definition(simulator, name) or Definition(name=name)

    # ---- changes

    def note(
        self, block: CommittedBlock, txs: Sequence[ParsedTransaction]
    ) -> dict[str, Ccid | None]:
        """Take note of a block; return the names that it changed.

        Each with the package that it ran before; None when it ran none.
        Raises: LedgerError.
        """
        touched = {
            name
            for tx, code in zip(txs, block.codes, strict=True)
            if code == codes.VALID
            for space in tx.spaces
            if space.ns == NAMESPACE
            for key, _ in space.writes
            if (name := self._named(space, key))
        }
        changed = {}
        for name in touched:
            before, current = self.find(name), self._rows.get(name)
            self._read(name)
            if self._rows.get(name) != current:
                changed[name] = (before and before.ccid) or None
        return changed

    def _named(self, space: Space, key: bytes) -> str | None:
        """Return the name whose meaning a write of a key may change."""
        if space.collection:
            return self._keys.get(key)
        found = _KEY.match(key)
        return found[1].decode() if found else None

    def _read(self, name: str) -> None:
        """Look up what a name means now."""
        with self.ledger.new_simulator(TxId("")) as simulator:
            definition = read_definition(simulator, name)
            if definition is None:
                return
            approved = (Approvals(self.channel, mspid) for mspid in self.mspids())
            packages = (one.package(simulator, definition) for one in approved)
            found = Approval(
                name,
                definition.sequence,
                definition.version,
                Ccid(next(filter(None, packages), "")),
                definition.init_required,
            )
        before, _ = self._rows.get(name, (None, 0.0))
        if found == before:
            return
        if before is not None:
            for key in keys_of(name, before.sequence):
                del self._keys[key]
        self._keys.update(dict.fromkeys(keys_of(name, found.sequence), name))
        self._rows[name] = found, time.time()


@dataclass(eq=False)
class Fleet:
    """All deployments of a node. Use it on the event loop."""

    targets: TargetState
    """What is local to the node."""
    installed: set[Ccid] = field(default_factory=set)
    """The packages that are here; `lifecycle.Packages` keeps it true."""
    channels: dict[ChannelId, Deployments] = field(default_factory=dict)
    """What is deployed in each channel."""
    _coming: set[tuple[Ccid, Name]] = field(default_factory=set)

    def is_installed(self, ccid: Ccid) -> bool:
        """Whether a package is here, or a user starts the program."""
        return ccid in self.installed or (
            bool(ccid) and self.targets.placement(ccid).given == BY_HAND
        )

    def all(self) -> list[Deployment]:
        """Return all deployments, by name and channel."""
        found = [one for each in self.channels.values() for one in each.all()]
        return sorted(found, key=lambda one: (one.name, one.channel))

    def ccids(self) -> set[Ccid]:
        """Return every package that a name runs, or would if it was installed."""
        return {one.ccid for one in self.all() if one.ccid}

    def of(self, ccid: Ccid) -> list[Deployment]:
        """Return the deployments that run this package."""
        return [one for each in self.channels.values() for one in each.of(ccid)]

    def runs(self, ccid: Ccid) -> bool:
        """Whether anybody is to run this package."""
        return any(one.runs for one in self.of(ccid))

    def serves(self, ccid: Ccid) -> bool:
        """Whether what runs as `ccid` serves the node, or a peer that needs it."""
        package, mspid = split_peer(ccid)
        return not mspid or any(
            mspid in each.mspids() and each.of(package)
            for each in self.channels.values()
        )

    def users(self, ccid: Ccid) -> set[Name]:
        """Return who runs this package."""
        return {(one.channel, one.name) for one in self.of(ccid)}

    def coming(self, ccid: Ccid) -> set[Name]:
        """Return who is being deployed with this package."""
        return {name for one, name in self._coming if one == ccid}

    def names_of(self, ccid: Ccid) -> list[str]:
        """Return the names it runs for, those of deployments under way too.

        NAME@MSPID of what serves the peer of another organisation.
        """
        package, mspid = split_peer(ccid)
        found = self.users(package) | self.coming(package)
        return sorted({at_peer(Ccid(name), mspid) for _, name in found})

    @contextmanager
    def expecting(self, ccid: Ccid, name: Name) -> Iterator[None]:
        """Let `coming(ccid)` contain `name` inside the block."""
        self._coming.add((ccid, name))
        try:
            yield
        finally:
            self._coming.discard((ccid, name))
