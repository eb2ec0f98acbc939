"""A node in memory behind the real admin API, for tests of the API and the CLI.

Run it: python -m support.doubles.fake_node HOME
It holds the lock file of the home as a node does, and ends on /shutdown or SIGTERM.
Some names and functions stand for faults; they are listed at FakeNode.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_protos.common import common_pb2

from chaindock.container.attempt import Attempt, Phase
from chaindock.container.output import OutputOptions, OutputStore
from chaindock.endorser.caller import Answer
from chaindock.endorser.determinism import Difference
from chaindock.errors import (
    BuildFailed,
    ChaincodeError,
    ExitedEarly,
    ImageNotFound,
    NotFound,
)
from chaindock.ids import Ccid, TxId, name_from_label
from chaindock.lifecycle.terms import shown_policy
from chaindock.node.admin import AdminServer
from chaindock.node.home import Home
from chaindock.operations.facade import Call, Deployment, NodeStatus, Running
from chaindock.packaging.format import read_package
from support.doubles import fake_explorer
from support.doubles.fake_channels import FakeChannels
from support.doubles.fake_connections import FakeConnections
from support.doubles.fake_packages import FakePackages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chaindock.lifecycle.terms import Terms

STARTED = "2026-11-24T10:00:00Z"


def answered(status: int = 200, message: str = "", **more: Any) -> Answer:
    return Answer(status, message, more.pop("payload", b""), TxId("ab" * 32), **more)


class FakeNode(FakeChannels):
    """Deployed names and a key-value contract.

    Names: `broken` fails to compile, `exits` exits early, `slow` waits to be cancelled,
    `defect` raises something unplanned.
    Functions: put K V, get K, echo ARGS, refuse (swallows a refusal), register ID, conflict (code 11), forbidden and stopped (code 10), crash, wait, caller.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.running: dict[str, Running] = {}
        self.state: dict[str, bytes] = {}
        self.calls: list[Call] = []
        super().__init__()
        self.connections = FakeConnections(home)
        self.blocks: list[bytes] = [_block(0)]
        self.forgets = self.imageless = False
        self.called, self.cancelled, self.stopping = (asyncio.Event() for _ in "123")
        self.explorer: Any = fake_explorer.FakeExplorer(self.blocks)
        self.ledger: Any = self.explorer
        self.controls: Any = None
        self.orderer: Any = None
        self.packages = FakePackages()
        self.output = OutputStore(home / "output", OutputOptions())
        self._files = ExitStack()

    def close(self) -> None:
        """Close the output files."""
        self._files.close()

    def _attempt(self, ccid: Ccid, watch: Callable[[Any], None]) -> Attempt:
        attempt = Attempt(
            ccid, self._files.enter_context(closing(self.output.open(ccid)))
        )
        attempt.begin()
        attempt.watch(watch)
        return attempt

    def status(self) -> NodeStatus:
        return NodeStatus(
            state="ready",
            version="0",
            home=str(self.home),
            node_id="f00d",
            pid=os.getpid(),
            started=STARTED,
            channel="mychannel",
            msp_id="Org1MSP",
            height=len(self.blocks),
            backend="process",
            reason="no container engine answers",
            endpoints={"admin": str(self.home)},
            identities={"User1": "/somewhere"},
            warnings=["this node is in memory"],
        )

    async def deploy(
        self,
        package: Path,
        *,
        name: str | None,
        terms: Terms,
        backend: str,
        watch: Callable[[Any], None],
        channel: str | None = None,
    ) -> Deployment:
        if self.imageless and backend != "process":
            raise ImageNotFound("the engine has no image 'python:3'", hint="pull it")
        info = read_package(package)
        name = name or name_from_label(info.label)
        attempt = self._attempt(info.id, watch)
        attempt.enter(Phase.DEPENDENCIES)
        attempt.output("fetching \x1b[31mred\x1b[0m things", "build")
        await self._fault(name, attempt)
        attempt.enter(Phase.COMPILE)
        attempt.note("an earlier build is used again")
        attempt.enter(Phase.READY)
        attempt.over()
        attempt.output("hello from chaincode", "stdout")
        version = terms.version
        one = Running(
            name=name,
            version=version or "1.0",
            sequence=self._sequence(name),
            package_id=info.id,
            **self._told(name, terms),
            channel="mychannel",
            state="running",
            backend="process" if backend == "auto" else backend,
            since=STARTED,
            details={"pid": "4711", "isolation": "none"},
        )
        before = self.running.get(name)
        changed = before is None or (before.version, before.package_id) != (
            one.version,
            one.package_id,
        )
        self.running[name] = one
        return replace(_deployment(one, attempt), changed=changed)

    def _told(self, name: str, terms: Terms) -> Any:
        """Return policy and collections: what is not said stays as it is."""
        before = self.running.get(name)
        policy = before.policy if before else "/Channel/Application/Endorsement"
        collections = before.collections if before else []
        if terms.policy is not None:
            policy = shown_policy(terms.policy)
        if terms.collections is not None:
            configs = terms.collections.config
            collections = [one.static_collection_config.name for one in configs]
        return {"policy": policy, "collections": collections}

    async def deploy_dev(
        self, name: str, terms: Terms, _channel: str | None = None
    ) -> Deployment:
        version = terms.version or "1.0"
        one = Running(
            name=name,
            version=version,
            sequence=self._sequence(name),
            package_id=f"{name}:{version}",
            state="down",
            backend="dev",
            since=STARTED,
            **self._told(name, terms),
        )
        changed = name not in self.running
        self.running[name] = one
        return Deployment(
            name=name,
            version=version,
            sequence=one.sequence,
            package_id=one.package_id,
            backend="dev",
            changed=changed,
            seconds=0.1,
            policy=one.policy,
            collections=one.collections,
        )

    def _sequence(self, name: str) -> int:
        return self.running[name].sequence + 1 if name in self.running else 1

    async def _fault(self, name: str, attempt: Attempt) -> None:
        if name == "broken":
            attempt.enter(Phase.COMPILE)
            attempt.output("main.go:7: undefined: \x1b[2Jx", "build")
            raise BuildFailed(
                "chaincode 'broken' did not compile: go ended with 1",
                hint="correct main.go",
                exit_code=1,
                **attempt.facts(),
            )
        if name == "exits":
            raise ExitedEarly(
                "chaincode 'exits' ended before it registered",
                signal=9,
                oom=True,
                **attempt.facts(),
            )
        if name == "defect":
            raise KeyError("nobody planned this")
        if name == "slow":
            await self._wait()

    async def invoke(self, call: Call) -> Answer:
        answer = await self._call(call)
        if answer.status >= 400:
            return answer
        self.blocks.append(_block(len(self.blocks)))
        block = len(self.blocks) - 1
        return replace(answer, block=block, **fake_explorer.outcome(call.args[0]))

    async def query(self, call: Call) -> Answer:
        return await self._call(call)

    async def compare(self, call: Call) -> list[Difference]:
        self._get(call.name)
        if call.args[0] != b"random":
            return []
        values = [b"1", b"2\x1b[2J", None]
        return [
            Difference("response", "", "", b"", values[:2]),
            Difference("write", call.name, "", b"k\x1b", values),
        ]

    async def _call(self, call: Call) -> Answer:
        self._get(call.name)
        self.calls.append(call)
        self.called.set()
        function, *args = (bytes(arg) for arg in call.args)
        match function:
            case b"put":
                self.state[args[0].decode()] = args[1]
            case b"get":
                value = self.state.get(args[0].decode())
                if value is None:
                    return answered(500, f"there is no {args[0].decode()}")
                return answered(payload=value)
            case b"echo" | b"refuse" | b"conflict" | b"forbidden" | b"stopped":
                said = ("rich queries are not yet supported",)
                refusals = said if function == b"refuse" else ()
                return answered(payload=b"|".join(args), refusals=refusals)
            case b"caller":
                told = [call.user, *(f"{k}={v}" for k, v in call.attributes.items())]
                told += [f"{k}={v.decode()}" for k, v in call.transient.items()]
                told += [f"init={call.is_init}", f"timeout={call.timeout_s}"]
                return answered(payload=" ".join(told).encode())
            case b"register" | b"record" | b"history":
                return self._coldchain(function, call.name, args[0].decode())
            case b"crash":
                raise ChaincodeError("chaincode ended in the middle", tx_id="ab" * 32)
            case b"wait":
                await self._wait()
        return answered()

    def _coldchain(self, function: bytes, name: str, parcel: str) -> Answer:
        if function == b"register" and name + parcel in self.state:
            return answered(500, f"{parcel} is registered already")
        if not self.forgets:
            self.state[name + parcel] = b""
        state = "intact" if function == b"register" else "breached"
        return answered(payload=f'{{"state": "{state}"}}'.encode())

    async def _wait(self) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    def ps(self, _channel: str | None = None) -> Sequence[Running]:
        return list(self.running.values())

    def _get(self, name: str) -> Running:
        if name not in self.running:
            raise NotFound(f"chaincode {name!r} is not deployed", hint="deploy it")
        return self.running[name]

    def log_files(self, name: str, _channel: str | None = None) -> Sequence[Path]:
        return self.output.files(Ccid(self._get(name).package_id))

    async def start(
        self, name: str, *, watch: Callable[[Any], None], channel: str | None = None
    ) -> Deployment:
        one = replace(self._get(name), state="running")
        self.running[name] = one
        attempt = self._attempt(Ccid(one.package_id), watch)
        attempt.enter(Phase.START)
        attempt.over()
        return _deployment(one, attempt)

    async def stop(self, name: str, _channel: str | None = None) -> None:
        self.running[name] = replace(self._get(name), state="stopped")

    async def remove(self, name: str, _channel: str | None = None) -> None:
        self._get(name)
        del self.running[name]


