"""Random requests, whole and broken, to a real ledger: each gets one reply, nothing leaks."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from fabric_protos.peer import chaincode_pb2
from fabric_protos.peer import chaincode_shim_pb2 as shim

from chaindock.chaincode.requests import REQUESTS
from support.eventually import eventually
from support.shims.endorsing import CHANNEL, EndorsingNode, ccid_of
from support.shims.nested import spaces

if TYPE_CHECKING:
    from support.shims.peer import ShimPeer

Kind = shim.ChaincodeMessage
ROUNDS = 400
KEYS = ("", "a", "b", "k\x00", "ż", "\U0010ffff", "long" * 50)
COLLECTIONS = ("", "", "", "_implicit_org_Org1MSP", "_implicit_org_NoMSP", "nocol")
WRITES = (Kind.PUT_STATE, Kind.DEL_STATE, Kind.PURGE_PRIVATE_DATA, 21, 0)


class Requests:
    """Draws requests, and keeps what those that were accepted have written."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.written: dict[str, bytes] = {}
        self.ids: list[str] = ["nope"]

    def draw(self) -> tuple[int, bytes]:
        """Return type and payload."""
        pick = self._random.choice
        kind = pick(sorted(REQUESTS))
        payload = self._whole(kind).SerializeToString()
        if self._random.random() < 0.3:
            payload = self._broken(payload)
        return kind, payload

    def _whole(self, kind: int) -> Any:
        pick, form = self._random.choice, REQUESTS[kind][0]
        key, value = pick(KEYS), pick((b"", b"v", b"\x00\xff" * 9))
        metadata = shim.StateMetadata(metakey="VALIDATION_PARAMETER", value=value)
        paging = shim.QueryMetadata(pageSize=pick((0, 0, 0, 2, -1)))
        fields = {
            "key": key,
            "value": value,
            "collection": pick(COLLECTIONS),
            "metadata": paging.SerializeToString(),
            "startKey": key,
            "endKey": pick(KEYS),
            "query": pick(("{}", '{"selector":{}}', "x")),
            "id": pick(self.ids),
            "keys": [pick(KEYS) for _ in range(5)],
            "chaincode_id": chaincode_pb2.ChaincodeID(
                name=pick(("a", "b", "b:1/mychannel", "nope", "b/other", "qscc"))
            ),
            "input": chaincode_pb2.ChaincodeInput(args=[b"f"]),
            "rec": [
                shim.WriteRecord(
                    key=f"batch{number}",
                    value=value,
                    collection=pick(COLLECTIONS),
                    metadata=metadata,
                    type=pick(WRITES),
                )
                for number in range(3)
            ],
        }
        if kind == Kind.PUT_STATE_METADATA:
            fields["metadata"] = metadata
        names = {field.name for field in form.DESCRIPTOR.fields}
        return form(**{name: fields[name] for name in names & fields.keys()})

    def _broken(self, payload: bytes) -> bytes:
        data = bytearray(payload or b"\x00")
        for _ in range(self._random.randint(1, 3)):
            at = self._random.randrange(len(data) or 1)
            act = self._random.randrange(3)
            if act == 0 and data:
                data[at] = self._random.randrange(256)
            elif act == 1:
                data.insert(at, self._random.randrange(256))
            else:
                del data[at:]
        return bytes(data)

    def take(self, kind: int, payload: bytes, reply: Any) -> None:
        """Note what a request that was accepted has done."""
        if reply.type != Kind.RESPONSE:
            return
        request = REQUESTS[kind][0].FromString(payload)
        if kind == Kind.PUT_STATE and not request.collection:
            self.written[request.key] = request.value
        elif kind == Kind.DEL_STATE and not request.collection:
            self.written[request.key] = b""
        elif kind in {Kind.GET_STATE_BY_RANGE, Kind.GET_HISTORY_FOR_KEY}:
            self.ids.append(shim.QueryResponse.FromString(reply.payload).id)


async def answering(peer: ShimPeer) -> None:
    """Complete each call that comes."""
    while (message := await peer.next()) is not None:
        await peer.complete(message)


async def nothing_is_left(node: EndorsingNode, name: str) -> None:
    """Check that a stream holds no call and no memory."""
    handler = node.streams.registry.find_ready(ccid_of(name))
    assert handler is not None
    calls = handler.calls
    await eventually(lambda: calls.budget.held == 0)
    assert calls.unanswered == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.statement(39, 40, 47)
async def test_every_request_gets_one_reply_and_a_refused_one_changes_nothing(
    endorsing: EndorsingNode, seed: int
):
    a, b = await endorsing.chaincode("a"), await endorsing.chaincode("b")
    beside = asyncio.ensure_future(answering(b))
    requests = Requests(seed)
    call = endorsing.propose("a")
    message = await a.receive()
    for _ in range(ROUNDS):
        kind, payload = requests.draw()
        reply = await a.ask(message, kind, payload)
        assert reply.type in {Kind.RESPONSE, Kind.ERROR}
        if reply.type == Kind.ERROR:
            name = Kind.Type.Name(kind)
            told = f"{name} failed: transaction ID: {message.txid}: "
            assert reply.payload.decode().startswith(told)
        requests.take(kind, payload, reply)
    await a.complete(message)
    _, answer = await call
    writes = spaces(answer)["a"].writes if answer is not None else []
    found = {one.key: one.value for one in writes if not one.key.startswith("batch")}
    known = {k: v for k, v in requests.written.items() if not k.startswith("batch")}
    assert found == known
    for name in "ab":
        await nothing_is_left(endorsing, name)
    again = endorsing.propose("a")
    assert (await a.receive()).channel_id == CHANNEL
    again.cancel()
    beside.cancel()
    with suppress(asyncio.CancelledError):
        await beside
