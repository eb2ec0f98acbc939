"""Builders and instances that fail in one way each; their chaincode is a ShimPeer."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from chaindock.aio import Latch, Tasks
from chaindock.container.attempt import Attempt, Phase
from chaindock.container.contracts import Dial, Exit
from support.shims.peer import Kind, ShimPeer, ShimServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from chaindock.container.contracts import Builder, Instance, PeerConnection
    from chaindock.errors import LaunchFailed
    from chaindock.ids import Ccid
    from chaindock.packaging.store import StoredPackage

KILLED = Exit(None, signal=9)
STOPPED = Exit(0)


class FakeInstance:
    """An instance that does what `plays` says once it is started."""

    def __init__(
        self,
        ccid: Ccid,
        plays: Callable[[FakeInstance], Awaitable[Exit]],
        *,
        concurrency: int | None = None,
    ) -> None:
        self.ccid = ccid
        self.concurrency = concurrency
        self.starts = 0
        self.events: list[str] = []
        self.errors: list[Exception] = []
        self.peers: list[ShimPeer] = []
        self.attempt: Attempt
        self.peer: PeerConnection
        self.server: ShimServer | None = None
        self.start_takes: Callable[[], Awaitable[Any]] | None = None
        self.stop_takes: Callable[[], Awaitable[Any]] | None = None
        self.probes: Callable[[], Awaitable[LaunchFailed | None]] | None = None
        self._plays = plays
        self._tasks = Tasks("fake")
        self._exit: Latch[Exit] = Latch()

    @property
    def running(self) -> bool:
        return self.starts > 0 and not self._exit.settled

    async def start(self, peer: PeerConnection, attempt: Attempt) -> Dial | None:
        attempt.enter(Phase.CREATE)
        if self.errors:
            raise self.errors.pop(0)
        attempt.enter(Phase.START)
        self.peer, self.attempt = peer, attempt
        self._exit = Latch()
        self.starts += 1
        self.events.append("start")
        try:
            if self.start_takes is not None:
                await self.start_takes()
        except asyncio.CancelledError:
            self._end(KILLED)
            raise
        _ = self._tasks.start(self._run(), "run")
        return Dial(self.server.address) if self.server else None

    async def _run(self) -> None:
        try:
            self._end(await self._plays(self))
        finally:
            for peer in self.peers:
                await peer.leave()
            self.peers.clear()

    def _end(self, how: Exit) -> None:
        if self._exit.settle(how):
            self.events.append("exit")

    async def dial(self) -> ShimPeer:
        """Return a new stream to the node that ends with the process."""
        peer = await ShimPeer.dial(await self.peer.listener.address_on("127.0.0.1"))
        self.peers.append(peer)
        return peer

    async def crash(self, how: Exit) -> None:
        """End as a process does that dies."""
        self._end(how)
        await self._tasks.aclose()

    async def wait(self) -> Exit:
        return await self._exit.wait() if self.starts else STOPPED

    async def stop(self, grace_s: float) -> None:
        self.events.append(f"stop {grace_s:.0f}")
        if self.stop_takes is not None:
            await self.stop_takes()
        self._end(STOPPED)
        await self._tasks.aclose()

    async def probe(self) -> LaunchFailed | None:
        return None if self.probes is None else await self.probes()

    def describe(self) -> Mapping[str, str]:
        return {"backend": "fake", "starts": str(self.starts)}


async def serves(instance: FakeInstance) -> Exit:
    """Register and answer every invocation with its own transaction id."""
    return await answer(await registered(instance))


async def registered(instance: FakeInstance) -> ShimPeer:
    peer = await instance.dial()
    await peer.register(instance.ccid)
    return peer


async def answer(peer: ShimPeer) -> Exit:
    while True:
        message = await peer.next()
        if not isinstance(message, Kind):
            return STOPPED
        if message.type in {Kind.TRANSACTION, Kind.INIT}:
            await peer.complete(message, message.txid.encode())


async def keeps_working(instance: FakeInstance) -> Exit:
    """Register, and never finish an invocation."""
    peer = await registered(instance)
    while isinstance(await peer.next(), Kind):
        pass
    return STOPPED


async def never_registers(instance: FakeInstance) -> Exit:
    """Run on without a word."""
    instance.attempt.output("waiting for something", "stdout")
    await asyncio.Event().wait()
    return STOPPED


async def dies_at_once(instance: FakeInstance) -> Exit:
    """End before anything."""
    instance.attempt.output("panic: no such thing", "stderr")
    return Exit(2)


class FakeBuilder:
    """A builder whose instances the test prepared."""

    name = "fake"
    keeps_builds = False

    def __init__(self) -> None:
        self.instances: dict[Ccid, FakeInstance] = {}
        self.errors: list[Exception] = []
        self.builds = 0
        self.takes: Callable[[], Awaitable[Any]] | None = None
        self.phases: list[tuple[Phase, float]] = [(Phase.COMPILE, 0.0)]

    def prepare(
        self,
        ccid: Ccid,
        plays: Callable[[FakeInstance], Awaitable[Exit]] = serves,
        **fields: Any,
    ) -> FakeInstance:
        self.instances[ccid] = FakeInstance(ccid, plays, **fields)
        return self.instances[ccid]

    async def build(self, package: StoredPackage, attempt: Attempt) -> Instance:
        self.builds += 1
        for phase, seconds in self.phases:
            attempt.enter(phase)
            await asyncio.sleep(seconds)
        if self.takes is not None:
            await self.takes()
        if self.errors:
            attempt.output("main.go:3: syntax error", "build")
            raise self.errors.pop(0)
        return self.instances[attempt.ccid]

    async def discard(self, ccid: Ccid) -> None:
        pass

    async def reap(self) -> int:
        return 0


class OneBackend:
    """A node with one back end."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder

    async def builder_for(self, ccid: Ccid) -> Builder:
        return self._builder

    def holders(self, ccid: Ccid) -> Sequence[Builder]:
        return (self._builder,)


async def any_package(ccid: Ccid) -> Any:
    """Return a package; every package exists."""
    return SimpleNamespace(ccid=ccid, package_type="fake")
