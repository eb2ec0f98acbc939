"""Replays the streams of a real Fabric peer: the recorded chaincode asks, the node answers.

What the node sends has to be what the peer sent, byte by byte; only the ids of queries
are drawn anew by each side.
"""

from __future__ import annotations

import asyncio
import base64
import json
import lzma
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import grpc.aio
from fabric_protos.peer import (
    chaincode_pb2,
    chaincode_shim_pb2,
    proposal_pb2,
    proposal_response_pb2,
)

from chaindock.chaincode.support import ChaincodeSupport
from chaindock.endorser.acl import require
from chaindock.endorser.checks import Proposal, parse_proposal
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.responses import failure
from chaindock.errors import ChaindockError
from chaindock.ids import Ccid
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import Approval
from support.doubles.definitions import definitions_of
from support.eventually import eventually
from support.ledgers.recorded import commit_recorded, ledger_of
from support.shims.endorsing import processed
from support.shims.stream_node import StreamNode

if TYPE_CHECKING:
    from chaindock.chaincode.handler import Expected
    from chaindock.identity.organization import Organization
    from chaindock.ledger.ledger import Ledger

_FILE = Path(__file__).parents[2] / "fixtures" / "fabric31" / "streams.json.xz"
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PATIENCE_S = 5.0
_PACKAGES = {"gv": "gva_1", "gvsame": "gva_1"}
_CCIDS = {name: Ccid(f"{name}:{name[2] * 64}") for name in ("gva_1", "gvb_1")}
_ENDS = {12: "type 12", 1: "a second REGISTER"}
"""Types with which the chaincode ends its stream."""


@dataclass
class Scenario:
    """One recorded call; `stream` has direction, process and message."""

    file: str
    name: str
    height: int
    proposal: str
    response: str
    stream: list[tuple[str, str, Any]]

    @property
    def signed(self) -> proposal_pb2.SignedProposal:
        return proposal_pb2.SignedProposal.FromString(base64.b64decode(self.proposal))

    def messages(self) -> dict[str, list[tuple[str, bytes]]]:
        """Return the messages of each process."""
        found: dict[str, list[tuple[str, bytes]]] = {}
        chaincode = parse_proposal(self.signed).name
        for direction, process, message in self.stream:
            if isinstance(message, str):
                raw = base64.b64decode(message)
            else:  # around the proposal
                parts = (message[0], self.proposal, message[1])
                raw = b"".join(map(base64.b64decode, parts))
            name = process or _PACKAGES.get(chaincode, "gvb_1")
            found.setdefault(name, []).append((direction, raw))
        return found


def scenarios() -> list[Scenario]:
    """Return all recorded calls, in the order of the blocks that they saw."""
    rows = json.loads(lzma.decompress(_FILE.read_bytes()))
    return sorted((Scenario(*row) for row in rows), key=lambda one: one.height)


class _Process:
    """One chaincode process that dials the node, and knows bytes only."""

    def __init__(self, node: StreamNode, name: str) -> None:
        self._node, self._ccid = node, _CCIDS[name]
        self._channel: grpc.aio.Channel
        self._stream: Any

    async def start(self) -> None:
        expected: Expected = self._node.expect(self._ccid)
        address = await self._node.listener.address_on("127.0.0.1")
        self._channel = grpc.aio.insecure_channel(address)
        method: Any = self._channel.stream_stream("/protos.ChaincodeSupport/Register")
        self._stream = method()
        kind = chaincode_shim_pb2.ChaincodeMessage
        name = chaincode_pb2.ChaincodeID(name=self._ccid).SerializeToString()
        register = kind(type=kind.REGISTER, payload=name)
        await self.send(register.SerializeToString())
        await self.receive()
        await self.receive()
        handler = await expected.ready.wait()
        expected.exit.settle(None)
        del handler
        self._node.registry.forget(expected)

    async def send(self, raw: bytes) -> None:
        await self._stream.write(raw)

    async def receive(self) -> bytes:
        """Return the next message, b"" at the end."""
        async with asyncio.timeout(_PATIENCE_S):
            raw = await self._stream.read()
        return b"" if raw is grpc.aio.EOF else bytes(raw)

    async def stop(self) -> None:
        self._stream.cancel()
        await self._channel.close()
        await eventually(lambda: self._node.registry.find(self._ccid) is None)


@dataclass
class _Script:
    """Plays one scenario; `ids` are query ids: recorded to drawn."""

    ids: dict[bytes, bytes] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    async def play(self, process: _Process, messages: list[tuple[str, bytes]]) -> None:
        for direction, raw in messages:
            if direction == ">":
                await process.send(self.ours(raw))
                continue
            found = await process.receive()
            if not found:
                self.wrong.append("the stream ended")
                return
            drawn = zip(_UUID.findall(raw), _UUID.findall(found), strict=False)
            self.ids.update(drawn)
            if found != self.ours(raw):
                self.wrong.append(f"{_shown(found)} instead of {_shown(raw)}")

    def ours(self, raw: bytes) -> bytes:
        return _UUID.sub(lambda one: self.ids.get(one[0], one[0]), raw)


