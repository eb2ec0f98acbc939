"""A Builder and an Instance without processes or containers.

Owns:    World (the pretended machine), InMemoryBuilder, InMemoryInstance.
Not:     the suite that keeps them honest (conformance.py), what goes wrong (faults.py),
         a shim: what runs plays the acts of a script.
Entry:   InMemoryBuilder
Holds:   passes BuilderSuite and InstanceSuite, so a test that trusts it trusts the
         contract.
Source:  container/contracts.py
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from chaindock.aio import Latch, Tasks
from chaindock.container.attempt import Phase
from chaindock.container.contracts import Cause, Dial, Exit
from chaindock.errors import BuildFailed
from chaindock.ids import Ccid
from chaindock.packaging.store import StoredPackage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chaindock.container.attempt import Attempt
    from chaindock.container.contracts import Instance, PeerConnection
    from support.doubles.scripts import Act

SIGKILL = 9
LOOPBACK = "127.0.0.1"


def fake_package(label: str = "cc") -> StoredPackage:
    """Return a package without a file: nothing to do for whoever builds or runs it."""
    digest = hashlib.sha256(label.encode()).hexdigest()
    return StoredPackage(
        ccid=Ccid(f"{label}:{digest}"),
        label=label,
        package_type="script",
        import_path="",
        code_digest=digest,
        path=Path("/nowhere"),
    )


@dataclass
class Run:
    """One pretended process.

    Args:
        address: host:port to dial, or to serve on when `serves`.
        terminated: set by SIGTERM.
        acts: what the package's script does; () when nobody looked.
    """

    ccid: Ccid
    node_id: str
    peer: PeerConnection
    address: str
    attempt: Attempt
    acts: Sequence[Act] = ()
    terminated: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    over: Latch[Exit] = field(default_factory=Latch)
    forks: int = 0
    task: asyncio.Task[Any] | None = None

    def say(self, line: str, stream: str = "stdout") -> None:
        """Write one line."""
        self.attempt.output(line, stream)  # type: ignore[arg-type]  # tests pass streams

    def kill(self) -> None:
        """SIGKILL."""
        if self.task is not None:
            self.task.cancel()


class World:
    """The pretended machine that builders share: what was built and what runs."""

    def __init__(self) -> None:
        self.built: set[str] = set()
        self.building: list[tuple[str, str]] = []
        self.runs: list[Run] = []
        self.tasks = Tasks("world")

    def owned(self, node_id: str) -> set[str]:
        """Return names of what exists of a node."""
        runs = [run for run in self.runs if run.node_id == node_id]
        names = {f"{run.name}.{n}" for run in runs for n in range(run.forks + 1)}
        return names | {ccid for owner, ccid in self.building if owner == node_id}

    def begin(self, run: Run) -> None:
        """Let a process live."""
        self.runs.append(run)
        run.task = self.tasks.start(_live(run), f"run {run.ccid}")
        # Not in the task itself: it may be killed before its first step.
        run.task.add_done_callback(lambda _: self._ended(run))

    async def end(self, runs: Sequence[Run], grace_s: float = 0) -> None:
        """SIGTERM, grace, SIGKILL."""
        for run in runs:
            run.terminated.set()
        alive = [run.task for run in runs if run.task is not None]
        if alive and grace_s > 0:
            await asyncio.wait(alive, timeout=grace_s)
        for run in runs:
            run.kill()
        await asyncio.gather(*(run.over.wait() for run in runs))

    def _ended(self, run: Run) -> None:
        self.runs.remove(run)
        run.over.settle(Exit(code=None, signal=SIGKILL))


async def _live(run: Run) -> None:
    """Do what a script does (scripts.py), until SIGKILL cancels it."""
    code = None
    for act in run.acts:
        code = await _play(act, run)
        if code is not None:
            break
    run.over.settle(Exit(code=code or 0))


async def _play(act: Act, run: Run) -> int | None:
    verb, *words = act
    if verb == "say":
        run.say(*words)
    elif verb == "flood":
        for number in range(int(words[0])):
            run.say(words[1])
            if number % 1000 == 0:
                await asyncio.sleep(0)
    elif verb == "fork":
        run.forks += 1
    elif verb == "call":
        _, writer = await asyncio.open_connection(*_split(run.address))
        writer.close()
    elif verb == "serve":
        async with await asyncio.start_server(_hang_up, *_split(run.address)):
            await run.terminated.wait()
    elif verb == "hang":
        await run.terminated.wait()
        return 0
    elif verb == "ignore_term":
        await asyncio.Event().wait()
    return int(words[0]) if verb == "leave" else None


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


class InMemoryInstance:
    """Implements container.contracts.Instance."""

    def __init__(
        self, builder: InMemoryBuilder, package: StoredPackage, script: Script
    ) -> None:
        self.builder, self.package, self.script = builder, package, script
        self.run: Run | None = None
        self.starts = 0

    @property
    def concurrency(self) -> int | None:
        """Unlimited."""
        return None

    async def start(self, peer: PeerConnection, attempt: Attempt) -> Dial | None:
        """Start a pretended process."""
        attempt.enter(Phase.CREATE)
        builder = self.builder
        world = builder.world
        await world.end([r for r in world.runs if self._is_mine(r)], grace_s=1)
        serves = self.script.serves
        address = await (
            _free_address() if serves else peer.listener.address_on(LOOPBACK)
        )
        attempt.enter(Phase.START)
        self.starts += 1
        self.run = Run(
            self.package.ccid, builder.node_id, peer, address, attempt, self.script.run
        )
        world.begin(self.run)
        return Dial(address) if serves else None

    async def wait(self) -> Exit:
        """Wait until the current run has ended."""
        if self.run is None:
            return Exit(None, reason="was not started", cause=Cause.NOT_STARTED)
        return await self.run.over.wait()

    async def stop(self, grace_s: float) -> None:
        """End the run."""
        if self.run is not None and self.run in self.builder.world.runs:
            await self.builder.world.end([self.run], grace_s)

    async def probe(self) -> None:
        """Nothing stands in the way."""

    def describe(self) -> Mapping[str, str]:
        """Return the backend and the name of the run."""
        return {"backend": "memory", "run": self.run.name if self.run else ""}

    def _is_mine(self, run: Run) -> bool:
        same = run.ccid == self.package.ccid
        return same and run.node_id == self.builder.node_id


async def _free_address() -> str:
    async with await asyncio.start_server(_hang_up, LOOPBACK, 0) as probe:
        return f"{LOOPBACK}:{probe.sockets[0].getsockname()[1]}"


@dataclass(frozen=True)
class Script:
    """Acts of a package made by ScriptPackages."""

    steps: Mapping[str, Sequence[Act]]
    run: Sequence[Act]
    serves: bool


async def _read(package: StoredPackage) -> Script:
    if not package.path.exists():  # fake_package
        return Script({}, (), serves=False)
    with tempfile.TemporaryDirectory() as folder:
        await package.unpack(Path(folder) / "input")
        source = Path(folder) / "input" / "src"
        dependencies, build, run = json.loads((source / "acts.json").read_bytes())
        serves = (source / "serves").exists()
    return Script({"deps.sh": dependencies, "build.sh": build}, run, serves)


class InMemoryBuilder:
    """Implements container.contracts.Builder; an async context manager.

    Args:
        world: None = one of its own, ended with the builder.
    """

    name = "memory"
    keeps_builds = False

    def __init__(self, *, node_id: str = "node", world: World | None = None) -> None:
        self.node_id, self.world = node_id, world or World()
        self.builds = 0
        self.instances: list[InMemoryInstance] = []

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        """Play the build scripts, once per code."""
        attempt.enter(Phase.PACKAGE)
        mark = (self.node_id, package.ccid)
        self.world.building.append(mark)
        try:
            script = await _read(package)
            if package.code_digest in self.world.built:
                attempt.note("build reused")
            else:
                await self.make(package, script, attempt)
                self.world.built.add(package.code_digest)
        finally:
            self.world.building.remove(mark)
        instance = InMemoryInstance(self, package, script)
        self.instances.append(instance)
        return instance

    async def make(
        self, package: StoredPackage, script: Script, attempt: Attempt
    ) -> None:
        """Play the build scripts."""
        self.builds += 1
        phases = {"deps.sh": Phase.DEPENDENCIES, "build.sh": Phase.COMPILE}
        for name, acts in script.steps.items():
            attempt.enter(phases[name])
            for act in acts:
                if act[0] == "leave" and act[1] != "0":
                    raise build_failed(package, name, int(act[1]), attempt)
                await _play_in_build(act, attempt)

    async def discard(self, ccid: Ccid) -> None:
        """Forget nothing: builds of the world are shared."""

    async def reap(self) -> int:
        """End runs of this node that no instance of this builder started."""
        own = {id(instance.run) for instance in self.instances}
        lost = [r for r in self.world.runs if r.node_id == self.node_id]
        lost = [run for run in lost if id(run) not in own]
        await self.world.end(lost)
        return len(lost)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for instance in self.instances:
            await instance.stop(0)


async def _play_in_build(act: Act, attempt: Attempt) -> None:
    if act[0] == "say":
        attempt.output(act[1], "build")
    elif act[0] == "flood":
        for number in range(int(act[1])):
            attempt.output(act[2], "build")
            if number % 1000 == 0:
                await asyncio.sleep(0)
    elif act[0] == "hang":
        await asyncio.Event().wait()


def build_failed(
    package: StoredPackage, step: str, code: int, attempt: Attempt
) -> BuildFailed:
    """Return the error of a step that ended with `code`."""
    return BuildFailed(
        f"build step {step!r} of chaincode {package.ccid!r} ended with exit code {code}",
        step=step,
        exit_code=code,
        signal=None,
        **attempt.facts(),
    )