def _deployment(one: Running, attempt: Attempt) -> Deployment:
    return Deployment(
        name=one.name,
        version=one.version,
        sequence=one.sequence,
        package_id=one.package_id,
        backend=one.backend,
        reason="no container engine answers",
        details=one.details,
        reused=attempt.reused,
        phases=[(str(p.phase), p.seconds) for p in attempt.phases],
        seconds=1.5,
        policy=one.policy,
        collections=one.collections,
    )


def _block(number: int) -> bytes:
    block = common_pb2.Block()
    block.header.number = number
    block.header.data_hash = hashlib.sha256(bytes([number])).digest()
    return bytes(block.SerializeToString())


async def serve(
    home: Path,
    ready: Callable[[NodeStatus], None],
    *,
    forgets: bool = False,
    imageless: bool = False,
) -> None:
    """Serve until told to stop, as node.serve does."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    node = FakeNode(home)
    node.forgets, node.imageless = forgets, imageless
    async with AdminServer(home, node):  # type: ignore[arg-type]  # a double
        with Home(home).locked():
            try:
                ready(node.status())
                await node.stopping.wait()
            finally:
                node.close()


def main() -> None:
    """Serve the home that the command line names; says `ready` on standard output."""

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await serve(Path(sys.argv[1]), lambda _: print("ready", flush=True))

    try:
        asyncio.run(run())
    except asyncio.CancelledError:
        sys.exit(0)


if __name__ == "__main__":
    main()