def _shown(raw: bytes) -> str:
    message = chaincode_shim_pb2.ChaincodeMessage.FromString(raw)
    return f"({message.type} {message.payload[:300]!r})"


class Replay:
    """A node with the recorded channel."""

    def __init__(self, folder: Path, org: Organization) -> None:
        self._folder, self._org = folder, org
        self._stack = AsyncExitStack()
        self.streams = StreamNode(state_database="goleveldb")
        self._processes: dict[str, _Process] = {}
        self.ledger: Ledger
        self.endorser: Endorser

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        await enter(self.streams)
        self.ledger = await enter(ledger_of(self._folder))
        approvals = cast("Any", Approvals())
        configuration = Configuration.of(self.ledger)
        self.endorser = Endorser(
            configuration=configuration,
            peers={"Org1MSP": self._org.peer},
            ledger=self.ledger,
            definitions=definitions_of(approvals),
            executor=ChaincodeSupport(self.streams.registry, _not_launched),
            system={
                "_lifecycle": LifecycleContract(
                    "mychannel",
                    lambda: ["Org1MSP"],
                    cast("Any", None),
                    partial(require, configuration),
                )
            },
        )
        for name in _CCIDS:
            self._processes[name] = _Process(self.streams, name)
            await self._processes[name].start()
        return self

    async def __aexit__(self, *error: object) -> None:
        for process in self._processes.values():
            await process.stop()
        await self._stack.aclose()

    async def reach(self, height: int) -> None:
        """Commit the recorded blocks below `height`."""
        while self.ledger.height < height:
            await commit_recorded(self.ledger, self.ledger.height)

    async def play(self, scenario: Scenario) -> list[str]:
        """Return what the node does in another way than the peer."""
        script = _Script()
        messages = scenario.messages()
        timeout_s = 0.3 if scenario.name == "fault_execute_timeout" else _PATIENCE_S
        proposal = parse_proposal(scenario.signed)
        work = processed(self.endorser, proposal, timeout_s)
        call = asyncio.ensure_future(work)
        try:
            for name in messages:
                if scenario.name == "fault_execute_timeout":
                    await self._play_late(script, name, messages[name], call)
                    break
            else:
                await asyncio.gather(
                    *(
                        script.play(self._processes[name], part)
                        for name, part in messages.items()
                    )
                )
            if scenario.name == "fault_exit_mid_tx":
                await self._restart()
            async with asyncio.timeout(_PATIENCE_S):
                await asyncio.wait([call])
        except TimeoutError:
            script.wrong.append("nothing comes")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        wanted = script.ours(base64.b64decode(scenario.response))
        script.wrong += _compare(proposal, wanted, call)
        registry = self.streams.registry
        if script.wrong or any(registry.find(one) is None for one in _CCIDS.values()):
            await self._restart()
        return script.wrong

    async def _play_late(
        self, script: _Script, name: str, part: list[tuple[str, bytes]], call: Any
    ) -> None:
        await script.play(self._processes[name], part[:3])
        await asyncio.wait([call])
        await script.play(self._processes[name], part[3:])

    async def _restart(self) -> None:
        for process in self._processes.values():
            await process.stop()
            await process.start()


def _compare(proposal: Proposal, response: bytes, call: asyncio.Task[Any]) -> list[str]:
    """Return how the outcome differs from the recorded response."""
    wanted = proposal_response_pb2.ProposalResponse.FromString(response)
    if call.cancelled():
        return ["no outcome"]
    error = call.exception()
    if isinstance(error, ChaindockError):
        found = failure(proposal, error)
    elif error is not None:
        return [repr(error)]
    else:
        outcome, endorsed = call.result()
        found = endorsed or proposal_response_pb2.ProposalResponse(
            response=outcome.response
        )
    wrong = []
    if found.payload != wanted.payload:
        wrong.append(f"{_action(found.payload)} instead of {_action(wanted.payload)}")
    for one in (found, wanted):
        one.ClearField("payload")
        one.ClearField("endorsement")  # its signature is random
        one.interest.chaincodes.sort(key=str)  # its order is random
    if found != wanted:
        wrong.append(f"{found} instead of {wanted}")
    return wrong


def _action(payload: bytes) -> str:
    """Return the bytes of a read-write set, for a message."""
    outer = proposal_response_pb2.ProposalResponsePayload.FromString(payload)
    return repr(proposal_pb2.ChaincodeAction.FromString(outer.extension).results)


class Approvals:
    """What the recorded peer had approved and installed."""

    def approval(self, name: str, sequence: int) -> Approval | None:
        if name == "gvnopkg":
            return None
        ccid = _CCIDS[_PACKAGES.get(name, "gvb_1")]
        return Approval(name, sequence, "1", ccid, init_required=name == "gvinit")

    def is_stopped(self, name: str) -> bool:
        return False


async def _not_launched(ccid: Ccid, seconds: float) -> None:
    raise AssertionError(f"{ccid} is not there")
