"""A deployer over a real store and desired state; runtime and ledger are in memory."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
from collections import Counter
from typing import Any

from chaindock.container.attempt import Attempt, Phase
from chaindock.lifecycle.custodian import Custodian, CustodianOptions
from chaindock.lifecycle.deploy import Deployer
from chaindock.lifecycle.desired import DesiredState
from chaindock.packaging.store import PackageStore


def archive(files: Any) -> Any:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    # Without a time: equal files are one package, in whatever second.
    return gzip.compress(out.getvalue(), mtime=0)


def package(text: Any, label: Any = "basic_1.0") -> Any:
    metadata = {"path": "", "type": "node", "label": label}
    code = archive({"src/index.js": text.encode(), "src/package.json": b"{}"})
    return archive(
        {"metadata.json": json.dumps(metadata).encode(), "code.tar.gz": code}
    )


class Runtime:
    """Counts what runs; a build may fail or be held."""

    def __init__(self, desired: Any) -> None:
        self.running: set[Any] = set()
        self.launches: Counter[str] = Counter()
        self.log: list[Any] = []
        self.fail: Any = None
        self.gate: Any = None
        self.stop_gate: Any = None
        self.entered = asyncio.Event()
        self._desired = desired

    async def launch(self, ccid: Any, attempt: Any = None) -> Any:
        self.entered.set()
        if ccid in self.running:
            return
        self.log.append(("launch", ccid, self._desired.backend_of(ccid)))
        self.launches[ccid] += 1
        if attempt is not None:
            attempt.enter(Phase.COMPILE)
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        self.running.add(ccid)
        if attempt is not None:
            attempt.over()

    async def stop(self, ccid: Any, grace_s: Any, drain_s: Any = None) -> Any:
        self.log.append(("stop", ccid))
        if self.stop_gate is not None:
            await self.stop_gate.wait()
        self.running.discard(ccid)

    async def forget(self, ccid: Any, grace_s: Any, drain_s: Any = None) -> Any:
        await self.stop(ccid, grace_s)


class Committer:
    """A ledger that knows sequences only, and may lose its answer."""

    def __init__(self) -> None:
        self.sequences: Counter[str] = Counter()
        self.args: list[Any] = []
        self.fail: Any = None
        self.fail_after: Any = None
        self.gate: Any = None
        self.entered = asyncio.Event()

    async def commit(self, args: Any) -> Any:
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.fail is not None:
            raise self.fail
        assert args.sequence == self.sequences[args.name] + 1
        self.sequences[args.name] = args.sequence
        self.args.append(args)
        if self.fail_after is not None:
            raise self.fail_after

    def sequence(self, name: Any) -> Any:
        return self.sequences[name]


class Node:
    def __init__(self, root: Any, committer: Any = None, retries: Any = 3) -> None:
        self.root = root
        self.store = PackageStore(root / "packages")
        self.desired = DesiredState(root / "desired.db")
        self.runtime = Runtime(self.desired)
        self.committer = committer or Committer()
        self.purged: list[Any] = []
        self.custodian = Custodian(
            self.runtime,
            lambda ccid: ccid in self.desired.to_run(),
            CustodianOptions(retry_first_s=0.01, retry_cap_s=0.01, retries=retries),
        )
        self.deployer = Deployer(
            packages=self.store,
            desired=self.desired,
            custodian=self.custodian,
            committer=self.committer,
            attempts=Attempt,
            purge=self._purge,
        )

    async def __aenter__(self) -> Any:
        await self.custodian.__aenter__()
        await self.deployer.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> Any:
        await self.deployer.__aexit__(None, None, None)
        await self.custodian.aclose()
        self.desired.close()

    async def _purge(self, ccid: Any) -> None:
        """Note what builds would be removed, and whether the package was there still."""
        self.purged.append((ccid, ccid in self.store.list()))

    async def quiet(self) -> Any:
        """Wait for what goes on in the background."""
        while tasks := self.deployer._tasks._tasks | self.custodian._tasks._tasks:
            await asyncio.wait(tasks)
