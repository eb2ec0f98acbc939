"""A deployer over a real store and desired state; runtime and ledger are in memory."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

from chaindock.container.attempt import Attempt
from chaindock.lifecycle.custodian import Custodian
from chaindock.lifecycle.deploy import BY_HAND, Deployer
from chaindock.lifecycle.states import CustodianOptions, LaunchState, Target
from chaindock.lifecycle.targets import TargetState
from chaindock.packaging.store import PackageStore
from support.doubles.machine import Machine
from support.eventually import eventually

if TYPE_CHECKING:
    from chaindock.chaincode.running import Running
    from chaindock.ids import Ccid
    from chaindock.lifecycle.supervisor import Supervisor


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
    """A ledger that knows definitions only, and may lose its answer."""

    def __init__(self) -> None:
        self.definitions: dict[str, Any] = {}
        self.args: list[Any] = []
        self.fail: Any = None
        self.fail_after: Any = None
        self.gate: Any = None
        self.entered = asyncio.Event()
        self.indexes: list[Any] = []
        self.fail_indexes: Any = None

    async def commit(self, args: Any, ccid: Any) -> Any:
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        assert args.sequence == self.sequence(args.name) + 1
        self.define(args)
        self.args.append(args)
        if self.fail_after is not None:
            raise self.fail_after

    async def put_indexes(self, name: Any, files: Any) -> None:
        if self.fail_indexes is not None:
            raise self.fail_indexes
        self.indexes.append((name, files))

    def define(self, args: Any) -> None:
        """Make `args` the definition that is committed."""
        self.definitions[args.name] = args

    def definition(self, name: Any) -> Any:
        return self.definitions.get(name)

    def sequence(self, name: Any) -> Any:
        """Return the committed sequence of `name`; 0 = none."""
        return self.definitions[name].sequence if name in self.definitions else 0


class Node:
    def __init__(self, root: Any, committer: Any = None, retries: Any = 3) -> None:
        self.root = root
        self.store = PackageStore(root / "packages")
        self.targets = TargetState(root / "desired.db")
        self.runtime = Runtime(self.targets)
        self.committer = committer or Committer()
        self.purged: list[Any] = []
        self.custodian = Custodian(
            self.runtime,
            CustodianOptions(retry_first_s=0.01, retry_cap_s=0.01, retries=retries),
            by_hand=lambda ccid: self.targets.placement(ccid).given == BY_HAND,
        )
        self.deployer = Deployer(
            packages=self.store,
            targets=self.targets,
            custodian=self.custodian,
            committer=self.committer,
            attempts=Attempt,
            purge=self._purge,
            mspids=lambda: ["Org1MSP"],
        )

    async def __aenter__(self) -> Any:
        await self.custodian.__aenter__()
        await self.deployer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> Any:
        await self.deployer.__aexit__(None, None, None)
        await self.custodian.aclose()
        self.targets.close()

    async def _purge(self, ccid: Any) -> None:
        """Note what builds would be removed, and whether the package was there still."""
        self.purged.append((ccid, ccid in self.store.list()))

    async def quiet(self) -> None:
        """Wait for what goes on in the background."""
        while tasks := self.deployer._tasks._tasks:
            await asyncio.wait(tasks)
        await eventually(lambda: not any(map(_at_work, self.custodian.all())))


def _at_work(supervisor: Supervisor) -> bool:
    busy = {LaunchState.STARTING, LaunchState.STOPPING, LaunchState.BACK_OFF}
    wanted = supervisor.target is Target.RUNNING
    return supervisor.state in busy or (wanted and supervisor.state is LaunchState.DOWN)
