"""The recorded gateway calls, and a node with the recorded channel that answers them."""

from __future__ import annotations

import asyncio
import base64
import json
import lzma
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from fabric_protos.common import common_pb2
from fabric_protos.gateway import gateway_pb2 as pb
from fabric_protos.msp.identities_pb2 import SerializedIdentity
from fabric_protos.peer import (
    chaincode_event_pb2,
    chaincode_shim_pb2,
    proposal_response_pb2,
    transaction_pb2,
)

from chaindock.endorser.acl import require
from chaindock.endorser.caller import Caller
from chaindock.endorser.configuration import Configuration
from chaindock.endorser.cutting import OrdererOptions
from chaindock.endorser.endorser import Endorser
from chaindock.endorser.orderer import Orderer
from chaindock.errors import ChaindockError, ExecuteTimeout
from chaindock.identity.ca import new_key
from chaindock.identity.msp import SigningIdentity
from chaindock.lifecycle.contract import LifecycleContract
from chaindock.lifecycle.definitions import read_sequence
from support.doubles.definitions import definitions_of
from support.gateways.node import Front, channel_of
from support.ledgers.recorded import CHANNEL, commit_recorded, ledger_of, run
from support.shims.recorded_streams import Approvals

if TYPE_CHECKING:
    from chaindock.identity.organization import Organization
    from chaindock.ledger.ledger import Ledger

_FILE = Path(__file__).parents[2] / "fixtures" / "fabric31" / "gateway.json.xz"
_HEIGHT = 314
_LONGEST_MS = 30_000
Kind = chaincode_shim_pb2.ChaincodeMessage


class Recorded:
    """One call; bytes where the recording has base64."""

    def __init__(self, row: dict[str, Any]) -> None:
        decode = base64.b64decode
        self.name, self.method = row["name"], row["method"]
        self.request = decode(row["request"])
        self.response = decode(row["response"]) if "response" in row else None
        self.messages = [decode(one) for one in row.get("messages", ())]
        self.deadline_ms = row.get("deadline_ms")
        self.error = row.get("error")

    def __str__(self) -> str:
        return f"{self.name} {self.method}"


def calls() -> list[Recorded]:
    """Return all recorded calls, in order."""
    return [Recorded(row) for row in json.loads(lzma.decompress(_FILE.read_bytes()))]


def envelope_of(response: bytes) -> Any:
    """Return the parts of a prepared transaction: headers, proposal, answer, endorsers."""
    payload = common_pb2.Payload.FromString(
        pb.EndorseResponse.FromString(response).prepared_transaction.payload
    )
    transaction = transaction_pb2.Transaction.FromString(payload.data)
    (action,) = transaction.actions
    inner = transaction_pb2.ChaincodeActionPayload.FromString(action.payload)
    endorsers = [one.endorser for one in inner.action.endorsements]
    answer = inner.action.proposal_response_payload
    parts = payload.header, action.header, inner.chaincode_proposal_payload, answer
    return parts, endorsers


class RecordedChaincode:
    """The recorded chaincode, with the node's stream to it: its operations, done here."""

    def process_of(self, _mspid: Any) -> str:
        return ""

    async def execute(self, _ccid: Any, invocation: Any, _mspid: Any) -> Any:
        ops = json.loads(invocation.input.args[1])
        event, status, message, payload = None, 200, "", None
        try:
            if ops[-1][0] in {"return", "throw"}:
                name, *said = ops.pop()
                if name == "throw":
                    status, message, payload = 500, said[0], b""
                else:
                    status, message, payload = said[0], said[1], said[2].encode()
            for op in ops:
                if op[0] == "event":
                    event = chaincode_event_pb2.ChaincodeEvent(
                        event_name=op[1], payload=op[2].encode()
                    )
            answers = [await self._do(invocation, op) for op in ops]
            if payload is None:
                payload = json.dumps(answers, separators=(",", ":")).encode()
        except _RefusedError as error:
            status, message, payload = 500, str(error), b""
        response = proposal_response_pb2.Response(
            status=status, message=message, payload=payload
        )
        return Kind(
            type=Kind.COMPLETED,
            payload=response.SerializeToString(),
            chaincode_event=event,
        )

    async def _do(self, invocation: Any, op: list[Any]) -> Any:
        name, simulator = op[0], invocation.simulator
        if name == "sleep":
            if op[1] > _LONGEST_MS:
                text = invocation.unsent("timeout expired while executing transaction")
                raise ExecuteTimeout(text)
            await asyncio.sleep(op[1] / 1000)
            return "slept"
        if name == "exit":
            raise invocation.lost_stream("the chaincode ended")
        if name == "transient":
            return json.loads('{"a":"b"}')
        if name == "invoke":
            read_sequence(simulator, op[1])
            run(simulator, op[1], json.loads(json.dumps(op[2][1])), None)
            return "called"
        try:
            if name == "pput":
                invocation.collections().require(op[1], write=True)
            return run(simulator, invocation.namespace, [op], None)[0]
        except ChaindockError as error:
            what = f"PUT_STATE failed: transaction ID: {invocation.tx_id}"
            raise _RefusedError(f"{what}: {error}") from error


class _RefusedError(Exception):
    """What the shim throws when the peer refuses a request."""


class RecordedNode:
    """A node with the recorded channel and its peer, whose key alone is another one."""

    def __init__(self, folder: Path, org: Organization, peer: bytes) -> None:
        self._folder, self._org = folder, org
        self._peer = SigningIdentity(
            "Org1MSP", SerializedIdentity.FromString(peer).id_bytes, new_key()
        )
        self._stack = AsyncExitStack()
        self.ledger: Ledger
        self.orderer: Orderer
        self.front: Front

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        self.ledger = await enter(ledger_of(self._folder))
        while self.ledger.height < _HEIGHT:
            await commit_recorded(self.ledger, self.ledger.height)
        configuration = Configuration.of(self.ledger)
        peers = {"Org1MSP": self._peer}
        endorser = Endorser(
            configuration=configuration,
            peers=peers,
            ledger=self.ledger,
            definitions=definitions_of(Approvals()),
            executor=cast("Any", RecordedChaincode()),
            system={
                "_lifecycle": LifecycleContract(
                    CHANNEL,
                    lambda: ["Org1MSP"],
                    cast("Any", None),
                    partial(require, configuration),
                )
            },
        )
        options = OrdererOptions(mode=("manual", 0.0))
        self.orderer = await enter(Orderer(self.ledger, configuration, options))
        caller = Caller(CHANNEL, endorser, self.orderer)
        parts = self.ledger, endorser, self.orderer, caller
        channel = await channel_of(self._stack, self._org, *parts)
        channel.members.peers = peers
        window = {"time_window_s": 1e9}  # the recording is old
        self.front = await enter(Front(self._org, {CHANNEL: channel}, **window))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()
