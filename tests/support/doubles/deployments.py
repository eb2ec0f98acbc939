"""A deployer over a real store and desired state; runtime and ledger are in memory."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from chaindock.container.attempt import Attempt
from chaindock.ids import ChannelId
from chaindock.ledger.committer import CommittedBlock
from chaindock.ledger.transaction import ParsedTransaction, Space
from chaindock.lifecycle.approvals import Approvals
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.definitions import (
    Definition,
    read_definition,
    read_sequence,
    set_defaults,
    write_definition,
)
from chaindock.lifecycle.deploy import Deployer
from chaindock.lifecycle.deployments import Deployments, Fleet
from chaindock.lifecycle.packages import Packages
from chaindock.lifecycle.states import BY_HAND, CustodianOptions, LaunchState, Target
from chaindock.lifecycle.targets import TargetState
from chaindock.packaging.store import PackageStore
from support.doubles.lifecycle_state import LifecycleState
from support.doubles.machine import Machine
from support.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chaindock.chaincode.running import Running
    from chaindock.ids import Ccid
    from chaindock.lifecycle.supervisor import Supervisor

CHANNEL = ChannelId("mychannel")


def archive(files: Any) -> Any:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    # Without a time: equal files are one package, in whatever second.
    return gzip.compress(out.getvalue(), mtime=0)


def package(text: Any, label: Any = "basic_1.0", more: Any = None) -> Any:
    metadata = {"path": "", "type": "node", "label": label}
    files = {"src/index.js": text.encode(), "src/package.json": b"{}", **(more or {})}
    code = archive(files)
    return archive(
        {"metadata.json": json.dumps(metadata).encode(), "code.tar.gz": code}
    )


class Runtime(Machine):
    """A machine that knows on which back end it launches; all of it can be held."""

    def __init__(self, targets: TargetState) -> None:
        super().__init__()
        self.fail: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.stop_gate: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self._targets = targets

    @property
    def running(self) -> set[Ccid]:
        return set(self.runs)

    async def launch(self, attempt: Attempt) -> Running:
        ccid = attempt.ccid
        self.entered.set()
        backend = await self._targets.decide(ccid, choose)
        self.log.append(("placed", ccid, backend))
        self.gates = {} if self.gate is None else {ccid: self.gate}
        self.stop_gates = {} if self.stop_gate is None else {ccid: self.stop_gate}
        self.errors = {} if self.fail is None else {ccid: self.fail}
        return await super().launch(attempt)

    def placed(self) -> list[str]:
        """Return the back ends of all launches, in order."""
        return [entry[2] for entry in self.log if entry[0] == "placed"]


async def choose() -> tuple[str, str]:
    """Say that `auto` means docker here."""
    return "docker", "an engine answers"


class Committer:
    """A ledger of `_lifecycle` alone, which may lose its answer."""

    channel = CHANNEL

    def __init__(self) -> None:
        self.state: Any = LifecycleState()
        self.args: list[Any] = []
        self.fail: Any = None
        self.fail_after: Any = None
        self.gate: Any = None
        self.entered = asyncio.Event()
        self.indexes: list[Any] = []
        self.fail_indexes: Any = None
        self.watchers: list[Any] = []

    @contextmanager
    def new_simulator(self, _: Any) -> Iterator[Any]:
        yield self.state
        self.state.begin()

    async def commit(self, args: Any, ccid: Any) -> Any:
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        self.approve(args, ccid)
        if self.fail is not None:
            raise self.fail
        self.define(args)
        self.args.append(args)
        if self.fail_after is not None:
            raise self.fail_after

    async def put_indexes(self, name: Any, files: Any) -> None:
        if self.fail_indexes is not None:
            raise self.fail_indexes
        self.indexes.append((name, files))

    def approve(self, args: Any, ccid: Any, mspid: str = "Org1MSP") -> None:
        """Let an organisation approve `args` with a package."""
        args = completed(args)
        approvals = Approvals(CHANNEL, mspid)
        if not approvals.holds(self.state, args, ccid):
            self.state.begin()
            approvals.approve(self.state, args, ccid)
        self.cut()

    def define(self, args: Any) -> None:
        """Make `args` the definition that is committed."""
        assert args.sequence == self.sequence(args.name) + 1
        write_definition(self.state, completed(args))
        self.cut()

    def cut(self) -> None:
        """Commit what was written in a block."""
        spaces = [
            Space("_lifecycle", collection, [], [], [(key, b"")], [])
            for collection, key in self.state.written()
        ]
        self.state.commit()
        for watch in self.watchers:
            tx = ParsedTransaction(b"", spaces=spaces)
            watch(CommittedBlock(self.state.block, b"\0"), [tx])

    def definition(self, name: Any) -> Any:
        return read_definition(self.state, name)

    def sequence(self, name: Any) -> Any:
        """Return the committed sequence of `name`; 0 = none."""
        return read_sequence(self.state, name)


def completed(args: Any) -> Any:
    """Return a definition with its defaults."""
    found = Definition()
    found.CopyFrom(args)
    set_defaults(found)
    return found


class Node:
    def __init__(self, root: Any, committer: Any = None, **how: Any) -> None:
        self.root = root
        self.store = PackageStore(root / "packages")
        self.targets = TargetState(root / "desired.db")
        self.fleet = Fleet(self.targets)
        self.runtime = Runtime(self.targets)
        chosen: Any = committer or Committer()
        self.committer = chosen
        self.purged: list[Any] = []
        self.custodian = Custodian(
            self.runtime,
            CustodianOptions(
                retry_first_s=0.01, retry_cap_s=0.01, retries=how.pop("retries", 3)
            ),
            by_hand=lambda ccid: self.targets.placement(ccid).given == BY_HAND,
        )
        self.packages = Packages(self.store, self.fleet, self.custodian, self._purge)
        orgs = how.pop("orgs", ["Org1MSP"])
        self.deployments = Deployments(self.committer, lambda: orgs, self.fleet)
        self.deployer = Deployer(
            self.deployments,
            self.committer.commit,
            lambda: orgs,
            packages=self.packages,
            custodian=self.custodian,
            attempts=Attempt,
            **how,
        )

    async def __aenter__(self) -> Any:
        await self.custodian.__aenter__()
        await self.deployments.load()
        await self.deployer.__aenter__()
        self.committer.watchers = [self.deployer.committed]
        return self

    async def restore(self) -> None:
        """Do what a node does after its start."""
        await self.packages.restore()
        await self.deployer.restore()

    async def __aexit__(self, *error: object) -> Any:
        self.committer.watchers = []
        await self.deployer.__aexit__(None, None, None)
        await self.packages.__aexit__(None, None, None)
        await self.custodian.aclose()
        self.targets.close()

    async def _purge(self, ccid: Any) -> None:
        """Note what builds would be removed, and whether the package was there still."""
        self.purged.append((ccid, ccid in self.store.list()))

    async def quiet(self) -> None:
        """Wait for what goes on in the background."""
        while tasks := self.deployer._tasks._tasks | self.packages._tasks._tasks:
            await asyncio.wait(tasks)
        await eventually(lambda: not any(map(_at_work, self.custodian.all())))


def _at_work(supervisor: Supervisor) -> bool:
    busy = {LaunchState.STARTING, LaunchState.STOPPING, LaunchState.BACK_OFF}
    wanted = supervisor.target is Target.RUNNING
    return supervisor.state in busy or (wanted and supervisor.state is LaunchState.DOWN)
